//! The message that a transcript ends with: the CLI goes on from there, whatever it hangs on.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};

use serde::Deserialize;

use super::TAIL;

/// Bytes of the end that are read first: the last message has some kilobytes, as a rule.
const NEAR: u64 = 64 << 10;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry<'a> {
    #[serde(borrow)]
    uuid: Option<Cow<'a, str>>,
    #[serde(borrow)]
    r#type: Option<Cow<'a, str>>,
    #[serde(default)]
    is_sidechain: bool,
}

/// The id of the last message of a transcript; `None` if its end has none.
pub(crate) fn transcript_end(mut file: &File) -> io::Result<Option<String>> {
    let length = file.seek(SeekFrom::End(0))?;
    let mut read = Vec::new();
    for most in [NEAR, TAIL] {
        file.seek(SeekFrom::Start(length.saturating_sub(most)))?;
        read.clear();
        file.take(most).read_to_end(&mut read)?;
        if let Some(end) = end(&read) {
            return Ok(Some(end));
        }
        if length <= most {
            break;
        }
    }
    Ok(None)
}

/// The first line may be cut: then it is none.
fn end(text: &[u8]) -> Option<String> {
    text.rsplit(|byte| *byte == b'\n').find_map(|line| {
        line.trim_ascii().first().filter(|first| **first == b'{')?;
        let entry: Entry<'_> = serde_json::from_slice(line).ok()?;
        let is_message = matches!(entry.r#type.as_deref(), Some("user" | "assistant"));
        entry.uuid.filter(|_| is_message && !entry.is_sidechain).map(Cow::into_owned)
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn last_message_is_found_behind_other_lines() {
        let line = |kind: &str, id: &str, side: bool| {
            serde_json::json!({ "type": kind, "uuid": id, "isSidechain": side }).to_string() + "\n"
        };
        let messages = line("user", "u-1", false) + &line("assistant", "a-1", false);
        for behind in [
            String::new(),
            line("system", "s-1", false) + &line("assistant", "of a subagent", true),
            "{\"type\":\"summary\"}\n[1]\n{\"type\":\"user\",\"uuid\":\"cut".to_owned(),
            "x".repeat(100_000),
        ] {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all((messages.clone() + &behind).as_bytes()).unwrap();
            assert_eq!(transcript_end(&file).unwrap().as_deref(), Some("a-1"), "{behind:.80}");
        }
        let mut file = tempfile::tempfile().unwrap();
        assert_eq!(transcript_end(&file).unwrap(), None);
        file.write_all(line("system", "s-1", false).repeat(2000).as_bytes()).unwrap();
        assert_eq!(transcript_end(&file).unwrap(), None);
    }
}
