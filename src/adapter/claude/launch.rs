//! Command line and environment of a child, and why it may exit at once. Pure.

use std::ffi::OsString;

use super::tools;
use crate::adapter::{CommandLine, LaunchMode, LaunchPlan, LaunchRefusal, Terminal};

/// Flags of every child. This output format requires `--verbose`.
const ALWAYS: [&str; 6] =
    ["--print", "--verbose", "--input-format", "stream-json", "--output-format", "stream-json"];

/// All tools of the server of the caller's tools.
const CALLER_TOOLS: &str = "mcp__caller";

/// Flag for [`LaunchPlan::mirrors`].
const MIRROR: &str = "--session-mirror";

/// The command line. The system prompt is a user's text and goes with the handshake: every user of the machine can read
/// arguments.
pub(crate) fn command(plan: &LaunchPlan<'_>) -> CommandLine {
    let mut args: Vec<OsString> = ALWAYS.iter().map(OsString::from).collect();
    let mut flag = |name: &str, value: Option<OsString>| {
        args.push(name.into());
        args.extend(value);
    };
    let has_caller_tools = !plan.settings.caller_tools.is_empty();
    // The end of a message with calls is known by its events only.
    let raw = &plan.settings.raw;
    if plan.cli.partial_messages || has_caller_tools || raw.partial {
        flag("--include-partial-messages", None);
    }
    if plan.cli.background_tasks || raw.replay {
        // Names the message that a turn answers: the CLI also begins turns by itself.
        flag("--replay-user-messages", None);
    }
    if plan.mirrors {
        // Hidden; since 2.1.197.
        flag(MIRROR, None);
    }
    flag("--setting-sources", Some(plan.cli.setting_sources.as_str().into()));
    if plan.cli.strict_mcp_config {
        flag("--strict-mcp-config", None);
    }
    if let Some(model) = plan.model {
        flag("--model", Some(model.into()));
    }
    if let Some(model) = &plan.settings.fallback_model {
        flag("--fallback-model", Some(model.into()));
    }
    flag("--settings", Some(SETTINGS.into()));
    if plan.asks_permission {
        flag("--permission-prompt-tool", Some("stdio".into()));
    }
    if has_caller_tools {
        // The caller runs them, and decides itself.
        flag("--allowedTools", Some(CALLER_TOOLS.into()));
    }
    let disallowed: Vec<&str> =
        plan.cli.disallowed_tools.iter().chain(&raw.disallowed).map(String::as_str).collect();
    if !disallowed.is_empty() {
        flag("--disallowedTools", Some(disallowed.join(",").into()));
    }
    let mut configured = plan.cli.args.clone();
    if let Some(tools) = &plan.settings.tools {
        flag("--tools", Some(tools::restricted(tools, &mut configured).into()));
    }
    let conversation = match plan.mode {
        LaunchMode::New => "--session-id",
        LaunchMode::Resume => "--resume",
    };
    flag(conversation, Some(plan.session_id.into()));
    args.extend(raw.args.iter().map(OsString::from));
    args.extend(configured.into_iter().map(OsString::from));
    CommandLine { args, env: environment(plan), enforced_env: enforced(plan) }
}

/// Variables that switch off what the CLI does by itself. `cli.env` may override them; docs/security.md explains each.
/// Versions ignore unknown ones.
const QUIET: [&str; 15] = [
    // Reports busy and idle: the only notice of turns that the CLI starts by itself.
    "CLAUDE_CODE_EMIT_SESSION_STATE_EVENTS",
    // A supervised program must not replace itself, nor connect to hosts other than the model's API.
    "DISABLE_AUTOUPDATER",
    "DISABLE_UPDATES",
    "DISABLE_TELEMETRY",
    "DISABLE_ERROR_REPORTING",
    "DISABLE_FEEDBACK_COMMAND",
    "CLAUDE_CODE_DISABLE_FEEDBACK_SURVEY",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC",
    "CLAUDE_CODE_DISABLE_OFFICIAL_MARKETPLACE_AUTOINSTALL",
    // Feature flags of the provider arrive over the network and could enable reviewed features.
    "DISABLE_GROWTHBOOK",
    // Notes in HOME that are written without permission and read at the next start.
    "CLAUDE_CODE_DISABLE_AUTO_MEMORY",
    // Timers, also from a file in the workspace, start turns that no client requested.
    "CLAUDE_CODE_DISABLE_CRON",
    // Runs git in the workspace at start, and with it programs from the repository's configuration.
    "CLAUDE_CODE_DISABLE_GIT_INSTRUCTIONS",
    "CLAUDE_CODE_DISABLE_POLICY_SKILLS",
    "CLAUDE_CODE_DISABLE_FILE_CHECKPOINTING",
];

/// As [`QUIET`], with values other than 1.
const QUIET_VALUES: [(&str, &str); 5] = [
    // OAuth credentials would add the MCP servers of that account.
    ("ENABLE_CLAUDEAI_MCP_SERVERS", "false"),
    ("CLAUDE_CODE_AUTO_CONNECT_IDE", "false"),
    // Git runs the program of this setting for `git status`, which needs no permission.
    ("GIT_CONFIG_COUNT", "1"),
    ("GIT_CONFIG_KEY_0", "core.fsmonitor"),
    ("GIT_CONFIG_VALUE_0", "false"),
];

/// Refuses messages of other sessions on this machine, which would start turns (2.1.332; 2.1.197 has none). Denies tools the
/// CLI's files in HOME, where the CLI would allow notes without permission.
const SETTINGS: &str = concat!(
    r#"{"crossSessionInbound":"refuse","#,
    r#""permissions":{"deny":["Edit(~/.claude/**)","Edit(~/.claude.json)"]}}"#
);

fn environment(plan: &LaunchPlan<'_>) -> Vec<(OsString, OsString)> {
    let switches = QUIET.iter().map(|name| (*name, "1"));
    let mut env: Vec<(OsString, OsString)> =
        switches.chain(QUIET_VALUES).map(|(name, value)| (name.into(), value.into())).collect();
    if plan.cli.setting_sources.is_empty() {
        // Without settings files also without memory files: texts of the workspace must not act as the operator's.
        env.push(("CLAUDE_CODE_DISABLE_CLAUDE_MDS".into(), "1".into()));
    }
    if !plan.cli.background_tasks {
        env.push(("CLAUDE_CODE_DISABLE_BACKGROUND_TASKS".into(), "1".into()));
    }
    if !plan.settings.mcp_servers.is_empty() {
        env.push(("MCP_TIMEOUT".into(), plan.mcp_timeout.as_millis().to_string().into()));
    }
    if !plan.settings.caller_tools.is_empty() {
        env.push(("MCP_TOOL_TIMEOUT".into(), plan.tool_timeout.as_millis().to_string().into()));
    }
    // The default is a directory for tool output that all children of one uid share.
    env.push(("CLAUDE_CODE_TMPDIR".into(), plan.dirs.tmp.clone().into()));
    // The default holds a turn for minutes while the API fails: ten retries, or unlimited ones with a named model.
    env.push(("CLAUDE_CODE_MAX_RETRIES".into(), plan.cli.api_retries.to_string().into()));
    if !plan.cli.attachments {
        // Without attachments the CLI (2.1.332) announces no deferred tools to the model.
        env.push(("ENABLE_TOOL_SEARCH".into(), "false".into()));
    }
    env
}

/// Variables for what the CLI does with a prompt without a tool and without permission.
fn enforced(plan: &LaunchPlan<'_>) -> Vec<(OsString, OsString)> {
    // The CLI would read `@path`, `@"a b"`, `@dir/` and `@server:uri` into the request to the model.
    let attachments = (!plan.cli.attachments).then(|| ("CLAUDE_CODE_DISABLE_ATTACHMENTS".into(), "1".into()));
    attachments.into_iter().collect()
}

/// Why a child exited before it was ready.
pub(crate) fn launch_refusal(terminal: Option<&Terminal>, stderr: &str) -> Option<LaunchRefusal> {
    let failure = terminal.and_then(|terminal| terminal.failure.as_ref());
    let says =
        |text: &str| stderr.contains(text) || failure.is_some_and(|failure| failure.message.contains(text));
    // The second message is about an unreadable transcript.
    if says("No conversation found with session ID") || says("Failed to resume session") {
        Some(LaunchRefusal::NoConversation)
    } else if says("Session ID") && says("is already in use") {
        Some(LaunchRefusal::IdInUse)
    } else if stderr.lines().next().is_some_and(|line| line == format!("error: unknown option '{MIRROR}'")) {
        Some(LaunchRefusal::NoMirror)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::terminal::terminal;
    use super::*;
    use crate::adapter::LaunchSettings;
    use crate::config::CliConfig;
    use crate::model::Dirs;

    fn lines(
        cli: &CliConfig,
        settings: &LaunchSettings,
        mode: LaunchMode,
        model: Option<&str>,
        asks: bool,
    ) -> CommandLine {
        let dirs = Dirs { work: "/s/work".into(), home: "/s/home".into(), tmp: "/s/tmp".into() };
        command(&LaunchPlan {
            cli,
            dirs: &dirs,
            session_id: "id-1",
            mode,
            model,
            settings,
            mcp_timeout: Duration::from_secs(7),
            tool_timeout: Duration::from_secs(9),
            mirrors: false,
            asks_permission: asks,
        })
    }

    #[test]
    fn safe_flags_are_the_default() {
        let cli = CliConfig::default();
        let line = lines(&cli, &LaunchSettings::default(), LaunchMode::New, None, false);
        let expected = format!(
            "--print --verbose --input-format stream-json --output-format stream-json \
                        --include-partial-messages --setting-sources  --strict-mcp-config \
                        --settings {SETTINGS} --disallowedTools {} --session-id id-1",
            cli.disallowed_tools.join(",")
        );
        let expected: Vec<OsString> = expected.split(' ').map(OsString::from).collect();
        assert_eq!(line.args, expected);
        let names: Vec<_> = line.env.iter().map(|(name, _)| name.to_string_lossy().into_owned()).collect();
        assert!(names.contains(&"CLAUDE_CODE_DISABLE_BACKGROUND_TASKS".to_owned()));
        assert!(line.env.contains(&("CLAUDE_CODE_TMPDIR".into(), "/s/tmp".into())));
        assert!(line.env.contains(&("CLAUDE_CODE_MAX_RETRIES".into(), "2".into())));
        assert_eq!(line.enforced_env, [("CLAUDE_CODE_DISABLE_ATTACHMENTS".into(), "1".into())]);
    }

    #[test]
    fn command_has_all_options_but_no_secret() {
        let cli = CliConfig {
            partial_messages: false,
            strict_mcp_config: false,
            background_tasks: true,
            attachments: true,
            disallowed_tools: Vec::new(),
            api_retries: 0,
            setting_sources: "user".to_owned(),
            args: vec!["--tools".to_owned(), String::new()],
            ..CliConfig::default()
        };
        let settings = LaunchSettings {
            system_prompt: Some("my secret".to_owned()),
            mcp_servers: serde_json::from_str(r#"{"m": {"env": {"A": "my secret"}}}"#).unwrap(),
            fallback_model: Some("small".to_owned()),
            ..LaunchSettings::default()
        };
        let line = lines(&cli, &settings, LaunchMode::Resume, Some("large"), true);
        let expected = format!(
            "--print --verbose --input-format stream-json --output-format stream-json \
                        --replay-user-messages --setting-sources user --model large --fallback-model small \
                        --settings {SETTINGS} --permission-prompt-tool stdio --resume id-1 --tools "
        );
        let expected: Vec<OsString> = expected.split(' ').map(OsString::from).collect();
        assert_eq!(line.args, expected);
        for name in ["CLAUDE_CODE_DISABLE_BACKGROUND_TASKS", "CLAUDE_CODE_DISABLE_CLAUDE_MDS"] {
            assert!(!line.env.iter().any(|(set, _)| set == name), "{name}");
        }
        assert!(line.env.contains(&("MCP_TIMEOUT".into(), "7000".into())));
        assert!(line.env.contains(&("CLAUDE_CODE_MAX_RETRIES".into(), "0".into())));
        assert_eq!(line.enforced_env, []);
        assert!(!format!("{line:?}").contains("secret"));
    }

    #[test]
    fn launch_refusals_are_recognised() {
        assert_eq!(
            launch_refusal(None, "No conversation found with session ID: x\n"),
            Some(LaunchRefusal::NoConversation)
        );
        let unreadable = "Failed to resume session: EISDIR: illegal operation on a directory, read";
        assert_eq!(launch_refusal(None, unreadable), Some(LaunchRefusal::NoConversation));
        assert_eq!(
            launch_refusal(None, "Error: Session ID x is already in use."),
            Some(LaunchRefusal::IdInUse)
        );
        assert_eq!(launch_refusal(None, "Error: Invalid session ID. Must be a valid UUID."), None);
        let line = br#"{"type":"result","subtype":"error_during_execution","is_error":true,
            "errors":["No conversation found with session ID: x"]}"#;
        assert_eq!(launch_refusal(terminal(line).as_ref(), ""), Some(LaunchRefusal::NoConversation));
    }
}
