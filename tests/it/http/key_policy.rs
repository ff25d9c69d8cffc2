//! What a key may use: models, tools, permissions, MCP servers, in every dialect.

use serde_json::{Value, json};

use super::asking::{DIALECTS, Dialect};
use crate::common::keyring::Keyring;
use crate::common::place::Place;
use crate::common::program::{Answer, Program, Site, place};
use crate::common::{SOON, eventually_some};

const TOUCH: &str = "[[tool:Bash {\"command\":\"touch made\"}]]";

/// A turn in a dialect with the fields that it needs and `fields`; null takes a field out.
async fn turn(site: &Site, key: &str, dialect: &Dialect, text: &str, fields: &[(&str, Value)]) -> Answer {
    let messages = json!([{ "role": "user", "content": text }]);
    let mut body = json!({ "model": "sonnet", "max_tokens": 9, dialect.list(): messages });
    if let Some(credentials) = (dialect.good)().get("oauth_credentials") {
        body["oauth_credentials"] = credentials.clone();
    }
    for (name, value) in fields {
        match value {
            Value::Null => drop(body.as_object_mut().unwrap().remove(*name)),
            value => body[*name] = value.clone(),
        }
    }
    let request = site.of("POST", dialect.path, "alice").bearer_auth(key).json(&body);
    Answer::of(request.header("x-pilotlight-session", "work")).await
}

/// Status and code, which every dialect has in the same place.
fn refusal(answer: &Answer) -> (u16, String) {
    let code = answer.json()["error"]["code"].as_str().map(str::to_owned);
    (answer.status, code.unwrap_or_else(|| panic!("{answer:?}")))
}

/// The value of a flag of the running CLI.
fn flag(place: &Place, name: &str) -> Option<String> {
    let cli =
        place.processes().into_iter().find(|process| process.arguments().iter().any(|it| it == "--print"));
    let arguments = cli.expect("a CLI runs").arguments();
    let at = arguments.iter().position(|argument| argument == name)?;
    arguments.get(at + 1).cloned()
}

async fn is_made(site: &Site, key: &str) -> bool {
    let request = site.of("GET", "/v1/workspace?session=work", "alice").bearer_auth(key);
    let files = Answer::of(request).await.json()["files"].as_array().unwrap().clone();
    files.iter().any(|file| file["path"] == "made")
}

#[tokio::test(flavor = "multi_thread")]
async fn key_uses_its_models_alone() {
    let place = place();
    let ring = Keyring::new(&place);
    let narrow = ring.key(&["--user", "alice", "--models", "sonnet,haiku"]).0;
    let wide = ring.user("alice");
    let (_program, site) = Program::ready(&place, &ring.config()).await;
    for dialect in &DIALECTS {
        let path = dialect.path;
        let other = turn(&site, &narrow, dialect, "hello", &[("model", json!("opus"))]).await;
        assert_eq!(refusal(&other), (403, "model_not_allowed".to_owned()), "{path}");
        assert!(other.body.contains("sonnet, haiku"), "{other:?}");
        assert_eq!(
            turn(&site, &wide, dialect, "hello", &[("model", json!("opus"))]).await.status,
            200,
            "{path}"
        );
        assert_eq!(flag(&place, "--model").as_deref(), Some("opus"), "{path}");
        assert_eq!(
            turn(&site, &narrow, dialect, "hello", &[("model", json!("haiku"))]).await.status,
            200,
            "{path}"
        );
        assert_eq!(flag(&place, "--model").as_deref(), Some("haiku"), "{path}");
    }
    // The original dialect has fields that others have not, and needs no model.
    let fallback = [("fallback_model", json!("opus"))];
    assert_eq!(
        refusal(&turn(&site, &narrow, &DIALECTS[0], "a", &fallback).await),
        (403, "model_not_allowed".to_owned())
    );
    assert_eq!(
        turn(&site, &wide, &DIALECTS[0], "a", &[("model", json!("opus")), fallback[0].clone()]).await.status,
        200
    );
    assert_eq!(flag(&place, "--fallback-model").as_deref(), Some("opus"));
    assert_eq!(turn(&site, &narrow, &DIALECTS[0], "a", &[("model", Value::Null)]).await.status, 200);
    assert_eq!(flag(&place, "--model").as_deref(), Some("sonnet"), "not the model of a former turn");
    assert_eq!(flag(&place, "--fallback-model"), None);

    let models = Answer::of(site.of("GET", "/v1/models", "alice").bearer_auth(&narrow)).await.json();
    let listed: Vec<_> = models["data"].as_array().unwrap().iter().map(|model| model["id"].clone()).collect();
    assert_eq!(listed, ["sonnet", "haiku"]);
    let one = site.of("GET", "/v1/models/opus", "alice").bearer_auth(&narrow);
    assert_eq!(refusal(&Answer::of(one).await), (404, "model_not_found".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn key_decides_policy_and_tools_of_its_turns() {
    for restriction in [["--policy", "deny"], ["--tools", "Read,Glob"], ["--tools", ""]] {
        let place = place();
        let ring = Keyring::new(&place);
        let narrow = ring.key(&[&["--user", "alice"], &restriction[..]].concat()).0;
        let wide = ring.key(&["--user", "alice", "--policy", "allow"]).0;
        let config = format!("{}[permissions]\npolicy = \"allow\"\n", ring.config());
        let (_program, site) = Program::ready(&place, &config).await;
        for dialect in &DIALECTS {
            let what = format!("{restriction:?} {}", dialect.path);
            assert_eq!(turn(&site, &narrow, dialect, TOUCH, &[]).await.status, 200, "{what}");
            assert!(!is_made(&site, &narrow).await, "{what}");
            if restriction[0] == "--tools" {
                assert!(flag(&place, "--tools").is_some_and(|it| !it.contains("Bash")), "{what}");
            }
        }
        // The restriction is the key's, not the session's.
        assert_eq!(turn(&site, &wide, &DIALECTS[0], TOUCH, &[]).await.status, 200);
        assert!(is_made(&site, &wide).await, "{restriction:?}");
        let remove = "[[tool:Bash {\"command\":\"rm made\"}]]";
        assert_eq!(turn(&site, &narrow, &DIALECTS[0], remove, &[]).await.status, 200);
        assert!(is_made(&site, &wide).await, "{restriction:?} after a turn without it");
    }
}

/// The policy of a key never widens the server's.
#[tokio::test(flavor = "multi_thread")]
async fn key_with_allow_permits_nothing_where_denied() {
    let place = place();
    let ring = Keyring::new(&place);
    let key = ring.key(&["--user", "alice", "--policy", "allow"]).0;
    let (_program, site) = Program::ready(&place, &ring.config()).await;
    for dialect in &DIALECTS {
        assert_eq!(turn(&site, &key, dialect, TOUCH, &[]).await.status, 200);
        assert!(!is_made(&site, &key).await, "{}", dialect.path);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn denying_key_answers_no_permission_of_another() {
    let place = place();
    let ring = Keyring::new(&place);
    let asking = ring.user("alice");
    let denying = ring.key(&["--user", "alice", "--policy", "deny"]).0;
    let reading = ring.key(&["--user", "alice", "--tools", "Read"]).0;
    let config = format!("{}[permissions]\npolicy = \"ask\"\n", ring.config());
    let (_program, site) = Program::ready(&place, &config).await;
    let running = turn(&site, &asking, &DIALECTS[2], TOUCH, &[("stream", json!(true))]);
    let path = "/v1/sessions/work/permissions";
    let answering = async {
        let id = eventually_some("a question", SOON, async || {
            let list = Answer::of(site.of("GET", path, "alice").bearer_auth(&asking)).await;
            Some(list.json()["permissions"][0]["request_id"].as_str()?.to_owned())
        })
        .await;
        let answer = async |key: &str, behavior: &str| {
            let request = site.of("POST", &format!("{path}/{id}"), "alice").bearer_auth(key);
            Answer::of(request.json(&json!({ "behavior": behavior }))).await
        };
        for key in [&denying, &reading] {
            assert_eq!(refusal(&answer(key, "allow").await), (403, "permission_not_allowed".to_owned()));
        }
        assert_eq!(answer(&denying, "deny").await.status, 204);
    };
    let (answer, ()) = tokio::join!(running, answering);
    assert_eq!(answer.status, 200);
    assert!(!is_made(&site, &asking).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn key_names_its_mcp_servers_alone() {
    let place = place();
    let ring = Keyring::new(&place);
    let narrow = ring.key(&["--service", "--mcp", "docs"]).0;
    let none = ring.key(&["--service", "--mcp", ""]).0;
    let config = format!(
        "{}[mcp]\ncallers = \"service\"\n[mcp.servers.docs]\ncommand = \"true\"\n[mcp.servers.git]\ncommand = \"true\"\n",
        ring.config()
    );
    let (_program, site) = Program::ready(&place, &config).await;
    for dialect in &DIALECTS {
        let ask = async |key: &str, header: &str, servers: Option<Value>| {
            let messages = json!([{ "role": "user", "content": "a" }]);
            let mut body = json!({ "model": "sonnet", "max_tokens": 9, dialect.list(): messages });
            if let Some(servers) = servers {
                body["mcp_servers"] = servers;
            }
            let request = site.of("POST", dialect.path, "alice").bearer_auth(key).json(&body);
            Answer::of(request.header("x-pilotlight-mcp", header)).await
        };
        assert_eq!(ask(&narrow, "docs", None).await.status, 200, "{}", dialect.path);
        for (key, header) in [(&narrow, "git"), (&narrow, "docs, git"), (&narrow, "unknown"), (&none, "docs")]
        {
            let refused = refusal(&ask(key, header, None).await);
            assert_eq!(refused, (403, "mcp_server_not_allowed".to_owned()), "{} {header}", dialect.path);
        }
        if dialect.path.starts_with("/v1/messages") {
            let defined = json!({ "m": { "command": "true" } });
            let refused = refusal(&ask(&narrow, "", Some(defined)).await);
            assert_eq!(refused, (403, "mcp_not_allowed".to_owned()), "{}", dialect.path);
            let named = refusal(&ask(&narrow, "", Some(json!(["git"]))).await);
            assert_eq!(named, (403, "mcp_server_not_allowed".to_owned()), "{}", dialect.path);
        }
    }
}

/// Text of a restricted turn is no command, which could choose another model.
#[tokio::test(flavor = "multi_thread")]
async fn restricted_turn_runs_no_command() {
    let place = place();
    let ring = Keyring::new(&place);
    let narrow = ring.key(&["--user", "alice", "--models", "sonnet"]).0;
    let wide = ring.user("alice");
    let config = format!("{}[cli]\nslash_commands = \"pass\"\n", ring.config());
    let (_program, site) = Program::ready(&place, &config).await;
    let answer =
        async |key: &str| turn(&site, key, &DIALECTS[2], "/nonsense x", &[]).await.json().to_string();
    assert!(!answer(&wide).await.contains("echo"), "the CLI takes it as a command");
    assert!(answer(&narrow).await.contains("echo"));
}

#[tokio::test(flavor = "multi_thread")]
async fn key_spends_no_more_than_its_limit() {
    let place = place();
    let ring = Keyring::new(&place);
    let narrow = ring.key(&["--user", "alice", "--usd-per-day", "0.000001"]).0;
    let wide = ring.user("alice");
    let (_program, site) = Program::ready(&place, &ring.config()).await;
    assert_eq!(turn(&site, &narrow, &DIALECTS[2], "hello", &[]).await.status, 200);
    for dialect in &DIALECTS {
        let refused = refusal(&turn(&site, &narrow, dialect, "hello", &[]).await);
        assert_eq!(refused, (429, "spend_limit".to_owned()), "{}", dialect.path);
        assert_eq!(turn(&site, &wide, dialect, "hello", &[]).await.status, 200, "{}", dialect.path);
    }
}
