//! `pilotlight tail`: the server's session events as they occur.
//!
//! A stream ends after some minutes, so that its key is checked again. The next one begins with the events that the server
//! remembers; those that were printed already are left out.

use std::collections::VecDeque;
use std::time::Duration;

use reqwest::Response;
use serde_json::Value;
use tokio::time::{sleep, timeout};

use super::server::{Problem, Server};
use super::show::{line, plain, plain_json};

/// More than the server remembers.
const REMEMBERED: usize = 1024;
/// Longest line of the stream: an event has some hundred bytes.
const MAX_LINE: usize = 256 * 1024;
/// Silence that ends `--no-follow`: what the server remembers comes at once.
const QUIET: Duration = Duration::from_millis(500);
const RECONNECT_PAUSE: Duration = Duration::from_secs(1);

pub(super) async fn run(
    server: &Server,
    user: Option<&str>,
    follow: bool,
    json: bool,
) -> Result<(), Problem> {
    let fields: Vec<_> = user.iter().map(|user| ("user", *user)).collect();
    let mut printed = VecDeque::with_capacity(REMEMBERED);
    loop {
        let mut events =
            Events { response: server.stream("/v1/events/stream", &fields).await?, buffer: Vec::new() };
        loop {
            let next = events.next();
            let event = match follow {
                true => next.await?,
                false => match timeout(QUIET, next).await {
                    Ok(event) => event?,
                    Err(_) => return Ok(()),
                },
            };
            let Some(event) = event else { break };
            if printed.contains(&event) {
                continue;
            }
            print(&event, json);
            printed.truncate(REMEMBERED - 1);
            printed.push_front(event);
        }
        if !follow {
            return Ok(());
        }
        // Beyond it the server is gone, and the next request says so.
        sleep(RECONNECT_PAUSE).await;
    }
}

fn print(event: &str, json: bool) {
    let parsed: Value = serde_json::from_str(event).unwrap_or_default();
    if parsed["type"] == "hello" {
        return;
    }
    if json {
        return line(&plain_json(event));
    }
    line(&in_words(&parsed));
}

/// `2026-11-29T10:00:00Z  alice/default  crashed  reason=exit detail="exit code 1"`.
fn in_words(event: &Value) -> String {
    let at = event["at"].as_f64().and_then(|at| Duration::try_from_secs_f64(at).ok());
    let at = at.and_then(|at| std::time::SystemTime::UNIX_EPOCH.checked_add(at));
    let at = at.map_or_else(|| "-".to_owned(), |at| humantime::format_rfc3339_seconds(at).to_string());
    let text = |name: &str| plain(event[name].as_str().unwrap_or_default());
    let owner = match event["user"].is_null() {
        true => text("session"),
        false => format!("{}/{}", text("user"), text("session")),
    };
    let mut words = format!("{at}  {owner}  {}", text("type"));
    let named = ["at", "user", "session", "type"];
    for (name, value) in
        event.as_object().into_iter().flatten().filter(|(name, _)| !named.contains(&name.as_str()))
    {
        words.push_str(&format!("  {}={}", plain(name), plain(&value.to_string())));
    }
    words
}

/// The data lines of a stream of server-sent events.
struct Events {
    response: Response,
    buffer: Vec<u8>,
}

impl Events {
    /// The next event; `None` at the end of the stream.
    async fn next(&mut self) -> Result<Option<String>, Problem> {
        loop {
            while let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let whole: Vec<u8> = self.buffer.drain(..=end).collect();
                if let Some(data) = whole.strip_prefix(b"data: ") {
                    return Ok(Some(String::from_utf8_lossy(data).trim_end().to_owned()));
                }
            }
            if self.buffer.len() > MAX_LINE {
                return Err("the server wrote a line that is too long for an event".to_owned());
            }
            match self.response.chunk().await {
                Ok(Some(chunk)) => self.buffer.extend_from_slice(&chunk),
                // A server that stops may cut it off.
                Ok(None) | Err(_) => return Ok(None),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::in_words;

    #[test]
    fn event_is_one_line_without_control_characters() {
        let event = json!({"type": "crashed", "at": 1_764_410_400.5, "session": "a\u{1b}b", "user": "alice",
                           "reason": "exit", "detail": "exit code 1"});
        assert_eq!(
            in_words(&event),
            "2025-11-29T10:00:00Z  alice/a\\u{1b}b  crashed  detail=\"exit code 1\"  reason=\"exit\""
        );
    }
}
