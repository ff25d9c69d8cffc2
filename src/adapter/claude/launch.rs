//! The command line and the environment. Pure.

use std::ffi::OsString;

use crate::adapter::{CommandLine, LaunchPlan, Opening};

/// What every child needs in order to be driven line by line. `--verbose` is obligatory with this output format.
const ALWAYS: [&str; 6] =
    ["--print", "--verbose", "--input-format", "stream-json", "--output-format", "stream-json"];

/// The system prompt is not here: it is a user's text, and arguments can be read by everybody on the machine. It goes
/// with the handshake.
pub(super) fn command(plan: &LaunchPlan<'_>) -> CommandLine {
    let mut args: Vec<OsString> = ALWAYS.iter().map(OsString::from).collect();
    let mut flag = |name: &str, value: Option<OsString>| {
        args.push(name.into());
        args.extend(value);
    };
    if plan.cli.partial_messages {
        flag("--include-partial-messages", None);
    }
    if plan.cli.background_tasks {
        // Says which message a turn answers: the CLI also has turns of its own then.
        flag("--replay-user-messages", None);
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
    if !plan.cli.disallowed_tools.is_empty() {
        flag("--disallowedTools", Some(plan.cli.disallowed_tools.join(",").into()));
    }
    let opening = match plan.opening {
        Opening::New => "--session-id",
        Opening::Resume => "--resume",
    };
    flag(opening, Some(plan.session_id.into()));
    args.extend(plan.cli.args.iter().map(OsString::from));
    CommandLine { args, env: environment(plan), decided_env: decided(plan) }
}

/// Variables that keep the CLI from acting on its own. An operator may undo one in `cli.env`; docs/security.md says
/// what each stops. Versions that do not know one ignore it.
const QUIET: [&str; 15] = [
    // Says when it works and when it waits: the only notice of turns that it starts by itself.
    "CLAUDE_CODE_EMIT_SESSION_STATE_EVENTS",
    // A program under supervision is not to replace itself, nor to talk to anybody but the model's API.
    "DISABLE_AUTOUPDATER",
    "DISABLE_UPDATES",
    "DISABLE_TELEMETRY",
    "DISABLE_ERROR_REPORTING",
    "DISABLE_FEEDBACK_COMMAND",
    "CLAUDE_CODE_DISABLE_FEEDBACK_SURVEY",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC",
    "CLAUDE_CODE_DISABLE_OFFICIAL_MARKETPLACE_AUTOINSTALL",
    // Switches of the provider's that come over the network could open what was judged closed.
    "DISABLE_GROWTHBOOK",
    // Notes of its own in HOME, written without a permission and read at the next start.
    "CLAUDE_CODE_DISABLE_AUTO_MEMORY",
    // Timers start turns that nobody asked for, also from a file in the workspace.
    "CLAUDE_CODE_DISABLE_CRON",
    // Runs git in the workspace at the start, and with it what the repository's configuration names.
    "CLAUDE_CODE_DISABLE_GIT_INSTRUCTIONS",
    "CLAUDE_CODE_DISABLE_POLICY_SKILLS",
    "CLAUDE_CODE_DISABLE_FILE_CHECKPOINTING",
];

/// The same, for variables whose value is not 1.
const QUIET_VALUES: [(&str, &str); 5] = [
    // A user's OAuth credentials would otherwise bring the MCP servers of that account.
    ("ENABLE_CLAUDEAI_MCP_SERVERS", "false"),
    ("CLAUDE_CODE_AUTO_CONNECT_IDE", "false"),
    // Git runs the program that a repository names here for as little as `git status`, which needs no permission.
    ("GIT_CONFIG_COUNT", "1"),
    ("GIT_CONFIG_KEY_0", "core.fsmonitor"),
    ("GIT_CONFIG_VALUE_0", "false"),
];

/// Messages of other sessions on this machine would start turns (2.1.332; 2.1.197 has none). What the CLI itself keeps in
/// HOME is not for tools to write: it lets the model write notes there without a permission.
const SETTINGS: &str = concat!(
    r#"{"crossSessionInbound":"refuse","#,
    r#""permissions":{"deny":["Edit(~/.claude/**)","Edit(~/.claude.json)"]}}"#
);

fn environment(plan: &LaunchPlan<'_>) -> Vec<(OsString, OsString)> {
    let switches = QUIET.iter().map(|name| (*name, "1"));
    let mut env: Vec<(OsString, OsString)> =
        switches.chain(QUIET_VALUES).map(|(name, value)| (name.into(), value.into())).collect();
    if plan.cli.setting_sources.is_empty() {
        // No settings files, no memory files: those are texts of the workspace in the place of the operator's.
        env.push(("CLAUDE_CODE_DISABLE_CLAUDE_MDS".into(), "1".into()));
    }
    if !plan.cli.background_tasks {
        env.push(("CLAUDE_CODE_DISABLE_BACKGROUND_TASKS".into(), "1".into()));
    }
    if !plan.settings.mcp_servers.is_empty() {
        env.push(("MCP_TIMEOUT".into(), plan.mcp_timeout.as_millis().to_string().into()));
    }
    // Tool output would otherwise go to a directory that all children of one uid share.
    env.push(("CLAUDE_CODE_TMPDIR".into(), plan.dirs.tmp.clone().into()));
    // Without a limit a failing API holds a turn for minutes: ten retries, or no end of them once a model is named.
    env.push(("CLAUDE_CODE_MAX_RETRIES".into(), plan.cli.api_retries.to_string().into()));
    if !plan.cli.attachments {
        // With attachments off the CLI (2.1.332) announces no deferred tools, so the model would never learn of them.
        env.push(("ENABLE_TOOL_SEARCH".into(), "false".into()));
    }
    env
}

/// What the CLI does with a prompt on its own, without a tool and without a permission.
fn decided(plan: &LaunchPlan<'_>) -> Vec<(OsString, OsString)> {
    // `@path`, `@"a b"`, `@dir/` and `@server:uri` would be read and put into the request to the model.
    let attachments = (!plan.cli.attachments).then(|| ("CLAUDE_CODE_DISABLE_ATTACHMENTS".into(), "1".into()));
    attachments.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::adapter::{Dirs, LaunchSettings};
    use crate::config::CliConfig;

    fn lines(
        cli: &CliConfig,
        settings: &LaunchSettings,
        opening: Opening,
        model: Option<&str>,
        asks: bool,
    ) -> CommandLine {
        let dirs = Dirs { work: "/s/work".into(), home: "/s/home".into(), tmp: "/s/tmp".into() };
        command(&LaunchPlan {
            cli,
            dirs: &dirs,
            session_id: "id-1",
            opening,
            model,
            settings,
            mcp_timeout: Duration::from_secs(7),
            asks_permission: asks,
        })
    }

    #[test]
    fn the_safe_flags_are_the_default() {
        let cli = CliConfig::default();
        let line = lines(&cli, &LaunchSettings::default(), Opening::New, None, false);
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
        assert_eq!(line.decided_env, [("CLAUDE_CODE_DISABLE_ATTACHMENTS".into(), "1".into())]);
    }

    #[test]
    fn everything_that_was_asked_for_is_there_and_the_system_prompt_is_not() {
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
        };
        let line = lines(&cli, &settings, Opening::Resume, Some("large"), true);
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
        assert_eq!(line.decided_env, []);
        assert!(!format!("{line:?}").contains("secret"));
    }
}
