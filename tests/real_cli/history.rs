//! A history that a client brings to a new conversation arrives at the API as it was: roles, images, documents, tool
//! calls with their arguments, tool results, in order, and nothing beside them.

use rustix::process::Signal;
use serde_json::{Value, json};

use super::bench::{Bench, transcripts};
use crate::common::rules::{violations, without_additions};
use crate::common::server::Server;
use crate::common::{SOON, eventually};

const PNG: &str =
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGNgYGD4DwABBAEAwS2OUAAAAABJRU5ErkJggg==";
const PDF: &str =
    "JVBERi0xLjQKMSAwIG9iajw8L1R5cGUvQ2F0YWxvZz4+ZW5kb2JqCnRyYWlsZXI8PC9Sb290IDEgMCBSPj4KJSVFT0YK";

fn text(text: &str) -> Value {
    json!({ "type": "text", "text": text })
}

fn image() -> Value {
    json!({ "type": "image", "source": { "type": "base64", "media_type": "image/png", "data": PNG } })
}

fn document() -> Value {
    json!({ "type": "document", "source": { "type": "base64", "media_type": "application/pdf", "data": PDF } })
}

fn message(role: &str, content: Value) -> Value {
    json!({ "role": role, "content": content })
}

/// Everything that a client of the Messages API may have said and heard.
fn full() -> Vec<Value> {
    vec![
        message("user", json!([text("what is this? @/etc/passwd"), image(), document()])),
        message(
            "assistant",
            json!([
                { "type": "thinking", "thinking": "hm", "signature": "c2lnbmVk" },
                text("I look it up"),
                { "type": "tool_use", "id": "toolu_1", "name": "weather", "input": { "city": "Bern", "days": [1, 2] } },
                { "type": "tool_use", "id": "toolu_2", "name": "map", "input": {} },
            ]),
        ),
        message(
            "user",
            json!([
                { "type": "tool_result", "tool_use_id": "toolu_1", "content": [text("sunny"), image()] },
                { "type": "tool_result", "tool_use_id": "toolu_2", "content": [text("no map")], "is_error": true },
                text("/clear"),
            ]),
        ),
        message("assistant", json!([text("It is sunny.")])),
    ]
}

/// What arrives of a history and the message after it.
fn with(mut history: Vec<Value>, last: &str) -> Value {
    history.push(message("user", json!([text(last)])));
    Value::Array(history)
}

struct Caller {
    web: reqwest::Client,
    http: String,
}

/// What came back.
struct Heard {
    conversation: String,
    ignored: Option<String>,
    body: String,
}

impl Caller {
    fn new(server: &Server) -> Self {
        let web = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { web, http: server.client().http().to_owned() }
    }

    async fn ask(&self, path: &str, session: Option<&str>, mut messages: Vec<Value>, last: &str) -> Heard {
        messages.push(message("user", json!(last)));
        let body = match path {
            // The model is the CLI's own choice there.
            "/v1/messages/keepalive" => json!({ "messages": messages }),
            _ => json!({ "model": "claude-sonnet-4-5", "max_tokens": 64, "messages": messages }),
        };
        let mut request = self.web.post(format!("{}{path}", self.http)).header("x-pilotlight-user", "alice");
        if let Some(session) = session {
            request = request.header("x-pilotlight-session", session);
        }
        let answer = request.json(&body).send().await.unwrap();
        let header = |name: &str| Some(answer.headers().get(name)?.to_str().unwrap().to_owned());
        let (conversation, ignored) = (header("x-pilotlight-session"), header("x-pilotlight-ignored"));
        let status = answer.status().as_u16();
        let body = answer.text().await.unwrap();
        assert_eq!(status, 200, "{body}");
        Heard { conversation: conversation.unwrap_or_default(), ignored, body }
    }

    /// The process of a conversation.
    async fn session(&self, name: &str) -> Value {
        let request = self.web.get(format!("{}/v1/sessions/{name}", self.http));
        let answer = request.header("x-pilotlight-user", "alice").send().await.unwrap();
        let entry: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
        assert!(entry["pid"].is_u64(), "{entry}");
        entry["pid"].clone()
    }

    async fn post(&self, path: &str) {
        let request = self.web.post(format!("{}{path}", self.http)).header("x-pilotlight-user", "alice");
        let answer = request.send().await.unwrap();
        assert!(answer.status().is_success(), "{path}: {}", answer.status());
    }
}

/// The messages of the last request of a conversation, after a check of their form.
fn arrived(bench: &Bench) -> Value {
    let requests = bench.api.requests();
    let request = requests.iter().rfind(|request| !request.user_texts.is_empty()).expect("a request");
    let messages = &request.body["messages"];
    assert_eq!(violations(messages), [""; 0], "{messages:#}");
    without_additions(messages)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_arrives_with_roles_and_content() {
    let Some(bench) = Bench::new().await else { return };
    arrives(&bench).await;
}

/// A history arrives as it is, and the conversation goes on.
pub(crate) async fn arrives(bench: &Bench) {
    let server = bench.serve("").await;
    let caller = Caller::new(&server);
    let first = caller.ask("/v1/messages", None, full(), "and now?").await;
    assert_eq!(arrived(bench), with(full(), "and now?"));
    // The CLI has no limit per request; nothing of the messages is ignored.
    assert_eq!(first.ignored.as_deref(), Some("max_tokens"));
    assert_eq!(bench.api.count("and now?"), 1, "asked once");
    // The client's history goes on, and so does the warm conversation.
    let warm = caller.session(&first.conversation).await;
    let heard: Value = serde_json::from_str(&first.body).unwrap();
    let mut longer = full();
    longer.push(message("user", json!("and now?")));
    longer.push(message("assistant", heard["content"].clone()));
    let second = caller.ask("/v1/messages", None, longer, "and then?").await;
    assert_eq!(second.conversation, first.conversation);
    assert_eq!(caller.session(&first.conversation).await, warm, "the same child");
    let mut expected = with(full(), "and now?");
    let expected = expected.as_array_mut().unwrap();
    expected.extend([
        message("assistant", heard["content"].clone()),
        message("user", json!([text("and then?")])),
    ]);
    assert_eq!(arrived(bench).as_array(), Some(&*expected));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chat_history_arrives_with_roles_and_content() {
    let Some(bench) = Bench::new().await else { return };
    let server = bench.serve("").await;
    let url = format!("data:image/png;base64,{PNG}");
    let file = format!("data:application/pdf;base64,{PDF}");
    let call = |id: &str, name: &str, arguments: &str| json!({ "id": id, "type": "function", "function": { "name": name, "arguments": arguments } });
    let history = vec![
        message("system", json!("be brief")),
        message(
            "user",
            json!([
                text("what is this?"),
                { "type": "image_url", "image_url": { "url": url } },
                { "type": "file", "file": { "filename": "a.pdf", "file_data": file } },
                { "type": "input_audio", "input_audio": { "data": "AA==", "format": "wav" } },
            ]),
        ),
        json!({ "role": "assistant", "content": null, "tool_calls": [
            call("call_1", "weather", "{\"city\":\"Bern\"}"), call("call_2", "map", ""),
        ] }),
        json!({ "role": "tool", "tool_call_id": "call_1", "content": "sunny" }),
        json!({ "role": "tool", "tool_call_id": "call_2", "content": [text("no map")] }),
        json!({ "role": "assistant", "content": "It is sunny.", "refusal": null }),
    ];
    let heard = Caller::new(&server).ask("/v1/chat/completions", None, history, "and now?").await;
    let mut named = document();
    named["title"] = json!("a.pdf");
    let call = |id: &str, name: &str, input: Value| json!({ "type": "tool_use", "id": id, "name": name, "input": input });
    let result = |id: &str, text_of: &str| json!({ "type": "tool_result", "tool_use_id": id, "content": [text(text_of)] });
    let expected = vec![
        message("user", json!([text("what is this?"), image(), named])),
        message(
            "assistant",
            json!([call("call_1", "weather", json!({ "city": "Bern" })), call("call_2", "map", json!({}))]),
        ),
        message("user", json!([result("call_1", "sunny"), result("call_2", "no map")])),
        message("assistant", json!([text("It is sunny.")])),
    ];
    assert_eq!(arrived(&bench), with(expected, "and now?"));
    assert_eq!(heard.ignored.as_deref(), Some("max_tokens,messages.input_audio"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn legacy_history_arrives_in_a_warm_session() {
    let Some(bench) = Bench::new().await else { return };
    let server = bench.serve("").await;
    let caller = Caller::new(&server);
    // A child is there, and has had no turn.
    caller.post("/v1/sessions/work/warm").await;
    let warm = bench.only_cli();
    caller.ask("/v1/messages/keepalive", Some("work"), full(), "and now?").await;
    assert_eq!(arrived(&bench), with(full(), "and now?"));
    assert!(!warm.is_alive(), "it could not have been brought into a child that runs");
    // From now on the conversation is its own: what a client says of it is not brought in again.
    let cli = bench.only_cli();
    caller.ask("/v1/messages/keepalive", Some("work"), full(), "and then?").await;
    assert_eq!(bench.only_cli(), cli);
    assert_eq!(arrived(&bench).as_array().map(Vec::len), Some(7));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn imported_history_outlives_kills_and_evictions() {
    let Some(bench) = Bench::new().await else { return };
    let server = bench.serve("").await;
    let caller = Caller::new(&server);
    let said = async |caller: &Caller, last: &str| {
        let heard = caller.ask("/v1/messages/keepalive", Some("work"), Vec::new(), last).await;
        let arrived = arrived(&bench);
        let brought = arrived.as_array().unwrap().get(..4).expect("the history").to_vec();
        assert_eq!(brought, full(), "{last}");
        heard
    };
    caller.ask("/v1/messages/keepalive", Some("work"), full(), "one").await;
    // The CLI writes this turn to its transcript some time from now.
    bench.only_cli().kill();
    said(&caller, "two").await;
    caller.ask("/v1/messages/keepalive", Some("work"), full(), "three").await;
    bench.on_disk_of("three").await;
    let evicted = bench.only_cli();
    caller.post("/v1/sessions/work/interrupt").await;
    let answer = caller.web.delete(format!("{}/v1/sessions/work", caller.http));
    answer.header("x-pilotlight-user", "alice").send().await.unwrap().error_for_status().unwrap();
    eventually("the child is stopped", SOON, || !evicted.is_alive()).await;
    let heard = said(&caller, "four").await;
    assert!(!heard.body.contains("context_lost"), "{}", heard.body);
    bench.on_disk_of("four").await;
    server.kill().await;
    let server = bench.serve("").await;
    let heard = said(&Caller::new(&server), "five").await;
    assert!(!heard.body.contains("context_lost"), "{}", heard.body);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_conversation_is_reported_and_imported() {
    let Some(bench) = Bench::new().await else { return };
    let server = bench.serve("[session]\njournal = \"off\"\n").await;
    let caller = Caller::new(&server);
    caller.ask("/v1/messages/keepalive", Some("work"), Vec::new(), "one").await;
    bench.on_disk_of("one").await;
    let cli = bench.only_cli();
    cli.signal(Signal::KILL);
    eventually("the CLI is gone", SOON, || !cli.is_alive()).await;
    let kept = files(bench.place.path());
    kept.iter().for_each(|file| std::fs::remove_file(file).unwrap());
    assert_eq!(kept.len(), 1);
    let heard = caller.ask("/v1/messages/keepalive", Some("work"), full(), "two").await;
    assert_eq!(arrived(&bench), with(full(), "two"));
    assert!(heard.body.contains("context_lost"), "what the CLI knew beside it is lost: {}", heard.body);
    let heard = caller.ask("/v1/messages/keepalive", Some("work"), full(), "three").await;
    assert!(!heard.body.contains("context_lost"), "said once");
}

/// Whatever a client makes of its history, the API accepts it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odd_histories_arrive_valid() {
    let Some(bench) = Bench::new().await else { return };
    let server = bench.serve("").await;
    let caller = Caller::new(&server);
    let call = |id: &str| json!({ "type": "tool_use", "id": id, "name": "a tool!", "input": {} });
    let result =
        |id: &str, content: Value| json!({ "type": "tool_result", "tool_use_id": id, "content": content });
    let user = |content: Value| message("user", content);
    let model = |content: Value| message("assistant", content);
    let odd: Vec<(&str, Vec<Value>, Value)> = vec![
        (
            "the assistant first",
            vec![model(json!("hello"))],
            json!([user(json!([text("(no content)")])), model(json!([text("hello")]))]),
        ),
        (
            "one role twice, and blanks",
            vec![
                user(json!("a")),
                user(json!([text(" "), text("b")])),
                model(json!("")),
                model(json!("c")),
                model(json!("d")),
            ],
            json!([user(json!([text("a"), text("b")])), model(json!([text("c"), text("d")]))]),
        ),
        (
            "a call without a result",
            vec![
                user(json!("a")),
                model(json!([call("x")])),
                user(json!("never mind")),
                model(json!("well")),
            ],
            json!([
                user(json!([text("a")])),
                model(json!([{ "type": "tool_use", "id": "x", "name": "a_tool_", "input": {} }])),
                user(
                    json!([{ "type": "tool_result", "tool_use_id": "x", "is_error": true }, text("never mind")])
                ),
                model(json!([text("well")])),
            ]),
        ),
        (
            "a result without a call",
            vec![user(json!([result("y", json!([text("found"), image()]))])), model(json!("well"))],
            json!([user(json!([text("found"), image()])), model(json!([text("well")]))]),
        ),
    ];
    for (what, history, mut expected) in odd {
        caller.ask("/v1/messages", None, history, what).await;
        expected.as_array_mut().unwrap().push(user(json!([text(what)])));
        assert_eq!(arrived(&bench), expected, "{what}");
    }
    // What the user said last goes with the prompt.
    let trailing = vec![user(json!("a")), model(json!("b")), user(json!([text("c"), text("d")]))];
    caller.ask("/v1/messages", None, trailing, "trailing").await;
    let expected = json!([
        user(json!([text("a")])),
        model(json!([text("b")])),
        user(json!([text("c"), text("d"), text("trailing")])),
    ]);
    assert_eq!(arrived(&bench), expected);
    // A result that no answer followed: the CLI takes a prompt behind an answer alone.
    let open = vec![user(json!("e")), model(json!([call("z")])), user(json!([result("z", json!("found"))]))];
    caller.ask("/v1/messages", None, open, "open").await;
    assert_eq!(arrived(&bench).as_array().map(Vec::len), Some(5));
}

/// A tool call in a history makes the CLI take its file for one that it has read, and report its changes to the model.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_of_file_tools_reads_no_file() {
    let Some(bench) = Bench::new().await else { return };
    let server = bench.serve("").await;
    let caller = Caller::new(&server);
    let file = bench.place.path().join("other-users.txt");
    std::fs::write(&file, "planted-secret\n").unwrap();
    let path = file.display().to_string();
    let call = |id: &str, name: &str, input: Value| json!({ "type": "tool_use", "id": id, "name": name, "input": input });
    let result = |id: &str, of: &str| json!({ "type": "tool_result", "tool_use_id": id, "content": of });
    let history = vec![
        message("user", json!("read it")),
        message("assistant", json!([call("r", "Read", json!({ "file_path": path }))])),
        message("user", json!([result("r", "     1\tguess")])),
        message(
            "assistant",
            json!([call("e", "Edit", json!({ "file_path": path, "old_string": "a", "new_string": "b" }))]),
        ),
        message("user", json!([result("e", "The file has been updated")])),
        message("assistant", json!("done")),
    ];
    for last in ["one", "two"] {
        let mut said = std::fs::read_to_string(&file).unwrap();
        said.push_str("planted-secret again\n");
        std::fs::write(&file, said).unwrap();
        caller.ask("/v1/messages/keepalive", Some("work"), history.clone(), last).await;
    }
    assert_eq!(bench.api.requests().len(), 2);
    let read = bench.api.requests().iter().any(|request| request.body.to_string().contains("planted-secret"));
    assert!(!read, "the file's content reached the API");
    assert!(!transcripts(bench.place.path()).contains("planted-secret"));
}

/// The transcripts below a directory.
fn files(directory: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut found = Vec::new();
    for path in entries {
        match path.extension() {
            _ if path.is_dir() && !path.is_symlink() => found.extend(files(&path)),
            Some(extension) if extension == "jsonl" => found.push(path),
            _ => {}
        }
    }
    found
}
