//! A directory with the rules of a test and the record of what its CLIs were sent.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Mutex;

use serde_json::Value;

use super::{Received, Reply};
use crate::Config;
use crate::support::atomic_file::{self, Durability};
use crate::support::lock::MutexExt;

/// Rules for the simulated CLIs of a test, and what they were sent.
///
/// Rules hold from the next turn on, also for running processes; the first one that matches and is not used up answers. A
/// message that none matches is answered with `echo N: TEXT`, where `N` counts the turns of the conversation, and the
/// markers of `pilotlight sim --help` in it have their effect.
///
/// The directory is deleted with the value: shut the system down before.
#[derive(Debug)]
pub struct Simulation {
    directory: tempfile::TempDir,
    rules: Mutex<Vec<Value>>,
}

impl Simulation {
    /// A simulation in a new temporary directory.
    ///
    /// # Errors
    ///
    /// If the directory cannot be created.
    pub fn new() -> io::Result<Self> {
        pilotlight_startup::link();
        let directory = tempfile::Builder::new().prefix("pilotlight-test-").tempdir()?;
        Ok(Self { directory, rules: Mutex::default() })
    }

    /// A configuration on the simulated CLI with a data directory of its own. Everything in it may be changed, but for
    /// `cli.program`, `isolation.rungs` and the first two of `cli.args`.
    #[must_use]
    pub fn config(&self) -> Config {
        let mut config = Config::new(self.directory.path().join("data"));
        config.cli.program = "sim".to_owned();
        config.cli.args = vec!["--scenario".to_owned(), self.directory.path().display().to_string()];
        config.isolation.rungs = Vec::new();
        config
    }

    /// Answers each message that contains `pattern`; `""` is in every message.
    ///
    /// # Errors
    ///
    /// If the rules cannot be written.
    pub fn reply(&self, pattern: &str, reply: impl Into<Reply>) -> io::Result<()> {
        self.add(reply.into().rule(pattern, None))
    }

    /// Answers the next message that contains `pattern`, of whichever session.
    ///
    /// # Errors
    ///
    /// If the rules cannot be written.
    pub fn reply_once(&self, pattern: &str, reply: impl Into<Reply>) -> io::Result<()> {
        self.add(reply.into().rule(pattern, Some(1)))
    }

    /// Lets the next `starts` starts of a CLI fail: it writes `standard_error` and exits with 1.
    ///
    /// # Errors
    ///
    /// If the number cannot be written.
    pub fn fail_starts(&self, starts: u32, standard_error: &str) -> io::Result<()> {
        self.replace("failing-starts", &format!("{starts}\n{standard_error}"))
    }

    /// The messages that the CLIs were sent, oldest first. A message that a turn before has not let through yet is not
    /// among them.
    ///
    /// # Errors
    ///
    /// If the record cannot be read.
    pub fn received(&self) -> io::Result<Vec<Received>> {
        let text = match fs::read_to_string(self.file("received.jsonl")) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        // A line that is just being written has no end yet.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().map(|line| serde_json::from_str(line).map_err(io::Error::from)).collect()
    }

    fn add(&self, rule: Value) -> io::Result<()> {
        let mut rules = self.rules.lock_unpoisoned();
        rules.push(rule);
        self.replace("rules.json", &Value::from(rules.clone()).to_string())
    }

    /// A process that reads meanwhile sees the old or the new text.
    fn replace(&self, name: &str, text: &str) -> io::Result<()> {
        atomic_file::replace(&self.file(name), text.as_bytes(), Durability::Kernel)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}
