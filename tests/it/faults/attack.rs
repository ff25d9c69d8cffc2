//! A server under attack: `mallory` suffers, `bob` must not notice, and after every fault the same is checked from
//! outside: nothing is left of mallory's child, the server is as small as before, bob's turns were all answered, and
//! every turn had exactly one end.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use toml::Table;

use super::*;
use crate::common::place::Place;
use crate::common::process::descendants;
use crate::common::program::Site;

/// Longer than any turn of the witness takes on a machine that is busy with other tests.
const UNDISTURBED: Duration = Duration::from_secs(5);
/// Beside 5 %: what the allocator keeps of buffers that were needed once, and descriptors of a moment.
const MEMORY_SLACK: u64 = 8 << 20;
const FD_SLACK: usize = 1;

pub(crate) struct Attack {
    pub(crate) place: Arc<Place>,
    pub(crate) program: Program,
    pub(crate) site: Site,
    /// The script that stands for the CLI; it may be broken.
    pub(crate) cli: PathBuf,
    sent: AtomicU64,
    before: Resources,
    witness: Witness,
}

/// How large the server is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Resources {
    pub(crate) fds: usize,
    pub(crate) memory: u64,
}

impl Attack {
    pub(crate) async fn begin() -> Self {
        Self::with("").await
    }

    /// A warm server with this configuration over the defaults of these tests.
    pub(crate) async fn with(config: &str) -> Self {
        let program = Command::new(env!("CARGO_BIN_EXE_pilotlight"));
        Self::by(place(), program, config).await
    }

    /// The same by a command that becomes the server.
    pub(crate) async fn by(place: Arc<Place>, mut command: Command, config: &str) -> Self {
        // The allocator of the C library keeps large blocks that were freed for the next ones. Without them, it shows
        // what we ourselves keep.
        command
            .env("GLIBC_TUNABLES", "glibc.malloc.mmap_threshold=262144:glibc.malloc.trim_threshold=262144");
        let cli = place.path().join("the-cli");
        write_cli(&cli);
        let mut table: Table = config.parse().expect("the test's configuration is TOML");
        let part = table.entry("cli").or_insert_with(|| Table::new().into());
        let part = part.as_table_mut().expect("a table");
        part.entry("program").or_insert_with(|| cli.display().to_string().into());
        let (program, site) = Program::ready_by(&place, command, &table.to_string()).await;
        // Code that runs for the first time allocates for good.
        let mut warm_up = 0;
        for text in ["hello", "[[deltas:200]]", "[[bytes:300000]]"] {
            site.turn("warm-up", text).await.text();
            warm_up += 1;
        }
        evict(&site, "warm-up").await;
        let gone = async || (site.metric("sessions", &["state=\"idle\""]).await == 0.0).then_some(());
        eventually_some("the warm-up is over", SOON, gone).await;
        let witness = Witness::start(site.clone()).await;
        let before = Resources::of(program.process());
        Self { place, program, site, cli, sent: AtomicU64::new(warm_up), before, witness }
    }

    /// Further arguments of every child that mallory gets from now on.
    pub(crate) fn start_args(&self, arguments: &str) {
        self.start_args_of(MALLORY, arguments);
    }

    pub(crate) fn start_args_of(&self, user: &str, arguments: &str) {
        let home = self.session_dir(user).join("home");
        std::fs::create_dir_all(&home).unwrap();
        std::fs::write(home.join("sim-args"), arguments).unwrap();
    }

    pub(crate) fn session_dir(&self, user: &str) -> PathBuf {
        crate::common::layout::session_dir(&self.place.data_dir().canonicalize().unwrap(), user, "default")
    }

    /// A whole turn of mallory's.
    pub(crate) async fn turn(&self, text: &str) -> Reply {
        self.turn_of(MALLORY, text).await
    }

    pub(crate) async fn turn_of(&self, user: &str, text: &str) -> Reply {
        self.note_turn();
        Reply::of(&self.site.turn(user, text).await)
    }

    /// An answer that must come.
    pub(crate) async fn say(&self, text: &str) -> String {
        self.turn(text).await.text()
    }

    /// Stops the child of a user and keeps the session. It is gone afterwards.
    pub(crate) async fn evict(&self, user: &str) {
        evict(&self.site, user).await;
    }

    /// Stops the idle children of all users but bob.
    async fn evict_others(&self) {
        let listed = self.site.get("/v1/sessions?loaded=true&limit=1000").await.json();
        let sessions = listed["sessions"].as_array().expect("sessions").iter();
        let others = sessions.filter(|session| session["user"] != "bob" && session["state"] == "idle");
        let evictions = others.map(|session| {
            let (id, user) = (session["id"].as_str().expect("text"), session["user"].as_str().expect("text"));
            let path = format!("{}/v1/sessions/{id}?user={user}", self.site.http);
            Answer::of(self.site.web().delete(path))
        });
        futures_util::future::join_all(evictions).await;
    }

    /// A turn was sent by other means.
    pub(crate) fn note_turn(&self) {
        self.sent.fetch_add(1, Ordering::Relaxed);
    }

    /// Waits until the CLI has written down what it said.
    pub(crate) async fn written_down(&self, text: &str) {
        let home = self.session_dir(MALLORY).join("home");
        let written = || program::holding(&home, text).iter().any(|name| name.ends_with(".jsonl"));
        eventually(&format!("written down: {text}"), SOON, written).await;
    }

    pub(crate) async fn entry(&self) -> Value {
        self.site.entry(MALLORY, "default").await
    }

    pub(crate) async fn child(&self) -> Process {
        let pid = self.site.pid(MALLORY).await;
        Process::of(i32::try_from(pid).unwrap()).expect("the child lives")
    }

    /// Waits until mallory's session says this of itself.
    pub(crate) async fn state(&self, state: &str) {
        let reached = async || (self.entry().await["state"] == state).then_some(());
        eventually_some(&format!("mallory is {state}"), SOON, reached).await;
    }

    /// Everything alive that belongs to mallory.
    pub(crate) fn mallorys(&self) -> Vec<Process> {
        let entry = crate::common::layout::variable(&self.place.data_dir(), MALLORY);
        self.place.processes().into_iter().filter(|process| process.was_given(&entry)).collect()
    }

    pub(crate) fn resources(&self) -> Resources {
        Resources::of(self.program.process())
    }

    pub(crate) fn before(&self) -> Resources {
        self.before
    }

    /// The end of every attack.
    pub(crate) async fn over(mut self) {
        let bobs = self.witness.stop().await;
        let sent = self.sent.load(Ordering::Relaxed) + bobs;
        let server = self.program.process();

        let stranger = || {
            let bob = crate::common::layout::variable(&self.place.data_dir(), "bob");
            let mut all = descendants(server.pid);
            all.extend(self.place.processes());
            all.into_iter().find(|process| *process != server && !process.was_given(&bob))
        };
        // A child that is just being started again goes with the next look.
        let nobody = async || {
            if stranger().is_none() {
                return Some(());
            }
            self.evict_others().await;
            None
        };
        let left = tokio::time::timeout(SOON, eventually_some("nothing is left", SOON * 2, nobody)).await;
        assert!(left.is_ok(), "left: {:?}", stranger().map(Process::describe));

        let small = |now: Resources| {
            now.fds <= self.before.fds + self.before.fds / 20 + FD_SLACK
                && now.memory <= self.before.memory + self.before.memory / 20 + MEMORY_SLACK
        };
        let shrunk = async || small(self.resources()).then_some(());
        let shrunk = tokio::time::timeout(SOON, eventually_some("small", SOON * 2, shrunk)).await;
        assert!(shrunk.is_ok(), "grown: {:?}, was {:?}", self.resources(), self.before);

        let ended = async || (self.site.metric("turns_total", &[]).await == sent as f64).then_some(());
        let ended = tokio::time::timeout(SOON, eventually_some("all ended", SOON * 2, ended)).await;
        let counted = self.site.metric("turns_total", &[]).await;
        assert!(ended.is_ok(), "{sent} turns have {counted} ends");
        assert_eq!(self.site.metric("actor_panics_total", &[]).await, 0.0);
    }
}

async fn evict(site: &Site, user: &str) {
    let answer = Answer::of(site.session("DELETE", "default", user)).await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

/// The CLI: the simulation, with arguments that each session's HOME may add.
pub(crate) fn write_cli(path: &std::path::Path) {
    let script = format!(
        "#!/bin/sh\n[ -f \"$HOME/sim-args\" ] && read -r extra <\"$HOME/sim-args\"\nexec '{}' sim \"$@\" $extra\n",
        env!("CARGO_BIN_EXE_pilotlight")
    );
    // In one step: a script that is open for writing cannot be run.
    let next = path.with_extension("next");
    std::fs::write(&next, script).unwrap();
    std::fs::set_permissions(&next, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::rename(next, path).unwrap();
}

impl Resources {
    pub(crate) fn of(process: Process) -> Self {
        let fds = std::fs::read_dir(format!("/proc/{}/fd", process.pid)).expect("the server runs").count();
        Self { fds, memory: status_bytes(process, "RssAnon:") }
    }
}

/// A value of `/proc/PID/status` that is given in kB.
pub(crate) fn status_bytes(process: Process, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid)).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// What a process has used of the processors.
pub(crate) fn processor_time(process: Process) -> Duration {
    /// Of /proc, on every machine that Linux runs on today.
    const TICK: Duration = Duration::from_millis(10);
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.pid)).unwrap();
    let fields = stat.rsplit(") ").next().unwrap().split(' ').skip(11).take(2);
    TICK * fields.map(|ticks| ticks.parse::<u32>().unwrap()).sum::<u32>()
}

/// Another user, whose turns go on all the time.
struct Witness {
    stop: Arc<AtomicBool>,
    turns: tokio::task::JoinHandle<u64>,
}

impl Witness {
    async fn start(site: Site) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        assert_eq!(site.turn("bob", "hello").await.text(), "echo 1: hello");
        let turns = tokio::spawn(async move {
            let mut turns = 1;
            while !stopped.load(Ordering::Relaxed) {
                turns += 1;
                let began = Instant::now();
                let answer = site.turn("bob", "[[delay:2]] again").await;
                // Each of them remembers all before it.
                assert_eq!(answer.text(), format!("echo {turns}: again"), "bob noticed");
                assert!(began.elapsed() < UNDISTURBED, "bob had to wait {:?}", began.elapsed());
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            turns
        });
        Self { stop, turns }
    }

    async fn stop(&mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        (&mut self.turns).await.expect("bob is undisturbed")
    }
}

/// Reply to a turn. It has one end, or the test fails.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) events: Vec<Value>,
    /// The error's code and message, in the stream or instead of it.
    pub(crate) error: Option<(String, String)>,
}

impl Reply {
    pub(crate) fn of(answer: &Answer) -> Self {
        let text = |error: &Value, key: &str| error[key].as_str().expect("text").to_owned();
        if answer.status != 200 {
            let (status, code, message) = answer.error();
            return Self { status, events: Vec::new(), error: Some((code, message)) };
        }
        // Checks the framing, and that it ends once.
        let events = answer.events();
        let of_type = |kind: &str| events.iter().filter(|event| event["type"] == kind).collect::<Vec<_>>();
        let (results, errors) = (of_type("result"), of_type("error"));
        let good = results.iter().filter(|result| result["is_error"] == false).count();
        match (good, results.len(), errors.len()) {
            // The CLI answered; it failed, which is said again in our words; or there was no end but ours.
            (1, 1, 0) | (0, 1, 1) | (0, 0, 1) => {}
            other => panic!("not one end but {other:?}: {}", crate::common::shown(&events)),
        }
        let error =
            errors.first().map(|event| (text(&event["error"], "code"), text(&event["error"], "message")));
        let last = events.last().expect("an end");
        assert!(last["type"] == "result" || last["type"] == "error", "{last}");
        Self { status: 200, error, events }
    }

    /// The answer of a turn that went well.
    pub(crate) fn text(&self) -> String {
        assert_eq!(self.error, None);
        self.events.last().unwrap()["result"].as_str().expect("a result").to_owned()
    }

    /// The code of a turn that did not.
    pub(crate) fn code(&self) -> &str {
        self.error.as_ref().map_or("ok", |(code, _)| code)
    }

    /// What was said about it.
    pub(crate) fn message(&self) -> &str {
        self.error.as_ref().map_or("", |(_, message)| message)
    }
}
