//! What every test here starts with: a place, an API, and the real CLI.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use crate::common::api::Api;
use crate::common::place::Place;
use crate::common::process::Process;
use crate::common::server::{Server, program};
use crate::common::{SOON, eventually, installed};

/// More than any subcommand takes that ends by itself.
const RUNS_WITHIN: Duration = Duration::from_secs(120);

/// The parts of a test; servers come and go in it.
pub(crate) struct Bench {
    pub(crate) api: Api,
    pub(crate) place: Arc<Place>,
    pub(crate) cli: PathBuf,
    /// Where the CLI finds the API.
    pub(crate) url: String,
}

impl Bench {
    /// Nothing, if the real CLI is not installed and may be left out.
    pub(crate) async fn new() -> Option<Self> {
        Some(Self::on(installed::cli(&super::version())?).await)
    }

    /// As [`Bench::new`], for a test that takes long and does much the same with every version: without
    /// `tests/run --long` it runs with the first version alone.
    pub(crate) async fn for_long() -> Option<Self> {
        Self::with(installed::VERSIONS[0]).await
    }

    /// As [`Bench::new`], for a test of pilotlight's own features, which need of the CLI what the traps and the tests of its own
    /// acts look at with every version: without `tests/run --long` it runs with the newest version alone.
    pub(crate) async fn of_newest() -> Option<Self> {
        Self::with(installed::NEWEST).await
    }

    async fn with(wanted: &str) -> Option<Self> {
        let version = super::version();
        if version != wanted && !installed::is_long() {
            installed::left_out(&format!("runs with {version} by tests/run --long"));
            return None;
        }
        Self::new().await
    }

    /// As [`Bench::new`], for what is reported and not judged: by `tests/run --long` alone.
    pub(crate) async fn to_measure() -> Option<Self> {
        if !installed::is_long() {
            installed::left_out("times with the real CLI are measured by tests/run --long");
            return None;
        }
        Self::new().await
    }

    /// The same with another version of the CLI.
    pub(crate) async fn on(cli: PathBuf) -> Self {
        let api = Api::start().await;
        let url = api.url().to_owned();
        Self { api, place: Arc::new(Place::new()), cli, url }
    }

    /// What a CLI here needs in its environment besides HOME.
    pub(crate) fn environment(&self) -> [(&'static str, String); 5] {
        [
            ("ANTHROPIC_BASE_URL", self.url.clone()),
            ("ANTHROPIC_API_KEY", "dummy".to_owned()),
            ("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1".to_owned()),
            ("DISABLE_AUTOUPDATER", "1".to_owned()),
            ("DISABLE_TELEMETRY", "1".to_owned()),
        ]
    }

    /// Starts a server; `config` is what this test needs besides the CLI.
    pub(crate) async fn serve(&self, config: &str) -> Server {
        Server::start(&self.place, &format!("{}{config}", self.config())).await
    }

    /// The same as a user without privileges. Only for root.
    pub(crate) async fn serve_as_nobody(&self, config: &str) -> Server {
        use std::os::unix::fs::{PermissionsExt as _, chown};
        const NOBODY: u32 = 65534;
        let (place, data) = (self.place.path(), self.place.data_dir());
        std::fs::set_permissions(place, std::fs::Permissions::from_mode(0o755)).expect("the mode is set");
        std::fs::create_dir_all(&data).expect("the directory is made");
        chown(&data, Some(NOBODY), Some(NOBODY)).expect("the owner is set");
        let server = program(&self.place, "serve", &format!("{}{config}", self.config()));
        let mut command = std::process::Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
        command.arg(server.get_program()).args(server.get_args()).stdin(std::process::Stdio::null());
        command.envs(server.get_envs().filter_map(|(name, value)| Some((name, value?))));
        Server::start_by(&self.place, command).await
    }

    /// As [`Bench::serve`]; `keys` are more lines of the table `[cli]`.
    pub(crate) async fn serve_cli(&self, keys: &str, config: &str) -> Server {
        let given = self.config();
        Server::start(&self.place, &format!("{given}{keys}\n{config}")).await
    }

    /// Runs a subcommand that ends by itself, and gives all that it wrote.
    pub(crate) async fn run(&self, subcommand: &str) -> (ExitStatus, String) {
        let mut command = tokio::process::Command::from(program(&self.place, subcommand, &self.config()));
        let ended = timeout(RUNS_WITHIN, command.kill_on_drop(true).output()).await;
        let output = ended.expect("it ends in time").expect("it starts");
        let written =
            [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        (output.status, written.concat())
    }

    fn config(&self) -> String {
        let entries = self.environment().map(|(name, value)| format!("env.{name} = {value:?}")).join("\n");
        format!("[cli]\nprogram = {:?}\nenv_pass = [\"PATH\"]\n{entries}\n", self.cli)
    }

    /// The CLIs that live.
    pub(crate) fn clis(&self) -> Vec<Process> {
        self.place.clis(&self.cli)
    }

    /// The one CLI that lives.
    pub(crate) fn only_cli(&self) -> Process {
        match self.clis().as_slice() {
            [only] => *only,
            other => panic!("not one CLI but {other:?}"),
        }
    }

    /// Working directory and HOME of the only session, once it has a process.
    pub(crate) fn session_dirs(&self) -> (PathBuf, PathBuf) {
        let data = self.place.data_dir().canonicalize().unwrap();
        let mut all = self.place.processes().into_iter().map(|process| format!("/proc/{}", process.pid));
        let found = all.find_map(|process| {
            let work =
                Path::new(&process).join("cwd").read_link().ok().filter(|work| work.starts_with(&data))?;
            let environment = std::fs::read(Path::new(&process).join("environ")).ok()?;
            let home =
                environment.split(|byte| *byte == 0).find_map(|entry| entry.strip_prefix(b"HOME="))?.to_vec();
            Some((work, PathBuf::from(String::from_utf8(home).ok()?)))
        });
        found.expect("a session's process runs in its directory")
    }

    /// Waits until the transcripts hold this number of pieces of answers: the CLI writes them some time after the answer.
    pub(crate) async fn on_disk(&self, answers: usize) {
        let what = format!("{answers} answers on disk");
        eventually(&what, SOON, || {
            transcripts(self.place.path()).matches(r#""type":"assistant""#).count() >= answers
        })
        .await;
    }

    /// Waits until a transcript holds the prompt with this word, as a part of the conversation: that it is waiting is
    /// written down earlier.
    pub(crate) async fn prompt_on_disk(&self, word: &str) {
        let is_prompt = |line: &str| line.contains(r#""type":"user""#) && line.contains(word);
        eventually("the prompt is on disk", SOON, || transcripts(self.place.path()).lines().any(is_prompt))
            .await;
    }

    /// Waits until a transcript holds the answer to the message with this word.
    pub(crate) async fn on_disk_of(&self, word: &str) {
        let is_answered = || {
            let kept = transcripts(self.place.path());
            let mut lines =
                kept.lines().skip_while(|line| !line.contains(word) || !line.contains(r#""type":"user""#));
            lines.any(|line| line.contains(r#""type":"assistant""#))
        };
        eventually("the answer is on disk", SOON, is_answered).await;
    }

    /// Waits until the model's tool has started exactly this command, and gives its process.
    pub(crate) async fn tool(&self, command: &[&str]) -> Process {
        eventually(&format!("{command:?} runs"), SOON, || self.place.running(command).len() == 1).await;
        *self.place.running(command).first().expect("it was just seen")
    }

    /// The CLI's ids of all conversations that the API saw.
    pub(crate) fn conversations(&self) -> BTreeSet<String> {
        self.api.requests().into_iter().filter_map(|request| request.cli_session).collect()
    }
}

/// All transcripts below a directory, one after the other.
pub(crate) fn transcripts(directory: &Path) -> String {
    let Ok(entries) = std::fs::read_dir(directory) else { return String::new() };
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let text = paths.map(|path| match path.extension() {
        _ if path.is_dir() && !path.is_symlink() => transcripts(&path),
        Some(extension) if extension == "jsonl" => std::fs::read_to_string(&path).unwrap_or_default(),
        _ => String::new(),
    });
    text.collect()
}
