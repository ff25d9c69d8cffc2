//! A server with one set of walls, a victim (`alice`) and an attacker (`mallory`), both with tools.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::geteuid;
use serde_json::json;
use tokio::time::Instant;

use crate::common::api::Api;
use crate::common::built;
use crate::common::keyring::Keyring;
use crate::common::layout::{record_dir, session_dir};
use crate::common::place::Place;
use crate::common::process::Process;
use crate::common::program::{Answer, Program, Site, message};
use crate::common::{SOON, eventually, eventually_some};
use crate::etc::with_environment;
use crate::rungs::{Term, Walls};

pub(crate) const ALICE: &str = "alice";
pub(crate) const MALLORY: &str = "mallory";

/// Maximum time for a killed server's trees to be gone, on a machine that runs other attacks beside.
const GONE_WITHIN: Duration = Duration::from_secs(10);
/// Maximum time until the effect of an attempt that holds is seen.
const SEEN_WITHIN: Duration = Duration::from_secs(1);
const NOBODY: u32 = 65534;
const ATTACK: &str = include_str!("attack.pl");
/// The only place that every distribution has it in, and that every wall leaves readable.
pub(crate) const PERL: &str = "/usr/bin/perl";

/// What the attacker must not learn. The attacker's script finds it by this form.
pub(crate) fn secret() -> String {
    format!("secret-{}", uuid::Uuid::new_v4())
}

/// Whether the server must be started as another user than the test's.
fn is_nobody(user: Term) -> bool {
    user == Term::Unprivileged && geteuid().is_root()
}

/// A directory that a server of this user can write.
pub(crate) fn place_for(user: Term) -> Arc<Place> {
    let place = Place::new();
    std::fs::set_permissions(place.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::create_dir(place.data_dir()).unwrap();
    give(user, &place.data_dir());
    Arc::new(place)
}

/// Makes the server's user the owner.
pub(crate) fn give(user: Term, path: &Path) {
    if is_nobody(user) {
        chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
}

/// Gives a file, not what it links to, the owner of a session's directory.
pub(crate) fn own_like(directory: &Path, path: &Path) {
    let of = std::fs::metadata(directory).unwrap();
    lchown(path, Some(of.uid()), Some(of.gid())).unwrap();
}

/// The program, as this user.
pub(crate) fn as_user(user: Term) -> Command {
    run_as(user, &built::pilotlight())
}

/// Any program, as this user.
pub(crate) fn run_as(user: Term, program: &Path) -> Command {
    if !is_nobody(user) {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(program);
    command
}

/// The CLI that runs the tools.
#[derive(Debug, Clone)]
pub(crate) enum Cli {
    Simulated,
    Real(PathBuf),
}

/// What the victim has.
pub(crate) struct Victim {
    /// Its session directory.
    pub(crate) dir: PathBuf,
    /// The server's record of it.
    pub(crate) record: PathBuf,
    pub(crate) child: Process,
    pub(crate) shim: Process,
    /// A process that its tool left running, and its marker on the command line.
    pub(crate) tool: Process,
    pub(crate) tool_marker: String,
}

pub(crate) struct Secrets {
    /// In files of the victim's workspace and home.
    pub(crate) file: String,
    /// In the environment of the victim's processes.
    pub(crate) child: String,
    /// In the environment of the server.
    pub(crate) server: String,
    /// The operator's key for the model's API.
    pub(crate) operator: String,
    /// In the prefix of metric names.
    pub(crate) metrics: String,
}

pub(crate) struct Scene {
    pub(crate) walls: Walls,
    pub(crate) place: Arc<Place>,
    pub(crate) program: Program,
    pub(crate) site: Site,
    pub(crate) keys: Keyring,
    pub(crate) users_file: PathBuf,
    /// The server has the file of its environment in `/etc`.
    pub(crate) has_environment: bool,
    pub(crate) secrets: Secrets,
    pub(crate) victim: Victim,
    pub(crate) api: Api,
    /// The service's key.
    pub(crate) key: String,
    /// The attacker's working directory, from outside.
    pub(crate) work: PathBuf,
}

impl Scene {
    pub(crate) async fn open(cli: &Cli, walls: &Walls) -> Self {
        Self::with(cli, walls, "").await
    }

    /// The same with more configuration; the tables `cli`, `auth`, `isolation`, `metrics` and `permissions` are taken.
    pub(crate) async fn with(cli: &Cli, walls: &Walls, config: &str) -> Self {
        Self::prepared(cli, walls, config, "").await
    }

    /// The same with more keys of the table `cli`.
    pub(crate) async fn prepared(cli: &Cli, walls: &Walls, config: &str, keys_of_cli: &str) -> Self {
        let user = if walls.has(Term::Root) { Term::Root } else { Term::Unprivileged };
        let place = place_for(user);
        let secrets = Secrets {
            file: secret(),
            child: secret(),
            server: secret(),
            operator: secret(),
            metrics: format!("secret_{}_", uuid::Uuid::new_v4().simple()),
        };
        let keys = Keyring::new(&place);
        let key = keys.key(&["--service"]).0;
        give(user, &keys.0);
        let users_file = place.path().join("users.toml");
        std::fs::write(&users_file, format!("[{ALICE}]\nOWN_SECRET = \"{}\"\n", secrets.child)).unwrap();
        std::fs::set_permissions(&users_file, std::fs::Permissions::from_mode(0o600)).unwrap();
        give(user, &users_file);

        let api = Api::start().await;
        let program = match cli {
            Cli::Simulated => "sim".to_owned(),
            Cli::Real(path) => path.display().to_string(),
        };
        let config = format!(
            "{config}\n{}{}uids = \"{}\"\n[permissions]\npolicy = \"allow\"\n[metrics]\nprefix = \"{}\"\n\
             [cli]\nprogram = \"{program}\"\nuser_env_file = {users_file:?}\nenv_pass = [\"PATH\"]\n\
             env.ANTHROPIC_BASE_URL = \"{}\"\nenv.ANTHROPIC_API_KEY = \"{}\"\n{keys_of_cli}",
            keys.config(),
            walls.config(),
            user_ids(),
            secrets.metrics,
            api.url(),
            secrets.operator,
        );
        let (mut command, has_environment) = with_environment(user, place.path());
        command.env("ESCAPE_SECRET", &secrets.server);
        let (program, site) = Program::ready_by(&place, command, &config).await;
        let victim = Victim::prepare(&place, &site, &key, &secrets).await;
        let data = place.data_dir().canonicalize().unwrap();
        let work = session_dir(&data, MALLORY, "default").join("work");
        let mut scene = Self {
            walls: walls.clone(),
            place,
            program,
            site,
            keys,
            users_file,
            has_environment,
            secrets,
            victim,
            api,
            key,
            work,
        };
        scene.arm().await;
        scene
    }

    /// Starts the attacker's session and puts the program of attacks into its workspace.
    async fn arm(&mut self) {
        say(&self.site, &self.key, MALLORY, "[[say:ready]]").await;
        let data = self.place.data_dir().canonicalize().unwrap();
        self.work = session_dir(&data, MALLORY, "default").join("work");
        std::fs::write(self.work.join("attack.pl"), ATTACK).unwrap();
    }

    /// A whole turn.
    pub(crate) async fn turn(&self, user: &str, text: &str) -> Answer {
        turn(&self.site, &self.key, user, text).await
    }

    /// The end of every scene: the server lives and serves others.
    pub(crate) async fn end(self) {
        assert!(self.program.process().is_alive(), "the server is gone");
        let answer = tokio::time::timeout(SOON, self.turn("bob", "[[say:served]]")).await;
        assert_eq!(answer.expect("others are served in time").text(), "served");
        self.program.process().kill();
        eventually("nothing is left of a killed server", GONE_WITHIN, || self.place.processes().is_empty())
            .await;
    }

    /// The session's child.
    pub(crate) async fn child(&self, user: &str) -> Process {
        child(&self.site, &self.key, user).await
    }

    /// A variable of the child of this user, as it was started.
    pub(crate) async fn variable(&self, user: &str, name: &str) -> String {
        let environ = read(Path::new(&format!("/proc/{}/environ", self.child(user).await.pid)));
        let entries = environ.split('\0').filter_map(|entry| entry.split_once('='));
        let mut values = entries.filter(|(given, _)| *given == name).map(|(_, value)| value.to_owned());
        values.next().unwrap_or_default()
    }

    /// A request with the service's key, for this user's session.
    pub(crate) fn request(&self, method: &str, path: &str, user: &str) -> reqwest::RequestBuilder {
        self.site.of(method, path, user).header("x-api-key", &self.key)
    }

    /// The attacker's tool makes one attempt. Gives what it printed.
    pub(crate) async fn attempt(&self, words: &[&str]) -> String {
        self.attempt_by(MALLORY, words).await
    }

    /// The same by a tool of another user, whose workspace gets the program of attacks.
    pub(crate) async fn attempt_by(&self, user: &str, words: &[&str]) -> String {
        let data = self.place.data_dir().canonicalize().unwrap();
        let work = session_dir(&data, user, "default").join("work");
        std::fs::write(work.join("attack.pl"), ATTACK).unwrap();
        let loot = work.join("loot");
        std::fs::remove_file(&loot).ok();
        self.turn(user, &tool(&command(words))).await;
        read(&loot)
    }

    /// Starts an attempt that lasts. While it holds, `look` decides what it gained; an attempt that was refused gained
    /// nothing.
    pub(crate) async fn holding(&self, words: &[&str], look: impl AsyncFnMut() -> bool) -> (bool, String) {
        self.holding_for(SEEN_WITHIN, words, look).await
    }

    /// The same with another time for the effect to be seen.
    pub(crate) async fn holding_for(
        &self,
        within: Duration,
        words: &[&str],
        mut look: impl AsyncFnMut() -> bool,
    ) -> (bool, String) {
        let (loot, seen) = (self.work.join("loot"), self.work.join("seen"));
        for file in [&loot, &seen] {
            std::fs::remove_file(file).ok();
        }
        let prompt = tool(&command(words));
        let turn = self.turn(MALLORY, &prompt);
        tokio::pin!(turn);
        let holds = eventually_some("the attempt holds or is refused", SOON, async || {
            let printed = read(&loot);
            if printed.contains("holding\n") {
                return Some(true);
            }
            printed.contains("refused").then_some(false)
        });
        let mut ended = false;
        let holds = tokio::select! {
            holds = holds => holds,
            // It ended, or was ended, before it held.
            _ = &mut turn => { ended = true; false }
        };
        // An effect on a process that runs elsewhere, as a signal's, may come a moment later.
        let deadline = Instant::now() + within;
        let mut gained = holds && look().await;
        while holds && !gained && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(5)).await;
            gained = look().await;
        }
        std::fs::write(&seen, "").unwrap();
        if !ended {
            turn.await;
        }
        (gained, read(&loot))
    }

    /// The processes that were started with this word on their command line.
    pub(crate) fn with_argument(&self, word: &str) -> Vec<Process> {
        let all = crate::common::process::all().into_iter();
        all.filter(|process| process.arguments().iter().any(|argument| argument == word)).collect()
    }
}

impl Victim {
    async fn prepare(place: &Place, site: &Site, key: &str, secrets: &Secrets) -> Self {
        let marker = format!("7{}.5", unique_number());
        let command = format!(
            "printf %s {0} >private; printf %s {0} >~/private; setsid sleep {marker} </dev/null >/dev/null 2>&1 &",
            secrets.file
        );
        turn(site, key, ALICE, &tool(&command)).await;
        let data = place.data_dir().canonicalize().unwrap();
        let dir = session_dir(&data, ALICE, "default");
        let written = || read(&dir.join("home/private")) == secrets.file;
        eventually("the victim's files are there", SOON, written).await;
        let of_tool = || {
            let all = crate::common::process::all().into_iter();
            all.filter(|process| process.arguments() == ["sleep", &marker]).collect::<Vec<_>>()
        };
        eventually("the victim's tool runs", SOON, || of_tool().len() == 1).await;
        let child = child(site, key, ALICE).await;
        let shim = child.parent().and_then(Process::of).expect("a child has a shim");
        let record = record_dir(&data, ALICE, "default");
        Self { dir, record, child, shim, tool: of_tool()[0], tool_marker: marker }
    }
}

/// User ids that no other server of this host has, as long as each is given some by chance.
fn user_ids() -> String {
    const EACH: u32 = 1024;
    let first = 1_000_000 + unique_number() % 100_000 * EACH;
    format!("{first}-{}", first + EACH - 1)
}

/// A number that no other process of this machine has as an argument.
pub(crate) fn unique_number() -> u32 {
    // Positive also where a number is signed.
    uuid::Uuid::new_v4().as_fields().0 >> 1
}

/// The marker of a call of Bash, as both CLIs understand it.
pub(crate) fn tool(command: &str) -> String {
    format!("[[tool:Bash {}]]", json!({ "command": command }))
}

/// The shell's command of an attempt.
pub(crate) fn command(words: &[&str]) -> String {
    let quoted: Vec<_> = words.iter().map(|word| format!("'{}'", word.replace('\'', r"'\''"))).collect();
    format!("{PERL} attack.pl {} >loot 2>&1 </dev/null", quoted.join(" "))
}

pub(crate) fn read(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
}

async fn turn(site: &Site, key: &str, user: &str, text: &str) -> Answer {
    let request = site.asking(user, &message(text)).header("x-api-key", key);
    // An answer of a tool that holds ends with the test's patience, not with the client's.
    Answer::of(request.timeout(Duration::from_secs(90))).await
}

async fn say(site: &Site, key: &str, user: &str, text: &str) {
    let answer = turn(site, key, user, text).await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

async fn child(site: &Site, key: &str, user: &str) -> Process {
    eventually_some(&format!("a child of {user}"), SOON, async || {
        let request = site.session("GET", "default", user).header("x-api-key", key);
        let pid = Answer::of(request).await.json()["pid"].as_i64()?;
        Process::of(i32::try_from(pid).ok()?)
    })
    .await
}
