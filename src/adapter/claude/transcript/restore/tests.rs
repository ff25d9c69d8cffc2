use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const ID: &str = "7b0f9d1e-0d4c-4f7e-9f0e-0d1c2b3a4f5e";

fn dirs() -> Dirs {
    Dirs { work: "/s/work".into(), home: "/s/home".into(), tmp: "/s/tmp".into() }
}

fn entry(kind: &str, uuid: &str, parent: Option<&str>) -> String {
    json!({ "parentUuid": parent, "isSidechain": false, "type": kind,
        "message": { "role": kind, "content": uuid }, "uuid": uuid })
    .to_string()
}

/// A conversation of prompts `p-N` and answers `a-N`.
fn conversation(turns: usize) -> Vec<String> {
    let of = |number: usize| {
        let parent = number.checked_sub(1).map(|before| format!("a-{before}"));
        let prompt = format!("p-{number}");
        [entry("user", &prompt, parent.as_deref()), entry("assistant", &format!("a-{number}"), Some(&prompt))]
    };
    (0..turns).flat_map(of).collect()
}

fn mirror(entries: &[String]) -> String {
    let entries: Vec<Value> = entries.iter().map(|entry| serde_json::from_str(entry).unwrap()).collect();
    json!({ "type": "transcript_mirror", "filePath": format!("/h/{ID}.jsonl"), "entries": entries })
        .to_string()
}

fn own(number: usize) -> (String, String) {
    let prompt = json!({ "type": "user", "message": { "role": "user", "content": format!("p-{number}") } });
    let line = json!({ "type": "assistant", "message": { "role": "assistant", "content": format!("a-{number}") },
        "uuid": format!("a-{number}"), "timestamp": "2026-01-01T00:00:00.000Z" });
    (prompt.to_string(), line.to_string())
}

fn restored(file: &str, kept: &[Kept<'_>], checkpoint: &str) -> Option<Vec<String>> {
    let import = restore(file.as_bytes(), kept, Some(checkpoint), ID, &dirs(), SystemTime::UNIX_EPOCH)?;
    Some(said(std::str::from_utf8(&import.transcript).unwrap(), checkpoint))
}

/// What was said on the way from the first entry to this one.
fn said(text: &str, last: &str) -> Vec<String> {
    let entries: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let mut next = Some(last.to_owned());
    let mut said = Vec::new();
    while let Some(id) = next {
        let entry = entries.iter().find(|entry| entry["uuid"] == id.as_str()).expect("no gap");
        said.push(entry["message"]["content"].as_str().unwrap().to_owned());
        next = entry["parentUuid"].as_str().map(str::to_owned);
    }
    said.reverse();
    said
}

fn words(turns: usize) -> Vec<String> {
    (0..turns).flat_map(|number| [format!("p-{number}"), format!("a-{number}")]).collect()
}

/// Found by the fuzz target: a prompt that is there is not written again, by the id that it came with.
#[test]
fn prompt_of_a_known_id_is_written_once() {
    let prompt =
        json!({ "type": "user", "message": { "role": "user", "content": "p-0" }, "uuid": "p-0" }).to_string();
    let lines: Vec<_> = (0..3).map(|number| own(number).1).collect();
    let root = entry("user", "root", None);
    let mut kept =
        vec![Kept::Prompt(prompt.as_bytes()), Kept::Line(lines[0].as_bytes()), Kept::Entry(root.as_bytes())];
    for line in &lines[1..] {
        kept.extend([Kept::Prompt(prompt.as_bytes()), Kept::Line(line.as_bytes())]);
    }
    let once = restore(b"", &kept, None, ID, &dirs(), SystemTime::UNIX_EPOCH).unwrap();
    let again = restore(&once.transcript, &kept, Some("a-2"), ID, &dirs(), SystemTime::UNIX_EPOCH).unwrap();
    assert_eq!(again.transcript, once.transcript);
    // The file has it, and lacks the answer.
    let file = conversation(1).swap_remove(0);
    assert_eq!(restored(&file, &kept[..2], "a-0").unwrap(), ["p-0", "a-0"]);
    let text =
        restore(file.as_bytes(), &kept[..2], Some("a-0"), ID, &dirs(), SystemTime::UNIX_EPOCH).unwrap();
    assert_eq!(memchr::memmem::find_iter(&text.transcript, br#""uuid":"p-0""#).count(), 1);
}

/// The ids of all entries of a text, in their order.
fn ids(text: &[u8]) -> Vec<String> {
    let entries =
        lines(text).filter(|line| !line.is_empty()).map(|line| serde_json::from_slice(line).unwrap());
    entries.filter_map(|entry: Value| entry["uuid"].as_str().map(str::to_owned)).collect()
}

fn of(text: &[u8], checkpoint: &str, kept: &[Kept<'_>]) -> Vec<String> {
    ids(&restore(text, kept, Some(checkpoint), ID, &dirs(), SystemTime::UNIX_EPOCH).unwrap().transcript)
}

/// A conversation that was compacted after its second turn. `on_summary`: what follows hangs on the summary; 2.1.197 also lets it
/// hang on the message before.
fn compacted(on_summary: bool) -> Vec<String> {
    let mut all = conversation(2);
    let boundary = json!({ "parentUuid": null, "logicalParentUuid": "a-1", "isSidechain": false, "type": "system",
        "subtype": "compact_boundary", "uuid": "boundary" });
    let summary = json!({ "parentUuid": "boundary", "isSidechain": false, "type": "user", "isCompactSummary": true,
        "message": { "role": "user", "content": "summary" }, "uuid": "summary" });
    let parent = if on_summary { "summary" } else { "a-1" };
    all.extend([boundary.to_string(), summary.to_string(), entry("user", "command", Some(parent))]);
    all.push(entry("user", "output", Some("command")));
    all
}

/// What the journal has of turns 0 and 1, of the compaction, and of what follows.
fn restored_from(pieces: &[String], checkpoints: &[&str], last: &str) -> Vec<String> {
    let kept = pieces.iter().zip(checkpoints).flat_map(|(piece, checkpoint)| {
        [Kept::Mirrored(piece.as_bytes()), Kept::Checkpoint(Some(checkpoint))]
    });
    of(b"", last, &kept.collect::<Vec<_>>())
}

#[test]
fn compacted_conversation_stays_compacted() {
    for on_summary in [true, false] {
        let mut all = compacted(on_summary);
        let mut pieces = vec![mirror(&all[..2]), mirror(&all[2..4]), mirror(&all[4..])];
        // The compaction has no answer, so the last one before it counts.
        let expected = ["p-0", "a-0", "p-1", "a-1", "boundary", "summary", "command", "output"];
        assert_eq!(restored_from(&pieces, &["a-0", "a-1", "a-1"], "a-1"), expected, "{on_summary}");
        all.extend([entry("user", "p-2", Some("output")), entry("assistant", "a-2", Some("p-2"))]);
        pieces.push(mirror(&all[8..]));
        let text = restored_from(&pieces, &["a-0", "a-1", "a-1", "a-2"], "a-2");
        assert_eq!(text, [&expected[..], &["p-2", "a-2"]].concat(), "{on_summary}");
    }
}

/// Found by the chaos test: turn 1 died, nothing of it was in the file, and turn 2 went on from turn 0.
#[test]
fn turn_that_the_cli_has_forgotten_stays_so() {
    let mut all = conversation(3);
    let (dead, skips) = (own(1), entry("user", "p-2", Some("a-0")));
    all[4] = skips;
    let (first, third) = (mirror(&all[..2]), mirror(&all[4..]));
    let kept = [
        Kept::Mirrored(first.as_bytes()),
        Kept::Checkpoint(Some("a-0")),
        Kept::Prompt(dead.0.as_bytes()),
        Kept::Line(dead.1.as_bytes()),
        Kept::Checkpoint(Some("a-0")),
        Kept::Mirrored(third.as_bytes()),
        Kept::Checkpoint(Some("a-2")),
    ];
    for file in ["".to_owned(), all[..2].join("\n"), [&all[..2], &all[4..5]].concat().join("\n")] {
        assert_eq!(of(file.as_bytes(), "a-2", &kept), ["p-0", "a-0", "p-2", "a-2"], "{file}");
    }
    // What no later turn has left behind is the end of the conversation.
    let restored = of(b"", "a-0", &kept[..5]);
    assert_eq!((restored.len(), restored.last().unwrap().as_str()), (4, "a-1"));
    // What the file has of it stays.
    let part = entry("assistant", "a-1", Some("lost"));
    let file = [all[0].as_str(), &part, &all[4]].join("\n");
    assert_eq!(of(file.as_bytes(), "a-2", &kept), ["p-0", "a-0", "a-1", "p-2", "a-2"]);
}

/// The CLI goes on from the last entry.
#[test]
fn last_entry_is_where_the_conversation_ends() {
    let all = conversation(3);
    let (first, dead) = (mirror(&all[..2]), mirror(&[entry("assistant", "aside", Some("p-0"))]));
    let kept = [
        Kept::Mirrored(first.as_bytes()),
        Kept::Checkpoint(Some("a-0")),
        Kept::Mirrored(dead.as_bytes()),
        Kept::Checkpoint(Some("a-0")),
    ];
    // Later turns are in the file alone.
    for (file, checkpoint, last) in [
        ([&all[..1], &all[2..]].concat(), "a-2", "a-2"),
        ([&all[..1], &all[2..]].concat(), "a-1", "a-2"),
        ([&all[..1], &all[2..]].concat(), "a-0", "a-2"),
        (all[..1].to_vec(), "a-0", "a-0"),
        (all[..2].to_vec(), "a-0", "a-0"),
    ] {
        let restored = of(file.join("\n").as_bytes(), checkpoint, &kept);
        assert_eq!(restored.last().unwrap(), last, "{restored:?}");
        assert!(restored.iter().any(|id| id == "aside"), "an answer's second branch stays");
    }
}

/// A child writes as many short lines as it likes; each costs the server ten times its length.
#[test]
fn too_many_entries_are_not_read() {
    let entry = |number: usize| format!("{{\"uuid\":\"{number}\"}}");
    let many = |entries: usize| (0..entries).map(|number| entry(number) + "\n").collect::<String>();
    let (fits, too_many) = (many(MOST_ENTRIES), many(MOST_ENTRIES + 1));
    assert_eq!(snapshot(fits.as_bytes(), usize::MAX).unwrap().len(), MOST_ENTRIES);
    assert!(snapshot(too_many.as_bytes(), usize::MAX).is_none());
    let last = MOST_ENTRIES.to_string();
    assert!(restored_raw(&too_many, &[], &last).is_none());
    let next = entry(MOST_ENTRIES);
    assert!(restored_raw(&fits, &[Kept::Entry(next.as_bytes())], &last).is_none());
    assert!(restored_raw(&fits, &[], &(MOST_ENTRIES - 1).to_string()).is_some());
}

fn restored_raw(file: &str, kept: &[Kept<'_>], checkpoint: &str) -> Option<Import> {
    restore(file.as_bytes(), kept, Some(checkpoint), ID, &dirs(), SystemTime::UNIX_EPOCH)
}

#[test]
fn missing_turns_come_from_the_mirror() {
    let all = conversation(3);
    let mirrored: Vec<String> = all.chunks(2).map(mirror).collect();
    let kept: Vec<_> = mirrored.iter().map(|line| Kept::Mirrored(line.as_bytes())).collect();
    for file in [
        String::new(),
        all[..2].join("\n"),
        all[4..].join("\n"),
        // Half a line, glued to the next.
        format!("{}\n{}{}\n{}", all[0], all[1].get(..20).unwrap(), all[2], all[3..].join("\n")),
        "no transcript".to_owned(),
    ] {
        assert_eq!(restored(&file, &kept, "a-2"), Some(words(3)), "{file}");
    }
    assert_eq!(restored("", &kept[1..], "a-2"), None, "the beginning is lost");
    // A subagent's transcript, or another conversation's.
    let other = mirrored[0].replace(ID, "agent-1");
    assert_eq!(restored("", &[Kept::Mirrored(other.as_bytes())], "a-0"), None);
}

#[test]
fn unmirrored_turns_are_written_again() {
    let all = conversation(3);
    let (two, three) = (own(1), own(2));
    let (first, id) = (mirror(&all[..2]), ["a-0", "a-1"]);
    let kept = [
        Kept::Mirrored(first.as_bytes()),
        Kept::Checkpoint(Some(id[0])),
        Kept::Prompt(two.0.as_bytes()),
        Kept::Line(two.1.as_bytes()),
        Kept::Checkpoint(Some(id[1])),
        Kept::Prompt(three.0.as_bytes()),
        Kept::Line(three.1.as_bytes()),
    ];
    for file in [String::new(), all[..2].join("\n"), all[..4].join("\n"), all[..5].join("\n"), all.join("\n")]
    {
        assert_eq!(restored(&file, &kept, "a-2"), Some(words(3)), "{file}");
    }
    // A mirror that fell silent within a turn has its prompt already.
    let prompt = mirror(&all[2..3]);
    let kept = [
        Kept::Mirrored(first.as_bytes()),
        Kept::Checkpoint(Some(id[0])),
        Kept::Mirrored(prompt.as_bytes()),
        Kept::Prompt(two.0.as_bytes()),
        Kept::Line(two.1.as_bytes()),
    ];
    assert_eq!(restored("", &kept, "a-1"), Some(words(2)));
    // Turns that nobody has kept leave a gap: it is not bridged.
    let kept = [
        Kept::Mirrored(first.as_bytes()),
        Kept::Checkpoint(Some(id[1])),
        Kept::Prompt(three.0.as_bytes()),
        Kept::Line(three.1.as_bytes()),
    ];
    assert_eq!(restored("", &kept, "a-2"), None);
    assert_eq!(restored(&all[..4].join("\n"), &kept, "a-2"), Some(words(3)));
}

#[test]
fn failures_of_the_api_stay_failures() {
    let line =
        json!({ "type": "assistant", "message": { "content": "a" }, "uuid": "a", "error": "rate_limit" });
    let line = line.to_string();
    let import =
        restore(b"", &[Kept::Line(line.as_bytes())], Some("a"), ID, &dirs(), SystemTime::UNIX_EPOCH).unwrap();
    assert!(String::from_utf8(import.transcript).unwrap().contains(r#""isApiErrorMessage":true"#));
}

#[test]
fn snapshot_has_what_leads_to_the_end() {
    let mut all = conversation(3);
    all.insert(2, entry("user", "aside", Some("p-0")));
    all.insert(3, entry("user", "further aside", Some("aside")));
    all.insert(0, json!({ "type": "queue-operation" }).to_string());
    let text = all.join("\n");
    let ids = |limit: usize| {
        let lines = snapshot(text.as_bytes(), limit)?;
        let id = |line: &&[u8]| {
            serde_json::from_slice::<Value>(line).unwrap()["uuid"].as_str().unwrap().to_owned()
        };
        Some(lines.iter().map(id).collect::<Vec<_>>())
    };
    assert_eq!(ids(text.len()).unwrap().len(), 8);
    let whole: usize = all[1..].iter().map(String::len).sum();
    let reached = ids(whole - 1).unwrap();
    assert_eq!(reached, ["p-0", "a-0", "aside", "p-1", "a-1", "p-2", "a-2"]);
    assert_eq!(ids(10), None);
}

mod deaths;

proptest! {
    /// Whatever is damaged in the file, the mirror has it; whatever the journal lacks, nothing is invented.
    #[test]
    fn damaged_files_are_restored(cuts in prop::collection::vec((0..3_u8, any::<prop::sample::Index>()), 8)) {
        let all = conversation(4);
        let mirrored = mirror(&all);
        let mut file = Vec::new();
        for (line, (damage, at)) in all.iter().zip(cuts) {
            match damage {
                0 => file.extend_from_slice(&line.as_bytes()[..at.index(line.len())]),
                1 => {}
                _ => file.extend_from_slice(format!("{line}\n").as_bytes()),
            }
        }
        let kept = [Kept::Mirrored(mirrored.as_bytes())];
        let file = String::from_utf8(file).unwrap();
        prop_assert_eq!(restored(&file, &kept, "a-3"), Some(words(4)));
    }

    #[test]
    fn any_kept_bytes_are_read(file: Vec<u8>, one: Vec<u8>, two in r#"[\{\}":,\[\]a-z]{0,60}"#) {
        let kept = [Kept::Entry(&one), Kept::Mirrored(two.as_bytes()), Kept::Prompt(&one), Kept::Line(two.as_bytes())];
        restore(&file, &kept, None, ID, &dirs(), SystemTime::UNIX_EPOCH);
        snapshot(&file, 100);
    }
}
