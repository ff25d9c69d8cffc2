//! Command lines of clients, read and judged.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::*;
use crate::adapter::FlagUse::{Policy, Refused, Used};
use crate::config::{PermissionPolicy, SlashCommands};

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
    let page = include_str!("../../../../../docs/attach.md");
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
    for (line, policy, models) in [
        (&["--dangerously-skip-permissions"][..], PermissionPolicy::Ask, None),
        (&["--permission-mode", "bypassPermissions"], PermissionPolicy::Ask, None),
        (&["--permission-mode=acceptEdits"], PermissionPolicy::Deny, None),
        (&["--settings", "{}"], PermissionPolicy::Allow, None),
        (&["--plugin-dir", "/x"], PermissionPolicy::Allow, None),
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
    let allowed = read(&["--dangerously-skip-permissions"], &rules(PermissionPolicy::Allow, None)).unwrap();
    assert_eq!(allowed.flags.args, ["--dangerously-skip-permissions"]);
}

#[test]
fn servers_of_the_client_are_named_only() {
    let config = r#"{"mcpServers":{"me":{"type":"sdk","name":"me","env":{"A":"b"}}}}"#;
    let request = read(&["--mcp-config", config], &rules(PermissionPolicy::Deny, None)).unwrap();
    let expected = r#"{"mcpServers":{"me":{"name":"me","type":"sdk"}}}"#;
    assert_eq!(request.flags.args, ["--mcp-config", expected]);
    assert_eq!((request.own_servers.as_slice(), request.servers.len()), (&["me".to_owned()][..], 0));
}

#[test]
fn programs_and_paths_are_not_on_the_command_line() {
    let config = r#"{"mcpServers":{"x":{"type":"stdio","command":"sh"},"y":{"command":"sh"}}}"#;
    let line = ["--mcp-config", config, "--add-dir", "a", "/b", "--verbose"];
    let request = read(&line, &rules(PermissionPolicy::Allow, None)).unwrap();
    assert_eq!(request.flags, RawFlags::default());
    assert_eq!(request.servers.keys().collect::<Vec<_>>(), ["x", "y"]);
    assert_eq!(request.directories, ["a", "/b"]);
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
