//! MCP servers: the operator's, chosen by name, and definitions of callers, which are refused unless allowed.

use std::path::Path;

use serde_json::{Value, json};

use super::asking::{DIALECTS, Dialect};
use crate::common::keyring::Keyring;
use crate::common::place::Place;
use crate::common::program::{Answer, Program, Site, place};
use crate::common::{SOON, eventually};

/// The argument of a process that stands for an MCP server: nobody else has it.
fn token(number: u32) -> String {
    format!("{number}.{}", std::process::id())
}

/// A definition that leaves a mark when it is started.
fn marking(mark: &Path) -> Value {
    json!({ "command": "touch", "args": [mark] })
}

/// A request in a dialect with nothing but text.
fn plain(dialect: &Dialect, text: &str) -> Value {
    let messages = json!([{ "role": "user", "content": text }]);
    let mut body = json!({ "model": "sonnet", "max_tokens": 9, dialect.list(): messages });
    if let Some(credentials) = (dialect.good)().get("oauth_credentials") {
        body["oauth_credentials"] = credentials.clone();
    }
    body
}

async fn send(site: &Site, dialect: &Dialect, body: &Value, header: Option<&str>) -> Answer {
    let request = site.of("POST", dialect.path, "alice").header("x-pilotlight-session", "work").json(body);
    Answer::of(match header {
        Some(names) => request.header("x-pilotlight-mcp", names),
        None => request,
    })
    .await
}

fn is_running(place: &Place, token: &str) -> bool {
    !place.running(&["sleep", token]).is_empty()
}

#[tokio::test(flavor = "multi_thread")]
async fn definition_is_refused_by_default_in_every_form() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let mark = place.path().join("mark");
    let of_the_api = json!([{ "type": "url", "name": "m", "url": "https://h/", "authorization_token": "t" }]);
    // The dialect of the Chat Completions API has no such field.
    for dialect in DIALECTS.iter().filter(|dialect| dialect.path.starts_with("/v1/messages")) {
        let by_name = json!({ "m": marking(&mark) });
        let listed = json!([{ "name": "m", "command": "touch", "args": [&mark] }]);
        for definitions in [by_name, listed, of_the_api.clone(), json!(["m", {}])] {
            for streams in [false, true] {
                let mut body = plain(dialect, "hello");
                body["stream"] = streams.into();
                body["mcp_servers"] = definitions.clone();
                let answer = send(&site, dialect, &body, None).await;
                let (status, code, text) = answer.error();
                assert_eq!((status, code.as_str()), (403, "mcp_not_allowed"), "{} {body}", dialect.path);
                assert!(text.contains("mcp.callers") && text.contains("x-pilotlight-mcp"), "{text}");
            }
        }
    }
    assert_eq!(site.get("/v1/sessions").await.json()["sessions"], json!([]), "no session was made");
    assert!(!mark.exists(), "a definition was started");
}

#[tokio::test(flavor = "multi_thread")]
async fn service_key_may_define_where_allowed_and_user_not() {
    let place = place();
    let ring = Keyring::new(&place);
    let (alice, service) = (ring.user("alice"), ring.key(&["--service"]).0);
    let config = format!("{}[mcp]\ncallers = \"service\"\n", ring.config());
    let (_program, site) = Program::ready(&place, &config).await;
    let token = token(8101);
    let ask = async |key: &str| {
        let mut body = json!({ "messages": [{ "role": "user", "content": "hello" }] });
        body["mcp_servers"] = json!({ "m": { "command": "sleep", "args": [token] } });
        Answer::of(site.post().bearer_auth(key).header("x-pilotlight-user", "alice").json(&body)).await
    };
    let (status, code, _) = ask(&alice).await.error();
    assert_eq!((status, code.as_str()), (403, "mcp_not_allowed"));
    assert!(!is_running(&place, &token));
    assert_eq!(ask(&service).await.text(), "echo 1: hello");
    assert!(is_running(&place, &token));
}

/// Configured server is chosen by name and none by default.
#[tokio::test(flavor = "multi_thread")]
async fn configured_server_needs_its_name() {
    let place = place();
    let token = token(8102);
    let config = format!(
        "[mcp.servers.keep]\ncommand = \"sleep\"\nargs = [\"{token}\"]\nenv = {{ SECRET = \"s3cret-value\" }}\n\
         [mcp.servers.other]\ncommand = \"true\"\n"
    );
    let (_program, site) = Program::ready(&place, &config).await;
    for dialect in &DIALECTS {
        let answered = async |body: Value, header: Option<&str>, runs: bool| {
            let answer = send(&site, dialect, &body, header).await;
            assert_eq!(answer.status, 200, "{} {answer:?}", dialect.path);
            let what = format!("{} {header:?}: the server runs: {runs}", dialect.path);
            eventually(&what, SOON, || is_running(&place, &token) == runs).await;
        };
        answered(plain(dialect, "none"), None, false).await;
        answered(plain(dialect, "one"), Some("keep, other"), true).await;
        for process in place.processes() {
            let words = process.arguments().join(" ");
            assert!(!words.contains("s3cret-value") && !words.contains("--mcp-config"), "{words}");
        }
        answered(plain(dialect, "none again"), Some(""), false).await;
        if dialect.path.starts_with("/v1/messages") {
            let mut body = plain(dialect, "by the body");
            body["mcp_servers"] = json!(["keep"]);
            answered(body, None, true).await;
            let mut body = plain(dialect, "and back");
            body["mcp_servers"] = json!([]);
            answered(body, None, false).await;
        }
    }
    // Nothing of it lies where a child could change it.
    let written = files(&place.data_dir());
    let holding = written.iter().filter(|file| {
        std::fs::read(file).is_ok_and(|content| String::from_utf8_lossy(&content).contains("s3cret-value"))
    });
    assert_eq!(holding.count(), 0);
}

fn files(directory: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let all = entries.flat_map(|entry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => files(&entry.path()),
        _ => vec![entry.path()],
    });
    all.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_name_is_refused_in_every_dialect() {
    let place = place();
    let (_program, site) = Program::ready(&place, "[mcp.servers.hidden]\ncommand = \"true\"\n").await;
    for dialect in &DIALECTS {
        let answer = send(&site, dialect, &plain(dialect, "hello"), Some("hidden,nothing")).await;
        let error = &answer.json()["error"];
        assert_eq!((answer.status, error["code"].as_str()), (400, Some("unknown_mcp_server")), "{answer:?}");
        let text = error["message"].as_str().unwrap();
        assert!(text.contains("x-pilotlight-mcp") && !text.contains("hidden"), "{text}");
    }
}

/// Allowed definition may expand nothing and go nowhere else.
#[tokio::test(flavor = "multi_thread")]
async fn allowed_definition_expands_nothing() {
    let place = place();
    let config = "[mcp]\ncallers = \"all\"\nallow_hosts = [\"mcp.example.com\"]\n";
    let (_program, site) = Program::ready(&place, config).await;
    let cases = [
        (json!({ "m": { "command": "true", "args": ["${ANTHROPIC_API_KEY}"] } }), 400, "invalid_body"),
        (json!({ "m": { "url": "https://mcp.example.com/${ANTHROPIC_API_KEY}" } }), 400, "invalid_body"),
        (json!({ "m": { "command": "true", "unknown": { "deep": ["${A}"] } } }), 400, "invalid_body"),
        (json!({ "m": { "url": "http://127.0.0.1:9/" } }), 403, "mcp_host_not_allowed"),
        (json!({ "m": { "url": "http://[::ffff:127.0.0.1]/" } }), 403, "mcp_host_not_allowed"),
        (json!({ "m": { "url": "http://2130706433/" } }), 403, "mcp_host_not_allowed"),
        (json!({ "m": { "url": "http://169.254.169.254/" } }), 403, "mcp_host_not_allowed"),
        (json!({ "m": { "url": "https://mcp.example.com.evil.example/" } }), 403, "mcp_host_not_allowed"),
        (
            json!([{ "type": "url", "name": "m", "url": "https://evil.example/" }]),
            403,
            "mcp_host_not_allowed",
        ),
    ];
    for dialect in DIALECTS.iter().filter(|dialect| dialect.path.starts_with("/v1/messages")) {
        for (definitions, status, code) in &cases {
            let mut body = plain(dialect, "hello");
            body["mcp_servers"] = definitions.clone();
            let reply = send(&site, dialect, &body, None).await.error();
            assert_eq!((reply.0, reply.1.as_str()), (*status, *code), "{} {definitions}", dialect.path);
        }
    }
    assert_eq!(site.get("/v1/sessions").await.json()["sessions"], json!([]), "no session was made");
}

#[tokio::test(flavor = "multi_thread")]
async fn kept_definition_is_not_started_once_forbidden() {
    let place = place();
    let token = token(8103);
    let mut body = plain(&DIALECTS[0], "hello");
    {
        let (mut program, site) = Program::ready(&place, "[mcp]\ncallers = \"all\"\n").await;
        body["mcp_servers"] = json!({ "m": { "command": "sleep", "args": [token] } });
        assert_eq!(send(&site, &DIALECTS[0], &body, None).await.text(), "echo 1: hello");
        assert!(is_running(&place, &token));
        program.signal(rustix::process::Signal::TERM);
        assert_eq!(program.code().await, Some(0));
    }
    let (_program, site) = Program::ready(&place, "").await;
    // In this dialect nothing said is: as it was.
    let answer = send(&site, &DIALECTS[0], &plain(&DIALECTS[0], "again"), None).await;
    assert_eq!(answer.text(), "echo 2: again");
    assert!(!is_running(&place, &token), "a definition is started that nobody may send");
}
