//! A busy hour in less than a minute: turns in every dialect, failures of the API, crashes, a hang, a crash loop, refusals,
//! evictions, leftovers. What is done is written down, to compare the metrics with.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::common::place::Place;
use crate::common::program::{Answer, Site, message};
use crate::common::{SOON, eventually_some};

/// The configuration that the script is written for.
pub(crate) fn configuration(place: &Place) -> String {
    use std::os::unix::fs::PermissionsExt as _;
    let users = place.path().join("users.toml");
    std::fs::write(&users, "[\"broken\"]\nPILOTLIGHT_SIM_FAULT = \"exit-at-start\"\n")
        .expect("the users' variables");
    std::fs::set_permissions(&users, std::fs::Permissions::from_mode(0o600)).expect("their mode");
    format!(
        "[cli]\nuser_env_file = \"{}\"\n[metrics]\nsample_interval = \"200ms\"\n\
         [session]\nturn_queue = 1\nstall_timeout = \"1s\"\nping_timeout = \"1s\"\n\
         [restart]\nintensity = 2\nbackoff = \"50ms\"\n",
        users.display()
    )
}

/// How often what was done, by the expression that counts it.
#[derive(Debug, Default)]
pub(crate) struct Ledger(pub(crate) BTreeMap<String, f64>);

impl Ledger {
    fn add(&mut self, series: &str, count: u32) {
        *self.0.entry(format!("pilotlight_{series}")).or_default() += f64::from(count);
    }

    fn turns(&mut self, outcome: &str, count: u32) {
        self.add(&format!("turns_total{{outcome=\"{outcome}\"}}"), count);
    }

    fn started(&mut self, count: u32) {
        self.add("spawns_total{outcome=\"ok\"}", count);
    }

    fn dialect(&mut self, name: &str, count: u32) {
        self.add(&format!("http_turns_total{{dialect=\"{name}\"}}"), count);
    }
}

/// Does it all.
pub(crate) async fn run(site: &Site) -> Ledger {
    let mut done = Ledger::default();
    let script = Script { site: site.clone() };
    script.talk(&mut done).await;
    script.fail(&mut done).await;
    script.break_children(&mut done).await;
    script.refuse(&mut done).await;
    script.evict(&mut done).await;
    done
}

struct Script {
    site: Site,
}

impl Script {
    /// Five users, four turns each.
    async fn talk(&self, done: &mut Ledger) {
        for number in 0..5 {
            let user = format!("user-{number}");
            self.say(&user, "hello").await;
            self.say(&user, "[[deltas:20]]").await;
            for (path, body) in [
                ("/v1/messages", json!({ "model": "claude-sonnet-4-5", "max_tokens": 100, "messages": [] })),
                ("/v1/chat/completions", json!({ "model": "claude-sonnet-4-5", "messages": [] })),
            ] {
                let mut body: Value = body;
                body["messages"] = message("[[usage:100,20]] hello")["messages"].take();
                let asked =
                    self.site.of("POST", path, &user).header("x-pilotlight-session", "default").json(&body);
                assert_eq!(Answer::of(asked).await.status, 200, "{path}");
            }
        }
        done.turns("ok", 20);
        done.started(5);
        // The first request that names a model: another child, bound to it.
        done.started(5);
        done.add("exits_total{reason=\"evicted\"}", 5);
        done.dialect("original", 10);
        done.dialect("anthropic", 5);
        done.dialect("openai", 5);
        let output = ["model=\"sonnet\"", "kind=\"output\""];
        assert_eq!(self.site.metric("tokens_total", &output).await, 5.0 * 2.0 * 20.0);
        assert!(self.site.metric("cost_micro_usd_total", &["model=\"sonnet\""]).await > 0.0);
    }

    /// Turns that end badly while the child lives on, or by the caller's wish.
    async fn fail(&self, done: &mut Ledger) {
        for _ in 0..3 {
            self.say("user-0", "[[api_error:500]]").await;
        }
        done.turns("error", 3);
        self.say("user-3", "[[fault:garbage-line]] hello").await;
        done.turns("ok", 1);
        done.add("protocol_errors_total{kind=\"bad_json\"}", 1);
        // Silent, but it answers when it is asked whether it lives.
        self.say("user-3", "[[fault:mute=2000]] hello").await;
        done.turns("ok", 1);
        let asked = self
            .site
            .asking("user-4", &message("[[deltas:2]] [[sleep:1]] [[slow:50]] a long, long answer"))
            .send();
        drop(asked.await.expect("the head of an answer"));
        done.turns("cancelled", 1);
        self.metric("turns_total", "outcome=\"cancelled\"", 1.0).await;
        done.dialect("original", 6);
    }

    async fn break_children(&self, done: &mut Ledger) {
        for user in ["user-1", "user-2"] {
            self.say(user, "[[fault:crash-mid]]").await;
            self.say(user, "and again").await;
        }
        done.turns("session_lost", 2);
        done.turns("ok", 2);
        done.add("exits_total{reason=\"crash\"}", 2);
        done.add("restarts_total{cause=\"crash\"}", 2);
        done.started(2);
        // Nothing had come out: it is tried once more, on a child that hangs as well.
        self.say("user-4", "[[fault:hang]]").await;
        self.say("user-4", "and again").await;
        done.turns("session_lost", 1);
        done.turns("ok", 1);
        done.add("exits_total{reason=\"hang\"}", 2);
        done.add("restarts_total{cause=\"hang\"}", 2);
        done.add("hangs_total", 2);
        done.started(2);
        // The first try and as many restarts as may be; then the session pauses.
        self.say("broken", "hello").await;
        done.turns("error", 1);
        done.add("spawns_total{outcome=\"failed\",reason=\"exited_early\"}", 3);
        done.add("exits_total{reason=\"crash\"}", 3);
        done.add("restarts_total{cause=\"not_started\"}", 2);
        done.add("crash_loops_total", 1);
        done.dialect("original", 7);
    }

    /// What is refused: a third turn where one may wait, web pages, paths that are not there.
    async fn refuse(&self, done: &mut Ledger) {
        let turn = || self.site.turn("user-0", "[[sleep:3000]] hello");
        let running = async { tokio::join!(turn(), turn()) };
        let refused = async {
            eventually_some("one turn runs and one waits", SOON, async || {
                let shown = Answer::of(self.site.session("GET", "default", "user-0")).await.json();
                (shown["state"] == "busy" && shown["queue_depth"] == 1).then_some(())
            })
            .await;
            self.site.turn("user-0", "one too many").await
        };
        let ((first, second), refused) = tokio::join!(running, refused);
        assert!(first.status == 200 && second.status == 200 && refused.status >= 400);
        done.turns("ok", 2);
        done.turns("rejected", 1);
        done.add("admission_rejected_total{reason=\"per_user\"}", 1);
        done.dialect("original", 3);
        for _ in 0..3 {
            let asked = self.site.of("GET", "/v1/sessions", "user-0").header("origin", "http://elsewhere");
            assert_eq!(Answer::of(asked).await.status, 403);
        }
        done.add("auth_failures_total{reason=\"browser_refused\"}", 3);
        for _ in 0..2 {
            assert_eq!(self.site.get("/nowhere").await.status, 404);
        }
        done.add("http_requests_total{route=\"unknown\",status=\"4xx\"}", 2);
    }

    async fn evict(&self, done: &mut Ledger) {
        self.say("user-3", "[[fault:outlive=600]] hello").await;
        done.turns("ok", 1);
        for user in ["user-0", "user-1", "user-3"] {
            assert_eq!(Answer::of(self.site.session("DELETE", "default", user)).await.status, 200);
        }
        done.add("evictions_total{reason=\"admin\"}", 3);
        done.add("exits_total{reason=\"evicted\"}", 3);
        // What user-3 left behind.
        done.add("leftovers_killed_total", 3);
        self.say("user-0", "back again").await;
        done.turns("ok", 1);
        done.started(1);
        done.dialect("original", 2);
    }

    /// A turn in the original dialect, however it ends.
    async fn say(&self, user: &str, text: &str) {
        self.site.turn(user, text).await;
    }

    async fn metric(&self, name: &str, label: &str, wanted: f64) {
        let is_there = async || (self.site.metric(name, &[label]).await == wanted).then_some(());
        eventually_some(&format!("{name}{{{label}}} is {wanted}"), SOON, is_there).await;
    }
}
