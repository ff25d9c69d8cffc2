//! A child that costs next to nothing: it answers each message at once, with bytes that were prepared before.
//!
//! It speaks for both sides of a comparison. The lines are those of the simulated CLI (`turn.ndjson`), mirrored lines
//! included where they are asked for. Of a message it reads how many deltas to answer with (`[[deltas:50]]`) and the
//! milliseconds before each (`[[delay:10]]`). With `[[call]]` it calls a tool of the caller's first, after a text of
//! `[[before:50]]` deltas where the message asks for it. Each line is a write of its own, as the CLI's are.

use std::collections::HashMap;
use std::io::{BufRead as _, Write};
use std::time::Duration;

/// The variable that makes a program that is started as the CLI this child.
pub(crate) const SWITCH: &str = "PILOTLIGHT_BENCH_INSTANT";

const TURN: &str = include_str!("turn.ndjson");

/// A message of the model that calls a tool of the caller's, and the request for its result.
const CALL: &str = concat!(
    r#"{"type":"stream_event","event":{"type":"message_start","message":{"id":"msg_0","type":"message","role":"assistant","model":"claude-opus-4-8","content":[],"usage":{"input_tokens":1,"output_tokens":1}}},"parent_tool_use_id":null,"uuid":"04ed8ec0-2d01-4dc0-af23-e390ec324410"}"#,
    "\n",
    r#"{"type":"assistant","message":{"id":"msg_0","type":"message","role":"assistant","model":"claude-opus-4-8","content":[{"type":"tool_use","id":"toolu_bench","name":"mcp__caller__add","input":{"a":1}}]},"parent_tool_use_id":null,"uuid":"04ed8ec0-2d01-4dc0-af23-e390ec324411"}"#,
    "\n",
    r#"{"type":"stream_event","event":{"type":"message_delta","delta":{"stop_reason":"tool_use"},"usage":{"output_tokens":4}},"parent_tool_use_id":null,"uuid":"04ed8ec0-2d01-4dc0-af23-e390ec324412"}"#,
    "\n",
    r#"{"type":"control_request","request_id":"call-1","request":{"subtype":"mcp_message","server_name":"caller","message":{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"add","arguments":{"a":1},"_meta":{"claudecode/toolUseId":"toolu_bench"}}}}}"#,
    "\n",
);

/// Runs as this child and never returns, if asked. To be called before `pilotlight::sim::run_if_asked`.
pub(crate) fn run_if_asked() {
    let arguments: Vec<String> = std::env::args().collect();
    // Asked without the variable, once, by a server that has this program as its CLI.
    if arguments.iter().any(|argument| argument == "--version") {
        println!("2.1.197 (Claude Code)");
        std::process::exit(0);
    }
    let is_cli = arguments.iter().any(|argument| argument == "--input-format");
    if is_cli && std::env::var_os(SWITCH).is_some() {
        // The end of the pipe is the end of the child.
        serve(&arguments).ok();
        std::process::exit(0);
    }
}

fn serve(arguments: &[String]) -> std::io::Result<()> {
    let session =
        arguments.iter().skip_while(|flag| !matches!(flag.as_str(), "--session-id" | "--resume")).nth(1);
    let session = session.cloned().unwrap_or_default();
    let mirrors = arguments.iter().any(|flag| flag == "--session-mirror");
    let mut prepared: HashMap<usize, Answer> = HashMap::new();
    let mut texts: HashMap<usize, Answer> = HashMap::new();
    let mut out = std::io::stdout().lock();
    let mut answer_after_call = None;
    for line in std::io::stdin().lock().lines() {
        let mut line = line?;
        if line.contains("\"control_response\"") {
            // The result of the call: the answer to the message that made it.
            let Some(asked) = answer_after_call.take() else { continue };
            line = asked;
        } else if line.contains("[[call]]") {
            let before = number_behind(&line, "[[before:").unwrap_or(0);
            let text = texts.entry(before).or_insert_with(|| Answer::text_alone(&session, before));
            let (begin, call) = CALL.split_once('\n').unwrap_or((CALL, ""));
            out.write_all(begin.as_bytes())?;
            out.write_all(b"\n")?;
            text.write(&mut out, Duration::ZERO)?;
            out.write_all(call.as_bytes())?;
            answer_after_call = Some(line);
            continue;
        }
        if let Some(id) =
            line.contains("\"control_request\"").then(|| text_behind(&line, "\"request_id\":\""))
        {
            let response = format!(
                "{{\"type\":\"control_response\",\"response\":{{\"subtype\":\"success\",\"request_id\":\"{id}\",\"response\":{{}}}}}}\n"
            );
            out.write_all(response.as_bytes())?;
            continue;
        }
        let deltas = number_behind(&line, "[[deltas:").unwrap_or(1);
        let answer = prepared.entry(deltas).or_insert_with(|| Answer::prepare(&session, deltas, mirrors));
        let delay = number_behind(&line, "[[delay:").unwrap_or(0);
        answer.write(&mut out, Duration::from_millis(delay as u64))?;
    }
    Ok(())
}

struct Answer {
    /// Whole lines, and whether each is a delta.
    lines: Vec<(String, bool)>,
}

impl Answer {
    fn prepare(session: &str, deltas: usize, mirrors: bool) -> Self {
        let pieces: Vec<String> = (0..deltas).map(|number| format!("{:03} ", number % 1000)).collect();
        let whole = pieces.concat();
        let mut lines = Vec::new();
        for line in TURN.split_inclusive('\n') {
            if line.contains("\"transcript_mirror\"") && !mirrors {
                continue;
            }
            let line =
                line.replace("$SESSION", session).replace("$ANSWER", &whole).replace("$PROMPT", "hello");
            if !line.contains("$PIECE") {
                lines.push((line, false));
                continue;
            }
            lines.extend(pieces.iter().map(|piece| (line.replace("$PIECE", piece), true)));
        }
        Self { lines }
    }

    /// The lines of a text in a message that goes on after it; none of no text.
    fn text_alone(session: &str, deltas: usize) -> Self {
        let mut lines = Self::prepare(session, deltas, false).lines;
        lines.retain(|(line, _)| {
            line.contains("\"content_block_") || line.starts_with("{\"type\":\"assistant\"")
        });
        if deltas == 0 {
            lines.clear();
        }
        Self { lines }
    }

    fn write(&self, out: &mut impl Write, delay: Duration) -> std::io::Result<()> {
        for (line, is_delta) in &self.lines {
            if *is_delta && !delay.is_zero() {
                std::thread::sleep(delay);
            }
            out.write_all(line.as_bytes())?;
        }
        Ok(())
    }
}

fn text_behind<'a>(line: &'a str, mark: &str) -> &'a str {
    line.split_once(mark).and_then(|(_, rest)| rest.split('"').next()).unwrap_or_default()
}

fn number_behind(line: &str, mark: &str) -> Option<usize> {
    line.split_once(mark)?.1.split(']').next()?.parse().ok()
}
