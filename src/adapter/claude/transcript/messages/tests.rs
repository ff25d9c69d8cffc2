use std::io::Cursor;

use super::super::index::MOST_LINE;
use super::*;

fn line(uuid: &str, parent: Option<&str>, kind: &str, content: Value) -> Value {
    json!({ "parentUuid": parent, "isSidechain": false, "type": kind, "uuid": uuid,
        "message": { "role": kind, "content": content }, "timestamp": "2026-11-29T03:44:54.258Z" })
}

fn user(uuid: &str, parent: Option<&str>, text: &str) -> Value {
    line(uuid, parent, "user", json!(text))
}

fn answer(uuid: &str, parent: &str, id: &str, block: Value) -> Value {
    let mut line = line(uuid, Some(parent), "assistant", json!([block]));
    line["message"]["id"] = json!(id);
    line["message"]["model"] = json!("claude-x");
    line["message"]["usage"] = json!({ "input_tokens": 3, "output_tokens": 4, "speed": "standard" });
    line
}

fn text(text: &str) -> Value {
    json!({ "type": "text", "text": text })
}

fn call(id: &str) -> Value {
    json!({ "type": "tool_use", "id": id, "name": "Bash", "input": {} })
}

fn result(uuid: &str, parent: &str, id: &str) -> Value {
    line(uuid, Some(parent), "user", json!([{ "type": "tool_result", "tool_use_id": id, "content": "x" }]))
}

fn with(mut line: Value, field: &str, value: Value) -> Value {
    line[field] = value;
    line
}

fn file(lines: &[Value]) -> Cursor<Vec<u8>> {
    Cursor::new(lines.iter().flat_map(|line| format!("{line}\n").into_bytes()).collect())
}

fn page(lines: &[Value], after: Option<&str>, limit: usize) -> MessagePage {
    messages(&mut file(lines), after, limit).unwrap().unwrap()
}

fn ids(page: &MessagePage) -> Vec<&str> {
    page.messages.iter().map(|message| message.uuid.as_str()).collect()
}

/// What the CLI (2.1.197) writes for two turns, a compaction and a turn with parallel tools.
fn conversation() -> Vec<Value> {
    vec![
        json!({ "type": "queue-operation", "operation": "enqueue", "content": "one" }),
        user("u1", None, "one"),
        json!({ "parentUuid": "u1", "isSidechain": false, "type": "attachment", "uuid": "x1", "attachment": {} }),
        answer("a1", "x1", "m1", text("OK")),
        with(user("s1", Some("a1"), "of a subagent"), "isSidechain", json!(true)),
        user("u2", Some("a1"), "two"),
        answer("a2", "u2", "m2", text("OK 2")),
        json!({ "parentUuid": null, "logicalParentUuid": "a2", "isSidechain": false, "type": "system",
            "subtype": "compact_boundary", "content": "Conversation compacted", "uuid": "b1" }),
        with(user("c1", Some("b1"), "This session is being continued"), "isCompactSummary", json!(true)),
        with(user("k1", Some("a2"), "<local-command-caveat>"), "isMeta", json!(true)),
        user("k2", Some("k1"), "<command-name>/compact</command-name>"),
        user("k3", Some("k2"), "<local-command-stdout>Compacted </local-command-stdout>"),
        with(user("u3", Some("k3"), "<command-name>, said the user"), "promptSource", json!("sdk")),
        answer("a3", "u3", "m3", text("let me")),
        answer("a4", "a3", "m3", call("t1")),
        answer("a5", "a4", "m3", call("t2")),
        result("r2", "a5", "t2"),
        result("r1", "a4", "t1"),
        answer("a6", "r1", "m4", text("done")),
    ]
}

/// As the CLI (2.1.197, 2.1.332) writes it.
#[test]
fn text_for_a_running_turn_is_shown() {
    let queued = |uuid: &str, parent: &str, mode: &str| {
        json!({ "parentUuid": parent, "isSidechain": false, "type": "attachment", "uuid": uuid,
            "attachment": { "type": "queued_command", "prompt": "hurry up", "source_uuid": "s", "commandMode": mode },
            "timestamp": "2026-11-29T03:44:54.258Z" })
    };
    let all = page(
        &[
            user("u1", None, "one"),
            answer("a1", "u1", "m1", call("t1")),
            result("r1", "a1", "t1"),
            queued("q1", "r1", "prompt"),
            queued("q2", "q1", "task-notification"),
            answer("a2", "q2", "m2", text("done")),
        ],
        None,
        100,
    );
    assert_eq!(ids(&all), ["u1", "a1", "r1", "q1", "a2"]);
    let said = &all.messages[3];
    assert_eq!((said.role, &said.blocks), (Role::User, &vec![text("hurry up")]));
    assert!(said.time.is_some());
}

#[test]
fn conversation_is_shown_without_internals() {
    let all = page(&conversation(), None, 100);
    assert_eq!(ids(&all), ["u1", "a1", "u2", "a2", "c1", "u3", "a5", "r2", "r1", "a6"]);
    assert!(!all.has_more);
    let [one, .., parts, _, _, _] = all.messages.as_slice() else { panic!() };
    assert_eq!((one.role, &one.blocks, one.usage), (Role::User, &vec![text("one")], None));
    let time = one.time.unwrap().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    assert_eq!(time.as_millis(), 1_795_923_894_258);
    assert_eq!(parts.blocks, [text("let me"), call("t1"), call("t2")]);
    assert_eq!((parts.role, parts.model.as_deref()), (Role::Assistant, Some("claude-x")));
    assert_eq!(parts.usage.map(|usage| (usage.input_tokens, usage.output_tokens)), Some((3, 4)));
    assert_eq!(all.messages.iter().filter(|message| message.is_summary).count(), 1);
}

#[test]
fn pages_follow_each_other() {
    let lines = conversation();
    let whole = page(&lines, None, 100);
    for limit in 1..=10 {
        let (mut after, mut got) = (None, Vec::new());
        loop {
            let next = page(&lines, after.as_deref(), limit);
            assert!(next.messages.len() <= limit && next.has_more == (got.len() + limit < 10));
            got.extend(next.messages);
            after = got.last().map(|message| message.uuid.clone());
            if !next.has_more {
                break;
            }
        }
        assert_eq!(got, whole.messages, "{limit}");
    }
    // Any part of an answer names a place in it; what comes later is a message of its own.
    assert_eq!(ids(&page(&lines, Some("a4"), 2)), ["a5", "r2"]);
    assert_eq!(ids(&page(&lines, Some("a6"), 2)), [""; 0]);
    for unknown in ["", "no", "s1"] {
        assert_eq!(messages(&mut file(&lines), Some(unknown), 9).unwrap(), None, "{unknown}");
    }
}

#[test]
fn forgotten_turns_are_not_shown() {
    let lines = [
        user("u1", None, "one"),
        answer("a1", "u1", "m1", text("OK")),
        user("u2", Some("a1"), "forgotten"),
        answer("a2", "u2", "m2", text("as well")),
        user("u3", Some("a1"), "three"),
        answer("a3", "u3", "m3", text("partial")),
        answer("a4", "u3", "m4", text("whole")),
    ];
    assert_eq!(ids(&page(&lines, None, 9)), ["u1", "a1", "u3", "a4"]);
}

#[test]
fn note_about_an_unanswered_prompt_is_hidden() {
    let none = text("No response requested.");
    let lines = [user("u1", None, "one"), answer("a1", "u1", "m1", none), user("u2", Some("a1"), "two")];
    assert_eq!(ids(&page(&lines, None, 9)), ["u1", "u2"]);
}

#[test]
fn garbage_is_passed_over() {
    let mut bytes = b"garbage\n[\"a\",\"b\"]\n{\"uuid\":5}\n\0\0\n{\"uuid\":\"half".to_vec();
    bytes.push(b'\n');
    bytes.extend(vec![b'x'; usize::try_from(MOST_LINE).unwrap() + 7]);
    bytes.push(b'\n');
    for line in conversation() {
        bytes.extend(format!("{line}\nnull\n").into_bytes());
    }
    bytes.extend(br#"{"uuid":"z1","type":"user","message":{"content":"#);
    let found = messages(&mut Cursor::new(bytes), None, 100).unwrap().unwrap();
    assert_eq!(found, page(&conversation(), None, 100));
    assert_eq!(messages(&mut Cursor::new(Vec::new()), None, 9).unwrap(), Some(MessagePage::default()));
    let circle = [user("u1", Some("u2"), "one"), user("u2", Some("u1"), "two")];
    assert_eq!(ids(&page(&circle, None, 9)), ["u1", "u2"]);
}

#[test]
fn pages_are_bounded_in_bytes() {
    let long = "y".repeat(900 << 10);
    let mut lines = vec![user("u0", None, "one")];
    for number in 1..=9 {
        lines.push(user(&format!("u{number}"), Some(&format!("u{}", number - 1)), &long));
    }
    let first = page(&lines, None, 100);
    assert_eq!((first.messages.len(), first.has_more), (5, true));
    let second = page(&lines, Some("u4"), 100);
    assert_eq!((ids(&second), second.has_more), (vec!["u5", "u6", "u7", "u8"], true));
    let media = json!({ "type": "image", "source": { "data": "A".repeat(MOST_BLOCK_BYTES) } });
    let size = media.to_string().len();
    let lines = [line("u1", None, "user", json!([media, text("what is it?")]))];
    let expected = [json!({ "type": "image", "omitted_bytes": size }), text("what is it?")];
    assert_eq!(page(&lines, None, 9).messages[0].blocks, expected);
    // One message with more than a page.
    let blocks: Vec<_> = (0..9).map(|_| text(&long)).collect();
    let lines = [line("u1", None, "user", json!(blocks)), user("u2", Some("u1"), "two")];
    let only = page(&lines, None, 9);
    assert_eq!((ids(&only), only.has_more), (vec!["u1", "u2"], false));
    assert_eq!(only.messages[0].blocks.iter().filter(|block| block.get(OMITTED).is_some()).count(), 5);
}

#[test]
fn last_answer_tells_what_the_context_holds() {
    let usage = |lines: &[Value]| last_usage(&mut file(lines)).unwrap();
    let used = usage(&conversation()).unwrap();
    assert_eq!((used.total_tokens, used.max_tokens, used.is_measured), (Some(7), None, false));
    assert_eq!(used.model.as_deref(), Some("claude-x"));
    assert_eq!(usage(&conversation()[..12]), None, "it was compacted since");
    assert_eq!(usage(&[user("u1", None, "one")]), None);
}
