//! Versions that were reviewed for what they do by themselves; unsafe features are switched off. The features are listed in
//! `tests/inventory/claude.json`, the switches in docs/security.md.

/// Versions that pass the whole test suite with the real CLI.
const JUDGED_VERSIONS: [&str; 2] = ["2.1.197", "2.1.332"];

/// Whether the output of `--version`, such as `2.1.332 (Claude Code)`, names a judged version.
pub(crate) fn is_judged(version: &str) -> bool {
    let number =
        version.split_whitespace().find(|word| word.starts_with(|first: char| first.is_ascii_digit()));
    number.is_some_and(|number| JUDGED_VERSIONS.contains(&number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_exact_versions_are_judged() {
        assert!(is_judged("2.1.332 (Claude Code)"));
        assert!(is_judged("2.1.197"));
        for other in ["", "2.1.33", "2.1.3320 (Claude Code)", "(2.1.332)", "Claude Code", "3.0.0 2.1.332"] {
            assert!(!is_judged(other), "{other}");
        }
    }
}
