//! Decides which tool calls need permission: a pure function of flags, mode and call.

use serde_json::Value;

/// A denied call.
#[derive(Debug, Clone)]
pub(crate) struct Denial {
    pub(crate) name: String,
    pub(crate) id: String,
    pub(crate) input: Value,
}

/// Decision about a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Decision {
    Allow,
    /// Ask the host; without a host that answers, deny with this text.
    Ask(String),
    Deny(String),
}

/// The rules in effect.
pub(crate) struct Rules<'a> {
    pub(crate) allowed: &'a [String],
    pub(crate) disallowed: &'a [String],
    pub(crate) mode: &'a str,
}

/// Commands without side effects.
const HARMLESS: &[&str] = &[
    ":", "cat", "cd", "date", "echo", "exit", "false", "grep", "head", "hostname", "id", "ls", "printf",
    "ps", "pwd", "sleep", "sort", "tail", "test", "true", "uname", "uniq", "wait", "wc", "which", "whoami",
];
/// Additional commands in the mode `acceptEdits`.
const EDITING: &[&str] = &["touch", "mkdir", "cp", "mv", "rm", "rmdir", "sed"];
const READING_TOOLS: &[&str] = &["Read", "Glob", "Grep", "TaskOutput"];

/// Decides about one call.
pub(crate) fn decide(rules: &Rules<'_>, name: &str, input: &Value) -> Decision {
    let text = |key: &str| input.get(key).and_then(Value::as_str).unwrap_or_default();
    let command = text("command");
    if rules.disallowed.iter().any(|rule| matches(rule, name, command)) {
        return Decision::Deny(format!("Permission to use {name} has been denied."));
    }
    let allowed = rules.mode == "bypassPermissions"
        || rules.allowed.iter().any(|rule| matches(rule, name, command))
        || READING_TOOLS.contains(&name)
        || (name == "Bash" && consists_of(command, &[HARMLESS]))
        || (rules.mode == "acceptEdits"
            && (matches!(name, "Write" | "Edit")
                || (name == "Bash" && consists_of(command, &[HARMLESS, EDITING]))));
    if allowed {
        return Decision::Allow;
    }
    let reason = match name {
        "Bash" => "This command requires approval".to_owned(),
        "Write" | "Edit" => format!(
            "Claude requested permissions to write to {}, but you haven't granted it yet.",
            text("file_path")
        ),
        _ => format!("Claude requested permissions to use {name}, but you haven't granted it yet."),
    };
    match rules.mode {
        "dontAsk" => Decision::Deny(format!(
            "Permission to use {name} has been denied because Claude Code is running in don't ask mode."
        )),
        "plan" if matches!(name, "Write" | "Edit") => Decision::Deny(reason),
        _ => Decision::Ask(reason),
    }
}

/// Matches `Bash`, `Bash(git *)`, `Bash(git:*)`, `Bash(exact command)` and `mcp__server__tool`.
fn matches(rule: &str, name: &str, command: &str) -> bool {
    let Some((tool, pattern)) = rule.split_once('(') else { return rule == name };
    let pattern = pattern.strip_suffix(')').unwrap_or(pattern);
    let prefix = pattern.strip_suffix(":*").or_else(|| pattern.strip_suffix(" *"));
    tool == name
        && match prefix {
            Some(prefix) => {
                command == prefix || command.strip_prefix(prefix).is_some_and(|r| r.starts_with(' '))
            }
            None => pattern == "*" || pattern == command,
        }
}

/// True if each simple command begins with one of these words, without redirection or substitution.
fn consists_of(script: &str, words: &[&[&str]]) -> bool {
    let quiet = script.replace("2>&1", "").replace(">/dev/null", "").replace("> /dev/null", "");
    if quiet.contains(['>', '`', '<']) || quiet.contains("$(") {
        return false;
    }
    quiet.split([';', '&', '|', '\n']).all(|simple| {
        let first = simple.split_whitespace().next();
        first.is_none_or(|first| words.iter().any(|list| list.contains(&first)))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{Decision, Rules, decide};

    fn verdict(allowed: &[&str], mode: &str, name: &str, command: &str) -> Decision {
        let allowed: Vec<String> = allowed.iter().map(|rule| (*rule).to_owned()).collect();
        let rules = Rules { allowed: &allowed, disallowed: &[], mode };
        decide(&rules, name, &json!({"command": command, "file_path": "/x"}))
    }

    #[test]
    fn harmless_commands_need_no_permission() {
        for command in ["ls -l", "sleep 1; echo done", "echo a | wc -c", "echo b 2>&1"] {
            assert_eq!(verdict(&[], "default", "Bash", command), Decision::Allow, "{command}");
        }
        for command in ["touch a", "echo a > b", "echo $(rm x)", "ls && rm x"] {
            assert!(matches!(verdict(&[], "default", "Bash", command), Decision::Ask(_)), "{command}");
        }
    }

    #[test]
    fn rules_and_modes_change_the_decision() {
        assert_eq!(verdict(&["Bash(touch *)"], "default", "Bash", "touch a"), Decision::Allow);
        assert!(matches!(verdict(&["Bash(touch *)"], "default", "Bash", "touching"), Decision::Ask(_)));
        assert_eq!(verdict(&[], "acceptEdits", "Bash", "touch a"), Decision::Allow);
        assert_eq!(verdict(&[], "bypassPermissions", "Write", ""), Decision::Allow);
        assert!(matches!(verdict(&[], "dontAsk", "Write", ""), Decision::Deny(_)));
        assert!(matches!(verdict(&[], "plan", "Write", ""), Decision::Deny(_)));
    }
}
