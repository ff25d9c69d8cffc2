//! The help text: what the flags, markers and faults are.

use super::catalogue::VERSION;
use super::faults;
use super::output::write_all;

const USAGE: &str = "\
Usage: pilotlight sim --print --verbose --input-format stream-json --output-format stream-json [options]

A deterministic, offline stand-in for `claude`: same lines, same files, same ways to die. For demos and tests.
Messages may run shell commands by a marker; do not feed it text from strangers.

Flags of claude that have an effect:
  --session-id UUID, --resume ID, --fork-session, --continue, --no-session-persistence
  --model NAME, --system-prompt TEXT, --include-partial-messages, --replay-user-messages, --disable-slash-commands
  --permission-prompt-tool stdio, --permission-mode MODE, --dangerously-skip-permissions
  --tools, --allowedTools, --disallowedTools, --mcp-config (started, not spoken with), --max-turns N,
  --max-budget-usd X, --setting-sources SOURCES, --strict-mcp-config
Accepted without effect: --append-system-prompt, --fallback-model, --settings, --add-dir and
  some more. Unknown flags are refused.

Flags of the simulation:
  --fault NAME[=ARG]  break in this way (repeatable; also PILOTLIGHT_SIM_FAULT=NAME[=ARG],...). Faults of a turn
                      then strike in every turn
  --latency MS        wait so long before each answer

Markers in a message's text (what is left is answered as `echo N: TEXT`, N = turns of the conversation so far):
  [[say:TEXT]]                     answer with TEXT
  [[bytes:N]]                      answer with N bytes
  [[recall]]                       answer with all former messages of the conversation, joined by ` | `
  [[env:NAME]] [[pid]] [[cwd]]     answer with a variable's value, the process id, the working directory
  [[system]]                       answer with the system prompt, `none` if it was never set
  [[blocks]]                       answer with what the message consists of: `text image:image/png:92` (bytes of base64)
  [[think:TEXT]]                   a thinking block before the answer
  [[deltas:N]] [[delay:MS]]        N text deltas (an own text of N words if nothing is to be said), MS after each
  [[slow:MS]]                      one character per delta, MS after each
  [[sleep:MS]]                     wait before the answer
  [[tool:NAME {JSON}]]             a tool call; Bash, Write and Read are real. The answer is TOOLS:ok|err|denied
  [[toolloop:NAME {JSON}]]         the same again and again, until --max-turns
  [[background:SECONDS]]           a command in its own session that outlives the turn; its end starts a turn
  [[api_error:STATUS]]             the API fails
  [[context_full]]                 the API says that the conversation is too long for the model
  [[api_retry:N]] [[api_retry:N,MS]]  N retries first, with the real delays or MS
  [[http:STATUS,n=N,retry_after=S]]   the same in the words of the recorded samples
  [[refusal]] [[max_turns]]        the model refuses; the turn ends by its limit of rounds
  [[fallback]]                     the deltas stop half-way, the whole text comes only at the end
  [[host_request:SUBTYPE]]         ask the host something; its answer, as JSON, is the answer
  [[usage:INPUT,OUTPUT]]           tokens of each API message
  [[fault:NAME=ARG]]               break in this way

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
