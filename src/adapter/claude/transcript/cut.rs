//! A conversation up to one of its messages, as the transcript of another one. Pure but for the reads.
//!
//! The CLI resumes it as its own (verified with 2.1.197 and 2.1.332): calls of tools without a result are left out, and a
//! prompt without an answer gets a note that none was requested.

use std::io::{self, Read, Seek, SeekFrom};

use serde_json::{Map, Value};

use super::gap::{digest, gap};
use super::index::{Index, Kind};
use crate::adapter::{Cut, Import};
use crate::model::Dirs;

/// The conversation up to the message `at`, or all of it, for a session with this id and these directories. `None`: there
/// is no such message, or nothing at all.
pub(crate) fn cut(
    source: &mut (impl Read + Seek),
    at: Option<&str>,
    session_id: &str,
    dirs: &Dirs,
) -> io::Result<Option<Cut>> {
    let index = Index::read(source)?;
    let last = match at {
        Some(at) => {
            let id = digest(at);
            let is_it = |place: &usize| index.get(*place).is_some_and(|entry| entry.id == id);
            let Some(place) = index.conversation(None).into_iter().rev().find(is_it) else { return Ok(None) };
            Some(place)
        }
        None => None,
    };
    let cwd = dirs.work.to_string_lossy();
    let (mut transcript, mut uuid, mut turns) = (Vec::new(), None, 0);
    for entry in index.conversation(last).into_iter().filter_map(|place| index.get(place)) {
        let mut line = vec![0; entry.length];
        source.seek(SeekFrom::Start(entry.offset))?;
        source.read_exact(&mut line)?;
        let Ok(mut fields) = serde_json::from_slice::<Map<String, Value>>(&line) else { continue };
        let Some(own) = fields.get("uuid").and_then(Value::as_str).map(str::to_owned) else { continue };
        fields.insert("sessionId".to_owned(), session_id.into());
        fields.insert("cwd".to_owned(), cwd.as_ref().into());
        serde_json::to_writer(&mut transcript, &fields)?;
        transcript.push(b'\n');
        uuid = Some(own);
        turns += u64::from(entry.kind == Kind::Prompt && entry.is_shown);
    }
    let Some(last) = uuid else { return Ok(None) };
    // What was missing before is no new loss.
    let known_gap = gap(transcript.as_slice(), false, &last)?;
    Ok(Some(Cut { import: Import { transcript, last }, turns: turns.max(1), known_gap }))
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;
    use std::path::Path;

    use serde_json::json;

    use super::*;

    fn entry(uuid: &str, parent: Option<&str>, kind: &str, more: &Value) -> String {
        let mut entry = json!({ "parentUuid": parent, "isSidechain": false, "type": kind, "uuid": uuid,
            "sessionId": "old", "cwd": "/old", "message": { "role": kind, "content": uuid } });
        for (name, value) in more.as_object().unwrap() {
            entry[name] = value.clone();
        }
        format!("{entry}\n")
    }

    fn lines() -> String {
        let none = json!({});
        [
            "{\"type\":\"last-prompt\",\"leafUuid\":\"a1\"}\n".to_owned(),
            entry("u1", None, "user", &none),
            entry("a1", Some("u1"), "assistant", &json!({ "extra": 1.5 })),
            entry("u2", Some("a1"), "user", &none),
            entry("b1", None, "system", &json!({ "logicalParentUuid": "a1" })),
            entry("c1", Some("b1"), "user", &json!({ "isCompactSummary": true })),
            // Version 2.1.197 leads on from before the compaction.
            entry("u3", Some("a1"), "user", &none),
            entry("a3", Some("u3"), "assistant", &none),
            entry("a4", Some("a3"), "assistant", &none),
        ]
        .concat()
    }

    fn cut_at(at: Option<&str>) -> Option<Cut> {
        let dirs = Dirs { work: "/new".into(), home: "/home".into(), tmp: "/tmp".into() };
        cut(&mut Cursor::new(lines()), at, "new", &dirs).unwrap()
    }

    fn kept(cut: &Cut) -> Vec<String> {
        let lines = cut.import.transcript.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let lines = lines.map(|line| serde_json::from_slice::<Value>(line).unwrap());
        lines
            .map(|line| {
                assert_eq!((&line["sessionId"], &line["cwd"]), (&json!("new"), &json!("/new")));
                line["uuid"].as_str().unwrap().to_owned()
            })
            .collect()
    }

    #[test]
    fn conversation_ends_with_the_message() {
        let all = cut_at(None).unwrap();
        assert_eq!(kept(&all), ["u1", "a1", "b1", "c1", "u3", "a3", "a4"]);
        assert_eq!((all.turns, all.import.last.as_str(), all.known_gap.clone()), (2, "a4", None));
        for (at, ids, turns) in [
            ("u1", vec!["u1"], 1),
            ("a1", vec!["u1", "a1"], 1),
            ("c1", vec!["u1", "a1", "b1", "c1"], 1),
            ("a3", vec!["u1", "a1", "b1", "c1", "u3", "a3"], 2),
        ] {
            let cut = cut_at(Some(at)).unwrap();
            assert_eq!((kept(&cut), cut.turns, cut.import.last.as_str()), (to_owned(&ids), turns, at));
        }
        // Of a forgotten turn, of nothing.
        assert!(cut_at(Some("u2")).is_none() && cut_at(Some("")).is_none());
        let dirs = Dirs { work: Path::new("/").into(), home: "/".into(), tmp: "/".into() };
        assert_eq!(cut(&mut Cursor::new(b"{}\n"), None, "new", &dirs).unwrap(), None);
    }

    fn to_owned(ids: &[&str]) -> Vec<String> {
        ids.iter().map(|id| (*id).to_owned()).collect()
    }

    #[test]
    fn gap_of_the_source_is_known() {
        let dirs = Dirs { work: "/new".into(), home: "/home".into(), tmp: "/tmp".into() };
        let lines = entry("u2", Some("gone"), "user", &json!({}));
        let cut = cut(&mut Cursor::new(lines), None, "new", &dirs).unwrap().unwrap();
        assert_eq!(cut.known_gap, gap(cut.import.transcript.as_slice(), false, "u2").unwrap());
        assert!(cut.known_gap.is_some());
    }
}
