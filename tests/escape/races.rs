//! Races against the server's own access to the workspace, by a tool that exchanges a directory and a link to another
//! session without pause.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use crate::common::program::{Answer, message};
use crate::common::{SOON, eventually};
use crate::findings::{self, Findings};
use crate::scene::{MALLORY, PERL, Scene, own_like, read, tool};

/// Requests that race. With a reader that follows links, one in two shows the secret.
const ROUNDS: usize = 20;
/// Maximum time until a reader that follows links has seen both sides.
const RACED_WITHIN: Duration = Duration::from_secs(10);

/// A directory of the attacker's, and a link to the victim's workspace in its place half of the time.
struct Race {
    swapping: Child,
}

impl Race {
    /// The exchange is made by a process of the test's: it stands for a tool, and does not end with the session.
    fn begin(work: &Path, target: &Path) -> Self {
        std::fs::remove_file(work.join("seen")).ok();
        std::fs::create_dir(work.join("swapped")).unwrap();
        std::fs::write(work.join("swapped/private"), "mine").unwrap();
        symlink(target, work.join("link")).unwrap();
        for name in ["swapped", "swapped/private", "link"] {
            own_like(work, &work.join(name));
        }
        let mut command = Command::new(PERL);
        command.arg(work.join("attack.pl")).args(["swap", "swapped", "link"]).current_dir(work);
        let swapping = command.stdout(std::process::Stdio::null()).spawn().expect("perl runs");
        Self { swapping }
    }

    /// A reader that follows links shows the secret of the victim: the race is one.
    fn is_raced(work: &Path, secret: &str) {
        let begin = Instant::now();
        let path = work.join("swapped/private");
        let (mut mine, mut theirs) = (false, false);
        while !(mine && theirs) {
            let text = read(&path);
            mine |= text == "mine";
            theirs |= text == secret;
            assert!(begin.elapsed() < RACED_WITHIN, "the names are not exchanged: {mine} {theirs}");
        }
    }

    fn end(mut self) {
        self.swapping.kill().ok();
        self.swapping.wait().expect("it is our child");
    }
}

async fn listing(scene: &Scene, findings: &mut Findings) {
    let (work, secret) = (&scene.work, &scene.secrets.file);
    let race = Race::begin(work, &scene.victim.dir.join("work"));
    Race::is_raced(work, secret);
    let mut gained = Vec::new();
    for round in 0..ROUNDS {
        let mut body = message(&tool(&format!("echo {round} >made; touch swapped/private link/private")));
        body["include_files"] = json!(true);
        let turn = scene.request("POST", "/v1/messages/keepalive", MALLORY).json(&body);
        let listing = scene.request("GET", "/v1/workspace", MALLORY);
        for answer in [Answer::of(turn).await, Answer::of(listing).await] {
            assert!(answer.status < 500, "{answer:?}");
            gained.extend(answer.body.contains(secret).then(|| answer.body.clone()));
        }
    }
    race.end();
    findings.judge(&scene.walls, "listing-race", !gained.is_empty(), &gained.join(" "));
    for name in ["swapped", "link"] {
        let path = work.join(name);
        std::fs::remove_file(&path).or_else(|_| std::fs::remove_dir_all(&path)).unwrap();
    }
}

async fn purge(scene: &Scene, findings: &mut Findings) {
    let (work, victims) = (&scene.work, scene.victim.dir.join("work"));
    let race = Race::begin(work, &victims);
    Race::is_raced(work, &scene.secrets.file);
    let path = "/v1/sessions/default?purge=true";
    let answer = Answer::of(scene.request("DELETE", path, MALLORY)).await;
    assert!((200..300).contains(&answer.status), "{answer:?}");
    let gained = read(&victims.join("private")) != scene.secrets.file;
    eventually("the attacker's files are gone", SOON, || !work.join("attack.pl").exists()).await;
    race.end();
    let seen = if gained { "the victim's file is gone" } else { "" };
    findings.judge(&scene.walls, "purge-race", gained, seen);
    assert!(
        victims.join("attack.pl").exists() || victims.join("private").exists(),
        "the victim has its directory"
    );
}

async fn attack(scene: &Scene, findings: &mut Findings) {
    listing(scene, findings).await;
    purge(scene, findings).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn escape_races_lead_nowhere() {
    findings::simulated(attack).await;
}
