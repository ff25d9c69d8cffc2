//! A client that costs little: bytes written, bytes read, nothing parsed.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The end of a chunked answer.
const END: &[u8] = b"\r\n0\r\n\r\n";

pub(crate) struct Client {
    stream: TcpStream,
    answer: Vec<u8>,
}

/// What was seen of an answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen {
    pub(crate) events: usize,
    /// From the first byte sent to the first event received.
    pub(crate) first: Duration,
    pub(crate) whole: Duration,
}

/// A request as it goes out.
pub(crate) fn request(path: &str, user: usize, body: &Value) -> Vec<u8> {
    let body = body.to_string();
    let length = body.len();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nx-pilotlight-user: {user}\r\nx-pilotlight-session: default\r\n\
         content-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    );
    (head + &body).into_bytes()
}

/// A turn in the original dialect.
pub(crate) fn keepalive(user: usize, text: &str) -> Vec<u8> {
    let body = serde_json::json!({ "messages": [{ "role": "user", "content": text }] });
    request("/v1/messages/keepalive", user, &body)
}

/// The same in the Anthropic dialect, to a conversation that is named.
pub(crate) fn messages(user: usize, text: &str) -> Vec<u8> {
    let messages = [serde_json::json!({ "role": "user", "content": text })];
    let body =
        serde_json::json!({ "model": "sonnet", "max_tokens": 4096, "stream": true, "messages": messages });
    request("/v1/messages", user, &body)
}

/// The same in the Responses API, which stores the response.
pub(crate) fn responses(user: usize, text: &str) -> Vec<u8> {
    let body = serde_json::json!({ "model": "sonnet", "stream": true, "input": text });
    request("/v1/responses", user, &body)
}

/// The two requests of a tool round trip: the call behind a text of `before` deltas, and its result with the answer that
/// follows.
pub(crate) fn round_trip(user: usize, before: usize, text: &str) -> [Vec<u8>; 2] {
    let asked =
        serde_json::json!({ "role": "user", "content": format!("[[call]][[before:{before}]]{text}") });
    let called = serde_json::json!({ "role": "assistant", "content": [
        { "type": "tool_use", "id": "toolu_bench", "name": "add", "input": { "a": 1 } }] });
    let given = serde_json::json!({ "role": "user", "content": [
        { "type": "tool_result", "tool_use_id": "toolu_bench", "content": "2" }] });
    [vec![asked.clone()], vec![asked, called, given]].map(|messages| {
        let tools = [serde_json::json!({ "name": "add", "input_schema": { "type": "object" } })];
        let body = serde_json::json!({
            "model": "sonnet", "max_tokens": 4096, "stream": true, "messages": messages, "tools": tools,
        });
        request("/v1/messages", user, &body)
    })
}

impl Client {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, answer: Vec::with_capacity(256 << 10) }
    }

    pub(crate) async fn send(&mut self, request: &[u8]) {
        self.stream.write_all(request).await.unwrap();
    }

    /// Sends and reads to the end of the answer.
    pub(crate) async fn turn(&mut self, request: &[u8]) -> Seen {
        let begin = Instant::now();
        self.answer.clear();
        self.send(request).await;
        let mut first = None;
        while !self.answer.ends_with(END) {
            self.read().await;
            if first.is_none() && memchr::memmem::find(&self.answer, b"data: ").is_some() {
                first = Some(begin.elapsed());
            }
        }
        let whole = begin.elapsed();
        let events = memchr::memmem::find_iter(&self.answer, b"data: {").count();
        Seen { events, first: first.unwrap(), whole }
    }

    /// Reads until something of the body is there.
    pub(crate) async fn begun(&mut self) {
        self.answer.clear();
        while memchr::memmem::find(&self.answer, b"\r\n\r\n").is_none() {
            self.read().await;
        }
    }

    async fn read(&mut self) {
        let count = self.stream.read_buf(&mut self.answer).await.unwrap();
        let is_fine = count > 0 && self.answer.starts_with(b"HTTP/1.1 200");
        assert!(is_fine, "{count} bytes, after {}", String::from_utf8_lossy(&self.answer));
    }
}
