//! Which executable the next child is started from. Trial starts and questions for the version run beside the sessions.

use std::sync::Arc;

use tokio::sync::oneshot;

use crate::config::UnknownVersion;
use crate::error::StartFailure;
use crate::installation::versions::{Chosen, UNJUDGED};
use crate::session::env::Env;

/// Chooses the executable of the next start. A new one is asked for its version: before the start if that depends on
/// it, else beside it.
///
/// # Errors
/// [`StartFailure::Spawn`] if there is no executable, or if unjudged versions are refused and it is one.
pub(crate) async fn choose(env: &Arc<Env>) -> Result<Chosen, StartFailure> {
    let installed = &env.installed;
    let chosen = installed.choose(env.program.find()?, env.is_trial());
    if chosen.is_fallback && !env.is_trial() && installed.is_trial_due() {
        // The result is for later starts.
        drop(start_trial(env));
    }
    let refuses_unjudged = env.config.cli.unknown_version == UnknownVersion::Refuse;
    if refuses_unjudged {
        learn_version(env).await;
    } else if installed.is_to_be_asked() {
        let asking = env.clone();
        env.spawn_until_end(async move { learn_version(&asking).await });
    }
    installed.judge();
    installed.publish(&env.telemetry.metrics);
    match installed.refusal(&chosen).filter(|_| refuses_unjudged) {
        None => Ok(chosen),
        Some(message) => Err(StartFailure::Spawn {
            reason: UNJUDGED,
            message: format!("{message}; cli.unknown_version = \"warn\" starts it all the same"),
            source: None,
        }),
    }
}

/// Decides after a session's start of `chosen` has failed whether another version is to be tried now. A version that
/// is not known to start gets a trial start first.
pub(crate) async fn failed_in_session(env: &Arc<Env>, chosen: &Chosen) -> bool {
    if env.installed.is_untried(chosen) {
        // It ends without a result when the system does.
        start_trial(env).await.ok();
    }
    env.installed.has_fallback(chosen)
}

/// Makes a trial start in a task of its own: it has sessions of its own.
fn start_trial(env: &Arc<Env>) -> oneshot::Receiver<()> {
    let (done, tried) = oneshot::channel();
    if let Some(trial) = env.trial {
        let trying = env.clone();
        env.spawn_until_end(async move {
            trial(&trying).await;
            trying.installed.publish(&trying.telemetry.metrics);
            done.send(()).ok();
        });
    }
    tried
}

/// Asks the current executable for its version, unless that is known, and judges it.
pub(crate) async fn learn_version(env: &Env) {
    env.installed.ask_version(&env.shim, &env.config.data_dir).await;
    env.installed.judge();
    env.installed.publish(&env.telemetry.metrics);
}
