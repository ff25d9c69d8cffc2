use std::time::Duration;

use super::*;
use crate::adapter;
use crate::config::SlashCommands;
use crate::model::Message;

fn history() -> History {
    let say = |role, content| Message { role, content };
    let call = Block::ToolUse { id: "t".into(), name: "map".into(), input: serde_json::Map::new() };
    let found = vec![Block::Text("here".into())];
    History::new(vec![
        say(Role::User, vec![Block::Text("where?\n\u{2028}".into())]),
        say(Role::Assistant, vec![call]),
        say(Role::User, vec![Block::ToolResult { id: "t".into(), content: found, is_error: false }]),
        say(Role::Assistant, vec![Block::Text("there".into())]),
        say(Role::User, vec![Block::Text("thanks".into())]),
    ])
}

fn dirs() -> Dirs {
    Dirs { work: "/s/work".into(), home: "/s/home".into(), tmp: "/s/tmp".into() }
}

fn lines(import: &Import) -> Vec<Value> {
    assert!(import.transcript.ends_with(b"\n"));
    let lines = import.transcript.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| serde_json::from_slice(line).unwrap()).collect()
}

#[test]
fn transcript_is_a_chain_of_lines() {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let import = adapter::import(&history(), "id-1", &dirs(), now).unwrap();
    let lines = lines(&import);
    assert_eq!(lines.len(), 4, "the last message goes with the prompt");
    let mut parent = Value::Null;
    for line in &lines {
        assert_eq!(line["parentUuid"], parent);
        assert_eq!((&line["sessionId"], &line["cwd"]), (&json!("id-1"), &json!("/s/work")));
        assert_eq!(line["type"], line["message"]["role"]);
        parent = line["uuid"].clone();
    }
    assert_eq!(parent, json!(import.last));
    assert_eq!(lines[0]["timestamp"], "2023-11-14T22:13:19.996Z");
    assert_eq!(lines[0]["message"]["content"][0]["text"], "where?\n\u{2028}");
    let answer = &lines[1]["message"];
    assert_eq!((&answer["model"], &answer["stop_reason"]), (&json!(NO_MODEL), &json!("tool_use")));
    assert_eq!(answer["usage"], json!({ "input_tokens": 0, "output_tokens": 0 }));
    assert_eq!(lines[2]["message"]["content"][0]["content"][0]["text"], "here");
    assert_eq!(lines[3]["message"]["stop_reason"], "end_turn");
    let ids: std::collections::HashSet<_> =
        lines.iter().map(|line| line["message"]["id"].to_string()).collect();
    assert_eq!(ids.len(), 3, "two answers, and users have none");
    // The same again, and nothing in common with another conversation.
    assert_eq!(adapter::import(&history(), "id-1", &dirs(), now).unwrap(), import);
    assert_ne!(adapter::import(&history(), "id-2", &dirs(), now).unwrap().last, import.last);
    let only_user = History::new(vec![Message { role: Role::User, content: vec![Block::Text("a".into())] }]);
    assert_eq!(adapter::import(&only_user, "id-1", &dirs(), now), None);
}

fn holds(file: &std::path::Path, last: &str) -> std::io::Result<bool> {
    adapter::transcript_gap(&std::fs::File::open(file).unwrap(), last).map(|gap| gap.is_none())
}

#[test]
fn import_holds_its_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("t.jsonl");
    let import = adapter::import(&history(), "id-1", &dirs(), SystemTime::now()).unwrap();
    std::fs::write(&file, &import.transcript).unwrap();
    assert!(holds(&file, &import.last).unwrap());
    let cut = import.transcript.len() - 10;
    std::fs::write(&file, &import.transcript[..cut]).unwrap();
    assert!(!holds(&file, &import.last).unwrap());
}

fn first(imported: bool, prompt: Prompt) -> Option<Vec<String>> {
    let line =
        adapter::encode_first_turn(&history(), imported, &prompt, SlashCommands::default()).unwrap()?;
    let line: Value = serde_json::from_slice(&line).unwrap();
    let blocks = line["message"]["content"].as_array().unwrap().clone();
    Some(blocks.iter().map(|block| block["text"].as_str().unwrap_or("?").to_owned()).collect())
}

#[test]
fn prompt_after_an_import_has_only_the_tail() {
    assert_eq!(first(true, "and?".into()).unwrap(), ["thanks", "and?"]);
    let nothing = History::new(Vec::new());
    let line = adapter::encode_first_turn(&nothing, true, &"and?".into(), SlashCommands::default()).unwrap();
    assert_eq!(line, None);
}

#[test]
fn prompt_without_an_import_has_labelled_roles() {
    let own = || Prompt::Blocks(vec![text("and?"), text("/x")]);
    let expected = [
        INTRODUCTION,
        "User:",
        "where?\n\u{2028}",
        "Assistant:",
        "[called the tool map with {}]",
        "User:",
        "[the tool answered:]",
        "here",
        "Assistant:",
        "there",
        CONTINUATION,
        "thanks",
        "and?",
        " /x",
    ];
    assert_eq!(first(false, own()).unwrap(), expected);
}

#[test]
fn thoughts_in_one_message_are_named() {
    let block = |block: Value| Block::Thinking(block.as_object().unwrap().clone());
    let thoughts = vec![
        block(json!({ "type": "thinking", "thinking": "hm", "signature": "c2lnbmVk" })),
        block(json!({ "type": "redacted_thinking", "data": "c2VjcmV0" })),
        Block::Text("hello".into()),
    ];
    let history = History::new(vec![Message { role: Role::Assistant, content: thoughts }]);
    let prompt = first_prompt(&history, false, &"and?".into()).unwrap();
    let Prompt::Blocks(blocks) = prompt else { panic!("blocks") };
    let texts: Vec<_> = blocks.iter().map(|block| block["text"].as_str().unwrap()).collect();
    let thought =
        ["Assistant:", "[thought:]", "hm", "[thought something encrypted, which is left out]", "hello"];
    assert!(texts.windows(thought.len()).any(|window| window == thought), "{texts:?}");
}
