//! Versions of the CLI come and go under a running service: which one is started, and what is said of it.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use pilotlight::config::UnknownVersion;
use pilotlight::probe::probe;

use super::*;
use crate::common::installed::VERSIONS;
use crate::common::place::Place;
use crate::common::server::Server;

const JUDGED: &str = VERSIONS[0];
const UNJUDGED: &str = "9.9.9";

/// Versions side by side, and a link to the one that is used, as the CLI's own updater has them.
struct Versions {
    directory: tempfile::TempDir,
}

impl Versions {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    fn link(&self) -> PathBuf {
        self.directory.path().join("claude")
    }

    /// A CLI that says of itself that it is `version` and otherwise is what `line` starts.
    fn install(&self, name: &str, version: &str, line: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        let says = format!("case \"$*\" in *--version*) echo '{version} (Claude Code)'; exit 0;; esac");
        // Never written over what may be running.
        let new = self.directory.path().join("new");
        std::fs::write(&new, format!("#!/bin/sh\n{says}\n{line}\n")).unwrap();
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::rename(&new, &path).unwrap();
        path
    }

    fn working(&self, name: &str, version: &str) -> PathBuf {
        self.install(name, version, &format!("exec {} sim \"$@\"", env!("CARGO_BIN_EXE_pilotlight")))
    }

    fn broken(&self, name: &str) -> PathBuf {
        self.install(name, JUDGED, "echo broken >&2; exit 1")
    }

    fn switch(&self, to: &Path) {
        let new = self.directory.path().join("new-link");
        symlink(to, &new).unwrap();
        std::fs::rename(new, self.link()).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_upgrade_falls_back_until_it_is_replaced() {
    let versions = Versions::new();
    versions.switch(&versions.working("first", JUDGED));
    let program = versions.link().display().to_string();
    let with = |config: &mut Config| config.cli.program.clone_from(&program);
    let bench = Bench::with(with).await;
    let alice = bench.pilot.session("alice");
    assert_eq!(say(&alice, "one").await, "echo 1: one");
    assert_eq!(bench.pilot.cli_warning(), None);

    versions.switch(&versions.broken("second"));
    alice.evict().await.unwrap();
    assert_eq!(say(&alice, "two").await, "echo 2: two", "the same turn goes to the version that worked");
    let named =
        || bench.pilot.cli_warning().is_some_and(|it| it.contains("does not start") && it.contains(JUDGED));
    eventually("it is said, with the version that is used", named).await;

    // Another server knows from the record which one has worked.
    bench.pilot.shutdown(Duration::from_secs(5)).await;
    drop((alice, bench.pilot));
    let pilot = start(bench.data.path(), with).await;
    let alice = pilot.session("alice");
    assert_eq!(say(&alice, "three").await, "echo 3: three");
    assert!(pilot.cli_warning().is_some());

    versions.switch(&versions.working("third", JUDGED));
    alice.evict().await.unwrap();
    assert_eq!(say(&alice, "four").await, "echo 4: four");
    assert_eq!(pilot.cli_warning(), None, "a file that changed is tried again");
    pilot.shutdown(Duration::from_secs(5)).await;
}

/// A CLI that does not start for alice.
const NOT_FOR_ALICE: &str = "[ -z \"$NO_START\" ] || { echo broken >&2; exit 1; }";

#[tokio::test(flavor = "multi_thread")]
async fn start_failing_for_one_user_keeps_the_version() {
    let versions = Versions::new();
    versions.switch(&versions.working("first", JUDGED));
    let program = versions.link().display().to_string();
    let users = versions.directory.path().join("users.toml");
    std::fs::write(&users, "[alice]\nNO_START = \"1\"\n").unwrap();
    std::fs::set_permissions(&users, std::fs::Permissions::from_mode(0o600)).unwrap();
    let bench = Bench::with(|config| {
        config.cli.program.clone_from(&program);
        config.cli.user_env_file = Some(users);
        config.restart.intensity = 0;
    })
    .await;
    assert_eq!(say(&bench.pilot.session("bob"), "one").await, "echo 1: one");

    let start = format!("{NOT_FOR_ALICE}\nexec {} sim \"$@\"", env!("CARGO_BIN_EXE_pilotlight"));
    let second = versions.install("second", JUDGED, &start);
    versions.switch(&second);
    let error = bench.pilot.session("alice").warm().await.unwrap_err();
    assert!(error.to_string().contains("broken"), "{error}");
    assert_eq!(say(&bench.pilot.session("carol"), "two").await, "echo 1: two");
    let carol = pid(&bench.pilot.session("carol"));
    let environ = std::fs::read(format!("/proc/{carol}/environ")).unwrap();
    assert!(!String::from_utf8_lossy(&environ).contains("NO_START"));
    assert_eq!(bench.pilot.cli_warning(), None, "the version starts for all others");
    let record = std::fs::read_to_string(bench.data.path().join("records/cli.json")).unwrap();
    assert!(record.contains(&second.display().to_string()), "{record}");
    assert!(!bench.data.path().join("cli.json").exists());
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fallback_others_can_write_is_not_executed() {
    let versions = Versions::new();
    let first = versions.working("first", JUDGED);
    versions.switch(&first);
    let program = versions.link().display().to_string();
    let with = |config: &mut Config| {
        config.cli.program.clone_from(&program);
        config.restart.intensity = 0;
    };
    let bench = Bench::with(with).await;
    assert_eq!(say(&bench.pilot.session("alice"), "one").await, "echo 1: one");
    bench.pilot.shutdown(Duration::from_secs(5)).await;
    std::fs::set_permissions(&first, std::fs::Permissions::from_mode(0o777)).unwrap();
    versions.switch(&versions.broken("second"));
    let pilot = start(bench.data.path(), with).await;
    let error = pilot.session("alice").warm().await.unwrap_err();
    assert!(error.to_string().contains("broken"), "{error}");
    pilot.shutdown(Duration::from_secs(5)).await;
    // Nor one that lies where a child can write.
    let planted = bench.data.path().join("sessions/planted");
    std::fs::rename(&first, &planted).unwrap();
    std::fs::set_permissions(&planted, std::fs::Permissions::from_mode(0o755)).unwrap();
    let record = bench.data.path().join("records/cli.json");
    let named = std::fs::read_to_string(&record).unwrap();
    let first = first.canonicalize().unwrap_or(first).display().to_string();
    let planted = planted.canonicalize().unwrap().display().to_string();
    std::fs::write(&record, named.replace(&first, &planted)).unwrap();
    let pilot = start(bench.data.path(), with).await;
    pilot.session("alice").warm().await.unwrap_err();
    pilot.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn version_without_an_answer_is_asked_again() {
    let versions = Versions::new();
    let asked = versions.directory.path().join("asked");
    let once = format!(
        "case \"$*\" in *--version*) [ -e {0} ] || {{ : > {0}; kill -9 $$; }};; esac",
        asked.display()
    );
    let says = format!("case \"$*\" in *--version*) echo '{JUDGED} (Claude Code)'; exit 0;; esac");
    let path = versions.directory.path().join("only");
    let start = format!("exec {} sim \"$@\"", env!("CARGO_BIN_EXE_pilotlight"));
    std::fs::write(&path, format!("#!/bin/sh\n{once}\n{says}\n{start}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    let program = path.display().to_string();
    let bench = Bench::with(|config| {
        config.cli.program = program;
        config.cli.unknown_version = UnknownVersion::Refuse;
    })
    .await;
    let alice = bench.pilot.session("alice");
    let error = alice.warm().await.unwrap_err();
    assert_eq!(error.code(), "cli_not_started", "{error}");
    assert_eq!(say(&alice, "one").await, "echo 1: one", "the next start asks again");
    bench.end().await;
}

/// Broken upgrade in place has nothing to fall back to.
#[tokio::test(flavor = "multi_thread")]
async fn broken_upgrade_in_place_has_no_fallback() {
    let versions = Versions::new();
    let only = versions.working("only", JUDGED);
    let program = only.display().to_string();
    let bench = Bench::with(|config| config.cli.program.clone_from(&program)).await;
    let alice = bench.pilot.session("alice");
    assert_eq!(say(&alice, "one").await, "echo 1: one");
    versions.broken("only");
    alice.evict().await.unwrap();
    let error = alice.send("two").await.err().map_or_else(String::new, |error| error.to_string());
    let error = if error.is_empty() { format!("{:?}", ask(&alice, "two").await) } else { error };
    assert!(error.contains("broken"), "{error}");
    versions.working("only", JUDGED);
    bench.pilot.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unjudged_version_is_refused_when_configured() {
    let versions = Versions::new();
    let program = versions.working("only", UNJUDGED).display().to_string();
    let data = tempfile::tempdir().unwrap();
    let mut config = Config::new(data.path());
    config.isolation.rungs = Vec::new();
    config.cli.program = program;
    config.cli.shim = Some(env!("CARGO_BIN_EXE_pilotlight-shim").into());
    let directory = data.path().join("probe");
    let probed = probe(&config, &directory).await.unwrap();
    assert!(probed.warning.is_some_and(|warning| warning.contains(UNJUDGED)));
    config.cli.unknown_version = UnknownVersion::Refuse;
    let error = probe(&config, &directory).await.unwrap_err();
    assert!(
        error.to_string().contains(UNJUDGED) && error.to_string().contains("cli.unknown_version"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn unjudged_version_is_said_everywhere() {
    let versions = Versions::new();
    let program = versions.working("only", UNJUDGED);
    let place = std::sync::Arc::new(Place::new());
    let server = Server::start(&place, &format!("[cli]\nprogram = {program:?}\n")).await;
    let client = server.client();
    for path in ["/readyz", "/health"] {
        let (status, body) = client.get(path).await;
        assert_eq!(status, 200, "{body}");
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert!(body["warnings"][0].as_str().is_some_and(|warning| warning.contains(UNJUDGED)), "{body}");
        assert_eq!(body["reasons"], serde_json::json!([]));
    }
    let metrics = client.metrics().await;
    assert_eq!(metrics.sum("pilotlight_cli_version_unjudged", &[]), 1.0);
    assert_eq!(metrics.sum("pilotlight_cli_fallback", &[]), 0.0);
}
