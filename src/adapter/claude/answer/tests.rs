use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::adapter::claude::delta::tests::lines as delta_lines;

/// The parts of these lines in short form: `B` begin, `[0` open, `]0` close, `"x"` text, `d` another delta.
fn parts(by_deltas: bool, lines: &[Value], end: &str) -> String {
    let mut reader = AnswerReader::new(by_deltas);
    let mut emitted = String::new();
    let mut emit = |part: Part<'_>| {
        let short = match part {
            Part::Begin { id, model, .. } => format!("B({id},{model})"),
            Part::Open { index, block: Block::Text } => format!("[{index}"),
            Part::Open { index, block: Block::Thinking } => format!("[{index}t"),
            Part::Open { index, block: Block::Whole(_) } => format!("[{index}w"),
            Part::Text { text, .. } => text.to_owned(),
            Part::Delta { thought, .. } => thought.map_or("d".to_owned(), |thought| format!("d{thought}")),
            Part::Close { index } => format!("]{index}"),
            Part::Waiting => "W".to_owned(),
            Part::Call { index, number, call } => format!("C{index}.{number}({})", call.name),
            Part::Permission(_) => "P".to_owned(),
        };
        emitted.push_str(&short);
        emitted.push(' ');
    };
    for line in lines {
        reader.read(line.to_string().as_bytes(), &mut emit);
    }
    reader.end(end, &mut emit);
    emitted.trim_end().to_owned()
}

fn event(event: Value) -> Value {
    json!({ "type": "stream_event", "event": event, "parent_tool_use_id": null })
}

fn start(id: &str) -> Value {
    event(
        json!({ "type": "message_start", "message": { "id": id, "model": "m", "content": [], "usage": {} } }),
    )
}

fn open(index: u64, kind: &str) -> Value {
    event(
        json!({ "type": "content_block_start", "index": index, "content_block": { "type": kind, "text": "" } }),
    )
}

fn text(index: u64, text: &str) -> Value {
    event(
        json!({ "type": "content_block_delta", "index": index, "delta": { "type": "text_delta", "text": text } }),
    )
}

fn stop(index: u64) -> Value {
    event(json!({ "type": "content_block_stop", "index": index }))
}

fn whole(id: &str, content: Value) -> Value {
    let message = json!({ "id": id, "model": "m", "content": content });
    json!({ "type": "assistant", "message": message, "parent_tool_use_id": null })
}

fn whole_text(id: &str, text: &str) -> Value {
    whole(id, json!([{ "type": "text", "text": text }]))
}

#[test]
fn streamed_answer_is_emitted_once() {
    let lines = [start("a"), open(0, "text"), text(0, "he"), text(0, "y"), whole_text("a", "hey"), stop(0)];
    assert_eq!(parts(true, &lines, "hey"), r#"B(a,m) [0 "he" "y" ]0"#);
    assert_eq!(parts(false, &lines, "hey"), r#"B(a,m) [0 "hey" ]0"#);
}

#[test]
fn blocks_are_numbered_and_tools_hidden() {
    let lines = [
        start("a"),
        open(0, "text"),
        text(0, "x"),
        whole_text("a", "x"),
        stop(0),
        open(1, "tool_use"),
        event(json!({ "type": "content_block_delta", "index": 1, "delta": { "type": "input_json_delta" } })),
        whole("a", json!([{ "type": "tool_use", "id": "t" }])),
        stop(1),
        json!({ "type": "user", "message": { "content": [{ "type": "tool_result" }] } }),
        json!({ "type": "assistant", "message": { "content": [{ "type": "text", "text": "sub" }] },
            "parent_tool_use_id": "t" }),
        json!({ "type": "stream_event", "event": { "type": "message_start", "message": { "id": "s" } },
            "parent_tool_use_id": "t" }),
        start("b"),
        open(0, "text"),
        text(0, "y"),
        whole_text("b", "y"),
        stop(0),
    ];
    assert_eq!(parts(true, &lines, "y"), r#"B(a,m) [0 "x" ]0 [1 "y" ]1"#);
    assert_eq!(parts(false, &lines, "y"), r#"B(a,m) [0 "x" ]0 [1 "y" ]1"#);
}

#[test]
fn text_without_deltas_comes_from_blocks() {
    let broken = [start("a"), open(0, "text"), text(0, "he"), whole_text("b", "hey")];
    assert_eq!(parts(true, &broken, "hey"), r#"B(a,m) [0 "he" "y" ]0"#);
    let other = [start("a"), open(0, "text"), text(0, "he"), whole_text("b", "good day")];
    assert_eq!(parts(true, &other, ""), r#"B(a,m) [0 "he" ]0 [1 "good day" ]1"#);
    let without = [whole_text("b", "all"), whole_text("c", "of it")];
    assert_eq!(parts(true, &without, ""), r#"B(b,m) [0 "all" ]0 [1 "of it" ]1"#);
    assert_eq!(parts(true, &[], "from the end"), r#"B(,) [0 "from the end" ]0"#);
    assert_eq!(parts(true, &[start("a")], ""), "B(a,m)");
    let late = [start("a"), open(0, "text"), text(0, "a"), stop(0), whole_text("a", "ab")];
    assert_eq!(parts(true, &late, ""), r#"B(a,m) [0 "a" ]0 [1 "b" ]1"#);
}

#[test]
fn cut_character_is_not_emitted_twice() {
    let half = |half: &str| {
        let delta = format!(r#"{{"type":"text_delta","text":"{half}"}}"#);
        format!(
            r#"{{"type":"stream_event","event":{{"type":"content_block_delta","index":0,"delta":{delta}}},"parent_tool_use_id":null}}"#
        )
    };
    let mut reader = AnswerReader::new(true);
    let mut count = 0;
    let mut emit = |part: Part<'_>| count += u32::from(matches!(part, Part::Text { .. }));
    reader.read(start("a").to_string().as_bytes(), &mut emit);
    reader.read(open(0, "text").to_string().as_bytes(), &mut emit);
    reader.read(half(r"\ud83d").as_bytes(), &mut emit);
    reader.read(half(r"\ude00").as_bytes(), &mut emit);
    reader.read(whole_text("a", "\u{1f600}").to_string().as_bytes(), &mut emit);
    reader.end("", &mut emit);
    assert_eq!(count, 2);
}

#[test]
fn text_after_a_cut_character_is_emitted() {
    for (whole, emitted, left) in [
        ("a\u{1f600}b", "a\u{fffd}\u{fffd}", Some("b")),
        ("a\u{1f600}", "a\u{fffd}\u{fffd}", Some("")),
        ("a\u{1f600}b", "a\u{fffd}", Some("\u{fffd}b")),
        ("a\u{fffd}b", "a\u{fffd}", Some("b")),
        ("xyz", "abc", None),
        ("axx", "a\u{fffd}\u{fffd}", None),
        ("a", "ab", None),
    ] {
        assert_eq!(rest(whole, emitted).as_deref(), left, "{whole} {emitted}");
    }
    let other = [start("a"), open(0, "text"), text(0, "abc"), whole_text("b", "xyz")];
    assert_eq!(parts(true, &other, ""), r#"B(a,m) [0 "abc" ]0 [1 "xyz" ]1"#);
}

#[test]
fn thoughts_have_text_and_signature() {
    let block =
        json!([{ "type": "thinking", "thinking": "hm", "signature": "s" }, { "type": "redacted_thinking" }]);
    assert_eq!(parts(true, &[whole("a", block.clone())], ""), r#"B(a,m) [0t d"hm" d ]0 [1w ]1"#);
    let thought = json!({ "type": "thinking_delta", "thinking": "hm" });
    let streamed = [
        start("a"),
        open(0, "thinking"),
        event(json!({ "type": "content_block_delta", "index": 0, "delta": thought })),
        whole("a", block),
        stop(0),
    ];
    assert_eq!(parts(true, &streamed, ""), r#"B(a,m) [0t d"hm" ]0 [1w ]1"#);
}

#[test]
fn hidden_work_and_errors_emit_no_blocks() {
    let lines = [
        json!({ "type": "system", "subtype": "init" }),
        json!({ "type": "system", "subtype": "api_retry" }),
        json!({ "type": "control_request", "request_id": "r" }),
        json!({ "type": "assistant", "error": "rate_limit", "parent_tool_use_id": null,
            "message": { "content": [{ "type": "text", "text": "API Error" }] } }),
        json!({ "type": "result", "result": "API Error" }),
    ];
    assert_eq!(parts(true, &lines, ""), "W P");
}

proptest! {
    #[test]
    fn any_lines_give_ordered_parts(
        steps in proptest::collection::vec((0..6u8, 0..3u64, "[ab]{0,3}"), 0..40),
        by_deltas: bool,
    ) {
        let lines: Vec<Value> = steps.iter().map(|(step, index, said)| match step {
            0 => start(said),
            1 => open(*index, if said.is_empty() { "tool_use" } else { "text" }),
            2 | 3 => text(*index, said),
            4 => stop(*index),
            _ => whole_text(said, said),
        }).collect();
        let mut reader = AnswerReader::new(by_deltas);
        let (mut begun, mut open_now, mut next) = (false, None, 0);
        let mut emit = |part: Part<'_>| match part {
            Part::Begin { .. } => { assert!(!begun); begun = true; }
            Part::Open { index, .. } => {
                assert!(begun && open_now.is_none() && index == next);
                (open_now, next) = (Some(index), next + 1);
            }
            Part::Text { index, .. } | Part::Delta { index, .. } => assert_eq!(open_now, Some(index)),
            Part::Close { index } => { assert_eq!(open_now.take(), Some(index)); }
            Part::Waiting | Part::Permission(_) | Part::Call { .. } => {}
        };
        for line in &lines {
            reader.read(line.to_string().as_bytes(), &mut emit);
        }
        reader.end("end", &mut emit);
        assert_eq!(open_now, None);
    }

    #[test]
    fn any_line_is_read_without_panic(line: Vec<u8>) {
        let mut reader = AnswerReader::new(true);
        reader.read(&line, &mut |_| {});
    }
}

/// Lines whose beginning decides, and lines that nearly begin so.
fn other_lines() -> impl Strategy<Value = Vec<u8>> {
    let begins = [
        r#"{"type":"system","subtype":"init""#,
        r#"{"type":"system","subtype":"api_retry""#,
        r#"{"type":"system","subtype":"api\u005fretry""#,
        r#"{"type":"system","x":1"#,
        r#"{"type":"result""#,
        r#"{"type":"res\u0075lt""#,
        r#"{"type":"assist\u0061nt""#,
        r#"{"type":"assistant""#,
        r#"{"type":"control_request""#,
        r#"{"type":"user""#,
        r#"{"type":"stream_event","event":{"type":"message_delta"}"#,
        r#"{"type":"stream_event","event":{"type":"message_delta","type":"content_block_stop","index":0}"#,
        r#"{"type":"stream_event","event":{"type":"content_block_stop","index":0}"#,
        r#"{"type":"stream_event","event":{"type":"message_start","message":{"id":"b"}}"#,
        r#"{"type":"stream_event","event":{"index":0,"type":"content_block_stop"}"#,
        r#"{ "type":"assistant""#,
        r#"{"type":7"#,
    ];
    let members = [
        r#","message":{"id":"c","content":[{"type":"text","text":"abc"}]}"#,
        r#","type":"assistant""#,
        r#","type":"control_request""#,
        r#","subtype":"api_retry""#,
        r#","event":{"type":"content_block_stop","index":0}"#,
        r#","parent_tool_use_id":null"#,
        r#","parent_tool_use_id":"t""#,
        r#","error":"x""#,
    ];
    let members = proptest::collection::vec(proptest::sample::select(members.to_vec()), 0..4);
    let last = proptest::sample::select(vec!["}", "}", "}", "", "}}", "\u{1}}"]);
    (proptest::sample::select(begins.to_vec()), members, last)
        .prop_map(|(begin, members, last)| [begin, &members.concat(), last].concat().into_bytes())
}

/// A reader that uses only the parser.
fn parsed(reader: &mut AnswerReader, line: &[u8], emit: &mut dyn FnMut(Part<'_>)) {
    reader.parse(line, emit);
}

/// One of the two ways to read a line.
type Read = fn(&mut AnswerReader, &[u8], &mut dyn FnMut(Part<'_>));

fn emitted(read: Read, lines: &[Vec<u8>], by_deltas: bool) -> Vec<String> {
    let mut reader = AnswerReader::new(by_deltas);
    let mut emitted = Vec::new();
    let mut emit = |part: Part<'_>| emitted.push(format!("{part:?}"));
    for line in lines {
        read(&mut reader, line, &mut emit);
    }
    reader.end("end", &mut emit);
    emitted
}

proptest! {
    #[test]
    fn parts_without_parser_are_the_parsed_ones(
        deltas in proptest::collection::vec(prop_oneof![3 => delta_lines(), 1 => other_lines()], 1..6),
        opened: bool,
        complete in proptest::option::of("[a-z]{0,3}"),
        by_deltas: bool,
    ) {
        let line = |value: Value| value.to_string().into_bytes();
        let mut lines = vec![line(start("a"))];
        if opened {
            lines.push(line(open(0, "text")));
        }
        let half = deltas.len() / 2;
        lines.extend(deltas[..half].iter().cloned());
        lines.extend(complete.map(|text| line(whole_text("a", &text))));
        lines.extend(deltas[half..].iter().cloned());
        lines.push(line(stop(0)));
        let (fast, slow) = (emitted(AnswerReader::read, &lines, by_deltas), emitted(parsed, &lines, by_deltas));
        prop_assert_eq!(fast, slow);
    }
}
