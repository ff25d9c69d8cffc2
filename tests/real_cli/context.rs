//! A conversation that no longer fits into the model's context: an error with a code of its own and a way out.

use serde_json::Value;

use super::bench::Bench;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_context_has_a_code_in_each_dialect() {
    let Some(bench) = Bench::of_newest().await else { return };
    full(&bench).await;
}

pub(crate) async fn full(bench: &Bench) {
    let server = bench.serve("").await;
    let client = server.client();
    for word in ["one", "two", "three"] {
        assert_eq!(client.turn("alice", &format!("[[say:{word}]]")).await.text(), word);
    }
    let turn = client.turn("alice", "[[too_long]]").await;
    let (code, message) = turn.error().expect("an error");
    assert_eq!((code, turn.done), ("context_full", true), "{message}");
    assert!(message.contains("/compact"), "{message}");
    let web = reqwest::Client::builder().no_proxy().build().expect("a client");
    let asked = serde_json::json!({"model": "m", "max_tokens": 9,
        "messages": [{"role": "user", "content": "[[too_long]]"}]});
    for path in ["/v1/messages", "/v1/chat/completions"] {
        for stream in [false, true] {
            let mut asked = asked.clone();
            asked["stream"] = stream.into();
            let request = web.post(format!("{}{path}", client.http())).header("x-pilotlight-user", "bob");
            let answer = request.json(&asked).send().await.expect("an answer");
            assert_eq!(answer.status(), 400, "{path}, stream {stream}");
            assert_eq!(answer.headers()["x-should-retry"], "false");
            let body: Value = answer.json().await.expect("JSON");
            assert_eq!(body["error"]["code"], "context_full", "{body}");
        }
    }
    assert_eq!(client.turn("carol", "[[say:fine]]").await.text(), "fine");
    // Both ways out that the message names: the conversation goes on in short, and without what was said.
    for (way, is_known) in [("compact", true), ("reset", false)] {
        assert!(message.contains(way), "{way}: {message}");
        let request = web.post(format!("{}/v1/sessions/default/{way}", client.http()));
        let answer = request.header("x-pilotlight-user", "alice").send().await.expect("an answer");
        let (status, body) = (answer.status(), answer.text().await.expect("a body"));
        assert_eq!(status, 200, "{way}: {body}");
        assert_eq!(client.turn("alice", &format!("[[say:{way}]]")).await.text(), way);
        let requests = bench.api.requests();
        let last =
            requests.iter().rfind(|it| it.last().contains(&format!("[[say:{way}]]"))).expect("a request");
        assert_eq!(last.body["messages"].to_string().contains("plain answer"), is_known, "{way}");
        assert!(!last.body["messages"].to_string().contains("[[too_long]]"), "{way}");
    }
}
