//! Which credential reaches the model's API: the operator's, until a caller brings credentials of its own for a session.

use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};

use super::bench::Bench;
use crate::common::client::Client;
use crate::common::keyring::Keyring;
use crate::common::request::{Auth, Request};

/// A header of the operator's goes with every request. One that is a credential would win over the caller's.
const HEADERS: &str = r#"env.ANTHROPIC_CUSTOM_HEADERS = "Authorization: Bearer operators\nX-Team: blue""#;

fn credentials(access: &str, expires_at: i64) -> Value {
    json!({ "access_token": access, "refresh_token": "refresh", "expires_at": expires_at })
}

/// A turn in the original dialect, and the one request that came of it.
async fn asked(
    bench: &Bench,
    client: &Client,
    user: &str,
    text: &str,
    credentials: Option<Value>,
) -> Request {
    let before = bench.api.requests().len();
    let mut body = json!({ "messages": [{ "role": "user", "content": text }] });
    if let Some(credentials) = credentials {
        body["oauth_credentials"] = credentials;
    }
    let (status, answer) = client.raw(user, body.to_string().into_bytes()).await;
    assert!(status == 200 && !answer.contains(r#""is_error":true"#), "{status}: {answer}");
    let requests = bench.api.requests();
    let messages: Vec<_> = requests.iter().skip(before).filter(|it| it.last().contains(text)).collect();
    assert_eq!(messages.len(), 1, "one message, one request");
    messages[0].clone()
}

async fn pid_of(client: &Client, user: &str) -> Option<i32> {
    client.active().await.into_iter().find(|active| active.user.starts_with(user))?.pid
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn own_credentials_win_over_the_operators() {
    let Some(bench) = Bench::new().await else { return };
    let users = bench.place.path().join("users.toml");
    std::fs::write(
        &users,
        "[alice]\nANTHROPIC_AUTH_TOKEN = \"of-the-file\"\nCLAUDE_CODE_USE_GATEWAY = \"1\"\n",
    )
    .unwrap();
    std::fs::set_permissions(&users, std::fs::Permissions::from_mode(0o600)).unwrap();
    let keys = format!("user_env_file = {users:?}\nenv.CLAUDE_CODE_OAUTH_TOKEN = \"operators\"\n{HEADERS}");
    let server = bench.serve_cli(&keys, "").await;
    let client = server.client();

    let first = asked(&bench, &client, "alice", "the word is heliotrope", None).await;
    assert!(!first.credential.contains("mine"), "{}", first.credential);
    let operators = pid_of(&client, "alice").await;
    // The child runs with the operator's: it is restarted, and goes on.
    let own =
        asked(&bench, &client, "alice", "[[recall]] 1", Some(credentials("mine-1", 4_102_444_800_000))).await;
    assert_eq!((own.auth, own.credential.as_str()), (Auth::Bearer, "Bearer mine-1"));
    assert_eq!(own.user_texts, ["the word is heliotrope", "[[recall]] 1"]);
    assert_eq!(own.cli_session, first.cli_session, "the same conversation");
    let process = pid_of(&client, "alice").await;
    assert_ne!(process, operators);
    // Without saying so again, and with later ones, in the same process.
    let again = asked(&bench, &client, "alice", "[[say:again]]", None).await;
    assert_eq!(again.credential, "Bearer mine-1");
    let later =
        asked(&bench, &client, "alice", "[[say:later]]", Some(credentials("mine-2", 4_102_444_800_001)))
            .await;
    assert_eq!(later.credential, "Bearer mine-2");
    assert_eq!(pid_of(&client, "alice").await, process, "no reason for another process");
    // Others are served as before.
    let bob = asked(&bench, &client, "bob", "hello", None).await;
    assert_eq!((bob.auth, bob.credential.as_str()), (Auth::ApiKey, "dummy"));

    bench.on_disk_of("[[say:later]]").await;
    server.stop().await;
    let server = bench.serve_cli(&keys, "").await;
    let client = server.client();
    let resumed = asked(&bench, &client, "alice", "[[recall]] 2", None).await;
    assert_eq!((resumed.auth, resumed.credential.as_str()), (Auth::Bearer, "Bearer mine-2"));
    assert_eq!(resumed.user_texts.first().map(String::as_str), Some("the word is heliotrope"));
    let bob = asked(&bench, &client, "bob", "hello again", None).await;
    assert_eq!((bob.auth, bob.credential.as_str()), (Auth::ApiKey, "dummy"));
}

/// The models of a key, by alias and by id, are those that the CLI requests; a tool gets no other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn models_of_a_key_hold_at_the_broker() {
    let Some(bench) = Bench::new().await else { return };
    let ring = Keyring::new(&bench.place);
    let config = format!(
        "[auth]\nkeys_file = {:?}\n[broker]\ncredentials = \"broker\"\n[permissions]\npolicy = \"allow\"\n",
        ring.0
    );
    const NAMES: [&str; 4] = ["sonnet", "haiku", "opus[1m]", "claude-haiku-4-5"];
    let keys = NAMES.map(|model| ring.key(&["--user", model, "--models", model]).0);
    let server = bench.serve(&config).await;
    let url = format!("{}/v1/messages/keepalive", server.client().http());
    let command = "curl -sS -m 10 -H \"x-api-key: $ANTHROPIC_API_KEY\" -H 'content-type: application/json' \
                   -d '{\"model\":\"other\"}' $ANTHROPIC_BASE_URL/v1/messages > refused.txt";
    for (model, key) in NAMES.into_iter().zip(keys) {
        let before = bench.api.requests().len();
        let text = format!("[[tool:Bash {}]]", json!({ "command": command }));
        let body = json!({ "messages": [{ "role": "user", "content": text }], "include_files": true });
        let request = reqwest::Client::new().post(&url).bearer_auth(key).json(&body);
        let answer = request.send().await.unwrap().text().await.unwrap();
        assert!(!answer.contains(r#""is_error":true"#), "{model}: {answer}");
        assert!(answer.contains("model_not_allowed") && answer.contains("TOOLS:ok"), "{model}: {answer}");
        let requests = bench.api.requests();
        let named: Vec<_> = requests.iter().skip(before).map(|request| request.model.as_str()).collect();
        let family = if model.contains("haiku") { "haiku" } else { model.trim_end_matches("[1m]") };
        assert!(!named.is_empty() && named.iter().all(|name| name.contains(family)), "{model}: {named:?}");
    }
}
