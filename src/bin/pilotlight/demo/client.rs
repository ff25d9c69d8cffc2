//! HTTP client of the demo's server.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::metrics::Metrics;
use super::show::Problem;

/// Maximum time of a whole answer, including a real model's.
const ANSWER_WITHIN: Duration = Duration::from_secs(120);
/// Suffix of the abbreviated user id.
const SHOWN_AFTER: &str = "...";
/// Header that names the node of a cluster that answered.
const NODE: &str = "x-pilotlight-node";

/// Cheap to clone.
#[derive(Clone)]
pub(super) struct Client {
    web: reqwest::Client,
    http: SocketAddr,
    admin: SocketAddr,
    prefix: String,
}

/// A message as sent, and as shown: without the markers that steer the simulation.
#[derive(Debug, Clone)]
pub(super) struct Message {
    pub(super) shown: String,
    pub(super) sent: String,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Answer {
    /// Final text, or the received part of a lost turn.
    pub(super) text: String,
    /// What the last tool printed.
    pub(super) tool: Option<String>,
    /// From sending to the first piece of the text.
    pub(super) first: Option<Duration>,
    /// From sending to the end.
    pub(super) whole: Duration,
    /// Code of the error that ended the turn.
    pub(super) error: Option<String>,
    /// The server reported that a part of the conversation is lost.
    pub(super) context_lost: bool,
    /// Whether the stream ended with `[DONE]`.
    pub(super) done: bool,
    /// The node of a cluster that answered.
    pub(super) node: Option<String>,
}

/// A session's process, as listed by `/v1/pool/stats`.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct SessionStats {
    pub(super) pid: Option<i32>,
    pub(super) restarts: u64,
    pub(super) memory_bytes: f64,
}

impl Answer {
    pub(super) fn is_ok(&self) -> bool {
        self.done && self.error.is_none()
    }

    /// Description of an unexpected answer.
    pub(super) fn seen(&self) -> String {
        match &self.error {
            Some(error) => format!("the turn ended with {error}"),
            None if !self.done => "the stream ended without [DONE]".to_owned(),
            None => format!("the answer {:?}", super::text::cut(&self.text, 60)),
        }
    }
}

impl Client {
    pub(super) fn new(http: SocketAddr, admin: SocketAddr, prefix: &str) -> Result<Self, Problem> {
        // Proxies of the environment do not apply to loopback.
        let web = reqwest::Client::builder().no_proxy().timeout(ANSWER_WITHIN).build();
        let web = web.map_err(|error| Problem::seen(format!("no HTTP client: {error}")))?;
        Ok(Self { web, http, admin, prefix: prefix.to_owned() })
    }

    /// Sends one message and reads the whole answer.
    pub(super) async fn ask(&self, user: &str, message: &Message) -> Result<Answer, Problem> {
        self.ask_watching(user, message, async |_| Ok(())).await
    }

    /// As [`Client::ask`]; `on_first` runs after the first piece of text, before more is read.
    pub(super) async fn ask_watching(
        &self,
        user: &str,
        message: &Message,
        mut on_first: impl AsyncFnMut(&Self) -> Result<(), Problem>,
    ) -> Result<Answer, Problem> {
        let begin = Instant::now();
        let body = json!({ "messages": [{ "role": "user", "content": message.sent }] });
        let request = self.web.post(format!("http://{}/v1/messages/keepalive", self.http));
        let request = request.header("x-pilotlight-user", user).json(&body);
        let mut response = request.send().await.map_err(|error| broken(&error))?;
        if !response.status().is_success() {
            let status = response.status();
            let body = response.text().await.unwrap_or_default();
            return Err(Problem::seen(format!("HTTP status {status}: {body}")));
        }
        let mut reading = Reading::default();
        let node = response.headers().get(NODE).and_then(|node| node.to_str().ok());
        reading.answer.node = node.map(str::to_owned);
        while let Some(piece) = response.chunk().await.map_err(|error| broken(&error))? {
            reading.take(&piece);
            if reading.answer.first.is_none() && reading.has_text {
                reading.answer.first = Some(begin.elapsed());
                on_first(self).await?;
            }
        }
        Ok(Answer { whole: begin.elapsed(), ..reading.answer })
    }

    /// The session of a user, if the server has it in memory.
    pub(super) async fn session_stats(&self, user: &str) -> Result<Option<SessionStats>, Problem> {
        let stats = self.get(self.http, "/v1/pool/stats").await?;
        let stats: Value = serde_json::from_str(&stats).map_err(|error| Problem::seen(error.to_string()))?;
        let Some(users) = stats.get("active_users").and_then(Value::as_array) else {
            return Err(Problem::seen("no active_users in /v1/pool/stats"));
        };
        let is_theirs = |entry: &&Value| {
            let shown = entry.get("user_id").and_then(Value::as_str);
            shown.and_then(|shown| shown.strip_suffix(SHOWN_AFTER)) == Some(user)
        };
        Ok(users.iter().find(is_theirs).map(session_stats))
    }

    pub(super) async fn pid(&self, user: &str) -> Result<i32, Problem> {
        let pid = self.session_stats(user).await?.and_then(|session_stats| session_stats.pid);
        pid.ok_or_else(|| Problem::seen(format!("the server has no process for {user}")))
    }

    pub(super) async fn metrics(&self) -> Result<Metrics, Problem> {
        Ok(Metrics::read(&self.get(self.admin, "/metrics").await?, &self.prefix))
    }

    /// Why the server is not ready; `None` when it is.
    pub(super) async fn not_ready(&self) -> Result<Option<String>, Problem> {
        let response = self.web.get(format!("http://{}/readyz", self.http)).send().await;
        let response = response.map_err(|error| broken(&error))?;
        if response.status().is_success() {
            return Ok(None);
        }
        Ok(Some(response.text().await.unwrap_or_default()))
    }

    /// Lets users of this node of a cluster go to where they have their place. Returns their number.
    #[cfg(feature = "cluster")]
    pub(super) async fn rebalance(&self) -> Result<u64, Problem> {
        let response = self.web.post(format!("http://{}/v1/cluster/rebalance", self.http)).send().await;
        let response =
            response.and_then(reqwest::Response::error_for_status).map_err(|error| broken(&error))?;
        let answer: Value = response.json().await.map_err(|error| broken(&error))?;
        let moved = answer.get("moved").and_then(Value::as_u64);
        moved.ok_or_else(|| Problem::seen("the answer names no number of users"))
    }

    async fn get(&self, server: SocketAddr, path: &str) -> Result<String, Problem> {
        let response = self.web.get(format!("http://{server}{path}")).send().await;
        let response =
            response.and_then(reqwest::Response::error_for_status).map_err(|error| broken(&error))?;
        response.text().await.map_err(|error| broken(&error))
    }
}

fn session_stats(entry: &Value) -> SessionStats {
    let number = |name| entry.get(name).and_then(Value::as_u64).unwrap_or(0);
    SessionStats {
        pid: entry.get("pid").and_then(Value::as_i64).and_then(|pid| pid.try_into().ok()),
        restarts: number("restarts"),
        memory_bytes: number("memory_bytes") as f64,
    }
}

fn broken(error: &reqwest::Error) -> Problem {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    Problem::Seen(text)
}

#[derive(Default)]
struct Reading {
    /// Bytes after the last line end.
    rest: Vec<u8>,
    answer: Answer,
    has_text: bool,
}

impl Reading {
    fn take(&mut self, piece: &[u8]) {
        self.rest.extend_from_slice(piece);
        while let Some(end) = memchr::memchr(b'\n', &self.rest) {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            if let Some(data) = line.strip_prefix(b"data: ") {
                self.event(data.trim_ascii_end());
            }
        }
    }

    fn event(&mut self, data: &[u8]) {
        if data == b"[DONE]" {
            self.answer.done = true;
            return;
        }
        let Ok(event) = serde_json::from_slice::<Value>(data) else { return };
        let text = |path| event.pointer(path).and_then(Value::as_str);
        match text("/type") {
            Some("stream_event") if text("/event/delta/type") == Some("text_delta") => {
                self.has_text = true;
                self.answer.text.push_str(text("/event/delta/text").unwrap_or_default());
            }
            Some("user") if text("/message/content/0/type") == Some("tool_result") => {
                self.answer.tool = text("/message/content/0/content").map(str::to_owned);
            }
            Some("result") => {
                if let Some(result) = text("/result") {
                    self.answer.text = result.to_owned();
                }
                if event.get("is_error").and_then(Value::as_bool) == Some(true) {
                    self.answer.error = Some(format!("the CLI's own error: {}", self.answer.text));
                }
            }
            Some("pilotlight") if text("/subtype") == Some("context_lost") => self.answer.context_lost = true,
            Some("error") => {
                self.answer.error = Some(text("/error/code").unwrap_or("an error without a code").to_owned());
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_from_pieces_of_any_size() {
        let stream = "data: {\"type\":\"system\"}\n\n: ping\n\n\
            data: {\"type\":\"stream_event\",\"event\":{\"delta\":{\"type\":\"text_delta\",\"text\":\"grü\"}}}\n\n\
            data: {\"type\":\"result\",\"is_error\":false,\"result\":\"grün\"}\n\ndata: [DONE]\n\n";
        for size in [1, 3, 7, 1000] {
            let mut reading = Reading::default();
            stream.as_bytes().chunks(size).for_each(|piece| reading.take(piece));
            assert_eq!(reading.answer.text, "grün");
            assert!(reading.answer.is_ok() && reading.has_text && !reading.answer.context_lost);
        }
    }

    #[test]
    fn output_of_a_tool_is_kept() {
        let mut reading = Reading::default();
        reading.take(
            b"data: {\"type\":\"user\",\"message\":{\"content\":[{\"type\":\"tool_result\",\"content\":\"printed\"}]}}\n\n",
        );
        assert_eq!(reading.answer.tool.as_deref(), Some("printed"));
    }

    #[test]
    fn what_went_wrong_is_kept() {
        let mut reading = Reading::default();
        reading.take(b"data: {\"type\":\"pilotlight\",\"subtype\":\"context_lost\"}\n\n");
        reading
            .take(b"data: {\"type\":\"error\",\"error\":{\"code\":\"session_lost\",\"message\":\"m\"}}\n\n");
        assert!(reading.answer.context_lost && !reading.answer.is_ok());
        assert_eq!(reading.answer.error.as_deref(), Some("session_lost"));
        reading.take(b"data: [DONE]\n\n");
        assert!(reading.answer.done && !reading.answer.is_ok());
    }
}
