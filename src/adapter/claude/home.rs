//! What the CLI keeps in HOME, and what of it outlives a child.
//!
//! `.claude.json` holds caches, and variables of the environment and MCP servers that count whatever `--setting-sources`
//! says; `.claude/remote-settings.json` counts as the settings of the organisation. The CLI writes anew what it needs.

use super::transcript::CONFIG_DIR;
use crate::adapter::OwnFiles;
use crate::config::CliConfig;

/// Transcripts, credentials, and what tools refer to across turns. Nothing in them is obeyed.
const KEPT: [&str; 6] = ["projects", ".credentials.json", "file-history", "todos", "tasks", "plans"];

/// Obeyed with the setting source `user`: where the operator allows that, it is to last.
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

pub(super) fn own_files(cli: &CliConfig) -> Option<OwnFiles> {
    if cli.env.get(CONFIG_DIR).is_some_and(|directory| !directory.is_empty()) {
        return None;
    }
    let obeys_user = cli.setting_sources.split(',').any(|source| source.trim() == "user");
    let for_user = KEPT_FOR_USER.into_iter().filter(|_| obeys_user);
    let kept = KEPT.into_iter().chain(for_user).collect();
    Some(OwnFiles { removed: ".claude.json", directory: ".claude", kept })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_outlive_a_child_for_the_user_source_only() {
        let kept = |sources: &str| {
            let cli = CliConfig { setting_sources: sources.to_owned(), ..CliConfig::default() };
            own_files(&cli).unwrap().kept
        };
        assert_eq!(kept(""), KEPT);
        assert_eq!(kept("project"), KEPT);
        assert!(kept("project, user").contains(&"settings.json"));
        assert!(!kept("user").contains(&"remote-settings.json"));
    }

    #[test]
    fn files_elsewhere_are_the_operators() {
        let mut cli = CliConfig::default();
        cli.env.insert(CONFIG_DIR.to_owned(), "/etc/claude".to_owned());
        assert_eq!(own_files(&cli), None);
    }
}
