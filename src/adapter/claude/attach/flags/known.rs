//! The flags that are known, each with its use. docs/attach.md has the same table.

use crate::adapter::FlagUse;

/// What follows a flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Takes {
    Nothing,
    One,
    /// All words up to the next flag.
    Many,
    /// A word that is no flag, if there is one.
    Maybe,
}

pub(super) struct Flag {
    pub(super) name: &'static str,
    pub(super) takes: Takes,
    #[cfg_attr(not(test), expect(dead_code, reason = "documented, and compared with the page by a test"))]
    pub(super) of: FlagUse,
}

const fn flag(name: &'static str, takes: Takes, of: FlagUse) -> Flag {
    Flag { name, takes, of }
}

use FlagUse::{Policy, Refused, Used};
use Takes::{Many, Maybe, Nothing, One};

/// Every flag that is known. Others are refused.
pub(super) const FLAGS: &[Flag] = &[
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
    flag("--add-dir", Many, Policy),
    flag("--setting-sources", One, Policy),
    flag("--settings", One, Refused),
    flag("--plugin-dir", One, Refused),
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
