//! The life of one child, from the wish to have it until nothing of it is left: a task, so that no actor ever waits.
//!
//! Slot (the session's last child is gone) → clearing of what it left → admission (there is room for another) →
//! preparation (directories, how the conversation is to be opened) → the shim is spawned → the [`ChildTask`] takes over.
//! With a spare only the preparation is left: its child runs, and its permit is given to the user.
//! All sessions share the few permits to start: nothing that a child or a caller can make long is done under one.
//! Whatever happens, the session gets [`LifecycleEvent::Ended`] exactly once, last, and by then nothing of the
//! child is left.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::access::Endpoint;
use super::attach::Attachment;
use super::child_events::{ChildEvents, LifecycleEvent, Mailbox, Started};
use super::conclude::{Conclusion, ExitKind, Rules, conclude};
use super::import::Offered;
use super::journaling;
use super::launch::{self, Launched};
use super::opening::{self, Opening, Prepared};
use super::quota;
use super::shelf::{Reserved, SpareKind};
use super::spare::{Claimed, Spare};
use super::store::Record;
use super::user_id;
use crate::adapter::LaunchRefusal;
use crate::admission::StartPermit;
use crate::child::{
    ChildContext, ChildExit, ChildTask, ConnectionHandle, Contained, FENCED, RawStops, Sweep, UNKILLABLE,
    run_raw,
};
use crate::error::{StartFailure, TurnError};
use crate::installation::versions::{Chosen, UNJUDGED};
use crate::model::ids::Generation;
use crate::session::env::Env;
use crate::session::executable;
use crate::session::registry::Entry;
use crate::session::sessions::Sessions;
use crate::telemetry::events::Exit;
use crate::telemetry::metrics::{AdmissionRejected, SpareClaim, StopHow};
use crate::turn::wake;
use crate::workspace::Workspace;

#[derive(Clone)]
pub(crate) struct Plan {
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) entry: Arc<Entry>,
    pub(crate) workspace: Workspace,
    pub(crate) generation: Generation,
    /// A history to begin with, if the conversation has no context.
    pub(crate) offered: Option<Offered>,
    /// A client that speaks to the child itself.
    pub(crate) attachment: Option<Arc<Attachment>>,
}

impl Plan {
    pub(super) fn env(&self) -> &Arc<Env> {
        &self.sessions.env
    }
}

/// Sends the last event, even if the task panics or is dropped.
struct ExitGuard {
    mailbox: Mailbox,
    conclusion: Option<Conclusion>,
}

impl Drop for ExitGuard {
    fn drop(&mut self) {
        let conclusion = self.conclusion.take().unwrap_or_else(|| {
            let failure = StartFailure::Handshake("the task of the child failed".to_owned());
            Conclusion::without_child(ExitKind::Crashed(failure))
        });
        self.mailbox.send(LifecycleEvent::Ended(Box::new(conclusion)));
    }
}

/// See the module. `stop` starts an orderly stop of the child. Dropping the future kills the child's tree.
pub(crate) async fn run(
    plan: Plan,
    record: Box<Record>,
    reserved: Option<Reserved>,
    stop: CancellationToken,
    mailbox: Mailbox,
) {
    let mut guard = ExitGuard { mailbox, conclusion: None };
    let is_reserved = reserved.is_some();
    let given = match reserved {
        Some(reserved) => reserved.child().await,
        None => None,
    };
    let (spare, _slot) = match given {
        Some(given) => given,
        None => (None, plan.sessions.slots.acquire(&plan.entry.hash).await),
    };
    if is_reserved && spare.is_none() {
        plan.env().telemetry.metrics.spare_claims.increment(SpareClaim::Unfit);
    }
    let served = match spare {
        Some(spare) => on_spare(&plan, &record, spare, &stop, &guard.mailbox).await,
        None => None,
    };
    let conclusion = match served {
        Some(conclusion) => conclusion,
        None => live(&plan, record, &stop, &guard.mailbox).await,
    };
    // Of a child that was prepared and not started as well.
    journaling::close(&plan);
    if conclusion.was_requested() {
        opening::tidy(&plan).await;
    }
    guard.conclusion = Some(conclusion);
    // Before the slot is free.
    drop(guard);
}

/// The child is a spare. `None`: it does not fit or has failed before it was ready, and nothing is left of it; then a
/// child is started.
async fn on_spare(
    plan: &Plan,
    record: &Record,
    spare: Spare,
    stop: &CancellationToken,
    mailbox: &Mailbox,
) -> Option<Conclusion> {
    let (env, begun) = (plan.env(), Instant::now());
    let claims = &env.telemetry.metrics.spare_claims;
    let (mut prepared, claimed) = match claim(plan, record, spare).await {
        Ok(claimed) => claimed,
        Err(spare) => {
            claims.increment(SpareClaim::Unfit);
            spare.end(env).await;
            return None;
        }
    };
    claims.increment(SpareClaim::Claimed);
    prepared.send_news(mailbox);
    let Claimed { child, pid, endpoint, chosen, permit, kind } = claimed;
    // Its start is done.
    let start_permit = Arc::default();
    let links = Links { stop, mailbox, start_permit: &start_permit, spare: Some(&kind) };
    let served = serve(plan, &prepared, &chosen, links, (child, endpoint), pid, begun).await;
    drop(permit);
    let conclusion = served.ok().filter(|conclusion| !conclusion.never_started());
    if conclusion.is_none() {
        plan.sessions.shelf.failed(&kind);
    }
    conclusion
}

/// Binds the spare to the session, unless a start would use anything else.
async fn claim(plan: &Plan, record: &Record, spare: Spare) -> Result<(Prepared, Claimed), Box<Spare>> {
    let prepared = opening::prepare(plan, Box::new(record.clone()), Opening::OfSpare).await;
    let chosen = executable::choose(plan.env()).await;
    let (Ok(prepared), Ok(chosen)) = (prepared, chosen) else { return Err(Box::new(spare)) };
    let claimed = spare.claim(plan, &prepared, &chosen)?;
    Ok((prepared, claimed))
}

async fn live(plan: &Plan, record: Box<Record>, stop: &CancellationToken, mailbox: &Mailbox) -> Conclusion {
    let unusable = |error: std::io::Error| {
        Conclusion::without_child(ExitKind::NotAdmitted(TurnError::Storage(error.into())))
    };
    let has_id = tokio::select! {
        has_id = user_id::ensure(plan) => has_id,
        () = stop.cancelled() => return Conclusion::without_child(ExitKind::Requested),
    };
    if let Err(error) = has_id {
        return Conclusion::without_child(ExitKind::NotAdmitted(error));
    }
    // A session that begins has nothing to be cleared, as a rule; the preparation sees to the exceptions.
    if plan.generation > Generation(1)
        && let Err(error) = opening::clear(plan).await
    {
        return unusable(error);
    }
    if let Err(error) = quota::check(plan).await {
        return Conclusion::without_child(ExitKind::NotAdmitted(error));
    }
    let admission = &plan.sessions.admission;
    let permits = tokio::select! {
        permits = admission.admit(plan.entry.key.user()) => permits,
        () = stop.cancelled() => return Conclusion::without_child(ExitKind::Requested),
    };
    let (start_permit, _child_permit) = match permits {
        Ok(permits) => permits,
        Err(error) => return Conclusion::without_child(ExitKind::NotAdmitted(error)),
    };
    // The wait for them may have been long. A shim looks again, and later.
    if plan.env().is_fenced() {
        return Conclusion::without_child(ExitKind::NotAdmitted(TurnError::NodeFenced { in_turn: false }));
    }
    let start_permit = Arc::new(Mutex::new(Some(start_permit)));
    let mut chosen = match executable::choose(plan.env()).await {
        Ok(chosen) => chosen,
        Err(failure) => return not_started(plan, failure),
    };
    let program = chosen.clone();
    let start = move |plan: &Plan, prepared: &Prepared| request(plan, prepared, &program);
    let (mut prepared, launched) = match opening::prepare_and(plan, record, start).await {
        Ok(prepared) => prepared,
        Err(error) => return unusable(error),
    };
    let mut launched = Some(launched);
    // The CLI may disagree about the conversation: then the other way once, then a new conversation.
    while prepared.attempt < opening::MOST_ATTEMPTS {
        prepared.send_news(mailbox);
        let requested = match launched.take() {
            Some(requested) => requested,
            None => {
                chosen = match executable::choose(plan.env()).await {
                    Ok(chosen) => chosen,
                    Err(failure) => return not_started(plan, failure),
                };
                request_again(plan, &prepared, &chosen).await
            }
        };
        let links = Links { stop, mailbox, start_permit: &start_permit, spare: None };
        match one_child(plan, &prepared, &chosen, links, requested).await {
            Err(refusal) => {
                if refusal == LaunchRefusal::NoMirror {
                    plan.env().installed.mirrors_not(&chosen);
                }
                let plan = plan.clone();
                let next = move || prepared.after_refusal(refusal, &plan);
                match tokio::task::spawn_blocking(next).await {
                    Ok(next) => prepared = next,
                    Err(_) => break,
                }
            }
            Ok(conclusion) if conclusion.never_started() && give_way(plan, &chosen, stop).await => {}
            Ok(conclusion) => return conclusion,
        }
    }
    let failure = StartFailure::Handshake("it neither begins nor resumes the conversation".to_owned());
    not_started(plan, failure)
}

/// The CLI has failed before it was ready. Whether there is another version to be tried.
async fn give_way(plan: &Plan, chosen: &Chosen, stop: &CancellationToken) -> bool {
    if plan.env().is_trial() {
        return plan.env().installed.failed(chosen);
    }
    tokio::select! {
        is_there = executable::failed_in_session(plan.env(), chosen) => is_there,
        () = stop.cancelled() => false,
    }
}

/// What binds a child to its session.
#[derive(Clone, Copy)]
struct Links<'a> {
    stop: &'a CancellationToken,
    mailbox: &'a Mailbox,
    start_permit: &'a Arc<Mutex<Option<StartPermit>>>,
    /// It was a spare of this kind.
    spare: Option<&'a SpareKind>,
}

/// A child that was asked for, and when.
type Requested = (Instant, Result<Launched, StartFailure>);

/// Blocking, inside a runtime: it looks at files and writes to cgroups. If nobody waits for it any more, the child ends
/// with its handle.
fn request(plan: &Plan, prepared: &Prepared, chosen: &Chosen) -> Requested {
    let begun = Instant::now();
    #[cfg(feature = "failpoints")]
    if plan.sessions.fails_start.swap(false, std::sync::atomic::Ordering::Relaxed) {
        let message = "as asked for".to_owned();
        return (begun, Err(StartFailure::Spawn { reason: "emfile", message, source: None }));
    }
    (begun, launch::start(plan, prepared, chosen))
}

/// Another process for what was prepared.
async fn request_again(plan: &Plan, prepared: &Prepared, chosen: &Chosen) -> Requested {
    let (owned, ready, program) = (plan.clone(), prepared.clone(), chosen.clone());
    let launched = tokio::task::spawn_blocking(move || request(&owned, &ready, &program)).await;
    launched.unwrap_or_else(|_| {
        let failure = StartFailure::Handshake("the task that starts the child failed".to_owned());
        (Instant::now(), Err(failure))
    })
}

/// One process. `Err`: it would not open the conversation in this way.
async fn one_child(
    plan: &Plan,
    prepared: &Prepared,
    chosen: &Chosen,
    links: Links<'_>,
    (begun, launched): Requested,
) -> Result<Conclusion, LaunchRefusal> {
    let mut started = running(plan, launched).await;
    // Spares go before a session is refused.
    if started.as_ref().is_err_and(|failure| shortage(failure).is_some())
        && plan.sessions.shelf.make_room(UNKILLABLE).await
    {
        let (_, launched) = request_again(plan, prepared, chosen).await;
        started = running(plan, launched).await;
    }
    match started {
        Ok((Launched { child, endpoint }, pid)) => {
            serve(plan, prepared, chosen, links, (child, endpoint), pid, begun).await
        }
        Err(failure) => Ok(not_started(plan, failure)),
    }
}

/// Waits until a child that was asked for runs. After an error nothing of it is left.
async fn running(
    plan: &Plan,
    launched: Result<Launched, StartFailure>,
) -> Result<(Launched, u32), StartFailure> {
    plan.env().publish_limits();
    let Launched { mut child, endpoint } = launched?;
    let limit = plan.env().current().session.spawn_timeout;
    match timeout(limit, child.shim.started()).await {
        Ok(Ok(pid)) => Ok((Launched { child, endpoint }, pid)),
        Ok(Err(error)) => {
            child.shim.gone().await;
            Err(error.into())
        }
        Err(_) => {
            child.shim.kill_tree();
            drop(timeout(UNKILLABLE, child.shim.gone()).await);
            Err(StartFailure::NeverReady { limit })
        }
    }
}

/// A process that runs, until nothing is left of it. `begun`: when it began to be the session's.
async fn serve(
    plan: &Plan,
    prepared: &Prepared,
    chosen: &Chosen,
    links: Links<'_>,
    (mut child, endpoint): (Box<Contained>, Option<Endpoint>),
    pid: u32,
    begun: Instant,
) -> Result<Conclusion, LaunchRefusal> {
    let Links { stop, mailbox, start_permit, spare } = links;
    let metrics = &plan.env().telemetry.metrics;
    if let Some(lost) = plan.env().lost(plan.entry.key.user()) {
        child.shim.end_when(lost);
    }
    let token = endpoint.as_ref().and_then(Endpoint::token);
    let secrets = token.map_or_else(|| prepared.secrets.clone(), |token| prepared.secrets.and(token));
    // Until the child has ended. Its token dies with it.
    let _endpoint = match endpoint.map(|endpoint| endpoint.serve(&mut child.shim)).transpose() {
        Ok(guard) => guard,
        Err(error) => {
            child.shim.kill_tree();
            drop(timeout(UNKILLABLE, child.shim.gone()).await);
            let message = format!("its way to the model's API cannot be served: {error}");
            return Ok(not_started(plan, StartFailure::Spawn { reason: "broker", message, source: None }));
        }
    };
    let took = begun.elapsed();
    plan.env().cgroups.set_usable(!child.shim.is_ungrouped());
    metrics.containment.select(plan.env().cgroups.containment());
    let shim = child.shim.shim_pid();
    let context = ChildContext {
        config: plan.env().current(),
        metrics: metrics.clone(),
        secrets,
        events: Arc::new(ChildEvents {
            plan: plan.clone(),
            mailbox: mailbox.clone(),
            chosen: chosen.clone(),
            begun,
            start_permit: start_permit.clone(),
            spare: spare.cloned(),
            journal: prepared.journal.clone(),
            imported: prepared.imported.clone(),
        }),
    };
    let running = Running::new(plan, prepared, context, child, begun);
    plan.env().telemetry.started(&plan.entry.key, plan.generation.0, took);
    if let Some(shim) = shim {
        mailbox.send(LifecycleEvent::Started(Started { pid, shim }, running.handle()));
    }
    let exit = running.run(stop.clone(), plan.sessions.idle_clients_end.clone()).await;
    journaling::close(plan);
    record_stop(plan, &exit);
    match exit.refusal {
        Some(refusal) if !exit.requested => Err(refusal),
        _ => Ok(conclude_and_record(plan, exit)),
    }
}

/// A child, and who speaks to it.
enum Running {
    Session(Box<ChildTask>),
    Client(Box<ChildContext>, Box<Contained>, Option<String>, Arc<Attachment>),
}

impl Running {
    fn new(
        plan: &Plan,
        prepared: &Prepared,
        context: ChildContext,
        child: Box<Contained>,
        begun: Instant,
    ) -> Self {
        let model = prepared.model.clone();
        match &plan.attachment {
            Some(attachment) => Self::Client(Box::new(context), child, model, attachment.clone()),
            None => Self::Session(ChildTask::new(context, child, model, begun, &prepared.settings)),
        }
    }

    fn handle(&self) -> Option<Arc<ConnectionHandle>> {
        match self {
            Self::Session(task) => Some(task.handle()),
            Self::Client(..) => None,
        }
    }

    /// `after_turn`: a client gets the end of its turn, and no other.
    async fn run(self, stop: CancellationToken, after_turn: CancellationToken) -> ChildExit {
        match self {
            Self::Session(task) => task.run(stop).await,
            Self::Client(context, child, model, attachment) => {
                let stops = RawStops { now: stop, after_turn };
                Box::pin(run_raw(*context, child, model, move || attachment.take(), stops)).await
            }
        }
    }
}

fn not_started(plan: &Plan, failure: StartFailure) -> Conclusion {
    plan.env().telemetry.not_started(&plan.entry.key, &failure);
    let why = match shortage(&failure) {
        // No fault of the CLI, and a pause of this session would not help.
        Some(short_of) => {
            plan.env().telemetry.metrics.admission_rejected.increment(short_of);
            ExitKind::NotAdmitted(TurnError::Overloaded {
                reason: "the host has no room for another process or open file",
                retry_after: SHORTAGE_PAUSE,
            })
        }
        None if failure.reason() == FENCED => ExitKind::NotAdmitted(TurnError::NodeFenced { in_turn: false }),
        // Nor here: it stays refused until an operator does something.
        None if failure.reason() == UNJUDGED => ExitKind::NotAdmitted(TurnError::NotStarted(failure)),
        None => ExitKind::NotStarted(failure),
    };
    Conclusion::without_child(why)
}

/// What the host is short of, if that is why nothing was started.
fn shortage(failure: &StartFailure) -> Option<AdmissionRejected> {
    match failure.reason() {
        "eagain" => Some(AdmissionRejected::Processes),
        "enomem" => Some(AdmissionRejected::Memory),
        "emfile" => Some(AdmissionRejected::Fds),
        _ => None,
    }
}

/// When to try again after the host was short of processes, memory or files.
const SHORTAGE_PAUSE: Duration = Duration::from_secs(1);

fn record_stop(plan: &Plan, exit: &ChildExit) {
    let metrics = &plan.env().telemetry.metrics;
    match exit.sweep {
        Some(Sweep::Done(swept)) => {
            metrics.leftovers_killed.add(swept.method, swept.killed);
            metrics.tree_kill.record(swept.method, swept.took);
        }
        Some(Sweep::ShimDied { method, killed }) => metrics.leftovers_killed.add(method, killed as u64),
        Some(Sweep::NothingStarted) | None => {}
    }
    if let (true, Some(since)) = (exit.requested, exit.stop_began) {
        let how = if exit.forced { StopHow::Killed } else { StopHow::Orderly };
        metrics.stop_duration.record(how, since.elapsed());
    }
}

fn conclude_and_record(plan: &Plan, exit: ChildExit) -> Conclusion {
    let config = plan.env().current();
    let rules = Rules {
        draining: plan.sessions.is_draining(),
        retry_turn: config.restart.retry_turn,
        spawn_timeout: config.session.spawn_timeout,
    };
    let session = plan.entry.key.hash();
    let (was_ready, stderr) = (exit.ready, if exit.requested { String::new() } else { exit.stderr.clone() });
    let mut conclusion = conclude(exit, rules);
    let (telemetry, reason) = (&plan.env().telemetry, conclusion.reason);
    let exit = Exit { reason: reason.as_str(), detail: conclusion.detail.clone(), at: SystemTime::now() };
    plan.entry.status.exited(plan.generation.0, exit.clone(), stderr.clone());
    telemetry.exited(&plan.entry.key, plan.generation.0, reason, &exit, conclusion.was_requested());
    if let ExitKind::NotStarted(failure) = &conclusion.kind {
        telemetry.not_started(&plan.entry.key, failure);
        // It has seen no prompt yet, and callers get this without the paths in it.
        if !was_ready && !stderr.is_empty() {
            tracing::warn!(%session, %stderr, "what the CLI said before it ended");
        }
    }
    if let Some((mut running, error)) = conclusion.lost.take() {
        let rest = std::mem::take(&mut running.rest);
        if let Some(last) = running.lose(rest, error, Instant::now()).last {
            wake(last.send());
        }
    }
    conclusion
}
