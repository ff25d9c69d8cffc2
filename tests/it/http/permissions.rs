//! Who decides about tools, over HTTP: nobody, everybody, or the caller while its turn runs.

use futures_util::StreamExt;
use serde_json::{Value, json};

use crate::common::program::{Answer, Program, Site, message, place};
use crate::common::sse::{Frame, Reader};
use crate::common::{SOON, eventually_some};

const TOOL: &str = "[[tool:Bash {\"command\":\"touch made\"}]]";
const ASK: &str = "[permissions]\npolicy = \"ask\"";

/// A turn that runs, read as it comes.
struct Turn {
    bytes: std::pin::Pin<Box<dyn futures_util::Stream<Item = reqwest::Result<bytes::Bytes>> + Send>>,
    reader: Reader,
    frames: Vec<Frame>,
}

impl Turn {
    async fn begin(site: &Site, user: &str, text: &str) -> Self {
        let answer = site.asking(user, &message(text)).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        Self { bytes: Box::pin(answer.bytes_stream()), reader: Reader::default(), frames: Vec::new() }
    }

    /// Reads on until there is such an event.
    async fn until(&mut self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let reading = async {
            loop {
                let found = self.frames.iter().find_map(|frame| match frame {
                    Frame::Event(event) if wanted(event) => Some(event.clone()),
                    _ => None,
                });
                if let Some(found) = found {
                    return found;
                }
                let piece = self.bytes.next().await;
                let piece =
                    piece.unwrap_or_else(|| panic!("the stream ended without {what}: {:#?}", self.frames));
                self.frames.extend(self.reader.push(&piece.unwrap()));
            }
        };
        tokio::time::timeout(SOON, reading).await.unwrap_or_else(|_| panic!("no {what}"))
    }

    async fn result(&mut self) -> Value {
        self.until("a result", |event| event["type"] == "result").await
    }
}

async fn pending(site: &Site, user: &str) -> Vec<Value> {
    let answer = Answer::of(site.session("GET", "default/permissions", user)).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["permissions"].as_array().unwrap().clone()
}

async fn decide(site: &Site, user: &str, id: &str, body: Value) -> Answer {
    Answer::of(site.session("POST", &format!("default/permissions/{id}"), user).json(&body)).await
}

async fn files(site: &Site, user: &str) -> Vec<Value> {
    let answer = Answer::of(site.of("GET", "/v1/workspace", user)).await;
    answer.json()["files"].as_array().unwrap().clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_decides_without_asking() {
    for (policy, made) in [("deny", vec![]), ("allow", vec![json!({ "path": "made", "size": 0 })])] {
        let place = place();
        let (_program, site) = Program::ready(&place, &format!("[permissions]\npolicy = \"{policy}\"")).await;
        let answer = site.turn("alice", TOOL).await;
        assert!(answer.events().iter().all(|event| event["type"] != "control_request"), "{policy}");
        assert_eq!(files(&site, "alice").await, made, "{policy}");
        assert!(pending(&site, "alice").await.is_empty());
    }
}

/// A question is in the stream and in the list and the answer goes on with the turn.
#[tokio::test(flavor = "multi_thread")]
async fn question_is_streamed_listed_and_answered() {
    let place = place();
    let (_program, site) = Program::ready(&place, ASK).await;
    let mut turn = Turn::begin(&site, "alice", TOOL).await;
    let asked = turn.until("a question", |event| event["type"] == "control_request").await;
    let id = asked["request_id"].as_str().unwrap().to_owned();

    let list = pending(&site, "alice").await;
    let [shown] = &list[..] else { panic!("{list:?}") };
    assert_eq!(shown["request_id"], id.as_str());
    assert_eq!((&shown["tool_name"], &shown["input"]["command"]), (&json!("Bash"), &json!("touch made")));
    assert!(shown["created_at"].as_f64().unwrap() > 1.6e9);
    assert!(shown.as_object().unwrap().contains_key("description"));

    let allow = || json!({ "behavior": "allow" });
    let error = decide(&site, "alice", "nonsense", allow()).await.error();
    assert_eq!((error.0, error.1.as_str()), (404, "permission_not_found"));
    let error = decide(&site, "bob", &id, allow()).await.error();
    assert_eq!((error.0, error.1.as_str()), (404, "session_not_found"), "another user's");
    let error = decide(&site, "alice", &id, json!({ "behavior": "perhaps" })).await.error();
    assert!(error.0 == 400 && error.2.starts_with("behavior:"), "{error:?}");
    let answer = decide(&site, "alice", &id, allow()).await;
    assert_eq!((answer.status, answer.body.as_str()), (204, ""));

    let result = turn.result().await;
    assert_eq!(result["is_error"], false, "{result}");
    assert!(pending(&site, "alice").await.is_empty());
    let error = decide(&site, "alice", &id, allow()).await.error();
    assert_eq!((error.0, error.1.as_str()), (409, "permission_late"));
    assert_eq!(files(&site, "alice").await, [json!({ "path": "made", "size": 0 })]);
}

/// A denial reaches the model and other input the tool.
#[tokio::test(flavor = "multi_thread")]
async fn denial_reaches_model_changed_input_reaches_tool() {
    let place = place();
    let (_program, site) = Program::ready(&place, ASK).await;
    let mut turn = Turn::begin(&site, "alice", TOOL).await;
    let asked = turn.until("a question", |event| event["type"] == "control_request").await;
    let id = asked["request_id"].as_str().unwrap();
    let denied =
        decide(&site, "alice", id, json!({ "behavior": "deny", "message": "not on a Monday" })).await;
    assert_eq!(denied.status, 204);
    let reason = |event: &Value| event["type"] == "user" && event.to_string().contains("not on a Monday");
    turn.until("the reason", reason).await;
    turn.result().await;
    assert!(files(&site, "alice").await.is_empty());

    let mut turn = Turn::begin(&site, "alice", TOOL).await;
    let asked = turn.until("a question", |event| event["type"] == "control_request").await;
    let id = asked["request_id"].as_str().unwrap();
    let other = json!({ "behavior": "allow", "updated_input": { "command": "touch other" } });
    assert_eq!(decide(&site, "alice", id, other).await.status, 204);
    turn.result().await;
    assert_eq!(files(&site, "alice").await, [json!({ "path": "other", "size": 0 })]);
}

/// An unanswered question is denied at the limit; a late answer gets an error.
#[tokio::test(flavor = "multi_thread")]
async fn unanswered_question_is_denied_late_one_fails() {
    let place = place();
    let config = format!("{ASK}\n[session]\npermission_timeout = \"300ms\"\n[http]\nheartbeat = \"50ms\"");
    let (_program, site) = Program::ready(&place, &config).await;
    let mut turn = Turn::begin(&site, "alice", TOOL).await;
    let asked = turn.until("a question", |event| event["type"] == "control_request").await;
    let id = asked["request_id"].as_str().unwrap();
    turn.result().await;
    assert!(turn.frames.contains(&Frame::Comment("ping".into())), "a turn that waits gives signs of life");
    assert!(files(&site, "alice").await.is_empty());
    let error = decide(&site, "alice", id, json!({ "behavior": "allow" })).await.error();
    assert_eq!((error.0, error.1.as_str()), (409, "permission_late"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_turn_takes_its_questions_with_it() {
    let place = place();
    let (_program, site) = Program::ready(&place, ASK).await;
    let mut turn = Turn::begin(&site, "alice", TOOL).await;
    turn.until("a question", |event| event["type"] == "control_request").await;
    let answer = Answer::of(site.session("POST", "default/interrupt", "alice")).await;
    assert_eq!(answer.json(), json!({ "id": "default", "interrupted": true }));
    turn.result().await;
    let none = async || pending(&site, "alice").await.is_empty().then_some(());
    eventually_some("nothing is asked any more", SOON, none).await;
    assert!(files(&site, "alice").await.is_empty());
}

/// Clients of the SDKs get a heartbeat while a tool waits, and the question as a comment.
#[tokio::test(flavor = "multi_thread")]
async fn sdk_clients_get_heartbeat_while_tool_waits() {
    let place = place();
    let (_program, site) = Program::ready(&place, ASK).await;
    let messages = json!([{ "role": "user", "content": TOOL }]);
    for (path, sign) in [("/v1/messages", "event: ping\n"), ("/v1/chat/completions", "")] {
        let body = json!({ "model": "sonnet", "max_tokens": 9, "stream": true, "messages": messages });
        let request = site.of("POST", path, "alice").header("x-pilotlight-session", "default").json(&body);
        let mut answer = request.send().await.unwrap();
        let mut read = String::new();
        while !read.contains(": permission {") {
            let piece = tokio::time::timeout(SOON, answer.chunk()).await.expect("in time").unwrap();
            read.push_str(std::str::from_utf8(&piece.expect("not the end")).unwrap());
        }
        assert!(read.contains(sign), "{path}: {read}");
        let id = pending(&site, "alice").await[0]["request_id"].as_str().unwrap().to_owned();
        assert_eq!(decide(&site, "alice", &id, json!({ "behavior": "deny" })).await.status, 204);
        let rest = tokio::time::timeout(SOON, answer.text()).await.unwrap().unwrap();
        assert!(rest.contains("TOOLS:de"), "{path}: {rest}");
    }
}

const QUESTION: &str = r#"[[tool:AskUserQuestion {"questions":[{"question":"Which color?","header":"Color","multiSelect":false,"options":[{"label":"Red","description":"r"},{"label":"Blue","description":"b"}]}]}]]"#;

/// A question of the model is listed with its options, and its answer is checked.
#[tokio::test(flavor = "multi_thread")]
async fn question_of_the_model_is_listed_and_answered() {
    let place = place();
    let (_program, site) = Program::ready(&place, ASK).await;
    let mut turn = Turn::begin(&site, "alice", QUESTION).await;
    let asked = turn.until("a question", |event| event["type"] == "control_request").await;
    let id = asked["request_id"].as_str().unwrap();
    let list = pending(&site, "alice").await;
    assert_eq!((&list[0]["kind"], &list[0]["tool_name"]), (&json!("question"), &json!("AskUserQuestion")));
    assert_eq!(list[0]["input"]["questions"][0]["options"][1]["label"], "Blue");

    for (answer, field) in [
        (json!({ "behavior": "allow", "answers": {} }), "answers:"),
        (json!({ "behavior": "allow", "answers": { "Which size?": "L" } }), "answers:"),
        (json!({ "behavior": "allow", "answers": { "Which color?": ["Red", "Blue"] } }), "answers.0:"),
        (json!({ "behavior": "allow", "answers": { "Which color?": "x".repeat(5000) } }), "answers.0:"),
        (json!({ "action": "accept" }), "action:"),
    ] {
        let error = decide(&site, "alice", id, answer.clone()).await.error();
        assert!(error.0 == 400 && error.2.starts_with(field), "{answer}: {error:?}");
    }
    let error =
        decide(&site, "bob", id, json!({ "behavior": "allow", "answers": { "Which color?": "Red" } })).await;
    assert_eq!(error.status, 404, "another user's");
    let answer = json!({ "behavior": "allow", "answers": { "Which color?": "chartreuse" } });
    assert_eq!(decide(&site, "alice", id, answer).await.status, 204);
    let result = turn.result().await;
    assert!(result["result"].as_str().unwrap().contains("chartreuse"), "{result}");
}

#[tokio::test(flavor = "multi_thread")]
async fn question_of_the_model_for_nobody_is_denied() {
    let place = place();
    let (_program, site) = Program::ready(&place, "[permissions]\npolicy = \"allow\"").await;
    let answer = site.turn("alice", QUESTION).await;
    assert!(answer.body.contains("nobody is there to answer"), "{answer:?}");
}
