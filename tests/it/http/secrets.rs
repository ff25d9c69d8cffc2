//! Secrets go where they must and nowhere else: not into logs, answers, metrics, command lines, other users' children,
//! nor into files other than those that are for them.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::common::keyring::Keyring;
use crate::common::program::{Answer, Program, Site, message, place};
use crate::common::{SOON, eventually};

/// Every secret of these tests has this in it, so that parts of one are found as well.
const MARK: &str = "s3cr3t";
/// Files that are there to hold secrets; nobody but their owner may read them. `users.toml` and the configuration are
/// the test's own.
const KEEPERS: [&str; 4] = [".credentials.json", "session.json", "users.toml", "served.toml"];

/// A server whose standard error goes to a file, with everything that can be logged.
fn logging_to(log: &Path) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", "exec \"$0\" \"$@\" 2>\"$LOG\"", env!("CARGO_BIN_EXE_pilotlight")]);
    shell.env("LOG", log).env("PILOTLIGHT_LOG", "trace");
    shell
}

fn private(path: PathBuf, text: &str) -> PathBuf {
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    path
}

/// All files below a directory.
fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let inside = |entry: std::fs::DirEntry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => files(&entry.path()),
        Ok(kind) if kind.is_file() => vec![entry.path()],
        _ => Vec::new(),
    };
    entries.flat_map(inside).collect()
}

fn credentials(number: i64) -> Value {
    json!({ "access_token": format!("access-{MARK}-{number}"), "refresh_token": format!("refresh-{MARK}-{number}"),
        "expires_at": 4_102_444_800_000_i64 })
}

fn with_everything() -> Value {
    let mut body = message("hello");
    body["oauth_credentials"] = credentials(1);
    body["mcp_servers"] = json!({
        "local": { "command": "sleep", "args": ["600"], "env": { "DB": format!("env-{MARK}") } },
        "remote": { "url": "http://127.0.0.1:9/mcp", "transport": "sse", "auth_type": "bearer",
            "auth_token": format!("token-{MARK}") },
    });
    body
}

/// Bodies that are refused, with secrets in right and in wrong places.
fn bad_bodies() -> Vec<String> {
    let changed = |path: &str, value: Value| {
        let mut body = with_everything();
        *body.pointer_mut(path).unwrap() = value;
        body.to_string()
    };
    let whole = with_everything().to_string();
    vec![
        whole.chars().take(whole.len() - 3).collect(),
        format!("{whole} trailing"),
        changed("/oauth_credentials/expires_at", json!(format!("in-the-wrong-place-{MARK}"))),
        changed("/oauth_credentials", json!(format!("not-an-object-{MARK}"))),
        changed("/oauth_credentials/refresh_token", json!([MARK])),
        changed("/mcp_servers/local/env", json!(format!("not-a-table-{MARK}"))),
        changed("/mcp_servers/local/env/DB", json!({ "not": MARK })),
        changed("/mcp_servers/local", json!(format!("not-an-object-{MARK}"))),
        changed("/mcp_servers/remote/auth_type", json!(format!("in-the-wrong-place-{MARK}"))),
        changed("/mcp_servers/remote/transport", json!(format!("in-the-wrong-place-{MARK}"))),
        changed("/mcp_servers/remote/url", Value::Null),
        changed("/messages", json!([])),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_run_leaves_no_secret_anywhere() {
    let place = place();
    let ring = Keyring::new(&place);
    let (alice, service, admin) = (ring.user("alice"), ring.key(&["--service"]).0, ring.key(&["--admin"]).0);
    let users = place.path().join("users.toml");
    let users = private(users, &format!("[alice]\nAWS_SECRET_ACCESS_KEY = \"users-{MARK}\"\n"));
    let config = format!(
        "{}[cli]\nuser_env_file = \"{}\"\nenv = {{ ANTHROPIC_API_KEY = \"sk-ant-{MARK}\" }}\n[http]\nturns_per_user = 1\n\
         [mcp]\ncallers = \"all\"\nallow_hosts = [\"127.0.0.1:9\"]\n\
         [mcp.servers.own]\ncommand = \"sleep\"\nargs = [\"600\"]\nenv = {{ OWN = \"own-{MARK}\" }}\n",
        ring.config(),
        users.display()
    );
    let log = place.path().join("the.log");
    let (mut program, site) = Program::ready_by(&place, logging_to(&log), &config).await;
    let wrong = format!("plk_wrong-{MARK}");
    let mut answers = String::new();
    let mut note = |answer: Answer, status: u16| {
        assert_eq!(answer.status, status, "{answer:?}");
        answers.push_str(&format!("{:?}\n{}\n", answer.headers, answer.body));
    };
    let post = |key: &str, body: String| {
        site.post().header("x-api-key", key).header("content-type", "application/json").body(body)
    };
    let turn = || post(&alice, with_everything().to_string()).header("x-pilotlight-mcp", "own");

    note(Answer::of(turn()).await, 200);
    let for_bob =
        || post(&service, with_everything().to_string()).header("x-pilotlight-user", "bob-the-user");
    note(Answer::of(for_bob()).await, 200);
    note(Answer::of(post(&service, with_everything().to_string())).await, 400);
    note(Answer::of(turn().header("x-pilotlight-user", "bob-the-user")).await, 403);
    for body in bad_bodies() {
        note(Answer::of(post(&alice, body)).await, 400);
    }
    note(Answer::of(post(&wrong, with_everything().to_string())).await, 401);
    note(Answer::of(site.post().header("authorization", format!("Basic {MARK}"))).await, 401);
    note(Answer::of(turn().bearer_auth(&wrong)).await, 401);
    let lost = |path: &str| site.web().get(format!("{}{path}?key={MARK}", site.http)).bearer_auth(&admin);
    note(Answer::of(lost("/v1/nothing")).await, 404);
    // A path that does not exist is repeated to the one who named it, and nowhere else.
    assert_eq!(Answer::of(lost(&format!("/v1/{MARK}"))).await.status, 404);
    // A turn at its limit, a lost child, a second child.
    let mut slow = with_everything();
    slow["messages"][0]["content"] = "[[sleep:60000]]".into();
    let running = post(&alice, slow.to_string()).send().await.unwrap();
    note(Answer::of(turn()).await, 429);
    drop(running);
    let mut dying = with_everything();
    dying["messages"][0]["content"] = "[[deltas:3]][[fault:crash-mid]]".into();
    note(Answer::of(for_bob().body(dying.to_string())).await, 200);
    note(Answer::of(for_bob()).await, 200);
    for path in ["/health", "/readyz", "/", "/v1/pool/stats"] {
        note(Answer::of(site.web().get(format!("{}{path}", site.http)).bearer_auth(&admin)).await, 200);
    }
    note(site.get_admin("/metrics").await, 200);

    let mut secrets = vec![MARK.to_owned()];
    // A part of a key's random half is enough to know it again.
    secrets.extend([&alice, &service, &admin].map(|key| key.chars().skip(4).take(16).collect::<String>()));
    let no_secret = |what: &str, text: &str| {
        for secret in &secrets {
            assert!(!text.contains(secret), "{secret} is in {what}: {}", around(text, secret));
        }
    };
    no_secret("the answers", &answers);
    for process in place.processes() {
        no_secret("a command line", &process.arguments().join(" "));
    }
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", program.process().pid)).unwrap();
    let core = limits.lines().find_map(|line| line.strip_prefix("Max core file size")).unwrap();
    assert!(core.split_whitespace().take(2).all(|limit| limit == "0"), "no image of the memory: {core}");
    // Killed, it could leave a half-written copy of a file that is for secrets.
    program.signal(rustix::process::Signal::TERM);
    assert_eq!(program.code().await, Some(0));
    let logged = std::fs::read_to_string(&log).unwrap();
    assert!(logged.contains("request_id") && logged.contains("DEBUG"), "there is a log to look at");
    no_secret("the log", &logged);
    for name in ["bob-the-user", "hello"] {
        assert!(!logged.contains(name), "{name} is in the log: {}", around(&logged, name));
    }
    let mut kept = 0;
    for file in files(place.path()) {
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        if KEEPERS.contains(&name.as_str()) {
            let mode = file.metadata().unwrap().permissions().mode() & 0o777;
            assert!(mode == 0o600 || name == "served.toml", "{mode:o} {name}");
            kept += usize::from(std::fs::read_to_string(&file).unwrap().contains(MARK));
        } else {
            let content = std::fs::read(&file).unwrap();
            no_secret(&file.display().to_string(), &String::from_utf8_lossy(&content));
        }
    }
    assert!(kept >= 6, "the secrets were there to be leaked: {kept}");
}

fn around(text: &str, found: &str) -> String {
    let (before, after) = text.split_once(found).unwrap_or_default();
    let skipped = before.chars().count().saturating_sub(200);
    let (before, after): (String, String) =
        (before.chars().skip(skipped).collect(), after.chars().take(200).collect());
    format!("{before}{found}{after}")
}

/// Variables of a user reach its children alone and new ones the next child.
#[tokio::test(flavor = "multi_thread")]
async fn user_variables_reach_only_own_next_child() {
    let place = place();
    let users = place.path().join("users.toml");
    let text = "[alice]\nANTHROPIC_API_KEY = \"hers\"\n[bob]\nCLAUDE_CODE_USE_BEDROCK = \"1\"\n";
    let users = private(users, text);
    let config = format!(
        "[cli]\nuser_env_file = \"{}\"\nenv = {{ ANTHROPIC_API_KEY = \"ours\" }}\n[session]\nidle_timeout = \"200ms\"",
        users.display()
    );
    let (_program, site) = Program::ready(&place, &config).await;
    let seen = async |site: &Site, user: &str| {
        site.turn(user, "[[env:ANTHROPIC_API_KEY]]/[[env:CLAUDE_CODE_USE_BEDROCK]]").await.text()
    };
    assert!(seen(&site, "alice").await.starts_with("hers"));
    let bobs = seen(&site, "bob").await;
    assert!(bobs.starts_with("ours") && bobs.contains('1'), "{bobs}");
    let others = seen(&site, "carol").await;
    assert!(others.starts_with("ours") && !others.contains('1'), "{others}");

    private(users, "[alice]\nANTHROPIC_API_KEY = \"renewed\"\n");
    eventually("the children are idle and gone", SOON, || {
        place.processes().iter().all(|process| !process.arguments().iter().any(|word| word == "--session-id"))
    })
    .await;
    assert!(seen(&site, "alice").await.starts_with("renewed"));
}

#[tokio::test(flavor = "multi_thread")]
async fn own_credentials_leave_no_key_of_the_operators() {
    const SHOW: &str = "[[env:ANTHROPIC_API_KEY]]/[[env:ANTHROPIC_AUTH_TOKEN]]/[[env:CLAUDE_CODE_OAUTH_TOKEN]]\
        /[[env:CLAUDE_CODE_USE_BEDROCK]]/[[env:ANTHROPIC_BASE_URL]]";
    let place = place();
    let users = place.path().join("users.toml");
    let users =
        private(users, "[alice]\nCLAUDE_CODE_USE_BEDROCK = \"bedrock\"\nANTHROPIC_AUTH_TOKEN = \"hers\"\n");
    let config = format!(
        "[cli]\nuser_env_file = \"{}\"\nenv_pass = [\"CLAUDE_CODE_OAUTH_TOKEN\"]\n\
         env = {{ ANTHROPIC_API_KEY = \"ours\", ANTHROPIC_BASE_URL = \"http://127.0.0.1:9\" }}",
        users.display()
    );
    let passing = || {
        let mut program = Command::new(env!("CARGO_BIN_EXE_pilotlight"));
        program.env("CLAUDE_CODE_OAUTH_TOKEN", "passed");
        program
    };
    let (mut program, site) = Program::ready_by(&place, passing(), &config).await;
    let all = ["ours", "hers", "passed", "bedrock"];
    let before = site.turn("alice", SHOW).await.text();
    assert!(all.iter().all(|value| before.contains(value)), "{before}");
    let mut body = message(SHOW);
    body["oauth_credentials"] = credentials(1);
    let shown = |text: &str| {
        assert!(!all.iter().any(|value| text.contains(value)) && text.contains("127.0.0.1:9"), "{text}");
    };
    shown(&Answer::of(site.asking("alice", &body)).await.text());
    shown(&site.turn("alice", SHOW).await.text());
    // A stop and the next server change nothing of it; who brings none has the operator's.
    program.signal(rustix::process::Signal::TERM);
    assert_eq!(program.code().await, Some(0));
    let (_program, site) = Program::ready_by(&place, passing(), &config).await;
    shown(&site.turn("alice", SHOW).await.text());
    let bobs = site.turn("bob", SHOW).await.text();
    assert!(bobs.contains("ours") && bobs.contains("passed"), "{bobs}");
    // A session that is deleted takes them along.
    assert_eq!(Answer::of(site.session("DELETE", "default?purge=true", "alice")).await.status, 200);
    assert!(site.turn("alice", SHOW).await.text().contains("hers"));
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_of_a_session_are_blacked_out() {
    let place = place();
    let cli = place.path().join("the-cli");
    std::fs::write(&cli, "#!/bin/sh\ncat \"$HOME/.claude/.credentials.json\" >&2\nexit 1\n").unwrap();
    std::fs::set_permissions(&cli, std::fs::Permissions::from_mode(0o755)).unwrap();
    let (program, site) = Program::serve(&place, &format!("[cli]\nprogram = \"{}\"", cli.display())).await;
    let mut body = message("hello");
    body["oauth_credentials"] = credentials(1);
    let answer = Answer::of(site.asking("alice", &body)).await;
    assert!(answer.body.contains("accessToken") && answer.body.contains("[redacted]"), "{answer:?}");
    assert!(!answer.body.contains(MARK) && !program.err().contains(MARK), "{answer:?}");
}

/// Secrets that a failing CLI prints of its environment are redacted.
#[tokio::test(flavor = "multi_thread")]
async fn secrets_in_cli_error_output_are_redacted() {
    let place = place();
    let cli = place.path().join("the-cli");
    std::fs::write(&cli, "#!/bin/sh\necho \"cannot log in with $MY_API_KEY in $MY_REGION\" >&2\nexit 1\n")
        .unwrap();
    std::fs::set_permissions(&cli, std::fs::Permissions::from_mode(0o755)).unwrap();
    let config = format!(
        "[cli]\nprogram = \"{}\"\nenv = {{ MY_API_KEY = \"{MARK}\", MY_REGION = \"eu-west-1\" }}",
        cli.display()
    );
    let (program, site) = Program::serve(&place, &config).await;
    let answer = site.turn("alice", "hello").await;
    assert!(answer.body.contains("[redacted] in eu-west-1"), "{answer:?}");
    let ready = async || {
        let body = site.get("/readyz").await.body;
        body.contains("[redacted] in eu-west-1").then_some(body)
    };
    let body = crate::common::eventually_some("/readyz names the fault", SOON, ready).await;
    assert!(!body.contains(MARK) && !answer.body.contains(MARK) && !program.err().contains(MARK));
}
