//! The same work through pilotlight.

use std::path::Path;
use std::time::Duration;

use pilotlight::{Config, Pilotlight, Session};

use crate::instant;

pub(crate) async fn start(data: &Path) -> Pilotlight {
    Pilotlight::start(config(data)).await.unwrap()
}

pub(crate) fn config(data: &Path) -> Config {
    let mut config = Config::new(data);
    config.cli.program = "sim".to_owned();
    config.cli.env.insert(instant::SWITCH.to_owned(), "1".to_owned());
    config.cli.shim = Some(env!("CARGO_BIN_EXE_pilotlight-shim").into());
    // As the floor. What isolation adds is measured by rows of its own.
    config.isolation.rungs.clear();
    config.session.idle_timeout = Duration::from_secs(3600);
    // Each kill counts as the first: what is measured is the restart, not the pause after many.
    config.restart.intensity = 1000;
    config.restart.window = Duration::from_millis(1);
    config.limits.max_children = 2000;
    config.limits.queue = 2000;
    config.limits.queue_deadline = Duration::from_secs(600);
    config
}

/// Sends a message and reads every event to the end; returns the number of events.
pub(crate) async fn turn(session: &Session, text: &str) -> usize {
    let mut turn = session.send(text).await.unwrap();
    let mut events = 0;
    while let Some(event) = turn.next().await {
        event.unwrap();
        events += 1;
    }
    let outcome = turn.outcome().unwrap();
    assert!(outcome.is_ok(), "{outcome:?}");
    events
}
