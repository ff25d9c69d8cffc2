//! What each rung forbids, and whether a probe's report shows that it does. Pure.

use std::collections::BTreeMap;

/// What no child may do, whatever the rungs.
pub(super) const BASE: [&str; 2] = ["capabilities", "privileges"];
/// Attempts under Landlock; its older versions restrict files only.
pub(super) const LANDLOCK: [&str; 11] = [
    "capabilities",
    "privileges",
    "read",
    "write",
    "list",
    "environ",
    "memory",
    "trace",
    "tcp",
    "signal",
    "abstract",
];
/// What every version of Landlock forbids.
pub(super) const LANDLOCK_FILES: [&str; 8] =
    ["capabilities", "privileges", "read", "write", "list", "environ", "memory", "trace"];
pub(super) const SECCOMP: [&str; 7] =
    ["capabilities", "privileges", "unfiltered", "mount", "user_namespace", "keyring", "host_name"];
/// Processes are numbered again inside, so that a pid of outside is another process there.
pub(super) const NAMESPACES: [&str; 9] =
    ["capabilities", "privileges", "read", "list", "processes", "tcp", "udp", "unix", "abstract"];
pub(super) const UID: [&str; 5] = ["capabilities", "privileges", "read", "write", "list"];

/// What a probe reported: each attempt, and whether it was denied.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Seen(BTreeMap<String, bool>);

impl Seen {
    pub(super) fn parse(text: &str) -> Self {
        let outcome = |line: &str| {
            let (word, outcome) = line.split_once(' ')?;
            Some((word.to_owned(), outcome == "denied"))
        };
        Self(text.lines().filter_map(outcome).collect())
    }

    pub(super) fn is_denied(&self, word: &str) -> bool {
        self.0.get(word) == Some(&true)
    }
}

/// Why the report does not prove that all of this is denied. What was not reported was not tried.
pub(super) fn failed(words: &[&str], seen: &Seen) -> Option<String> {
    let (tried, missing): (Vec<_>, Vec<_>) = words
        .iter()
        .copied()
        .filter(|word| !seen.is_denied(word))
        .partition(|word| seen.0.contains_key(*word));
    match (tried.is_empty(), missing.is_empty()) {
        (true, true) => None,
        (true, false) => Some("a probe ended before it had tried everything".to_owned()),
        (false, _) => Some(format!("a probe was able to do what is forbidden ({})", tried.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_denied_attempts_prove_a_rung() {
        let all: String = UID.iter().map(|word| format!("{word} denied\n")).collect();
        assert_eq!(failed(&UID, &Seen::parse(&all)), None);
        let one = all.replace("read denied", "read ok");
        assert!(failed(&UID, &Seen::parse(&one)).unwrap().contains("(read)"));
        for cut in [0, 5, all.len() - 5] {
            assert!(failed(&UID, &Seen::parse(all.get(..cut).unwrap())).is_some(), "cut at {cut}");
        }
        assert!(failed(&UID, &Seen::parse("read\nnonsense denied\n")).is_some());
    }

    #[test]
    fn files_are_a_part_of_landlock() {
        assert!(LANDLOCK_FILES.iter().all(|word| LANDLOCK.contains(word)));
        for words in [&LANDLOCK[..], &SECCOMP, &NAMESPACES, &UID] {
            assert!(BASE.iter().all(|word| words.contains(word)));
        }
    }
}
