//! What the API may do to a turn: its caller gets an error or the whole answer, the process stays, and the next turn is
//! served as if nothing had been.

use serde_json::Value;

use super::bench::Bench;
use crate::common::client::{Client, Turn};
use crate::common::proxy::Proxy;
use crate::common::shown;

/// Few retries, else one of these turns takes seconds more.
const ONE_RETRY: &str = "api_retries = 1\n";

/// A fault of the API, and what the caller is to get of it.
#[derive(Clone, Copy)]
struct Fault {
    message: &'static str,
    /// The code of the error event; none where the answer comes all the same.
    code: Option<&'static str>,
    /// What the CLI says the API's status was.
    status: Option<u16>,
    /// How its text begins, or that of the answer.
    text: &'static str,
    /// How often the API is asked.
    calls: usize,
    /// Text and calls of 2.1.332, where they differ.
    since_332: Option<(&'static str, usize)>,
}

impl Fault {
    const fn since_332(self, text: &'static str, calls: usize) -> Self {
        Self { since_332: Some((text, calls)), ..self }
    }

    /// As the version of this suite does it.
    fn here(self) -> Self {
        match self.since_332.filter(|_| super::is_since_332()) {
            Some((text, calls)) => Self { text, calls, ..self },
            None => self,
        }
    }
}

const fn error(
    message: &'static str,
    code: &'static str,
    status: Option<u16>,
    text: &'static str,
    calls: usize,
) -> Fault {
    Fault { message, code: Some(code), status, text, calls, since_332: None }
}

const fn answer(message: &'static str, text: &'static str, calls: usize) -> Fault {
    Fault { message, code: None, status: None, text, calls, since_332: None }
}

const EMPTY: &str = "API Error: API returned an empty or malformed response";

const FAULTS: [Fault; 20] = [
    // 2.1.332 asks again without what the API may not know.
    error("[[error:400]]", "invalid_request", Some(400), "API Error: 400", 1).since_332("API Error: 400", 3),
    error("[[error:401]]", "authentication_failed", Some(401), "Failed to authenticate. API Error: 401", 2),
    error("[[error:403]]", "authentication_failed", Some(403), "Failed to authenticate. API Error: 403", 1),
    error("[[error:404]]", "model_not_found", Some(404), "There's an issue with the selected model", 2),
    error("[[error:429]]", "rate_limit", Some(429), "API Error: Request rejected (429)", 2),
    error("[[error:429 1]] soon", "rate_limit", Some(429), "API Error: Request rejected (429)", 2),
    error("[[error:429 600]] late", "rate_limit", Some(429), "API Error: Request rejected (429)", 1),
    error("[[error:500]]", "server_error", Some(500), "API Error: 500", 2),
    error("[[error:529]]", "server_error", Some(529), "API Error: 529", 2),
    answer("[[error:500]][[times:1]][[say:at the second try]]", "at the second try", 2),
    error("[[break:empty]]", "server_error", None, EMPTY, 2),
    error("[[break:html]]", "server_error", None, EMPTY, 2),
    // Broken in the middle of a block the answer is asked for again, as a whole.
    answer("[[break:drop]][[say:after a drop]]", "after a drop", 2).since_332("after a drop", 3),
    answer("[[break:garbage]][[say:after garbage]]", "after garbage", 2),
    answer("[[break:event]][[say:after an error]]", "after an error", 2),
    // Broken behind one it is an error; 2.1.332 asks for the rest of it three times first.
    error("[[say:a]][[break:drop]]", "server_error", None, "API Error: Connection closed mid-response", 1)
        .since_332("API Error: Connection lost mid-response", 4),
    error("[[say:b]][[break:garbage]]", "server_error", None, "API Error: JSON Parse error", 1)
        .since_332("API Error: The response stream was malformed", 4),
    error("[[say:c]][[break:event]]", "server_error", None, "API Error: overloaded in mid-stream", 1)
        .since_332("API Error: Server error mid-response", 4),
    error("[[say:d]][[stop:refusal]]", "refusal", None, "API Error: Claude Code is unable to respond", 1)
        .since_332("API Error: Opus 5.5's safeguards flagged this message", 2),
    // Tries to compact the conversation first.
    error("[[error:413]]", "request_too_large", Some(413), "the conversation with all its attachments", 2),
];

/// A success with is error is an error and the process stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trap_01_success_with_is_error_is_error() {
    let Some(bench) = Bench::new().await else { return };
    let server = bench.serve_cli(ONE_RETRY, "").await;
    let client = server.client();
    client.turn("alice", "hello").await.text();
    let pid = client.pid().await;
    for fault in FAULTS.map(Fault::here) {
        let turn = client.turn("alice", fault.message).await;
        judge(&fault, &turn);
        assert_eq!(bench.api.count(fault.message), fault.calls, "calls of the API for {}", fault.message);
        assert_eq!(client.turn("alice", "[[say:fine]]").await.text(), "fine", "after {}", fault.message);
        assert_eq!(client.pid().await, pid, "after {}", fault.message);
    }
    let metrics = client.metrics().await;
    assert_eq!(metrics.sum("pilotlight_restarts_total", &[]), 0.0);
    let failed = FAULTS.iter().filter(|fault| fault.code.is_some()).count();
    assert_eq!(metrics.sum("pilotlight_turns_total", &["outcome=\"error\""]), failed as f64);
}

/// Whether the caller of a turn got of a fault what it is to get.
fn judge(fault: &Fault, turn: &Turn) {
    let about = || format!("{}: {}", fault.message, shown(&turn.events));
    let last = result(turn);
    assert_eq!(last["subtype"], "success", "the trap is not there: {}", about());
    let Some(code) = fault.code else {
        assert_eq!(turn.text(), fault.text, "{}", about());
        return;
    };
    let (reported, message) = turn.error().unwrap_or_else(|| panic!("no error: {}", about()));
    assert_eq!((reported, turn.done), (code, true), "{}", about());
    assert!(message.starts_with(fault.text), "{}", about());
    assert_eq!(last["api_error_status"].as_u64(), fault.status.map(u64::from), "{}", about());
}

/// The CLI's own last line.
fn result(turn: &Turn) -> Value {
    let result = turn.events.iter().find(|event| event["type"] == "result");
    result.unwrap_or_else(|| panic!("no result: {}", shown(&turn.events))).clone()
}

/// An overload that has no status is an error of the server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trap_12_statusless_overload_is_server_error() {
    let Some(bench) = Bench::new().await else { return };
    // After this number the CLI says that it was repeated, and no longer by which status.
    let server = bench.serve_cli("api_retries = 2\n", "").await;
    let turn = server.client().turn("alice", "[[error:529]]").await;
    let text = "API Error: Repeated 529 Overloaded errors";
    let status = super::is_since_332().then_some(529);
    judge(&error("[[error:529]]", "server_error", status, text, 3), &turn);
    assert_eq!(bench.api.count("[[error:529]]"), 3);
}

/// Deltas that were cut off are replaced by the whole answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trap_13_cut_off_deltas_yield_whole_answer() {
    let Some(bench) = Bench::new().await else { return };
    let server = bench.serve("").await;
    let turn = server.client().turn("alice", "[[break:drop]][[say:the whole answer]]").await;
    // 2.1.332 begins several times before it asks for the whole.
    let most = if super::is_since_332() { 3 } else { 1 };
    let is_cut_off = (1..=most).any(|begun| turn.deltas() == "cut off ".repeat(begun));
    assert!(is_cut_off, "what was sent is not taken back: {}", turn.deltas());
    assert_eq!(turn.text(), "the whole answer");
}

/// An answer that is too long for one part comes whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answer_too_long_for_one_part_is_whole() {
    let Some(bench) = Bench::new().await else { return };
    let server = bench.serve("").await;
    let turn = server.client().turn("alice", "[[say:one part; ]][[stop:max_tokens]][[times:1]]").await;
    // 2.1.332 asks for the rest with a reminder, which the API does not take for a message.
    let rest = if super::is_since_332() { "one part; " } else { "plain answer" };
    assert_eq!(turn.text(), rest, "the CLI's own last line has the last part alone");
    assert_eq!(turn.deltas(), format!("one part; {rest}"));
}

/// An API that cannot be reached is an error until it is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unreachable_api_is_error_until_back() {
    let Some(mut bench) = Bench::new().await else { return };
    let mut way = Proxy::to(bench.api.url()).await;
    bench.url = way.url();
    let server = bench.serve_cli(ONE_RETRY, "").await;
    let client = server.client();
    client.turn("alice", "hello").await.text();
    let pid = client.pid().await;
    way.reset();
    let [dropped, refused] = if super::is_since_332() {
        ["API Error: Connection dropped", "API Error: Connection refused"]
    } else {
        ["API Error: Unable to connect to API"; 2]
    };
    judge_unreachable(&client, dropped).await;
    way.restore();
    assert_eq!(client.turn("alice", "[[say:back]]").await.text(), "back");
    way.refuse().await;
    judge_unreachable(&client, refused).await;
    way.restore();
    assert_eq!(client.turn("alice", "[[say:back again]]").await.text(), "back again");
    assert_eq!(client.pid().await, pid);
}

async fn judge_unreachable(client: &Client, text: &'static str) {
    let turn = client.turn("alice", "is anybody there?").await;
    judge(&error("nobody", "server_error", None, text, 0), &turn);
}
