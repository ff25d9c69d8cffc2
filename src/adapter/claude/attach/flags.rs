//! The command lines of clients: each flag with its use. docs/attach.md has the same table.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::mode_problem;
use crate::adapter::{AttachRequest, AttachRules, FlagUse, RawFlags};
use crate::config::PermissionPolicy;
use crate::model::is_model_name;

/// What follows a flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Takes {
    Nothing,
    One,
    /// All words up to the next flag.
    Many,
    /// A word that is no flag, if there is one.
    Maybe,
}

struct Flag {
    name: &'static str,
    takes: Takes,
    #[cfg_attr(not(test), expect(dead_code, reason = "documented, and compared with the page by a test"))]
    of: FlagUse,
}

const fn flag(name: &'static str, takes: Takes, of: FlagUse) -> Flag {
    Flag { name, takes, of }
}

use FlagUse::{Policy, Refused, Used};
use Takes::{Many, Maybe, Nothing, One};

/// Every flag that is known. Others are refused.
const FLAGS: &[Flag] = &[
    flag("--print", Nothing, Used),
    flag("-p", Nothing, Used),
    flag("--verbose", Nothing, Used),
    flag("--input-format", One, Used),
    flag("--output-format", One, Used),
    flag("--model", One, Used),
    flag("--fallback-model", One, Used),
    flag("--system-prompt", One, Used),
    flag("--append-system-prompt", One, Used),
    flag("--json-schema", One, Used),
    flag("--agents", One, Used),
    flag("--max-turns", One, Used),
    flag("--max-budget-usd", One, Used),
    flag("--max-thinking-tokens", One, Used),
    flag("--thinking", One, Used),
    flag("--thinking-display", One, Used),
    flag("--effort", One, Used),
    flag("--betas", Many, Used),
    flag("--include-partial-messages", Nothing, Used),
    flag("--include-hook-events", Nothing, Used),
    flag("--replay-user-messages", Nothing, Used),
    flag("--disable-slash-commands", Nothing, Used),
    flag("--tools", Many, Used),
    flag("--disallowedTools", Many, Used),
    flag("--disallowed-tools", Many, Used),
    flag("--resume", Maybe, Used),
    flag("-r", Maybe, Used),
    flag("--continue", Nothing, Used),
    flag("-c", Nothing, Used),
    flag("--session-id", One, Used),
    flag("--allowedTools", Many, Policy),
    flag("--allowed-tools", Many, Policy),
    flag("--permission-mode", One, Policy),
    flag("--permission-prompt-tool", One, Policy),
    flag("--dangerously-skip-permissions", Nothing, Policy),
    flag("--allow-dangerously-skip-permissions", Nothing, Policy),
    flag("--mcp-config", Many, Policy),
    flag("--strict-mcp-config", Nothing, Policy),
    flag("--setting-sources", One, Policy),
    flag("--settings", One, Refused),
    flag("--plugin-dir", One, Refused),
    flag("--add-dir", Many, Refused),
    flag("--fork-session", Nothing, Refused),
    flag("--resume-session-at", One, Refused),
    flag("--resume-drops-turn", One, Refused),
    flag("--session-mirror", Nothing, Refused),
    flag("--no-session-persistence", Nothing, Refused),
    flag("--system-prompt-file", One, Refused),
    flag("--append-system-prompt-file", One, Refused),
    flag("--system-prompt-snapshot", One, Refused),
    flag("--task-budget", One, Refused),
    flag("--debug", Maybe, Refused),
    flag("--debug-to-stderr", Nothing, Refused),
];

/// Longest list of tools, models and the like in one flag, and longest word of them.
const MAX_WORDS: usize = 256;
const MAX_WORD: usize = 512;

/// Reads the command line of a client.
///
/// # Errors
/// What is refused, in a sentence for people. It repeats no value.
pub(crate) fn parse(words: &[String], rules: &AttachRules) -> Result<AttachRequest, String> {
    let mut reading = Reading { rules, request: empty(), allowed: Vec::new(), skips: false };
    let mut rest = words.iter().map(String::as_str).peekable();
    while let Some(word) = rest.next() {
        let (name, inline) = match word.split_once('=') {
            Some((name, value)) if name.starts_with("--") => (name, Some(value)),
            _ => (word, None),
        };
        let known = FLAGS.iter().find(|flag| flag.name == name);
        let Some(flag) = known else { return Err(unknown(name)) };
        let mut values: Vec<&str> = inline.into_iter().collect();
        match flag.takes {
            Nothing if inline.is_some() => return Err(format!("{name} takes no value")),
            Nothing => {}
            One if values.is_empty() => {
                values.push(rest.next().ok_or_else(|| format!("{name} has no value"))?);
            }
            Maybe if values.is_empty() => values.extend(rest.next_if(|next| !next.starts_with('-'))),
            Many if values.is_empty() => {
                while let Some(value) = rest.next_if(|next| values.is_empty() || !next.starts_with('-')) {
                    values.push(value);
                }
            }
            One | Maybe | Many => {}
        }
        reading.take(flag.name, &values)?;
    }
    reading.finish()
}

fn unknown(name: &str) -> String {
    // A word that is no flag may be a prompt.
    match name.strip_prefix('-').is_some_and(|rest| rest.len() < 40 && is_word(rest.trim_start_matches('-')))
    {
        true => format!("the flag {name} is not known to the server (docs/attach.md lists those that are)"),
        false => "a word that is no flag is not taken: prompts come over standard input".to_owned(),
    }
}

fn empty() -> AttachRequest {
    AttachRequest {
        flags: RawFlags::default(),
        model: None,
        fallback_model: None,
        tools: None,
        conversation: None,
        notes: Vec::new(),
        opening: Map::new(),
        asks: false,
    }
}

struct Reading<'a> {
    rules: &'a AttachRules,
    request: AttachRequest,
    allowed: Vec<String>,
    /// Permissions are not checked.
    skips: bool,
}

impl Reading<'_> {
    fn take(&mut self, name: &str, values: &[&str]) -> Result<(), String> {
        let value = values.first().copied().unwrap_or_default();
        let request = &mut self.request;
        match name {
            "--print"
            | "-p"
            | "--verbose"
            | "--continue"
            | "-c"
            | "--strict-mcp-config"
            | "--allow-dangerously-skip-permissions" => {}
            "--input-format" | "--output-format" if value == "stream-json" => {}
            "--input-format" | "--output-format" => return Err(format!("{name} must be stream-json")),
            "--model" => request.model = Some(self.rules.model(name, value)?),
            "--fallback-model" => request.fallback_model = Some(self.rules.model(name, value)?),
            "--system-prompt" => drop(request.opening.insert("systemPrompt".into(), value.into())),
            "--append-system-prompt" => {
                request.opening.insert("appendSystemPrompt".into(), value.into());
            }
            "--json-schema" => drop(request.opening.insert("jsonSchema".into(), object(name, value)?)),
            "--agents" => drop(request.opening.insert("agents".into(), object(name, value)?)),
            "--max-turns"
            | "--max-budget-usd"
            | "--max-thinking-tokens"
            | "--thinking"
            | "--thinking-display"
            | "--effort" => {
                if !is_word(value) {
                    return Err(format!("{name} has no usable value"));
                }
                request.flags.args.extend([name.to_owned(), value.to_owned()]);
            }
            "--betas" => {
                let betas = words(name, values)?;
                if !betas.iter().all(|beta| is_word(beta)) {
                    return Err(format!("{name} has no usable value"));
                }
                request.flags.args.extend([name.to_owned(), betas.join(",")]);
            }
            "--include-partial-messages" => request.flags.partial = true,
            "--replay-user-messages" => request.flags.replay = true,
            "--include-hook-events" | "--disable-slash-commands" => request.flags.args.push(name.to_owned()),
            "--tools" => {
                let tools = words(name, values)?;
                if !tools.iter().any(|tool| tool == "default") {
                    request.tools = Some(tools.into_iter().collect());
                }
            }
            "--disallowedTools" | "--disallowed-tools" => {
                request.flags.disallowed.extend(words(name, values)?)
            }
            "--allowedTools" | "--allowed-tools" => self.allowed.extend(words(name, values)?),
            "--resume" | "-r" if value.is_empty() => {}
            "--resume" | "-r" | "--session-id" => request.conversation = Some(value.to_owned()),
            "--permission-mode" => {
                if let Some(problem) = mode_problem(value, self.rules.policy) {
                    return Err(format!("{name}: {problem}"));
                }
                request.flags.args.extend([name.to_owned(), value.to_owned()]);
            }
            "--dangerously-skip-permissions" => self.skips = true,
            "--permission-prompt-tool" if value == "stdio" => request.asks = true,
            "--permission-prompt-tool" => return Err(format!("{name} must be stdio")),
            "--setting-sources" if value.is_empty() => {}
            "--setting-sources" => {
                request.notes.push(format!("{name} is left out: the server's cli.setting_sources holds"))
            }
            "--mcp-config" => self.servers(values)?,
            _ => return Err(format!("{name} is not taken from an attached client")),
        }
        Ok(())
    }

    /// MCP servers of the client's own process; others would be programs and hosts of its choice.
    fn servers(&mut self, values: &[&str]) -> Result<(), String> {
        let refused = "--mcp-config: only servers of the client's own process (type sdk) are taken; an operator \
                       configures others ([mcp.servers])";
        let mut servers = Map::new();
        for value in values {
            let config: Value = serde_json::from_str(value).map_err(|_| refused.to_owned())?;
            let Some(named) = config.get("mcpServers").and_then(Value::as_object) else {
                return Err(refused.to_owned());
            };
            for (name, server) in named {
                if server.get("type").and_then(Value::as_str) != Some("sdk") || !is_word(name) {
                    return Err(refused.to_owned());
                }
                servers.insert(name.clone(), json!({ "type": "sdk", "name": name }));
            }
        }
        if !servers.is_empty() {
            let config = json!({ "mcpServers": servers }).to_string();
            self.request.flags.args.extend(["--mcp-config".to_owned(), config]);
        }
        Ok(())
    }

    fn finish(mut self) -> Result<AttachRequest, String> {
        let policy = self.rules.policy;
        if self.skips {
            if let Some(problem) = mode_problem(super::BYPASS, policy) {
                return Err(format!("--dangerously-skip-permissions: {problem}"));
            }
            self.request.flags.args.push("--dangerously-skip-permissions".to_owned());
        }
        if policy == PermissionPolicy::Deny {
            // Tools of the client's own process run there, where the server has nothing to permit.
            let (own, others): (Vec<_>, Vec<_>) =
                self.allowed.into_iter().partition(|tool| tool.starts_with("mcp__"));
            self.allowed = own;
            if !others.is_empty() {
                let note = "--allowedTools is left out but for tools of MCP servers: permissions.policy denies tools";
                self.request.notes.push(note.to_owned());
            }
            if std::mem::take(&mut self.request.asks) {
                let note = "--permission-prompt-tool is left out: permissions.policy denies tools";
                self.request.notes.push(note.to_owned());
            }
        }
        if !self.allowed.is_empty() {
            self.request.flags.args.extend(["--allowedTools".to_owned(), self.allowed.join(",")]);
        }
        Ok(self.request)
    }
}

impl AttachRules {
    fn model(&self, name: &str, value: &str) -> Result<String, String> {
        match self.model_problem(value) {
            Some(problem) => Err(format!("{name}: {problem}")),
            None => Ok(value.to_owned()),
        }
    }

    /// Why a model may not be named; `None`: it may.
    pub(super) fn model_problem(&self, model: &str) -> Option<&'static str> {
        if !is_model_name(model) {
            return Some("this cannot be the name of a model");
        }
        let is_allowed = self.models.as_ref().is_none_or(|models| models.contains(model));
        (!is_allowed).then_some("the key may not use this model")
    }
}

fn object(name: &str, value: &str) -> Result<Value, String> {
    let parsed: Option<Value> = serde_json::from_str(value).ok();
    parsed.filter(Value::is_object).ok_or_else(|| format!("{name} must be a JSON object"))
}

/// A short word that is neither a flag nor a text of a user.
fn is_word(value: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._:-".contains(&byte);
    !value.is_empty() && value.len() <= 64 && !value.starts_with('-') && value.bytes().all(allowed)
}

/// Rules for tools, apart at commas and blanks outside of parentheses.
fn words(name: &str, values: &[&str]) -> Result<Vec<String>, String> {
    let mut words = BTreeSet::new();
    for value in values {
        let (mut depth, mut word) = (0_usize, String::new());
        for character in value.chars().chain([',']) {
            match character {
                '(' => depth += 1,
                ')' => depth = depth.saturating_sub(1),
                ',' | ' ' if depth == 0 => {
                    words.insert(std::mem::take(&mut word));
                    continue;
                }
                _ => {}
            }
            word.push(character);
        }
        words.insert(word);
    }
    words.remove("");
    let is_usable = |word: &String| word.len() <= MAX_WORD && !word.starts_with('-');
    if words.len() > MAX_WORDS || !words.iter().all(is_usable) {
        return Err(format!("{name} has too many or too long values"));
    }
    Ok(words.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SlashCommands;

    fn rules(policy: PermissionPolicy, models: Option<&[&str]>) -> AttachRules {
        AttachRules {
            policy,
            models: models.map(|models| models.iter().map(|name| (*name).to_owned()).collect()),
            commands: SlashCommands::Text,
            prompt_limit: 1000,
        }
    }

    fn read(words: &[&str], rules: &AttachRules) -> Result<AttachRequest, String> {
        parse(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>(), rules)
    }

    #[test]
    fn every_flag_is_in_the_page() {
        let page = include_str!("../../../../docs/attach.md");
        for flag in FLAGS {
            let word = match flag.of {
                Used => "used",
                Policy => "policy",
                Refused => "refused",
            };
            let row = |line: &str| {
                line.starts_with(&format!("| `{}`", flag.name)) && line.contains(&format!("| {word} |"))
            };
            assert!(page.lines().any(row), "docs/attach.md has no row `{}` … | {word} |", flag.name);
        }
        let rows = page.lines().filter(|line| line.starts_with("| `-")).count();
        assert_eq!(rows, FLAGS.len(), "docs/attach.md has other flags");
    }

    #[test]
    fn prompts_go_into_the_handshake() {
        let line = [
            "--output-format",
            "stream-json",
            "--verbose",
            "--system-prompt",
            "",
            "--append-system-prompt",
            "be brief",
        ];
        let request = read(&line, &rules(PermissionPolicy::Deny, None)).unwrap();
        assert_eq!(request.flags, RawFlags::default());
        assert_eq!(
            Value::Object(request.opening),
            json!({ "systemPrompt": "", "appendSystemPrompt": "be brief" })
        );
    }

    #[test]
    fn policy_denies_what_the_client_allows() {
        let line = ["--allowedTools", "Bash(git *),mcp__me__add", "--permission-prompt-tool", "stdio"];
        let denied = read(&line, &rules(PermissionPolicy::Deny, None)).unwrap();
        assert_eq!(denied.flags.args, ["--allowedTools", "mcp__me__add"]);
        assert_eq!((denied.notes.len(), denied.asks), (2, false));
        let asked = read(&line, &rules(PermissionPolicy::Ask, None)).unwrap();
        assert_eq!(asked.flags.args, ["--allowedTools", "Bash(git *),mcp__me__add"]);
        assert!(asked.asks && asked.notes.is_empty());
    }

    #[test]
    fn flags_that_undo_a_policy_are_refused() {
        let own = r#"{"mcpServers":{"x":{"type":"stdio","command":"sh"}}}"#;
        for (line, policy, models) in [
            (&["--dangerously-skip-permissions"][..], PermissionPolicy::Ask, None),
            (&["--permission-mode", "bypassPermissions"], PermissionPolicy::Ask, None),
            (&["--permission-mode=acceptEdits"], PermissionPolicy::Deny, None),
            (&["--settings", "{}"], PermissionPolicy::Allow, None),
            (&["--plugin-dir", "/x"], PermissionPolicy::Allow, None),
            (&["--add-dir", "/"], PermissionPolicy::Allow, None),
            (&["--mcp-config", own], PermissionPolicy::Allow, None),
            (&["--mcp-config", "/etc/passwd"], PermissionPolicy::Allow, None),
            (&["--model", "opus"], PermissionPolicy::Allow, Some(&["sonnet"][..])),
            (&["--model", "-x"], PermissionPolicy::Allow, None),
            (&["--max-turns", "--settings"], PermissionPolicy::Allow, None),
            (&["--effort", "a b"], PermissionPolicy::Allow, None),
            (&["--fork-session"], PermissionPolicy::Allow, None),
            (&["--unheard-of"], PermissionPolicy::Allow, None),
            (&["my secret prompt"], PermissionPolicy::Allow, None),
        ] {
            let refused = read(line, &rules(policy, models)).unwrap_err();
            assert!(!refused.contains("secret") && !refused.contains("passwd"), "{refused}");
        }
        let allowed =
            read(&["--dangerously-skip-permissions"], &rules(PermissionPolicy::Allow, None)).unwrap();
        assert_eq!(allowed.flags.args, ["--dangerously-skip-permissions"]);
    }

    #[test]
    fn servers_of_the_client_are_named_only() {
        let config = r#"{"mcpServers":{"me":{"type":"sdk","name":"me","env":{"A":"b"}}}}"#;
        let request = read(&["--mcp-config", config], &rules(PermissionPolicy::Deny, None)).unwrap();
        let expected = r#"{"mcpServers":{"me":{"name":"me","type":"sdk"}}}"#;
        assert_eq!(request.flags.args, ["--mcp-config", expected]);
    }

    #[test]
    fn tools_and_conversation_are_read() {
        let line = ["--tools", "Read,Glob", "--disallowedTools", "Bash", "--resume=id-1", "--max-turns", "3"];
        let request = read(&line, &rules(PermissionPolicy::Deny, None)).unwrap();
        assert_eq!(request.tools.unwrap().into_iter().collect::<Vec<_>>(), ["Glob", "Read"]);
        assert_eq!(request.flags.disallowed, ["Bash"]);
        assert_eq!(request.conversation.as_deref(), Some("id-1"));
        assert_eq!(request.flags.args, ["--max-turns", "3"]);
        assert_eq!(
            read(&["--tools", ""], &rules(PermissionPolicy::Deny, None)).unwrap().tools,
            Some(BTreeSet::new())
        );
    }
}
