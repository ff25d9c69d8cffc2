//! The CLI's files in HOME and TMPDIR that outlive a child.
//!
//! `.claude.json` has caches, but also environment variables and MCP servers that apply regardless of `--setting-sources`.
//! `.claude/remote-settings.json` applies as the organisation's settings. The CLI recreates the files that it needs.

use super::transcript::CONFIG_DIR;
use crate::adapter::{HomeCleanup, TmpCleanup};
use crate::config::CliConfig;

/// Transcripts, credentials, and files that tools use across turns. The CLI obeys nothing in them.
const KEPT: [&str; 6] = ["projects", ".credentials.json", "file-history", "todos", "tasks", "plans"];

/// Files that the CLI obeys with the setting source `user`. They stay if the operator allows that source.
const KEPT_FOR_USER: [&str; 9] = [
    "settings.json",
    "CLAUDE.md",
    "rules",
    "skills",
    "commands",
    "agents",
    "output-styles",
    "plugins",
    "hooks",
];

/// Files in HOME to remove before each start; `None` if the configuration keeps the CLI's files elsewhere.
pub(crate) fn home_cleanup(cli: &CliConfig) -> Option<HomeCleanup> {
    if cli.env.get(CONFIG_DIR).is_some_and(|directory| !directory.is_empty()) {
        return None;
    }
    let obeys_user = cli.setting_sources.split(',').any(|source| source.trim() == "user");
    let for_user = KEPT_FOR_USER.into_iter().filter(|_| obeys_user);
    let kept = KEPT.into_iter().chain(for_user).collect();
    Some(HomeCleanup { removed_prefix: ".claude.json", cleared_directory: ".claude", kept })
}

/// Files in TMPDIR that a killed CLI leaves: a socket for messages of other processes (from 2.1.332, one per process), and
/// a probe of the kernel's file notifications (one per process that was killed in its first seconds), and the output of a
/// command that was cut off. The output of commands in the background stays: the conversation names these files.
pub(crate) fn tmp_cleanup(cli: &CliConfig) -> TmpCleanup {
    TmpCleanup {
        removed: "cc-socks",
        own_prefix: "claude-",
        removed_prefix: "fswatch-probe-",
        removed_of_conversation: (!cli.background_tasks).then_some("tasks"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_stay_for_the_user_source_only() {
        let kept = |sources: &str| {
            let cli = CliConfig { setting_sources: sources.to_owned(), ..CliConfig::default() };
            home_cleanup(&cli).unwrap().kept
        };
        assert_eq!(kept(""), KEPT);
        assert_eq!(kept("project"), KEPT);
        assert!(kept("project, user").contains(&"settings.json"));
        assert!(!kept("user").contains(&"remote-settings.json"));
    }

    #[test]
    fn files_elsewhere_are_not_cleaned() {
        let mut cli = CliConfig::default();
        cli.env.insert(CONFIG_DIR.to_owned(), "/etc/claude".to_owned());
        assert_eq!(home_cleanup(&cli), None);
    }
}
