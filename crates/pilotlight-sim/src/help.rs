//! The help text: flags, markers and faults.

use crate::catalogue::VERSION;
use crate::faults;
use crate::output::write_all;

const USAGE: &str = "\
Usage: pilotlight sim --print --verbose --input-format stream-json --output-format stream-json [options]

A deterministic, offline simulation of `claude`: same lines, same files, same errors. For demos and tests.
Markers in messages may run shell commands; use it with trusted text only.

Flags of claude that have an effect:
  --session-id UUID, --resume ID
  --model NAME, --system-prompt TEXT, --include-partial-messages, --replay-user-messages, --disable-slash-commands
  --permission-prompt-tool stdio, --permission-mode MODE, --dangerously-skip-permissions
  --tools, --allowedTools, --disallowedTools, --mcp-config (servers are started only), --max-turns N,
  --max-budget-usd X, --setting-sources SOURCES, --strict-mcp-config
Accepted without effect: --append-system-prompt, --fallback-model, --settings, --add-dir and
  some more. Unknown flags are refused.

Flags of the simulation:
  --fault NAME[=ARG]  a fault (repeatable; also PILOTLIGHT_SIM_FAULT=NAME[=ARG],...). Faults of a turn apply to
                      every turn
  --latency MS        delay before each answer
  --scenario DIR      answer by the rules of DIR/rules.json, and record each message in DIR/received.jsonl

Markers in a message's text (the answer to the remaining text is `echo N: TEXT`, N = turns of the conversation so far):
  [[say:TEXT]]                     answer with TEXT
  [[bytes:N]]                      answer with N bytes
  [[recall]]                       answer with all former messages of the conversation, joined by ` | `
  [[env:NAME]] [[pid]]             answer with a variable's value, the process id
  [[system]]                       answer with the system prompt, `none` if it was never set
  [[blocks]]                       answer with the types of the content blocks: `text image:image/png:92` (bytes of base64)
  [[think:TEXT]]                   a thinking block before the answer
  [[deltas:N]] [[delay:MS]]        N text deltas (N words without other text), MS after each
  [[slow:MS]]                      one character per delta, MS after each
  [[sleep:MS]]                     wait before the answer
  [[tool:NAME {JSON}]]             a tool call; Bash, Write and Read are real. The answer is TOOLS:ok|err|denied
  [[toolloop:NAME {JSON}]]         the same again and again, until --max-turns
  [[background:SECONDS]]           a command in its own session that outlives the turn; its end starts a turn
  [[api_error:STATUS]]             an API error
  [[context_full]]                 an API error: the conversation exceeds the context window
  [[api_retry:N]] [[api_retry:N,MS]]  N retries first, with the real delays or MS
  [[http:STATUS,n=N,retry_after=S]]   the same in the syntax of the recorded samples
  [[refusal]]                      the model refuses
  [[fallback]]                     the deltas stop half-way, the whole text comes only at the end
  [[host_request:SUBTYPE]]         a request to the host; its answer, as JSON, is the text
  [[usage:INPUT,OUTPUT]]           tokens of each API message
  [[fault:NAME=ARG]]               a fault of this turn

Faults:
";

/// Prints the help.
pub(crate) fn print() -> u8 {
    let mut text = USAGE.to_owned();
    for (name, effect) in faults::ALL {
        text.push_str(&format!("  {name:<22}{effect}\n"));
    }
    write_all(rustix::stdio::stdout(), text.as_bytes());
    0
}

/// Prints the version.
pub(crate) fn print_version() -> u8 {
    write_all(rustix::stdio::stdout(), format!("{VERSION} (pilotlight sim)\n").as_bytes());
    0
}
