//! Markers in a user's message script the answer of the Messages API of the tests:
//! `[[say:TEXT]]`, `[[think:TEXT]]`, `[[tool:NAME {..}]]`, `[[deltas:N]]`, `[[delay:MS]]`, `[[hold:NAME]]`, `[[hang]]`,
//! `[[recall]]`, `[[stop:REASON]]`, and the faults `[[error:STATUS]]`, `[[error:STATUS SECONDS]]` (with `retry-after`), `[[too_long]]` and
//! `[[break:drop|garbage|event|stall|empty|html]]`, in any number and order. They are carried out one after the other. With
//! `[[times:N]]` there are faults only in the first N answers to the same message.

use std::time::Duration;

use serde_json::Value;

/// How long each number of a count takes: 200 of them take longer than the demo's idle timeout.
const COUNTED_IN: Duration = Duration::from_millis(20);

/// One thing that the API does for a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// A text block in one delta.
    Say(String),
    /// A thinking block.
    Think(String),
    /// A call of a tool; what comes of it is answered with `TOOLS:ok` or `TOOLS:err`.
    Tool { name: String, input: Value },
    /// A text block in this number of deltas, ` 0 1 2 ...`.
    Deltas(usize),
    /// All that the user said before, joined by ` | `.
    Recall,
    /// The code word that the user has given before.
    CodeWord,
    /// Silence for a while.
    Delay(Duration),
    /// Silence until the test releases this name.
    Hold(String),
    /// Silence until the caller goes away.
    Hang,
    /// An HTTP error instead of an answer; what stands before it is waited for.
    Error { status: u16, retry_after: Option<u64> },
    /// 400 instead of an answer: the prompt is too long.
    TooLong,
    /// Something is wrong with the answer itself.
    Break(Break),
    /// Why the model is said to have stopped.
    Stop(String),
    /// Only this number of first answers have faults.
    Times(usize),
}

/// What is wrong with an answer that comes with status 200.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Break {
    /// The connection ends in mid-stream.
    Drop,
    /// An event in mid-stream is no JSON.
    Garbage,
    /// An event in mid-stream says that there is an error.
    Event,
    /// Silence in mid-stream.
    Stall,
    /// There is nothing in it.
    Empty,
    /// A page for a browser.
    Html,
}

impl Step {
    pub fn is_fault(&self) -> bool {
        matches!(self, Self::Error { .. } | Self::TooLong | Self::Break(_) | Self::Hang | Self::Stop(_))
    }

    /// Whether it takes the place of the answer.
    pub fn is_instead(&self) -> bool {
        matches!(self, Self::Error { .. } | Self::TooLong | Self::Break(Break::Empty | Break::Html))
    }
}

/// What a message asks for; a plain one gets a plain answer.
pub fn parse(message: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut rest = message;
    while let Some((_, after)) = rest.split_once("[[") {
        let (step, remainder) = marker(after);
        steps.extend(step);
        rest = remainder;
    }
    if steps.is_empty() { plain(message) } else { steps }
}

/// Without markers, the demo's words are understood; all else gets a plain answer.
fn plain(message: &str) -> Vec<Step> {
    if let Some(words) = message.strip_prefix("Please say: ") {
        let words = words.split_once(" (").map_or(words, |(words, _)| words);
        return vec![Step::Say(format!("Here it is: {words}."))];
    }
    if let Some(count) = message.strip_prefix("Please count from 1 to ") {
        let count: String = count.chars().take_while(char::is_ascii_digit).collect();
        let count: u32 = number(message, &count);
        let rest: Vec<_> = (2..=count).map(|number| number.to_string()).collect();
        return vec![Step::Say("1\n".into()), Step::Delay(COUNTED_IN * count), Step::Say(rest.join("\n"))];
    }
    if message.contains("Call the tool StructuredOutput with") {
        return vec![Step::Tool { name: "StructuredOutput".into(), input: serde_json::json!({"a": 7}) }];
    }
    if message.starts_with("What is my code word?") {
        return vec![Step::CodeWord];
    }
    let answer = code_word(message).map_or("plain answer".into(), |word| format!("It is {word}."));
    vec![Step::Say(answer)]
}

/// The word of `My code word is WORD.`
pub fn code_word(text: &str) -> Option<&str> {
    text.strip_prefix("My code word is ")?.split_once('.').map(|(word, _)| word)
}

/// The marker that `text` begins with, and what follows it.
fn marker(text: &str) -> (Option<Step>, &str) {
    if let Some(call) = text.strip_prefix("tool:") {
        return tool(call);
    }
    let Some((body, rest)) = text.split_once("]]") else { return (None, "") };
    let (name, argument) = body.split_once(':').unwrap_or((body, ""));
    let step = match name {
        "say" => Step::Say(argument.into()),
        "think" => Step::Think(argument.into()),
        "deltas" => Step::Deltas(number(body, argument)),
        "recall" => Step::Recall,
        "delay" => Step::Delay(Duration::from_millis(number(body, argument))),
        "hold" => Step::Hold(argument.into()),
        "hang" => Step::Hang,
        "error" => {
            let (status, seconds) = argument.split_once(' ').unwrap_or((argument, ""));
            let retry_after = (!seconds.is_empty()).then(|| number(body, seconds));
            Step::Error { status: number(body, status), retry_after }
        }
        "too_long" => Step::TooLong,
        "break" => Step::Break(match argument {
            "drop" => Break::Drop,
            "garbage" => Break::Garbage,
            "event" => Break::Event,
            "stall" => Break::Stall,
            "empty" => Break::Empty,
            "html" => Break::Html,
            _ => panic!("no such fault: [[{body}]]"),
        }),
        "stop" => Step::Stop(argument.into()),
        "times" => Step::Times(number(body, argument)),
        _ => panic!("no such marker: [[{body}]]"),
    };
    (Some(step), rest)
}

/// `NAME {..}]]`: the input is JSON and may itself contain the closing brackets.
fn tool(call: &str) -> (Option<Step>, &str) {
    let (name, rest) = call.split_once(' ').expect("[[tool:NAME {..}]]");
    let mut inputs = serde_json::Deserializer::from_str(rest).into_iter();
    let input = inputs.next().and_then(Result::ok).expect("the input of [[tool:..]] is JSON");
    let rest = rest.get(inputs.byte_offset()..).and_then(|rest| rest.strip_prefix("]]"));
    (Some(Step::Tool { name: name.into(), input }), rest.expect("[[tool:..]] ends with ]]"))
}

fn number<T: std::str::FromStr>(marker: &str, text: &str) -> T {
    text.parse().unwrap_or_else(|_| panic!("a number was expected in [[{marker}]]"))
}
