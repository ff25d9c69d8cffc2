//! Children whose network is restricted reach the model's API through the broker, without its credential.

use serde_json::json;

use super::{served, tool};
use crate::common::api::Api;
use crate::common::installed::left_out;
use crate::common::keyring::Keyring;
use crate::common::program::{Answer, Program, message, place};

const KEY: &str = "sk-ant-the-operators-key";
/// A request as the CLI makes it, with what its environment has.
const ASK: &str = "curl -sS -m 10 -H \"x-api-key: $ANTHROPIC_API_KEY\" -H 'content-type: application/json' \
    -d '{\"model\":\"m\",\"max_tokens\":9,\"messages\":[{\"role\":\"user\",\"content\":\"[[say:from the api]]\"}]}'";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credential_stays_outside_of_the_child() {
    if std::process::Command::new("curl").arg("--version").output().is_err() {
        return left_out("curl is not installed");
    }
    for rung in ["namespaces", "landlock"] {
        let (api, place) = (Api::start().await, place());
        let env =
            format!("[cli.env]\nANTHROPIC_API_KEY = \"{KEY}\"\nANTHROPIC_BASE_URL = \"{}\"\n", api.url());
        let Some((_program, site)) = served(&place, &[rung], &env).await else { continue };
        let output = tool(&site, "alice", &format!("{ASK} $ANTHROPIC_BASE_URL/v1/messages; echo; env")).await;
        assert!(output.contains("from the api"), "{rung}: {output}");
        assert!(!output.contains(KEY) && !output.contains(api.url()), "{rung}: {output}");
        let seen = api.requests();
        assert!(
            !seen.is_empty() && seen.iter().all(|request| request.credential == KEY),
            "{rung}: {seen:#?}"
        );
        // The API itself is out of reach, and a token is of no use in another session.
        let direct = tool(&site, "alice", &format!("{ASK} {}/v1/messages", api.url())).await;
        assert!(!direct.contains("from the api"), "{rung}: {direct}");
        let token = output.lines().find_map(|line| line.strip_prefix("ANTHROPIC_API_KEY=")).unwrap();
        let stolen = format!("ANTHROPIC_API_KEY={token}; {ASK} $ANTHROPIC_BASE_URL/v1/messages");
        let stolen = tool(&site, "bob", &stolen).await;
        assert!(!stolen.contains("from the api"), "{rung}: {stolen}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn open_egress_leaves_the_child_its_own_way() {
    let place = place();
    let env = format!("[cli.env]\nANTHROPIC_API_KEY = \"{KEY}\"\n[broker]\ncredentials = \"child\"\n");
    let Some((_program, site)) = served(&place, &["namespaces"], &env).await else { return };
    let output = tool(&site, "alice", "env; cat /proc/net/dev").await;
    assert!(output.contains(KEY), "{output}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn provider_that_cannot_be_brokered_is_refused() {
    let place = place();
    let env = "[cli.env]\nCLAUDE_CODE_USE_BEDROCK = \"1\"\n[permissions]\npolicy = \"deny\"\n[isolation]\nrungs = [\"namespaces\"]\n";
    let (program, site) = crate::common::program::Program::serve(&place, env).await;
    if site.metric("isolation_info", &["rung=\"namespaces\""]).await != 1.0 {
        return left_out("the rung namespaces cannot be built here");
    }
    let answer = site.turn("alice", "hello").await;
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(answer.body.contains("broker.credentials"), "{answer:?}");
    drop(program);
}

/// A tool uses the session's token within what the key of its turn may use.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn key_binds_the_requests_of_a_tool() {
    if std::process::Command::new("curl").arg("--version").output().is_err() {
        return left_out("curl is not installed");
    }
    let (api, place) = (Api::start().await, place());
    let ring = Keyring::new(&place);
    let narrow = ring.key(&["--user", "alice", "--models", "sonnet"]).0;
    let wide = ring.user("alice");
    let env = format!("env = {{ ANTHROPIC_API_KEY = \"{KEY}\", ANTHROPIC_BASE_URL = \"{}\" }}", api.url());
    let config = format!(
        "{}[cli]\n{env}\n[broker]\ncredentials = \"broker\"\n[permissions]\npolicy = \"allow\"\n",
        ring.config()
    );
    let (_program, site) = Program::ready(&place, &config).await;
    let ask = ASK.replace("\"m\"", "\"claude-opus-4-5\"");
    let input =
        json!({ "command": format!("{ask} $ANTHROPIC_BASE_URL/v1/messages > output.txt 2>&1; true") });
    let mut body = message(&format!("[[tool:Bash {input}]]"));
    body["include_files"] = json!(true);
    // The restriction is that of the key whose turn it is, in one session.
    for (key, is_served) in [(&narrow, false), (&wide, true), (&narrow, false)] {
        let turn = site.asking("alice", &body).bearer_auth(key);
        let events = Answer::of(turn).await.events();
        let files = events.iter().find(|event| event["type"] == "files_batch").unwrap()["files"].clone();
        let mut files = files.as_array().unwrap().iter();
        let output = files.find(|file| file["path"].as_str().unwrap().ends_with("output.txt")).unwrap();
        let output = output["content"].as_str().unwrap();
        assert_eq!(output.contains("from the api"), is_served, "{output}");
        assert_eq!(output.contains("model_not_allowed"), !is_served, "{output}");
    }
    assert_eq!(api.requests().len(), 1);
    assert_eq!(site.metric("broker_refusals_total", &["reason=\"model\""]).await, 2.0);
}
