//! The shutdown of a system: running turns end, children stop, nothing is left.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout, timeout_at};

use super::System;
use crate::child::UNKILLABLE;
use crate::config::Config;
use crate::error::TurnError;
use crate::session::{SessionMessage, actor_refs::SupervisorMessage, sessions::Sessions};
use crate::support::lock::MutexExt;
use crate::workspace::DataDirLock;

/// Time that the last tasks get after all children are gone, at least; then they are counted in the log and left.
const LAST_TASKS: Duration = Duration::from_secs(5);

/// Upper bound of an orderly stop of a child.
pub(super) fn longest_stop(config: &Config) -> Duration {
    let limits = &config.session;
    // The steps, then a tree that does not die (waited for twice, see the child task), then the answer.
    limits.stop_interrupt + limits.stop_eof + limits.stop_term + 2 * UNKILLABLE + Duration::from_secs(5)
}

/// Drains, stops every child and ends the actors.
async fn shut_down(sessions: Arc<Sessions>, data_dir: Arc<Mutex<Option<DataDirLock>>>, grace: Duration) {
    sessions.drain();
    sessions.shelf.close();
    sessions.open_turns.close();
    if timeout(grace, sessions.open_turns.wait()).await.is_err() {
        tracing::warn!(turns = sessions.open_turns.len(), "turns are interrupted: they did not end in time");
    }
    let stopped: Vec<_> = sessions
        .registry
        .entries()
        .into_iter()
        .map(|entry| {
            let (reply, gone) = oneshot::channel();
            drop(entry.actor.cast(SessionMessage::ShutDown { refusal: TurnError::Draining, reply }));
            (entry, gone)
        })
        .collect();
    let deadline = Instant::now() + longest_stop(&sessions.env.config);
    for (entry, gone) in stopped {
        if timeout_at(deadline, gone).await.is_err() {
            tracing::error!(session = %entry.key.hash(), "a child could not be stopped");
        }
        sessions.registry.forget_actor(entry.actor.get_id());
        entry.actor.stop(None);
    }
    if timeout_at(deadline, sessions.shelf.keepers.wait()).await.is_err() {
        tracing::error!("a spare could not be stopped");
    }
    // A former try may have stopped it.
    if let Ok(Some(supervisor)) = timeout(LAST_TASKS, sessions.actor_refs.supervisor()).await {
        drop(supervisor.cast(SupervisorMessage::Stop));
    }
    sessions.env.tasks.close();
    // The child of an actor that failed just before is stopped by its own task.
    let last = deadline.max(Instant::now() + LAST_TASKS);
    if timeout_at(last, sessions.env.tasks.wait()).await.is_err() {
        tracing::error!(tasks = sessions.env.tasks.len(), "tasks are still running after the shutdown");
    }
    let env = sessions.env.clone();
    drop(tokio::task::spawn_blocking(move || env.cgroups.remove()).await);
    // Another instance may have the directory now.
    drop(data_dir.lock_unpoisoned().take());
}

impl System {
    /// Shuts down once; further calls wait for the first.
    pub(super) async fn shut_down(&self, grace: Duration) {
        let shut_down = || shut_down(self.sessions.clone(), self.data_dir.clone(), grace);
        self.shut_down.get_or_init(shut_down).await;
    }
}

impl Drop for System {
    fn drop(&mut self) {
        if self.shut_down.initialized() {
            return;
        }
        self.sessions.drain();
        // Outside a runtime everything has been dropped already, and with the lifelines all children.
        if let Ok(runtime) = Handle::try_current() {
            let (sessions, data_dir) = (self.sessions.clone(), self.data_dir.clone());
            runtime.spawn(shut_down(sessions, data_dir, Duration::ZERO));
        }
    }
}
