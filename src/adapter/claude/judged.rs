//! The versions that were judged: what they do by themselves was looked at, and stopped where it opens a door.
//! `tests/inventory/claude.json` records what they have; docs/security.md says what stops it.

/// Each of these passes the whole suite of tests with the real CLI.
pub const JUDGED_VERSIONS: [&str; 2] = ["2.1.197", "2.1.332"];

/// Whether a text of `--version` names one of them: `2.1.332 (Claude Code)`.
pub(super) fn is_judged(version: &str) -> bool {
    let number =
        version.split_whitespace().find(|word| word.starts_with(|first: char| first.is_ascii_digit()));
    number.is_some_and(|number| JUDGED_VERSIONS.contains(&number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_numbers_of_judged_versions_count() {
        assert!(is_judged("2.1.332 (Claude Code)"));
        assert!(is_judged("2.1.197"));
        for other in ["", "2.1.33", "2.1.3320 (Claude Code)", "(2.1.332)", "Claude Code", "3.0.0 2.1.332"] {
            assert!(!is_judged(other), "{other}");
        }
    }
}
