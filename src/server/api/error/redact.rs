//! Removes server paths from the CLI's standard error, which callers see. File locations are for the operator only.

use crate::error::TurnError;

pub(crate) fn text_of(error: &TurnError) -> String {
    let text = error.to_string();
    match error {
        // Errors that repeat the child's output.
        TurnError::NotStarted(_) | TurnError::CircuitOpen { .. } | TurnError::SessionLost(_) => {
            without(&text)
        }
        _ => text,
    }
}

/// The text with only the last component of each path: `…/cli.js:12:5`.
pub(crate) fn without(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for piece in text.split_inclusive(ends_path) {
        let path = piece.trim_end_matches(ends_path);
        match path.rsplit_once('/') {
            Some((directory, name)) if is_path(directory) => {
                shown.push_str("…/");
                shown.push_str(name);
                shown.push_str(piece.get(path.len()..).unwrap_or_default());
            }
            _ => shown.push_str(piece),
        }
    }
    shown
}

fn ends_path(character: char) -> bool {
    character.is_whitespace() || "\"'`()[]{}<>,;=|".contains(character)
}

/// Whether the text before a slash is a directory, unlike `stdin/stdout` or a URL. Its front may be cut off.
fn is_path(directory: &str) -> bool {
    let is_address = directory.starts_with("http://") || directory.starts_with("https://");
    !is_address && (directory.is_empty() || directory.contains('/') || directory.ends_with(['~', ':']))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Loss, StartFailure};

    #[test]
    fn paths_in_child_output_are_cut() {
        for (failure_text, shown) in [
            (
                "Error: ENOENT: no such file, open '/srv/data/sessions/ab/home/.x'",
                "Error: ENOENT: no such file, open '…/.x'",
            ),
            ("at Module._load (/usr/lib/node_modules/claude/cli.js:12:5)", "at Module._load (…/cli.js:12:5)"),
            ("at file:///opt/claude/cli.js:1 node:internal/modules/cjs:9", "at …/cli.js:1 …/cjs:9"),
            ("PATH=/usr/bin:/bin HOME=/srv", "PATH=…/bin HOME=…/srv"),
            ("v/lib/pilotlight/x was cut off", "…/x was cut off"),
            ("~/.claude /srv/data/ /", "…/.claude …/ …/"),
            (
                "POST https://api.example.com/v1/messages: 401, stdin/stdout",
                "POST https://api.example.com/v1/messages: 401, stdin/stdout",
            ),
            ("ü/ü/ü \"/ü/ö\"", "…/ü \"…/ö\""),
            ("", ""),
        ] {
            assert_eq!(without(failure_text), shown);
        }
    }

    #[test]
    fn errors_with_stderr_name_no_path() {
        let (stderr, exit) = ("at /srv/data/x".to_owned(), "exit code 1".to_owned());
        let failure = StartFailure::ExitedEarly { exit: exit.clone(), stderr: stderr.clone() };
        let open = TurnError::CircuitOpen { last: failure.clone(), retry_after: std::time::Duration::ZERO };
        let lost = TurnError::SessionLost(Loss { cause: exit, stderr });
        for error in [TurnError::NotStarted(failure), open, lost] {
            let text = text_of(&error);
            assert!(text.contains("exit code 1") && text.contains("…/x") && !text.contains("/srv"), "{text}");
        }
        let text = text_of(&TurnError::TooManySessions { limit: 1 });
        assert!(text.contains("/v1/sessions/NAME"), "{text}");
    }
}
