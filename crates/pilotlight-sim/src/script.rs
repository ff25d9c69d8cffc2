//! Parses the markers in a message's text: a pure function from text to the script of a turn.

use std::time::Duration;

use serde_json::Value;

use crate::faults::Fault;

/// A tool call.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Call {
    pub(crate) name: String,
    pub(crate) input: Value,
}

/// A part of the answer's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Part {
    Say(String),
    Bytes(usize),
    Recall,
    Env(String),
    Pid,
    /// The system prompt.
    System,
    /// A summary of the message's content.
    Blocks,
    /// All messages of the conversation, as JSON.
    Context,
}

/// A final API error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) status: u16,
    /// The conversation exceeds the context window.
    pub(crate) context_full: bool,
}

/// Retries before the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Retries {
    pub(crate) count: u64,
    pub(crate) status: u16,
    /// Replaces claude's growing delays.
    pub(crate) delay: Option<Duration>,
}

/// The script of a turn.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Script {
    pub(crate) parts: Vec<Part>,
    pub(crate) think: Option<String>,
    pub(crate) deltas: Option<usize>,
    pub(crate) delay: Duration,
    /// One character per delta.
    pub(crate) slow: bool,
    pub(crate) sleep: Duration,
    pub(crate) calls: Vec<Call>,
    pub(crate) call_loop: Option<Call>,
    pub(crate) background: Option<f64>,
    pub(crate) failure: Option<Failure>,
    pub(crate) retries: Option<Retries>,
    pub(crate) refusal: bool,
    /// The document with which the model answers, if the host asked for one.
    pub(crate) output: Option<Value>,
    pub(crate) fallback: bool,
    pub(crate) usage: Option<(u64, u64)>,
    /// Subtype of a request to the host that is no permission request.
    pub(crate) host_request: Option<String>,
    pub(crate) faults: Vec<Fault>,
    /// Lines of a recorded turn, replayed as the answer.
    pub(crate) recorded: Vec<Value>,
    /// The text without markers.
    pub(crate) plain: String,
}

/// Parses the markers of a text. Unknown markers stay text. An unknown fault is an error: a test that loses its fault
/// would pass for the wrong reason.
pub(crate) fn parse(text: &str) -> Result<Script, String> {
    let mut script = Script::default();
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, marker)) = rest.split_once("[[") {
        plain.push_str(before);
        rest = match script.marker(marker)? {
            Some(after) => after,
            None => {
                plain.push_str("[[");
                marker
            }
        };
    }
    plain.push_str(rest);
    script.plain = plain.trim().to_owned();
    Ok(script)
}

impl Script {
    /// Parses one marker. Returns the text after it, or `None` for an unknown marker.
    fn marker<'t>(&mut self, text: &'t str) -> Result<Option<&'t str>, String> {
        for (prefix, repeat) in [("tool:", false), ("toolloop:", true)] {
            if let Some(call) = text.strip_prefix(prefix) {
                let Some((call, after)) = parse_call(call) else { return Ok(None) };
                if repeat {
                    self.call_loop = Some(call);
                } else {
                    self.calls.push(call);
                }
                return Ok(Some(after));
            }
        }
        if let Some(document) = text.strip_prefix("output:") {
            let mut documents = serde_json::Deserializer::from_str(document).into_iter::<Value>();
            let Some(Ok(document)) = documents.next() else { return Ok(None) };
            let end = documents.byte_offset();
            let after = text.get("output:".len() + end..).and_then(|rest| rest.strip_prefix("]]"));
            self.output = Some(document);
            return Ok(after);
        }
        let Some((body, after)) = text.split_once("]]") else { return Ok(None) };
        let (name, value) = body.split_once(':').unwrap_or((body, ""));
        let number = || value.trim().parse::<u64>().unwrap_or(0);
        match name {
            "say" => self.parts.push(Part::Say(value.to_owned())),
            "bytes" => self.parts.push(Part::Bytes(usize::try_from(number()).unwrap_or(0))),
            "recall" => self.parts.push(Part::Recall),
            "env" => self.parts.push(Part::Env(value.to_owned())),
            "pid" => self.parts.push(Part::Pid),
            "system" => self.parts.push(Part::System),
            "blocks" => self.parts.push(Part::Blocks),
            "context" => self.parts.push(Part::Context),
            "think" => self.think = Some(value.to_owned()),
            "deltas" => self.deltas = Some(usize::try_from(number()).unwrap_or(0)),
            "delay" => self.delay = Duration::from_millis(number()),
            "slow" => {
                self.delay = Duration::from_millis(number());
                self.slow = true;
            }
            "sleep" => self.sleep = Duration::from_millis(number()),
            "background" => self.background = Some(value.trim().parse().unwrap_or(1.0)),
            "api_error" => self.failure = Some(Failure { status: status(value), context_full: false }),
            "context_full" => self.failure = Some(Failure { status: 400, context_full: true }),
            "api_retry" => self.retries = Some(retries(value)),
            "http" => self.http(value),
            "refusal" => self.refusal = true,
            "stop" if value == "refusal" => self.refusal = true,
            "fallback" => self.fallback = true,
            "host_request" => self.host_request = Some(value.to_owned()),
            "usage" => {
                let (input, output) = value.split_once(',').unwrap_or((value, "0"));
                self.usage = Some((input.trim().parse().unwrap_or(0), output.trim().parse().unwrap_or(0)));
            }
            "fault" => self.faults.push(value.parse()?),
            _ => return Ok(None),
        }
        Ok(Some(after))
    }

    /// `STATUS` is a final error; `STATUS,n=2,retry_after=SECONDS` is two retries.
    fn http(&mut self, value: &str) {
        let mut fields = value.split(',');
        let code = status(fields.next().unwrap_or_default());
        let (mut count, mut delay) = (None, None);
        for field in fields {
            match field.split_once('=') {
                Some(("n", n)) => count = n.parse().ok(),
                Some(("retry_after", seconds)) => {
                    delay = seconds.parse().ok().map(Duration::from_secs);
                }
                _ => {}
            }
        }
        match count {
            Some(count) => self.retries = Some(Retries { count, status: code, delay }),
            None => self.failure = Some(Failure { status: code, context_full: false }),
        }
    }
}

fn status(text: &str) -> u16 {
    text.trim().parse().unwrap_or(500)
}

/// `COUNT` or `COUNT,MS`.
fn retries(value: &str) -> Retries {
    let (count, delay) = value.split_once(',').unwrap_or((value, ""));
    Retries {
        count: count.trim().parse().unwrap_or(1),
        status: 529,
        delay: delay.trim().parse().ok().map(Duration::from_millis),
    }
}

/// `Name {json}]]`; the JSON itself may contain `]]`.
fn parse_call(text: &str) -> Option<(Call, &str)> {
    let (name, json) = text.split_once(' ')?;
    let mut values = serde_json::Deserializer::from_str(json).into_iter::<Value>();
    let input = values.next()?.ok()?;
    let after = json.get(values.byte_offset()..)?.trim_start().strip_prefix("]]")?;
    Some((Call { name: name.to_owned(), input }, after))
}

#[cfg(test)]
mod tests {
    use super::{Part, parse};
    use crate::faults::Kind;

    #[test]
    fn markers_and_text_are_separated() {
        let script = parse("hello [[say:a]] [[sleep:5]][[unknown:x]] [[fault:mute=7]] end").unwrap();
        assert_eq!(script.parts, [Part::Say("a".into())]);
        assert_eq!(script.sleep.as_millis(), 5);
        assert_eq!(script.plain, "hello  [[unknown:x]]  end");
        assert_eq!(script.faults.first().map(|fault| fault.kind), Some(Kind::Mute));
        assert!(parse("[[fault:nonsense]]").is_err());
    }

    #[test]
    fn call_input_may_contain_brackets() {
        let script = parse(r#"[[tool:Bash {"command":"a","list":[["]]"]]}]]after"#).unwrap();
        assert_eq!(script.calls.len(), 1);
        assert_eq!(script.plain, "after");
        assert!(parse("[[tool:Bash {bad]]").unwrap().calls.is_empty());
    }
}
