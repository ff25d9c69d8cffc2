//! The life of one spare: started, asked at intervals whether it lives, and given to a session or ended.
//!
//! The task owns the child. Whatever ends it, the shelf has let go of it first, and the directory is removed unless a
//! session has it. The permit is given back when nothing of the child is left.

use std::io;
use std::pin::pin;
use std::sync::Arc;

use tokio::sync::oneshot;
use tokio::time::{Duration, Instant, sleep, timeout};
use tokio_util::sync::DropGuard;

use crate::admission::{SparePermit, SparePromise, StartPermit};
use crate::child::{Remains, Unfit};
use crate::installation::versions::Chosen;
use crate::session::executable;
use crate::session::sessions::Sessions;
use crate::session::shelf::{Abandoned, Slot, SpareKind, SpareOrder, SparePlace, SpareRequest};
use crate::session::spare::{Spare, SpareGround};
use crate::session::store::new_cli_session_id;
use crate::support::blocking::blocking_long;
use crate::telemetry::metrics::SpareEnd;
use crate::workspace::{RemovalLimit, Workspace, remove_spare};

/// How often a spare is asked whether it lives, and whether the CLI was replaced.
const CHECK: Duration = Duration::from_secs(15);
/// Maximum time for the answer, on a busy host.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);
/// The same while a session waits for it: it answers within milliseconds, and a start takes half a second.
const PROVEN_WITHIN: Duration = Duration::from_secs(1);
/// Maximum time from taking the directory to asking for the child: the session's record is written in between.
const ASKED_WITHIN: Duration = Duration::from_secs(30);
/// A new directory has the files of the template: at most 20 000 change their owner.
const GIVEN: RemovalLimit = RemovalLimit { entries: 100_000, time: Duration::from_secs(30) };

pub(super) struct Keeper {
    pub(super) sessions: Arc<Sessions>,
    pub(super) id: u64,
    pub(super) kind: SpareKind,
    /// Says that nothing of the spare is left to be done.
    pub(super) _gone: DropGuard,
}

/// A task that fails takes its spare from the shelf: one that starts there for ever would keep all others away.
impl Drop for Keeper {
    fn drop(&mut self) {
        if let Some(Abandoned { shim, owner }) = self.sessions.shelf.abandon(self.id, &self.kind) {
            // Else the program ends without having stopped the system.
            if std::thread::panicking() {
                tracing::error!("the task of a spare failed");
            }
            self.sessions.env.isolation.doubt(owner, shim);
            self.sessions.env.telemetry.metrics.spare_ends.increment(SpareEnd::Died);
        }
    }
}

/// How it ends.
enum Fate {
    /// Without an order: a session may get the directory until the shelf has let go of it.
    Failed(SpareEnd),
    /// No session can get it any more.
    Ended(SpareEnd),
    /// A session has the directory, and gets the child if it asks for it.
    Reserved(oneshot::Receiver<SpareRequest>, Slot, SparePromise),
}

impl Keeper {
    pub(super) async fn keep(
        self,
        permits: (StartPermit, SparePermit),
        mut orders: oneshot::Receiver<SpareOrder>,
    ) {
        let born = Instant::now();
        let mut preparation = pin!(self.prepare());
        let prepared = tokio::select! {
            biased;
            prepared = &mut preparation => Ok(prepared),
            order = &mut orders => Err(order.ok()),
        };
        let (chosen, ground) = match prepared {
            Ok(Ok(prepared)) => prepared,
            Ok(Err(reason)) => {
                tracing::warn!(reason, "a spare cannot be started");
                self.withdraw(SpareEnd::NotStarted, born);
                return self.ended(SpareEnd::NotStarted);
            }
            Err(order) => {
                // A start may wait for them, and a copy of the template takes as long as it takes.
                drop(permits);
                if let Ok((_, ground)) = preparation.await {
                    self.clear(&ground, Remains::Nothing).await;
                }
                return self.ended(fate(order).reason());
            }
        };
        let (starting, permit) = permits;
        let (env, shelf) = (&self.sessions.env, &self.sessions.shelf);
        let mut spare = match Spare::start(env, ground.clone(), self.kind.clone(), chosen, permit).await {
            Ok(spare) => spare,
            Err((failure, remains)) => {
                drop(starting);
                tracing::warn!(reason = failure.reason(), "a spare did not start");
                self.withdraw(SpareEnd::NotStarted, born);
                self.clear(&ground, remains).await;
                return self.ended(SpareEnd::NotStarted);
            }
        };
        shelf.started(self.id, spare.shim(), ground.owner);
        let warmed = self.warm(&mut spare, &mut orders).await;
        // Ready, or not going to be.
        drop(starting);
        let fate = match warmed {
            Some(fate) => fate,
            None => {
                let SpareGround { workspace, conversation, owner } = ground.clone();
                let place = SparePlace { directory: workspace.name().clone(), conversation, owner };
                shelf.ready(self.id, place);
                self.wait(&mut spare, &mut orders).await
            }
        };
        match fate {
            Fate::Failed(why) => self.fail(spare, &ground, why, orders, born).await,
            Fate::Ended(why) => self.end(spare, &ground, why).await,
            Fate::Reserved(requests, slot, promise) => {
                spare.promised(promise);
                self.give(spare, requests, slot, born).await;
            }
        }
    }

    /// The program, the directories and the user id; else why there are none.
    async fn prepare(&self) -> Result<(Chosen, SpareGround), String> {
        let chosen = executable::choose(&self.sessions.env).await.map_err(|failure| failure.to_string())?;
        let ground = self.ground().await.map_err(|error| error.to_string())?;
        Ok((chosen, ground))
    }

    async fn ground(&self) -> io::Result<SpareGround> {
        let env = self.sessions.env.clone();
        blocking_long(move || {
            let workspace =
                Workspace::for_spare(&env.config.data_dir, env.config.workspace.template.as_deref())?;
            let owner = env.isolation.owner_of_spare();
            let given = owner.and_then(|owner| {
                let given = workspace.give_to(owner, env.isolation.range(), GIVEN);
                given.inspect_err(|_| env.isolation.release(owner, Remains::Nothing)).map(|()| owner)
            });
            match given {
                Ok(owner) => Ok(SpareGround { workspace, conversation: new_cli_session_id(), owner }),
                Err(error) => {
                    remove_spare(&env.config.data_dir, workspace.name()).ok();
                    Err(error)
                }
            }
        })
        .await
    }

    /// Waits until the child runs and answers; else how it ends.
    async fn warm(&self, spare: &mut Spare, orders: &mut oneshot::Receiver<SpareOrder>) -> Option<Fate> {
        #[cfg(feature = "failpoints")]
        assert!(
            !self.sessions.shelf.fails_next.swap(false, std::sync::atomic::Ordering::Relaxed),
            "as asked for"
        );
        let limit = self.sessions.env.current().session.spawn_timeout;
        let answers = async {
            let started = spare.started(limit).await;
            started.map_err(|failure| tracing::warn!(reason = failure.reason(), "a spare did not start"))?;
            spare.ping(limit).await.map_err(|unfit| tracing::warn!(%unfit, "a spare is not ready"))
        };
        tokio::select! {
            biased;
            order = orders => Some(fate(order.ok())),
            answered = answers => answered.err().map(|()| Fate::Failed(SpareEnd::NotStarted)),
        }
    }

    /// Waits for an order, and sees to it that the child lives meanwhile.
    async fn wait(&self, spare: &mut Spare, orders: &mut oneshot::Receiver<SpareOrder>) -> Fate {
        loop {
            let answered = tokio::select! {
                biased;
                order = &mut *orders => return fate(order.ok()),
                unfit = spare.rest() => Err(unfit),
                () = sleep(CHECK) => Ok(()),
            };
            let answered = match answered {
                Ok(()) => tokio::select! {
                    biased;
                    order = &mut *orders => return fate(order.ok()),
                    answered = spare.ping(ANSWERS_WITHIN) => answered,
                },
                unfit => unfit,
            };
            if let Err(unfit) = answered {
                tracing::warn!(%unfit, "a spare is of no more use");
                return Fate::Failed(reason(&unfit));
            }
            let (env, chosen) = (self.sessions.env.clone(), spare.chosen().clone());
            let is_current = tokio::task::spawn_blocking(move || chosen.is_current(&env.program)).await;
            if !is_current.unwrap_or_default() {
                return Fate::Failed(SpareEnd::Outdated);
            }
        }
    }

    /// Ends it without an order. A session that has its directory by now starts a child of its own.
    async fn fail(
        &self,
        spare: Spare,
        ground: &SpareGround,
        why: SpareEnd,
        orders: oneshot::Receiver<SpareOrder>,
        born: Instant,
    ) {
        if self.withdraw(why, born) {
            return self.end(spare, ground, why).await;
        }
        // Without it the session could still get the directory and the user id while they are taken back. It comes once
        // the id is on the disk, or is dropped.
        match fate(orders.await.ok()) {
            Fate::Reserved(requests, slot, _) => {
                spare.end(&self.sessions.env).await;
                self.ended(why);
                drop((requests, slot));
            }
            Fate::Failed(_) | Fate::Ended(_) => self.end(spare, ground, why).await,
        }
    }

    async fn end(&self, spare: Spare, ground: &SpareGround, why: SpareEnd) {
        let (remains, stderr) = spare.end(&self.sessions.env).await;
        if matches!(why, SpareEnd::Died | SpareEnd::NotStarted) && !stderr.is_empty() {
            tracing::warn!(%stderr, "what the CLI said before it ended");
        }
        self.clear(ground, remains).await;
        self.ended(why);
    }

    /// Removes what no session has. A user id of which a process may be left is not used again before that is gone.
    async fn clear(&self, ground: &SpareGround, remains: Remains) {
        let (env, ground) = (self.sessions.env.clone(), ground.clone());
        let cleared = blocking_long(move || {
            env.isolation.release(ground.owner, remains);
            remove_spare(&env.config.data_dir, ground.workspace.name())
        });
        if let Err(error) = cleared.await {
            tracing::warn!(%error, "the directory of a spare is removed at the next start");
        }
    }

    /// Gives the child to the session that has its directory, once it has proven that it lives.
    async fn give(
        &self,
        mut spare: Spare,
        requests: oneshot::Receiver<SpareRequest>,
        slot: Slot,
        born: Instant,
    ) {
        let asked = tokio::select! {
            asked = timeout(ASKED_WITHIN, requests) => {
                asked.ok().and_then(Result::ok).ok_or(SpareEnd::Unclaimed)
            }
            unfit = spare.rest() => Err(reason(&unfit)),
        };
        let (why, refused) = match asked {
            Err(why) => (why, None),
            Ok(request) => match spare.ping(PROVEN_WITHIN).await {
                // A session that is gone meanwhile drops the child, which kills it.
                Ok(()) => return drop(request.send((Some(spare), slot))),
                Err(unfit) => (reason(&unfit), Some(request)),
            },
        };
        self.withdraw(why, born);
        spare.end(&self.sessions.env).await;
        self.ended(why);
        if let Some(request) = refused {
            drop(request.send((None, slot)));
        }
    }

    /// Before it ends, see [`Shelf::withdraw`](crate::session::shelf::Shelf::withdraw).
    fn withdraw(&self, why: SpareEnd, born: Instant) -> bool {
        let failed = matches!(why, SpareEnd::Died | SpareEnd::Hung | SpareEnd::NotStarted);
        self.sessions.shelf.withdraw(self.id, &self.kind, born.elapsed(), failed)
    }

    fn ended(&self, why: SpareEnd) {
        self.sessions.env.telemetry.metrics.spare_ends.increment(why);
        self.sessions.shelf.changed.notify_one();
    }
}

impl Fate {
    fn reason(&self) -> SpareEnd {
        match self {
            Self::Failed(why) | Self::Ended(why) => *why,
            Self::Reserved(..) => SpareEnd::Unclaimed,
        }
    }
}

fn reason(unfit: &Unfit) -> SpareEnd {
    if matches!(unfit, Unfit::Silent(_)) { SpareEnd::Hung } else { SpareEnd::Died }
}

/// Without an order the shelf has dropped the spare.
fn fate(order: Option<SpareOrder>) -> Fate {
    match order {
        Some(SpareOrder::End(why)) => Fate::Ended(why),
        Some(SpareOrder::Reserve(requests, slot, promise)) => Fate::Reserved(requests, slot, promise),
        None => Fate::Ended(SpareEnd::Unclaimed),
    }
}
