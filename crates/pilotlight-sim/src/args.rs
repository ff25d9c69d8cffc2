//! The command line: flags of claude with its error messages, and the simulation's own flags.

use std::time::Duration;

use thiserror::Error;
use uuid::Uuid;

use crate::faults::Fault;
use crate::mcp_config;
use crate::scenario::Scenario;
use crate::workspace::Server;

/// A parsed command line.
#[derive(Debug)]
pub(crate) enum Invocation {
    Run(Box<Args>),
    Help,
    Version,
}

/// A refused command line, with the error message of claude.
#[derive(Debug, Error)]
#[error("{0}")]
pub(crate) struct Refusal(String);

pub(crate) fn refuse<T>(text: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal(text.into()))
}

/// Flags that have an effect.
#[derive(Debug, Default)]
pub(crate) struct Args {
    pub(crate) session_id: Option<String>,
    pub(crate) resume: Option<String>,
    pub(crate) model: Option<String>,
    pub(crate) system_prompt: Option<String>,
    pub(crate) partial: bool,
    pub(crate) replay: bool,
    /// Repeat transcript entries on the output.
    pub(crate) mirror: bool,
    pub(crate) ask_host: bool,
    pub(crate) mode: Option<String>,
    pub(crate) mcp_servers: Vec<Server>,
    /// Settings sources in effect; `None` means all.
    pub(crate) setting_sources: Option<String>,
    pub(crate) strict_mcp_config: bool,
    pub(crate) no_slash_commands: bool,
    pub(crate) tools: Option<Vec<String>>,
    pub(crate) allowed: Vec<String>,
    pub(crate) disallowed: Vec<String>,
    pub(crate) max_turns: Option<u64>,
    pub(crate) max_budget: Option<f64>,
    pub(crate) skip_permissions: bool,
    pub(crate) faults: Vec<Fault>,
    pub(crate) latency: Duration,
    pub(crate) scenario: Option<Scenario>,
}

impl Args {
    /// Whether the settings of the working directory apply.
    pub(crate) fn uses_project_settings(&self) -> bool {
        let named = |sources: &String| sources.split(',').any(|source| source.trim() == "project");
        self.setting_sources.as_ref().is_none_or(named)
    }
}

/// Flags with one value: name, and the value's name in error messages.
const WITH_VALUE: &[(&str, &str)] = &[
    ("--input-format", "format"),
    ("--output-format", "format"),
    ("--session-id", "uuid"),
    ("--model", "model"),
    ("--fallback-model", "model"),
    ("--system-prompt", "prompt"),
    ("--append-system-prompt", "prompt"),
    ("--permission-prompt-tool", "tool"),
    ("--permission-mode", "mode"),
    ("--setting-sources", "sources"),
    ("--max-turns", "turns"),
    ("--max-budget-usd", "amount"),
    ("--max-thinking-tokens", "tokens"),
    ("--settings", "file-or-json"),
    ("--json-schema", "schema"),
    ("--agents", "json"),
    ("--effort", "level"),
    ("--fault", "fault"),
    ("--latency", "ms"),
    ("--scenario", "directory"),
];
/// Flags with all words up to the next flag.
const WITH_VALUES: &[&str] = &[
    "--allowedTools",
    "--allowed-tools",
    "--disallowedTools",
    "--disallowed-tools",
    "--tools",
    "--mcp-config",
    "--add-dir",
    "--betas",
];
/// Flags without a value.
const ALONE: &[&str] = &[
    "--print",
    "-p",
    "--verbose",
    "--include-partial-messages",
    "--replay-user-messages",
    "--session-mirror",
    "--strict-mcp-config",
    "--disable-slash-commands",
    "--dangerously-skip-permissions",
    "--bare",
    "--safe-mode",
    "--include-hook-events",
];
const MODES: &[&str] = &["acceptEdits", "auto", "bypassPermissions", "default", "dontAsk", "plan"];

/// Parses the words after `sim`.
pub(crate) fn parse(words: Vec<String>) -> Result<Invocation, Refusal> {
    let mut args = Args::default();
    let (mut print, mut verbose, mut input, mut output) = (false, false, String::new(), String::new());
    let mut configs = Vec::new();
    let mut words = words.into_iter().peekable();
    while let Some(word) = words.next() {
        let (flag, inline) = match word.split_once('=') {
            Some((flag, value)) if flag.starts_with("--") => (flag.to_owned(), Some(value.to_owned())),
            _ => (word.clone(), None),
        };
        let flag = flag.as_str();
        if flag == "--help" || flag == "-h" {
            return Ok(Invocation::Help);
        }
        if flag == "--version" || flag == "-v" {
            return Ok(Invocation::Version);
        }
        if ALONE.contains(&flag) {
            match flag {
                "--print" | "-p" => print = true,
                "--verbose" => verbose = true,
                "--include-partial-messages" => args.partial = true,
                "--replay-user-messages" => args.replay = true,
                "--session-mirror" => args.mirror = true,
                "--disable-slash-commands" => args.no_slash_commands = true,
                "--dangerously-skip-permissions" => args.skip_permissions = true,
                "--strict-mcp-config" => args.strict_mcp_config = true,
                _ => {}
            }
        } else if WITH_VALUES.contains(&flag) {
            let mut values: Vec<String> = inline.into_iter().collect();
            while values.is_empty() || words.peek().is_some_and(|next| !next.starts_with('-')) {
                match words.next() {
                    Some(value) => values.push(value),
                    None if values.is_empty() => {
                        return refuse(format!("error: option '{flag} <values...>' argument missing"));
                    }
                    None => break,
                }
            }
            match flag {
                "--allowedTools" | "--allowed-tools" => args.allowed.extend(rules(&values)),
                "--disallowedTools" | "--disallowed-tools" => args.disallowed.extend(rules(&values)),
                "--tools" => args.tools = Some(rules(&values)),
                "--mcp-config" => configs.extend(values),
                _ => {}
            }
        } else if flag == "--resume" || flag == "-r" {
            // Without a value, claude opens a list on a terminal.
            let value = inline.or_else(|| words.next_if(|next| !next.starts_with('-')));
            args.resume = Some(value.unwrap_or_default());
        } else if let Some((_, called)) = WITH_VALUE.iter().find(|(name, _)| *name == flag) {
            let Some(value) = inline.or_else(|| words.next()) else {
                return refuse(format!("error: option '{flag} <{called}>' argument missing"));
            };
            match flag {
                "--input-format" => input = one_of(flag, called, value, &["text", "stream-json"])?,
                "--output-format" => output = one_of(flag, called, value, &["text", "json", "stream-json"])?,
                "--permission-mode" => args.mode = Some(one_of(flag, called, value, MODES)?),
                "--session-id" => args.session_id = Some(value),
                "--model" => args.model = Some(value),
                "--system-prompt" => args.system_prompt = Some(value),
                "--setting-sources" => args.setting_sources = Some(value),
                "--permission-prompt-tool" => args.ask_host = value == "stdio",
                "--max-turns" => args.max_turns = value.parse().ok(),
                "--max-budget-usd" => args.max_budget = Some(budget(&value)?),
                "--fault" => args.faults.push(value.parse().map_err(Refusal)?),
                "--scenario" => args.scenario = Some(Scenario::new(&value)),
                "--latency" => args.latency = Duration::from_millis(value.parse().unwrap_or(0)),
                _ => {}
            }
        } else if flag.starts_with('-') && flag.len() > 1 {
            return refuse(format!("error: unknown option '{flag}'"));
        }
    }
    formats(print, verbose, &input, &output, args.replay)?;
    check(&args)?;
    args.mcp_servers = mcp_config::servers(&configs)?;
    Ok(Invocation::Run(Box::new(args)))
}

fn one_of(flag: &str, called: &str, value: String, choices: &[&str]) -> Result<String, Refusal> {
    if choices.contains(&value.as_str()) {
        return Ok(value);
    }
    let choices = choices.join(", ");
    refuse(format!(
        "error: option '{flag} <{called}>' argument '{value}' is invalid. Allowed choices are {choices}."
    ))
}

fn budget(value: &str) -> Result<f64, Refusal> {
    match value.parse::<f64>() {
        Ok(amount) if amount > 0.0 => Ok(amount),
        _ => refuse("error: --max-budget-usd must be a positive number greater than 0"),
    }
}

fn formats(print: bool, verbose: bool, input: &str, output: &str, replay: bool) -> Result<(), Refusal> {
    if input == "stream-json" && output != "stream-json" {
        return refuse("Error: --input-format=stream-json requires output-format=stream-json.");
    }
    if replay && input != "stream-json" {
        return refuse(
            "Error: --replay-user-messages requires both --input-format=stream-json and --output-format=stream-json.",
        );
    }
    if print && output == "stream-json" && !verbose {
        return refuse("Error: When using --print, --output-format=stream-json requires --verbose");
    }
    if input != "stream-json" {
        return refuse(
            "Error: the simulated CLI speaks stream-json alone: --print --verbose --input-format stream-json --output-format stream-json",
        );
    }
    Ok(())
}

fn check(args: &Args) -> Result<(), Refusal> {
    if args.session_id.as_deref().is_some_and(|id| Uuid::try_parse(id).is_err()) {
        return refuse("Error: Invalid session ID. Must be a valid UUID.");
    }
    if args.session_id.is_some() && args.resume.is_some() {
        return refuse(
            "Error: --session-id can only be used with --continue or --resume if --fork-session is also specified.",
        );
    }
    let bypass = args.skip_permissions || args.mode.as_deref() == Some("bypassPermissions");
    let sandboxed = std::env::var_os("IS_SANDBOX").is_some_and(|value| value == "1");
    if bypass && rustix::process::getuid().is_root() && !sandboxed {
        return refuse(
            "--dangerously-skip-permissions cannot be used with root/sudo privileges for security reasons",
        );
    }
    Ok(())
}

/// Splits rules at commas and blanks outside of parentheses: `Bash(git *),Read Write`.
fn rules(values: &[String]) -> Vec<String> {
    let mut rules = Vec::new();
    for value in values {
        let (mut depth, mut rule) = (0_usize, String::new());
        for character in value.chars() {
            match character {
                '(' => depth += 1,
                ')' => depth = depth.saturating_sub(1),
                ',' | ' ' if depth == 0 => {
                    rules.push(std::mem::take(&mut rule));
                    continue;
                }
                _ => {}
            }
            rule.push(character);
        }
        rules.push(rule);
    }
    rules.retain(|rule| !rule.is_empty());
    rules
}
