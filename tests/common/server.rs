//! `pilotlight serve` as a process of its own, the way a user runs it.

use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;
use toml::{Table, Value};

use crate::client::Client;
use crate::guard::Guard;
use crate::output::Output;
use crate::place::{GONE_WITHIN, MARK, Place, wait_until};
use crate::process::{Process, descendants};
use crate::{SOON, eventually_some};

/// More than the drain and all steps of a stop take.
const STOPS_WITHIN: Duration = Duration::from_secs(25);

/// A running server. Dropped, it is stopped, and nothing it started may be left.
pub struct Server {
    _guard: Guard,
    place: Arc<Place>,
    child: Child,
    process: Process,
    /// What it had started when its end began.
    family: Vec<Process>,
    output: Output,
    http: String,
    admin: String,
}

impl Server {
    /// Starts a server in `place` and waits until it takes turns. `config` is TOML: what the test is about; directory,
    /// ports and the mark are added.
    pub async fn start(place: &Arc<Place>, config: &str) -> Self {
        Self::start_by(place, program(place, "serve", config)).await
    }

    /// The same by a command that becomes the server.
    pub async fn start_by(place: &Arc<Place>, mut command: Command) -> Self {
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the server starts");
        let output = Output::default();
        output.drain(child.stdout.take().expect("its standard output"));
        output.drain(child.stderr.take().expect("its standard error"));
        let process = Process::unreaped(&child);
        let (http, admin) = Default::default();
        let (guard, place) = (Guard::of(child.id()), Arc::clone(place));
        let mut server =
            Self { _guard: guard, place, child, process, family: Vec::new(), output, http, admin };
        (server.http, server.admin) = server.listening().await;
        server.client().ready().await;
        server
    }

    /// A client of this server; clones share their connections.
    pub fn client(&self) -> Client {
        Client::new(&self.http, &self.admin)
    }

    pub fn process(&self) -> Process {
        self.process
    }

    /// The end of what it wrote.
    pub fn output(&self) -> String {
        self.output.text()
    }

    /// Everything that it started and that lives.
    pub fn started(&self) -> Vec<Process> {
        descendants(self.process.pid)
    }

    /// SIGTERM, as an orderly stop begins; it must end well, and leave nothing.
    pub async fn stop(mut self) {
        self.family = self.started();
        self.process.signal(Signal::TERM);
        let status = eventually_some("the server stops", STOPS_WITHIN, async || self.ended()).await;
        assert!(status.success(), "the server stopped with {status}");
    }

    /// SIGKILL: no code of its own runs any more. Still nothing may be left.
    pub async fn kill(mut self) {
        self.family = self.started();
        self.process.kill();
        eventually_some("the server is gone", SOON, async || self.ended()).await;
    }

    async fn listening(&mut self) -> (String, String) {
        eventually_some("the server listens", SOON, async || {
            if let Some(status) = self.ended() {
                panic!("the server ended at its start with {status}");
            }
            let line = self.output.after("listening http=")?;
            line.split_once(" admin=").map(|(http, admin)| (http.to_owned(), admin.trim().to_owned()))
        })
        .await
    }

    fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("the server is our child")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.family.extend(self.started());
        self.process.signal(Signal::TERM);
        let stopped = wait_until(STOPS_WITHIN, || self.ended().is_some());
        self.process.kill();
        self.child.wait().ok();
        let mut left = self.place.leftovers();
        // Also what lost the mark from its environment. A process that is ending loses it a moment before.
        wait_until(GONE_WITHIN, || !self.family.iter().any(|process| process.is_alive()));
        let unmarked: Vec<_> = self.family.iter().filter(|process| process.is_alive()).collect();
        left.extend(unmarked.iter().map(|process| process.describe()));
        unmarked.iter().for_each(|process| process.kill());
        if std::thread::panicking() {
            crate::installed::say(&format!("--- the server wrote:\n{}\n--- left: {left:#?}", self.output()));
            return;
        }
        assert!(stopped, "the server did not stop within {STOPS_WITHIN:?}; it wrote:\n{}", self.output());
        assert!(left.is_empty(), "left behind: {left:#?}; the server wrote:\n{}", self.output());
    }
}

/// The program with a subcommand and a configuration, to be started in `place`.
pub fn program(place: &Place, subcommand: &str, config: &str) -> Command {
    let file = place.path().join("pilotlight.toml");
    std::fs::write(&file, completed(config, place).to_string()).expect("the configuration is written");
    let mut command = Command::new(crate::built::pilotlight());
    command.arg(subcommand).arg("--config").arg(file).env(MARK, place.id()).stdin(Stdio::null());
    command
}

/// The test's configuration with what every server here needs.
fn completed(config: &str, place: &Place) -> Table {
    let mut table: Table = config.parse().expect("the test's configuration is TOML");
    table.insert("data_dir".into(), place.data_dir().display().to_string().into());
    section(&mut table, "http").entry("listen").or_insert("127.0.0.1:0".into());
    section(&mut table, "admin").entry("listen").or_insert("127.0.0.1:0".into());
    // The tests' users accept each other's tools.
    section(&mut table, "isolation").entry("accept_none").or_insert(true.into());
    // Their programs read and write anywhere. What isolation does to a child is the subject of tests of its own.
    if !crate::installed::has_walls() {
        section(&mut table, "isolation").entry("rungs").or_insert(Value::Array(Vec::new()));
    }
    section(section(&mut table, "cli"), "env").insert(MARK.into(), place.id().into());
    table
}

fn section<'a>(table: &'a mut Table, name: &str) -> &'a mut Table {
    let section = table.entry(name).or_insert_with(|| Value::Table(Table::new()));
    section.as_table_mut().unwrap_or_else(|| panic!("[{name}] is a table"))
}
