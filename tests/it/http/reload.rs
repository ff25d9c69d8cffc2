//! SIGHUP: what a changed configuration changes at once, what waits for the next start, and what it never ends.

use rustix::process::Signal;
use serde_json::json;

use crate::common::keyring::Keyring;
use crate::common::place::Place;
use crate::common::program::{Answer, Program, Site, message, place};
use crate::common::{SOON, eventually, eventually_some};

const PAGE: &str = "https://chat.example.org";

/// Writes another configuration over the one that the server was started with, and has it read.
pub(super) async fn reload(place: &Place, program: &Program, site: &Site, config: &str, outcome: &str) {
    let label = format!("outcome=\"{outcome}\"");
    let before = site.metric("config_reloads_total", &[&label]).await;
    std::fs::write(place.path().join("served.toml"), config).unwrap();
    program.signal(Signal::HUP);
    let counted = async || (site.metric("config_reloads_total", &[&label]).await > before).then_some(());
    eventually_some("the configuration is read", SOON, counted).await;
}

/// The child keeps its process and its turn while limits, fields and prices change around it.
#[tokio::test(flavor = "multi_thread")]
async fn reload_keeps_the_child_and_its_turn() {
    let place = place();
    let tools = "[permissions]\npolicy = \"allow\"\n";
    let (program, site) = Program::ready(&place, tools).await;
    site.turn("alice", "hello").await.text();
    let pid = site.pid("alice").await;
    let going = place.path().join("go");
    let command = format!("touch began; until test -e {}; do sleep 0.02; done", going.display());
    let text = format!("[[tool:Bash {}]]", json!({ "command": command }));
    let running = tokio::spawn({
        let site = site.clone();
        async move { site.turn("alice", &text).await }
    });
    let files = async || {
        let answer = Answer::of(site.of("GET", "/v1/workspace", "alice")).await;
        answer.body.contains("began").then_some(())
    };
    eventually_some("the tool runs", SOON, files).await;

    let limits = "[limits]\nmax_children = 1\nqueue_deadline = \"100ms\"\nsessions_per_user = 1\nmemory_budget = \"3GiB\"\n";
    let http = "[http]\nstrict = true\nmodels = [\"opus\"]\nturns_per_user = 1\n";
    reload(&place, &program, &site, &format!("{tools}{limits}{http}"), "applied").await;
    assert_eq!(site.metric("config_restart_keys", &[]).await, 0.0);

    // All of it is in effect while the turn runs, the memory with the next sample.
    let budget = async || {
        (site.metric("memory_budget_bytes", &[]).await == 3.0 * 1024.0 * 1024.0 * 1024.0).then_some(())
    };
    eventually_some("the budget changes", SOON, budget).await;
    let mut ignored = message("hello");
    ignored["temperature"] = json!(0.5);
    (ignored["model"], ignored["max_tokens"]) = (json!("sonnet"), json!(9));
    let answer = Answer::of(site.of("POST", "/v1/messages", "bob").json(&ignored)).await;
    assert_eq!(answer.error().1, "ignored_field", "{answer:?}");
    assert_eq!(site.get("/v1/models").await.json()["data"][0]["id"], "opus");
    assert_eq!(site.turn("alice", "another").await.error().1, "too_many_turns");
    assert_eq!(site.turn("bob", "hello").await.error().1, "overloaded", "the only child is busy");
    assert_eq!(site.metric("children_limit", &[]).await, 1.0);

    std::fs::write(&going, "").unwrap();
    assert_eq!(running.await.unwrap().text(), "TOOLS:ok");
    assert_eq!(site.pid("alice").await, pid);
    for name in ["first", "second"] {
        let named = site.asking("alice", &message("hello")).header("x-pilotlight-session", name);
        let answer = Answer::of(named).await;
        assert_eq!(answer.status == 429, name == "second", "{answer:?}");
    }

    // And back again, without the keys.
    reload(&place, &program, &site, tools, "applied").await;
    assert_eq!(site.turn("bob", "hello").await.text(), "echo 1: hello");
    assert_eq!(site.metric("children_limit", &[]).await, 256.0);
}

/// Keys that cannot change are named in the log, in the metrics and in `/readyz`, and so is a file that is no configuration.
#[tokio::test(flavor = "multi_thread")]
async fn reload_names_what_waits_and_what_is_invalid() {
    let place = place();
    let (program, site) = Program::ready(&place, "").await;
    site.turn("alice", "hello").await.text();
    let pid = site.pid("alice").await;
    let warnings = async || site.get("/readyz").await.json()["warnings"].to_string();

    let waiting =
        "[cli]\nmodel = \"opus\"\nenv = { ANTHROPIC_API_KEY = \"sk-s3cret\" }\n[http]\nstrict = true\n";
    reload(&place, &program, &site, waiting, "applied").await;
    assert_eq!(site.metric("config_restart_keys", &[]).await, 2.0);
    let named = || program.err().contains("changed keys wait for the next start keys=\"cli.env, cli.model\"");
    eventually("the log names them", SOON, named).await;
    assert!(
        program.err().contains("the configuration was reloaded keys=\"http.strict\""),
        "{}",
        program.err()
    );
    assert!(warnings().await.contains("wait for the next start: cli.env, cli.model"), "{}", warnings().await);

    for (broken, named) in [
        ("[http]\nstrikt = true\n", "strikt"),
        ("[session]\nidle_timeout = \"0s\"\n", "session.idle_timeout"),
        ("this is no TOML [", "line 1"),
        (
            "[webhooks.endpoints.ops]\nurl = \"http://127.0.0.1:9/\"\nsecret_file = \"/nowhere\"\n",
            "secret_file",
        ),
    ] {
        reload(&place, &program, &site, broken, "invalid").await;
        let logged = || program.err().lines().any(|it| it.contains("was not reloaded") && it.contains(named));
        eventually("the log says why", SOON, logged).await;
        assert!(warnings().await.contains("is invalid"));
    }
    let mut ignored = message("hello");
    (ignored["model"], ignored["max_tokens"], ignored["temperature"]) =
        (json!("sonnet"), json!(9), json!(0.5));
    let answer = Answer::of(site.of("POST", "/v1/messages", "alice").json(&ignored)).await;
    assert_eq!(answer.error().1, "ignored_field", "the last good one is in effect");

    reload(&place, &program, &site, "", "applied").await;
    assert_eq!(warnings().await, "[]");
    assert_eq!(site.metric("config_restart_keys", &[]).await, 0.0);
    assert_eq!(site.turn("alice", "still here").await.text(), "echo 2: still here");
    assert_eq!(site.pid("alice").await, pid);
    assert!(!program.err().contains("s3cret"), "values are in no log");
}

/// Pages of an origin may call, or may no more, also on a connection that is open.
#[tokio::test(flavor = "multi_thread")]
async fn reload_changes_the_origins_of_pages() {
    let place = place();
    let ring = Keyring::new(&place);
    ring.user("alice");
    let (program, site) = Program::ready(&place, &ring.config()).await;
    let open = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(1).build().unwrap();
    let preflight = async || {
        let request = open.request(reqwest::Method::OPTIONS, format!("{}/v1/messages", site.http));
        let request = request.header("origin", PAGE).header("access-control-request-method", "POST");
        let answer = Answer::of(request).await;
        answer.headers.get("access-control-allow-origin").map(|it| it.to_str().unwrap().to_owned())
    };
    assert_eq!(preflight().await, None);
    let with_page = format!("{}[http]\ncors_origins = [\"{PAGE}\"]\n", ring.config());
    reload(&place, &program, &site, &with_page, "applied").await;
    assert_eq!(preflight().await.as_deref(), Some(PAGE));
    reload(&place, &program, &site, &ring.config(), "applied").await;
    assert_eq!(preflight().await, None);
}

/// A child that is started after the reload has the new times; the one before keeps its own until it ends.
#[tokio::test(flavor = "multi_thread")]
async fn reload_reaches_the_next_child() {
    let place = place();
    let (program, site) = Program::ready(&place, "").await;
    site.turn("alice", "hello").await.text();
    reload(&place, &program, &site, "[session]\nturn_timeout = \"300ms\"\n", "applied").await;
    let late = "[[sleep:1000]]";
    assert!(site.turn("alice", late).await.body.contains("echo"), "the child of before");
    let answer = site.turn("bob", late).await;
    assert!(answer.body.contains("turn_timeout"), "{answer:?}");
}

/// A file that cannot be read to its end holds up no later signal, and an operator sees on the page that it is not in effect.
#[tokio::test(flavor = "multi_thread")]
async fn reload_waits_for_no_pipe() {
    let place = place();
    let (program, site) = Program::ready(&place, "").await;
    let config = place.path().join("served.toml");
    let invalid = async || site.metric("config_reloads_total", &["outcome=\"invalid\""]).await;
    std::fs::remove_file(&config).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, &config, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    program.signal(Signal::HUP);
    eventually_some("the pipe is refused", SOON, async || (invalid().await == 1.0).then_some(())).await;
    let overview = site.get("/v1/overview").await.json();
    assert!(overview["warnings"].to_string().contains("is invalid"), "{overview}");

    std::fs::remove_file(&config).unwrap();
    reload(&place, &program, &site, &"# ".repeat(1 << 20), "invalid").await;
    eventually("the log says why", SOON, || program.err().contains("more than 1048576 bytes")).await;
    reload(&place, &program, &site, "", "applied").await;
    assert_eq!(
        site.get("/v1/overview").await.json()["warnings"].to_string(),
        site.get("/readyz").await.json()["warnings"].to_string()
    );
}

/// A key that was taken out of a file that cannot be used is in force, and the operator sees it.
#[tokio::test(flavor = "multi_thread")]
async fn unusable_key_file_is_in_the_warnings() {
    let place = place();
    let ring = Keyring::new(&place);
    let (key, file) = (ring.user("alice"), place.path().join("keys.jsonl"));
    let (_program, site) = Program::ready(&place, &ring.config()).await;
    let warnings = async || site.get("/readyz").await.json()["warnings"].to_string();
    assert!(!warnings().await.contains("key file"), "{}", warnings().await);
    let good = std::fs::read(&file).unwrap();
    std::fs::write(&file, "half a line").unwrap();
    let warned = async |wanted: bool| (warnings().await.contains("key file") == wanted).then_some(());
    eventually_some("it is in the warnings", SOON, async || warned(true).await).await;
    let list = async || Answer::of(site.of("GET", "/v1/sessions", "alice").bearer_auth(&key)).await.status;
    assert_eq!(list().await, 200, "the former keys are in force");
    std::fs::write(&file, good).unwrap();
    eventually_some("it is no more", SOON, async || warned(false).await).await;
}
