//! The embedded system on the simulated CLI: a data directory of its own, and what tests ask about its sessions.

use std::path::Path;
use std::time::Duration;

use pilotlight::model::SessionState;
use pilotlight::{Config, Outcome, Pilotlight, Session};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use crate::SOON;

/// A system on a data directory of its own. Ends with nothing left, or the test fails.
pub struct Bench {
    pub pilot: Pilotlight,
    pub data: tempfile::TempDir,
}

impl Bench {
    pub async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let data = tempfile::tempdir().unwrap();
        let pilot = start(data.path(), change).await;
        Self { pilot, data }
    }

    /// Stops the system and sees that no process of its data directory is left.
    pub async fn end(self) {
        self.pilot.shutdown(Duration::from_secs(5)).await;
        assert_eq!(processes_in(self.data.path()), Vec::<u32>::new(), "left after the shutdown");
    }
}

pub async fn start(data: &Path, change: impl FnOnce(&mut Config)) -> Pilotlight {
    Pilotlight::start(simulated(data, change)).await.unwrap()
}

/// The configuration of a system with the simulated CLI.
pub fn simulated(data: &Path, change: impl FnOnce(&mut Config)) -> Config {
    let mut config = Config::new(data);
    config.cli.program = "sim".to_owned();
    config.cli.shim = Some(crate::built::shim());
    // As in `server::program`.
    if !crate::installed::has_walls() {
        config.isolation.rungs = Vec::new();
    }
    change(&mut config);
    config
}

/// Every process whose environment names a home below this data directory.
pub fn processes_in(data: &Path) -> Vec<u32> {
    let home = format!("HOME={}", data.canonicalize().unwrap().join("sessions").display());
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        let Ok(environ) = std::fs::read(entry.path().join("environ")) else { continue };
        if environ.split(|byte| *byte == 0).any(|variable| variable.starts_with(home.as_bytes())) {
            found.push(pid);
        }
    }
    found
}

/// CLIs (not shims, nor what the simulation starts) of a user's default conversation.
pub fn clis_of(data: &Path, user: &str) -> Vec<u32> {
    let session = crate::layout::variable(data, user);
    let contains = |bytes: &[u8], text: &str| String::from_utf8_lossy(bytes).contains(text);
    let is_cli = |pid: &u32| {
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let environ = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        contains(&environ, &session)
            && contains(&command, "--output-format")
            && !contains(&command, "--term-grace-ms")
    };
    processes_in(data).into_iter().filter(is_cli).collect()
}

/// The arguments of a process.
pub fn arguments(pid: u32) -> Vec<String> {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

/// Waits for a condition that no event announces.
pub async fn eventually(what: &str, condition: impl FnMut() -> bool) {
    crate::eventually(what, SOON, condition).await;
}

/// A whole turn.
pub async fn ask(session: &Session, text: &str) -> Outcome {
    session.send(text).await.unwrap().finish().await
}

/// An answer that must come.
pub async fn say(session: &Session, text: &str) -> String {
    let outcome = ask(session, text).await;
    assert!(outcome.is_ok(), "{outcome:?}");
    outcome.text
}

pub fn pid(session: &Session) -> u32 {
    session.status().and_then(|status| status.pid).expect("a child")
}

pub fn state(session: &Session) -> SessionState {
    session.status().expect("in memory").state
}

/// Whether the session has no child now.
pub fn is_childless(session: &Session) -> bool {
    session.status().is_none_or(|status| status.pid.is_none())
}

pub fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), signal).unwrap();
}

pub fn is_alive(pid: u32) -> bool {
    test_kill_process(Pid::from_raw(pid.cast_signed()).unwrap()).is_ok()
}

/// SIGKILL for an idle child; returns when the session has noticed.
pub async fn killed_idle(session: &Session) -> u32 {
    let old = pid(session);
    signal(old, Signal::KILL);
    eventually("the killed child is noticed", || {
        !is_alive(old) && session.status().is_some_and(|s| s.pid != Some(old))
    })
    .await;
    old
}

/// Everything that the session's CLI has written down.
pub async fn transcript(session: &Session) -> String {
    let projects = session.workspace().await.unwrap().home.join(".claude/projects");
    let mut lines = String::new();
    for project in std::fs::read_dir(projects).into_iter().flatten().flatten() {
        for file in std::fs::read_dir(project.path()).into_iter().flatten().flatten() {
            lines.push_str(&std::fs::read_to_string(file.path()).unwrap_or_default());
        }
    }
    lines
}

/// The CLI writes its answers down only some time after it gave them.
pub async fn written_down(session: &Session, text: &str) {
    crate::eventually_some(&format!("written down: {text}"), SOON, async || {
        let all = transcript(session).await;
        all.lines().any(|line| line.contains("\"assistant\"") && line.contains(text)).then_some(())
    })
    .await;
}
