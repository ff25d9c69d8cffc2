//! The life of one child, from the wish to have it until nothing of it is left: a task, so that no actor ever waits.
//!
//! Slot (the session's last child is gone) → clearing of what it left → admission (there is room for another) →
//! preparation (directories, how the conversation is to be opened) → the shim is spawned → the [`Driver`] takes over.
//! All sessions share the few permits to start: nothing that a child or a caller can make long is done under one.
//! Whatever happens, the session hears [`ChildNews::Gone`] exactly once, last, and by then nothing of the child is
//! left.

use std::ffi::OsString;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::import::{First, Imported, Offered};
use super::opening::{self, Prepared};
use super::state::Departure;
use super::store::Record;
use crate::adapter::{LaunchPlan, Refusal};
use crate::admission::StartPermit;
use crate::child::{
    self, ChildLimits, Contained, Departed, Driver, Ending, Launch, OomKills, Port, Report, Running, Setup,
    Sweep, TurnJob, UNKILLABLE, Verdict,
};
use crate::config::PermissionPolicy;
use crate::error::{Loss, StartFailure, TurnError};
use crate::installation::versions::{self, Chosen};
use crate::model::ids::Generation;
use crate::session::instance::{Instance, Once, Slot};
use crate::session::registry::Entry;
use crate::supervisor::{IdleMessage, Room};
use crate::telemetry::events::{Exit, What};
use crate::telemetry::metrics::{
    AdmissionRejected, ContextLost, ExitReason, FirstOutput, RestartCause, StopHow,
};
use crate::turn::wake;
use crate::workspace::Workspace;

/// What is wanted.
#[derive(Clone)]
pub(crate) struct Plan {
    pub(crate) instance: Arc<Instance>,
    pub(crate) entry: Arc<Entry>,
    pub(crate) workspace: Workspace,
    pub(crate) generation: Generation,
    /// A history to begin with, if the conversation has no context.
    pub(crate) offered: Option<Offered>,
}

impl Plan {
    fn note(&self, what: What) {
        self.instance.happenings.note(&self.entry.key, what);
    }
}

/// What the session hears.
#[derive(Debug)]
pub(crate) enum ChildNews {
    /// A process runs.
    Started(Started, Arc<Port>),
    /// Part of the conversation is not on disk; which, where that is known ([`crate::adapter::Adapter::transcript_gap`]).
    ContextLost(ContextLost, Option<String>),
    /// How the turn that follows a history is sent, before the child is ready.
    First(First),
    /// The CLI has taken up the history that was offered.
    Imported(Imported),
    /// The conversation goes on under another id, because neither opening it nor beginning it worked under the old.
    NewConversation(String),
    /// From the driver.
    Report(Report),
    /// There is no child any more. Always the last news.
    Gone(Box<Gone>),
}

/// The process ids of a child.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Started {
    pub(crate) pid: u32,
    pub(crate) shim: u32,
}

/// How it ended.
#[derive(Debug)]
pub(crate) struct Gone {
    pub(crate) why: Departure,
    pub(crate) was_ready: bool,
    /// What a start after this one is for.
    pub(crate) cause: RestartCause,
    /// A turn of which nothing had come out, to be given to the next child.
    pub(crate) retry: Option<Box<TurnJob>>,
}

impl Gone {
    pub(crate) fn was_asked(&self) -> bool {
        self.why == Departure::Asked
    }

    /// It was asked to start and did not, for a reason that is its own. No turn is with it.
    fn never_started(&self) -> bool {
        let is_its_own = matches!(self.why, Departure::NotStarted(_) | Departure::Crashed(_));
        !self.was_ready && is_its_own && self.retry.is_none()
    }

    fn before_ready(why: Departure) -> Self {
        Self { why, was_ready: false, cause: RestartCause::NotStarted, retry: None }
    }
}

/// Sees to it that the last news is told even if the task panics or is dropped.
struct LastWord {
    tell: Tell,
    said: bool,
}

/// How the session is told.
pub(super) type Tell = Arc<dyn Fn(ChildNews) + Send + Sync>;

impl Drop for LastWord {
    fn drop(&mut self) {
        if !self.said {
            let failure = StartFailure::Handshake("the task of the child failed".to_owned());
            (self.tell)(ChildNews::Gone(Box::new(Gone::before_ready(Departure::Crashed(failure)))));
        }
    }
}

/// See the module. `stop` asks the child to go. Dropping the future kills the child's tree.
pub(crate) async fn run(plan: Plan, record: Box<Record>, stop: CancellationToken, tell: Tell) {
    let mut last_word = LastWord { tell, said: false };
    let _slot = Slot::of(&plan.instance, &plan.entry.key.hash()).await;
    let gone = live(&plan, record, &stop, &last_word.tell).await;
    last_word.said = true;
    (last_word.tell)(ChildNews::Gone(Box::new(gone)));
}

async fn live(plan: &Plan, record: Box<Record>, stop: &CancellationToken, tell: &Tell) -> Gone {
    if let Err(error) = opening::clear(plan).await {
        return Gone::before_ready(Departure::NotAdmitted(TurnError::Storage(error.to_string())));
    }
    let admission = &plan.instance.admission;
    if admission.is_full() {
        plan.instance.helpers.tell_evictor(IdleMessage::MakeRoom(Room::Children(
            admission.wishes(Some(plan.entry.key.user())),
        )));
    }
    let permits = tokio::select! {
        permits = admission.admit(plan.entry.key.user()) => permits,
        () = stop.cancelled() => return Gone::before_ready(Departure::Asked),
    };
    let (start_permit, _child_permit) = match permits {
        Ok(permits) => permits,
        Err(error) => return Gone::before_ready(Departure::NotAdmitted(error)),
    };
    let start_permit = Arc::new(Once::new(start_permit));
    let mut prepared = match opening::prepare(plan, record).await {
        Ok(prepared) => prepared,
        Err(error) => {
            return Gone::before_ready(Departure::NotAdmitted(TurnError::Storage(error.to_string())));
        }
    };
    // The CLI may disagree about the conversation: then the other way once, then a new conversation.
    while prepared.attempt < opening::MOST_ATTEMPTS {
        prepared.tell(tell);
        let chosen = match versions::choose(&plan.instance).await {
            Ok(chosen) => chosen,
            Err(failure) => return not_started(plan, failure),
        };
        match one_child(plan, &prepared, &chosen, stop, tell, &start_permit).await {
            Err(refusal) => {
                let plan = plan.clone();
                let next = move || prepared.after_refusal(refusal, &plan);
                match tokio::task::spawn_blocking(next).await {
                    Ok(next) => prepared = next,
                    Err(_) => break,
                }
            }
            Ok(gone) if gone.never_started() && give_way(plan, &chosen, stop).await => {}
            Ok(gone) => return gone,
        }
    }
    let failure = StartFailure::Handshake("it neither begins nor resumes the conversation".to_owned());
    not_started(plan, failure)
}

/// The CLI has failed before it was ready. Whether there is another version to be tried.
async fn give_way(plan: &Plan, chosen: &Chosen, stop: &CancellationToken) -> bool {
    if plan.instance.is_trial() {
        return plan.instance.installed.failed(chosen);
    }
    tokio::select! {
        is_there = versions::failed_in_session(&plan.instance, chosen) => is_there,
        () = stop.cancelled() => false,
    }
}

/// One process. `Err`: it would not open the conversation in this way.
async fn one_child(
    plan: &Plan,
    prepared: &Prepared,
    chosen: &Chosen,
    stop: &CancellationToken,
    tell: &Tell,
    start_permit: &Arc<Once<StartPermit>>,
) -> Result<Gone, Refusal> {
    let metrics = &plan.instance.metrics;
    let begun = Instant::now();
    let oom_before = OomKills::now();
    let mut child = match start(plan, prepared, chosen) {
        Ok(child) => child,
        Err(failure) => return Ok(not_started(plan, failure)),
    };
    let limit = plan.instance.config.session.spawn_timeout;
    let pid = match timeout(limit, child.shim.started()).await {
        Ok(Ok(pid)) => pid,
        Ok(Err(error)) => {
            let failure = StartFailure::Spawn { reason: error.reason(), message: error.to_string() };
            child.shim.gone().await;
            return Ok(not_started(plan, failure));
        }
        Err(_) => {
            child.shim.kill_tree();
            drop(timeout(UNKILLABLE, child.shim.gone()).await);
            return Ok(not_started(plan, StartFailure::NeverReady { limit }));
        }
    };
    metrics.spawn_exec(begun.elapsed());
    plan.instance.note_groups(!child.shim.is_ungrouped());
    metrics.containment(plan.instance.rung());
    let shim = child.shim.shim_pid();
    let setup = Setup {
        adapter: plan.instance.adapter,
        config: plan.instance.config.clone(),
        metrics: metrics.clone(),
        secrets: prepared.secrets.clone(),
        report: reporter(plan, prepared, chosen.clone(), tell.clone(), start_permit.clone(), begun),
    };
    let driver = Driver::new(setup, child, prepared.model.clone(), begun, &prepared.bound);
    plan.note(What::Started { generation: plan.generation.0 });
    if let Some(shim) = shim {
        tell(ChildNews::Started(Started { pid, shim }, driver.port()));
    }
    let departed = driver.run(stop.clone()).await;
    note_end(plan, &departed);
    match departed.refusal {
        Some(refusal) if !departed.asked => Err(refusal),
        _ => Ok(conclude(plan, departed, oom_before)),
    }
}

/// Takes what the dialogue tells to whom it concerns.
fn reporter(
    plan: &Plan,
    prepared: &Prepared,
    chosen: Chosen,
    tell: Tell,
    start_permit: Arc<Once<StartPermit>>,
    begun: Instant,
) -> Arc<dyn Fn(Report) + Send + Sync> {
    let (metrics, entry) = (plan.instance.metrics.clone(), plan.entry.clone());
    let happenings = plan.instance.happenings.clone();
    let progress = prepared.progress.clone();
    let installed = plan.instance.installed.clone();
    let (imported, instance) = (prepared.imported.clone(), plan.instance.clone());
    Arc::new(move |report| {
        match &report {
            Report::Permissions(pending) => {
                return entry.with_board(|board| board.permissions.clone_from(pending));
            }
            Report::Active(active) => entry.with_board(|board| board.active = *active),
            // The work of a start is done. How long servers take to connect, which a caller may have chosen, holds up
            // their own session alone.
            Report::Greeted => return drop(start_permit.take()),
            Report::Ready => {
                metrics.spawned(None);
                metrics.spawn_ready(begun.elapsed());
                happenings.note(&entry.key, What::Ready { took: begun.elapsed() });
                // Writes when it is another than before.
                let (installed, chosen) = (installed.clone(), chosen.clone());
                tokio::task::spawn_blocking(move || installed.worked(&chosen));
                if let Some(mut imported) = imported.clone() {
                    imported.program.take().into_iter().for_each(|it| instance.import_ability.accepted(it));
                    tell(ChildNews::Imported(imported));
                }
            }
            Report::OwnTurn { cost_usd } => {
                entry.with_board(|board| board.spent(*cost_usd));
                happenings.note(&entry.key, What::OwnTurn { cost_usd: *cost_usd });
            }
            Report::Model(_) => {}
            // Shown at once: whoever hears of the end may look before the session's actor does.
            Report::TurnEnded(ended) => {
                let turns = entry.with_board(|board| board.turn_over(ended.turn, ended.cost_usd));
                if let Some(progress) = &progress {
                    progress.note(turns, ended.checkpoint.as_ref());
                }
            }
        }
        tell(ChildNews::Report(report));
    })
}

fn start(plan: &Plan, prepared: &Prepared, chosen: &Chosen) -> Result<Box<Contained>, StartFailure> {
    let Plan { instance, workspace, generation, entry, .. } = plan;
    let dirs = workspace.dirs();
    let command = instance.adapter.command(&LaunchPlan {
        cli: &instance.config.cli,
        dirs,
        session_id: &prepared.cli_session_id,
        opening: prepared.opening,
        model: prepared.model.as_deref(),
        bound: &prepared.bound,
        mcp_timeout: instance.config.mcp.connect_timeout,
        asks_permission: instance.config.permissions.policy != PermissionPolicy::Deny,
    });
    let program = &chosen.found;
    let mut args = program.first_args.clone();
    args.extend(command.args);
    let env = environment(instance, entry, dirs, command.env, command.decided_env, prepared);
    let again = if chosen.is_fallback { "-again" } else { "" };
    let name = format!("{}-{}{again}", entry.key.hash(), generation.0);
    let launch = Launch {
        program: &program.path,
        args: &args,
        env: &env,
        cwd: &dirs.work,
        limits: &limits_of(&instance.config.limits),
        cgroup: instance.cgroups.as_ref().map(|base| base.child_dir(&format!("{name}-{}", prepared.attempt))),
    };
    child::spawn(&instance.shim, &launch)
        .map_err(|error| StartFailure::Spawn { reason: error.reason(), message: error.to_string() })
}

fn limits_of(config: &crate::config::Limits) -> ChildLimits {
    ChildLimits {
        nofile: config.child_open_files,
        nofile_soft: crate::support::open_files::of_children(),
        nproc: config.child_processes,
        fsize: config.child_file_size,
        oom_score_adj: Some(config.child_oom_score),
        ..ChildLimits::default()
    }
}

/// The child's whole environment. Later entries win.
fn environment(
    instance: &Instance,
    entry: &Entry,
    dirs: &crate::adapter::Dirs,
    of_adapter: Vec<(OsString, OsString)>,
    decided: Vec<(OsString, OsString)>,
    prepared: &Prepared,
) -> Vec<(OsString, OsString)> {
    let cli = &instance.config.cli;
    let passed = cli.env_pass.iter().filter_map(|name| Some((name.into(), std::env::var_os(name)?)));
    let configured = cli.env.iter().map(|(name, value)| (name.into(), value.into()));
    let own = [
        ("HOME".into(), dirs.home.clone().into_os_string()),
        ("TMPDIR".into(), dirs.tmp.clone().into_os_string()),
        (instance.marker.name.into(), instance.marker.value.clone().into()),
        ("PILOTLIGHT_SESSION".into(), entry.key.hash().as_str().into()),
    ];
    let given = passed.chain(of_adapter).chain(configured).chain(prepared.variables.iter());
    let given = given.filter_map(|(name, value)| {
        let value = match prepared.own_credentials {
            true => instance.adapter.beside_own_credentials(&name, value)?,
            false => value,
        };
        Some((name, value))
    });
    given.chain(decided).chain(own).collect()
}

fn not_started(plan: &Plan, failure: StartFailure) -> Gone {
    plan.instance.metrics.spawned(Some(failure.reason()));
    plan.note(What::NotStarted { reason: failure.reason() });
    tracing::warn!(session = %plan.entry.key.hash(), reason = failure.reason(), "the CLI did not start");
    let why = match shortage(&failure) {
        // No fault of the CLI, and nothing that a pause of this session would mend.
        Some(short_of) => {
            plan.instance.metrics.admission_rejected(short_of);
            Departure::NotAdmitted(TurnError::Overloaded {
                reason: "the host has no room for another process or open file",
                retry_after: SHORTAGE_PAUSE,
            })
        }
        // Nor here: it stays refused until an operator does something.
        None if failure.reason() == versions::UNJUDGED => {
            Departure::NotAdmitted(TurnError::NotStarted(failure))
        }
        None => Departure::NotStarted(failure),
    };
    Gone::before_ready(why)
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

/// What the end of every child leaves in the figures.
fn note_end(plan: &Plan, departed: &Departed) {
    let metrics = &plan.instance.metrics;
    if let Some(ended) = &departed.ended {
        match ended.sweep {
            Sweep::Done(swept) => {
                metrics.leftovers_killed(swept.method.as_str(), swept.killed);
                metrics.tree_kill(swept.method.as_str(), swept.took);
            }
            Sweep::ShimDied { rung, killed } => metrics.leftovers_killed(rung.as_str(), killed as u64),
            Sweep::NothingStarted => {}
        }
    }
    if let (true, Some(since)) = (departed.asked, departed.stop_began) {
        let how = if departed.forced { StopHow::Killed } else { StopHow::Orderly };
        metrics.stopped(how, since.elapsed());
    }
}

fn conclude(plan: &Plan, departed: Departed, oom_before: OomKills) -> Gone {
    let metrics = &plan.instance.metrics;
    let killed_by_us = departed.forced;
    let ending = departed
        .exit
        .map_or(Ending::Unknown, |exit| Ending::classify(exit, killed_by_us, oom_before, OomKills::now()));
    let reason = match departed.verdict {
        _ if departed.asked && plan.instance.is_draining() => ExitReason::Drain,
        _ if departed.asked => ExitReason::Evicted,
        Some(Verdict::Hung | Verdict::NeverReady) => ExitReason::Hang,
        Some(Verdict::Protocol(_)) => ExitReason::Protocol,
        Some(Verdict::MemoryLimit(_)) => ExitReason::MemoryLimit,
        None => ExitReason::of(ending),
    };
    metrics.exited(reason);
    let cause = match departed.verdict {
        Some(Verdict::Hung) => "it no longer answered and was killed".to_owned(),
        Some(Verdict::Protocol(what)) => what.to_owned(),
        Some(Verdict::NeverReady) => "it was not ready in time".to_owned(),
        Some(Verdict::MemoryLimit(limit)) => {
            format!("its tree used more than {limit} bytes of memory (limits.memory_per_session)")
        }
        None if departed.asked => "the session was stopped".to_owned(),
        None => ending.to_string(),
    };
    let exit = Exit { reason: reason.as_str(), detail: cause.clone(), at: SystemTime::now() };
    plan.entry.with_board(|board| board.last_exit = Some(exit.clone()));
    if !departed.asked {
        plan.note(What::Crashed(exit));
        tracing::warn!(session = %plan.entry.key.hash(), generation = plan.generation.0, %cause, "the CLI ended unasked");
    }
    let restart_cause = match departed.verdict {
        Some(Verdict::Hung) => RestartCause::Hang,
        Some(Verdict::Protocol(_)) => RestartCause::Protocol,
        _ if departed.ready => RestartCause::Crash,
        _ => RestartCause::NotStarted,
    };
    let was_ready = departed.ready;
    let why = match departed.verdict {
        _ if departed.asked => Departure::Asked,
        Some(Verdict::NeverReady) => Departure::NotStarted(StartFailure::NeverReady {
            limit: plan.instance.config.session.spawn_timeout,
        }),
        Some(Verdict::MemoryLimit(_)) if was_ready => Departure::Outgrown,
        _ if was_ready => Departure::Crashed(early(&cause, &departed.stderr)),
        _ => Departure::NotStarted(early(&cause, &departed.stderr)),
    };
    if let Departure::NotStarted(failure) = &why {
        metrics.spawned(Some(failure.reason()));
        // It has seen no prompt yet, and callers get this without the paths in it.
        if !departed.stderr.is_empty() {
            tracing::warn!(session = %plan.entry.key.hash(), stderr = %departed.stderr, "what the CLI said before it ended");
        }
    }
    let retry = departed.unfinished.and_then(|running| match departed.verdict {
        // Another child would only do the same again.
        Some(Verdict::MemoryLimit(limit)) => lose(running, TurnError::MemoryLimit { limit }),
        _ => {
            let loss = Loss { cause, stderr: departed.stderr };
            retry_or_lose(plan, running, departed.asked, loss)
        }
    });
    // The next child serves it: this one has not seen it.
    let retry = retry.or(departed.unseen);
    Gone { why, was_ready, cause: restart_cause, retry }
}

fn early(exit: &str, stderr: &str) -> StartFailure {
    StartFailure::ExitedEarly { exit: exit.to_owned(), stderr: stderr.to_owned() }
}

/// Gives back a turn of which nothing has come out, for one more try; else tells its reader that it is lost.
fn retry_or_lose(plan: &Plan, mut running: Box<Running>, asked: bool, loss: Loss) -> Option<Box<TurnJob>> {
    let reader_waits = running.job.sender.as_ref().is_some_and(|sender| !sender.is_closed());
    let may_retry = plan.instance.config.restart.retry_turn && running.job.retries == 0;
    if may_retry && !asked && !running.produced && reader_waits && running.interrupted_until.is_none() {
        running.job.retries += 1;
        running.job.start = FirstOutput::Cold;
        return Some(Box::new(running.job));
    }
    lose(running, TurnError::SessionLost(loss))
}

/// Tells the reader that its turn is lost; nothing is left for another child.
fn lose(mut running: Box<Running>, error: TurnError) -> Option<Box<TurnJob>> {
    let rest = std::mem::take(&mut running.rest);
    if let Some(last) = running.lose(rest, error).last {
        wake(last.send());
    }
    None
}
