use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::model::Message;

fn say(role: Role, content: Vec<Block>) -> Message {
    Message { role, content }
}

fn text(text: &str) -> Block {
    Block::Text(text.to_owned())
}

fn image() -> Block {
    let Value::Object(block) = json!({ "type": "image", "source": { "type": "url", "url": "u" } }) else {
        unreachable!()
    };
    Block::Media(block)
}

fn call(id: &str) -> Block {
    Block::ToolUse { id: id.to_owned(), name: "t".to_owned(), input: Map::new() }
}

fn result(id: &str, content: Vec<Block>, is_error: bool) -> Block {
    Block::ToolResult { id: id.to_owned(), content, is_error }
}

/// In short: `u` or `a`, and each block.
fn shown(messages: Vec<Message>) -> String {
    fn of(pieces: &[Piece<'_>]) -> String {
        let pieces = pieces.iter().map(|piece| {
            let value = serde_json::to_value(piece).unwrap();
            let inner = |value: &Value| {
                let blocks = value.as_array().map(Vec::as_slice).unwrap_or_default();
                let texts = blocks.iter().map(|it| it["text"].as_str().unwrap_or("image"));
                texts.collect::<Vec<_>>().join("+")
            };
            match value["type"].as_str().unwrap() {
                "text" => value["text"].as_str().unwrap().to_owned(),
                "tool_use" => format!("call:{}", value["id"].as_str().unwrap()),
                "tool_result" => {
                    let failed = if value["is_error"] == true { "!" } else { "" };
                    format!(
                        "result{failed}:{}={}",
                        value["tool_use_id"].as_str().unwrap(),
                        inner(&value["content"])
                    )
                }
                other => other.to_owned(),
            }
        });
        pieces.collect::<Vec<_>>().join(",")
    }
    let history = History::new(messages);
    let valid = valid(&history);
    let messages = valid.messages.iter().map(|spoken| {
        let role = if spoken.role == Role::User { "u" } else { "a" };
        format!("{role}[{}]", of(&spoken.content))
    });
    format!("{} | {}", messages.collect::<Vec<_>>().join(" "), of(&valid.tail))
}

#[test]
fn odd_histories_become_valid() {
    use Role::{Assistant as A, User as U};
    let cases = [
        (vec![], " | "),
        (vec![say(U, vec![text("a")]), say(A, vec![text("b")])], "u[a] a[b] | "),
        (vec![say(A, vec![text("hi")])], "u[(no content)] a[hi] | "),
        (vec![say(U, vec![text("a")])], " | a"),
        (
            vec![
                say(U, vec![text("a")]),
                say(U, vec![text(" \n"), image()]),
                say(A, vec![text("")]),
                say(A, vec![text("b")]),
                say(A, vec![text("c")]),
                say(U, vec![]),
            ],
            "u[a,image] a[b,c] | ",
        ),
        // Calls come last in an answer, results first in the next message, in the order of the calls.
        (
            vec![
                say(U, vec![text("a")]),
                say(A, vec![call("x"), text("b"), call("y")]),
                say(
                    U,
                    vec![
                        text("c"),
                        result("y", vec![text("2")], false),
                        result("x", vec![text("1"), image()], false),
                    ],
                ),
                say(A, vec![text("d")]),
            ],
            "u[a] a[b,call:x,call:y] u[result:x=1+image,result:y=2,c] a[d] | ",
        ),
        // Two messages with one result each are one.
        (
            vec![
                say(U, vec![text("a")]),
                say(A, vec![call("x"), call("y")]),
                say(U, vec![result("x", vec![text("1")], false)]),
                say(U, vec![result("y", vec![text("2")], false)]),
                say(A, vec![text("d")]),
            ],
            "u[a] a[call:x,call:y] u[result:x=1,result:y=2] a[d] | ",
        ),
        // No result: it failed. A result of nothing, or a second one: its content stays.
        (
            vec![
                say(U, vec![text("a")]),
                say(A, vec![call("x")]),
                say(U, vec![result("y", vec![text("lone")], false), text("c")]),
                say(A, vec![call("z")]),
                say(U, vec![result("z", vec![text("1")], false), result("z", vec![text("2")], false)]),
                say(A, vec![text("d")]),
            ],
            "u[a] a[call:x] u[result!:x=,lone,c] a[call:z] u[result:z=1,2] a[d] | ",
        ),
        (vec![say(U, vec![result("y", vec![], false)]), say(A, vec![text("d")])], "u[(no content)] a[d] | "),
        // A result of another message than the next one has lost its call.
        (
            vec![
                say(U, vec![text("a")]),
                say(A, vec![call("x")]),
                say(U, vec![text("b")]),
                say(A, vec![text("c")]),
                say(U, vec![result("x", vec![text("late")], false), text("d")]),
            ],
            "u[a] a[call:x] u[result!:x=,b] a[c] | late,d",
        ),
        // Ids are made unique and plain, also where a made one is taken.
        (
            vec![
                say(U, vec![text("a")]),
                say(A, vec![call("call_1")]),
                say(U, vec![result("call_1", vec![text("1")], false)]),
                say(A, vec![call("call_1"), call("a:b"), call("")]),
                say(
                    U,
                    vec![
                        result("", vec![text("4")], false),
                        result("a:b", vec![text("3")], false),
                        result("call_1", vec![text("2")], false),
                    ],
                ),
                say(A, vec![text("d")]),
            ],
            "u[a] a[call:call_1] u[result:call_1=1] a[call:call_2,call:call_3,call:call_4] \
             u[result:call_2=2,result:call_3=3,result:call_4=4] a[d] | ",
        ),
        // The result of a failure is text; its picture stands beside it.
        (
            vec![
                say(U, vec![text("a")]),
                say(A, vec![call("x")]),
                say(U, vec![result("x", vec![image(), text("1")], true)]),
                say(A, vec![text("d")]),
            ],
            "u[a] a[call:x] u[result!:x=1,image] a[d] | ",
        ),
        // What follows the last answer goes with the prompt, results cannot.
        (
            vec![say(U, vec![text("a")]), say(A, vec![text("b")]), say(U, vec![text("c"), image()])],
            "u[a] a[b] | c,image",
        ),
        (
            vec![
                say(U, vec![text("a")]),
                say(A, vec![call("x")]),
                say(U, vec![result("x", vec![text("1")], false), text("c")]),
            ],
            "u[a] a[call:x] u[result:x=1] a[No response requested.] | c",
        ),
        (
            vec![say(U, vec![text("a")]), say(A, vec![call("x")])],
            "u[a] a[call:x] u[result!:x=] a[No response requested.] | ",
        ),
    ];
    for (history, expected) in cases {
        assert_eq!(shown(history), expected);
    }
}

#[test]
fn tool_names_become_plain() {
    let long = "x".repeat(200);
    for (name, plain) in
        [("get_weather-2", "get_weather-2"), ("a b.c/d", "a_b_c_d"), ("", "tool"), ("é", "_")]
    {
        assert_eq!(tool_name(name), plain);
    }
    assert_eq!(tool_name(&long).len(), MAX_TOOL_NAME);
}

/// Hundreds of thousands of calls and results take no longer than their number.
#[test]
fn many_calls_are_paired_in_order() {
    let ids = 0..20_000;
    let calls = ids.clone().map(|_| call("same")).collect();
    let results = ids.clone().map(|n| result("same", vec![text(&n.to_string())], false)).collect();
    let history = History::new(vec![
        say(Role::User, vec![text("a")]),
        say(Role::Assistant, calls),
        say(Role::User, results),
        say(Role::Assistant, vec![text("d")]),
    ]);
    let valid = valid(&history);
    let content = &valid.messages[2].content;
    assert_eq!(content.len(), ids.len());
    let expected = text("19999");
    assert!(matches!(content.last(), Some(Piece::Result { content, .. }) if content == &[&expected]));
}

fn any_block() -> impl Strategy<Value = Block> {
    let id = "[ab:]{0,2}";
    let inner = prop_oneof![Just(text("in")), Just(text(" ")), Just(image())];
    prop_oneof![
        "[ a]{0,2}".prop_map(|it| text(&it)),
        Just(image()),
        id.prop_map(|id| call(&id)),
        (id, prop::collection::vec(inner, 0..3), any::<bool>())
            .prop_map(|(id, content, is_error)| result(&id, content, is_error)),
    ]
}

fn any_message() -> impl Strategy<Value = Message> {
    (any::<bool>(), prop::collection::vec(any_block(), 0..4)).prop_map(|(user, content)| {
        let role = if user { Role::User } else { Role::Assistant };
        // As dialects take them: each kind of block from the role that may have it.
        let fits = |block: &Block| match block {
            Block::ToolUse { .. } => !user,
            Block::ToolResult { .. } | Block::Media(_) => user,
            _ => true,
        };
        Message { role, content: content.into_iter().filter(fits).collect() }
    })
}

/// Texts and images of all blocks.
fn weight(blocks: &[Block]) -> usize {
    let of = |block: &Block| match block {
        Block::Text(_) => usize::from(!is_blank(block)),
        Block::ToolResult { content, .. } => weight(content),
        _ => 1,
    };
    blocks.iter().map(of).sum()
}

proptest! {
    #[test]
    fn any_history_becomes_valid_and_complete(messages in prop::collection::vec(any_message(), 0..8)) {
        let before: usize = messages.iter().map(|message| weight(&message.content)).sum();
        let history = History::new(messages);
        let valid = valid(&history);
        let mut open: Vec<String> = Vec::new();
        let mut seen = HashSet::new();
        let mut after = 0;
        for (at, spoken) in valid.messages.iter().enumerate() {
            let expected = if at.is_multiple_of(2) { Role::User } else { Role::Assistant };
            prop_assert_eq!(spoken.role, expected);
            prop_assert!(!spoken.content.is_empty());
            let results: Vec<String> = spoken.content.iter().map_while(|piece| match piece {
                Piece::Result { id, .. } => Some(id.clone()),
                _ => None,
            }).collect();
            prop_assert_eq!(&results, &open);
            open.clear();
            for piece in &spoken.content {
                match piece {
                    Piece::Call { id, .. } => {
                        prop_assert!(seen.insert(id.clone()) && !id.is_empty() && id.bytes().all(is_name_byte));
                        open.push(id.clone());
                        after += 1;
                    }
                    Piece::Result { content, is_error, .. } => {
                        prop_assert!(!is_error || content.iter().all(|it| matches!(it, Block::Text(_))));
                        after += content.len();
                    }
                    Piece::Whole(block) => {
                        prop_assert!(!is_blank(block));
                        after += 1;
                    }
                    Piece::Note { .. } => {}
                }
            }
        }
        prop_assert!(open.is_empty() && valid.messages.len().is_multiple_of(2));
        let is_tail = |piece: &Piece<'_>| match piece {
            Piece::Whole(block) => !is_blank(block),
            Piece::Note { .. } => true,
            Piece::Call { .. } | Piece::Result { .. } => false,
        };
        prop_assert!(valid.tail.iter().all(is_tail));
        after += valid.tail.iter().filter(|piece| matches!(piece, Piece::Whole(_))).count();
        prop_assert_eq!(after, before);
    }
}
