use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;

const CANONICAL: &str = r#"{"type":"stream_event","event":{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"hi \n é"}},"session_id":"s","parent_tool_use_id":null,"uuid":"u","api_message_id":"m"}"#;

/// Pieces of the inside of a string, most of them valid.
fn inside() -> impl Strategy<Value = Vec<u8>> {
    let pieces: Vec<&'static [u8]> = vec![
        b"word ",
        "grün 😀".as_bytes(),
        br#"\n"#,
        br#"\""#,
        br"\\",
        br"\u00e9",
        br"\u001f",
        br"\ud83d\ude00",
        br"\ud83d",
        br"\uDE00",
        br"\u12",
        br"\x",
        br"\",
        b"\"",
        b"\xff",
        b"\x07",
        b"\x7f",
        br#"\u0022"#,
        b"}}",
    ];
    let mostly_valid = prop_oneof![8 => select(pieces[..6].to_vec()), 1 => select(pieces)];
    prop_oneof![
        20 => vec(mostly_valid, 0..8).prop_map(|pieces| pieces.concat()),
        1 => vec(any::<u8>(), 0..30),
        1 => (0..200_000_usize).prop_map(|length| vec![b'x'; length]),
    ]
}

/// A value, as most of the time, or another one that may stand in its place.
fn or_odd(usual: &'static str, odd: &[&'static str]) -> impl Strategy<Value = &'static str> {
    prop_oneof![12 => Just(usual), 1 => select(odd.to_vec())]
}

/// Lines of the CLI with a text delta, and lines that are nearly ones.
pub(in crate::adapter::claude) fn lines() -> impl Strategy<Value = Vec<u8>> {
    let begin = or_odd(
        r#"{"type":"stream_event","event":{"type":"content_block_delta","#,
        &[
            r#"{ "type":"stream_event","event":{"type":"content_block_delta","#,
            r#"{"type":"stream_event","event":{"type":"content_block_start","#,
            r#"{"type":"system","event":{"type":"content_block_delta","#,
            r#"{"uuid":"v","type":"stream_event","event":{"type":"content_block_delta","#,
            r#"{"event":{"type":"content_block_delta","#,
            r#"{"type":"stream_event","type":"stream_event","event":{"type":"content_block_delta","#,
            r#"{"type":"stream_event","event":{"index":0,"type":"content_block_delta","#,
            r#"{"type":"stream_event","event":{"a":{"event":1},"type":"content_block_delta","#,
        ],
    );
    let index = or_odd(
        "\"index\":0",
        &[
            "\"index\":1",
            "\"index\":00",
            "\"index\":-1",
            "\"index\":18446744073709551616",
            "\"index\":1e0",
            "\"index\":",
            "\"index\":null",
            "\"i\":0",
        ],
    );
    let delta = or_odd(
        r#","delta":{"type":"text_delta","text":""#,
        &[
            r#","delta":{"text":"a","type":"text_delta","text":""#,
            r#","delta":{"type":"thinking_delta","thinking":""#,
            r#","delta":{"type":"text_delta","text":null,"more":""#,
            r#","delta": {"type":"text_delta","text":""#,
            r#","delta":{"type":"text_delta","more":{},"text":""#,
        ],
    );
    let end = or_odd("\"}}", &["\",\"type\":\"x\"}}", "\"} }", "\"},\"index\":1}", "\"}", "}}", ""]);
    let member = prop_oneof![
        4 => Just(r#","session_id":"s""#),
        4 => Just(r#","parent_tool_use_id":null"#),
        4 => Just(r#","uuid":"u""#),
        1 => select(vec![
            r#","parent_tool_use_id":"toolu_1""#,
            r#","p\u0061rent_tool_use_id":"toolu_1""#,
            r#","event":{}"#,
            r#","type":"system""#,
            r#","ttft_ms":7"#,
            r#", "a":"b""#,
            r#","a":"\u00e9\n""#,
            ",\"a\":\"\t\"",
            r#","a":nul"#,
            r#","":"""#,
            r#","a":{"parent_tool_use_id":"x"}"#,
            r#","subtype":"api_retry""#,
        ]),
    ];
    let members = vec(member, 0..5).prop_map(|members| members.concat());
    let last = or_odd("}", &["", "}\r", "} ", "}}", "},"]);
    let line = (begin, index, delta, inside(), end, members, last).prop_map(
        |(begin, index, delta, inside, end, members, last)| {
            let parts: [&[u8]; 7] = [
                begin.as_bytes(),
                index.as_bytes(),
                delta.as_bytes(),
                &inside,
                end.as_bytes(),
                members.as_bytes(),
                last.as_bytes(),
            ];
            parts.concat()
        },
    );
    // One changed or lost byte anywhere, in some of them.
    prop_oneof![
        5 => line,
        1 => (any::<proptest::sample::Index>(), any::<u8>()).prop_map(|(at, byte)| {
            let mut line = CANONICAL.as_bytes().to_vec();
            let at = at.index(line.len());
            line[at] = byte;
            line
        }),
        1 => (0..CANONICAL.len()).prop_map(|length| CANONICAL.as_bytes()[..length].to_vec()),
    ]
}

#[test]
fn the_form_of_the_cli_needs_no_parser() {
    let delta = |text: &'static str| Some(TextDelta { index: 0, text });
    assert_eq!(TextDelta::of(CANONICAL.as_bytes()), delta(r#""hi \n é""#));
    let without = CANONICAL.replace(r#","api_message_id":"m""#, "");
    assert_eq!(TextDelta::of(without.as_bytes()), delta(r#""hi \n é""#));
    let later = CANONICAL.replace("\"index\":0", "\"index\":107");
    assert_eq!(TextDelta::of(later.as_bytes()).map(|delta| delta.index), Some(107));
}

#[test]
fn other_forms_are_left_to_the_parser() {
    for (from, to) in [
        ("\"index\":0", "\"index\":00"),
        ("\"index\":0", "\"index\":1000"),
        ("é", "\u{1}"),
        ("é", r"\ud83d"),
        ("é", r"\q"),
        ("null", "\"toolu_1\""),
        ("\"uuid\"", "\"event\""),
        ("\"uuid\":\"u\"", "\"parent_tool_use_id\":null"),
        ("\"u\"", "\"\\u0061\""),
        ("\"uuid\"", "\"other\""),
        ("text_delta", "thinking_delta"),
        ("}}", "},\"a\":1}"),
    ] {
        let line = CANONICAL.replace(from, to);
        assert_ne!(line, CANONICAL, "{from}");
        assert_eq!(TextDelta::of(line.as_bytes()), None, "{line}");
    }
    assert_eq!(TextDelta::of(&CANONICAL.as_bytes()[1..]), None);
}

/// The property is worth something only if both ways are taken.
#[test]
fn generated_lines_take_both_ways() {
    use proptest::strategy::ValueTree;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let lines = lines();
    let generated = (0..500).map(|_| lines.new_tree(&mut runner).unwrap().current());
    let found = generated.filter(|line| TextDelta::of(line).is_some()).count();
    assert!((50..450).contains(&found), "{found} of 500");
}
