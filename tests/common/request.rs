//! What one request to the Messages API said, as far as tests ask about it.

use axum::http::HeaderMap;
use serde_json::Value;

use crate::script::{Step, code_word, parse};

/// Which kind of credential came with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Auth {
    ApiKey,
    Bearer,
    Nothing,
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Open,
    Answered,
    /// The caller went away before the answer was complete.
    Aborted,
}

/// One recorded request.
#[derive(Debug, Clone)]
pub struct Request {
    pub path: String,
    /// The whole body.
    pub body: Value,
    pub auth: Auth,
    /// The credential itself: made up, for only tests come here.
    pub credential: String,
    /// What the CLI asks of the API beyond its usual: the window, for one.
    pub beta: String,
    pub streaming: bool,
    pub model: String,
    pub tools: usize,
    /// The system prompt, all of it.
    pub system: String,
    /// How many pictures the user has sent, in all messages.
    pub images: usize,
    /// The CLI's own session id, from a header.
    pub cli_session: Option<String>,
    /// All that the user said, in order, the newest last; the CLI's own reminders left out.
    pub user_texts: Vec<String>,
    /// What the user said last, to the last blank.
    pub verbatim: String,
    /// The result of a tool, if that is what the request brings: whether it went well.
    pub tool_result: Option<bool>,
    /// The names of the holds that this request has reached.
    pub held: Vec<String>,
    pub fate: Fate,
}

impl Request {
    pub fn read(path: &str, headers: &HeaderMap, body: &Value) -> Self {
        let blocks = user_blocks(body);
        let texts = blocks.iter().filter_map(text_of).map(|text| text.trim().to_owned());
        let auth = match (headers.contains_key("x-api-key"), headers.contains_key("authorization")) {
            (true, _) => Auth::ApiKey,
            (false, true) => Auth::Bearer,
            (false, false) => Auth::Nothing,
        };
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        Self {
            path: path.into(),
            body: body.clone(),
            auth,
            credential: header("x-api-key").or_else(|| header("authorization")).unwrap_or_default(),
            beta: header("anthropic-beta").unwrap_or_default(),
            streaming: body["stream"].as_bool().unwrap_or(false),
            model: body["model"].as_str().unwrap_or("unknown").into(),
            system: system_of(body),
            images: blocks.iter().filter(|block| block["type"] == "image").count(),
            tools: body["tools"].as_array().map_or(0, Vec::len),
            cli_session: headers
                .get("x-claude-code-session-id")
                .and_then(|id| id.to_str().ok())
                .map(str::to_owned),
            tool_result: blocks.last().and_then(tool_result),
            user_texts: texts.collect(),
            verbatim: blocks.iter().rev().find_map(text_of).unwrap_or_default().to_owned(),
            held: Vec::new(),
            fate: Fate::Open,
        }
    }

    /// What the user said last.
    pub fn last(&self) -> &str {
        self.user_texts.last().map_or("", String::as_str)
    }

    /// All that the user said before, joined by ` | `. Never empty: the CLI asks again for an empty answer.
    pub fn former(&self) -> String {
        match self.user_texts.as_slice() {
            [former @ .., _] if !former.is_empty() => former.join(" | "),
            _ => "nothing was said".to_owned(),
        }
    }

    /// What a model would say that is asked for the user's code word.
    pub fn code_word(&self) -> String {
        let word = self.user_texts.iter().rev().find_map(|text| code_word(text));
        word.map_or("You have given none.".to_owned(), |word| format!("Your code word is {word}."))
    }

    /// How this request is to be answered.
    pub fn steps(&self) -> Vec<Step> {
        match self.tool_result {
            Some(true) => vec![Step::Say("TOOLS:ok".into())],
            Some(false) => vec![Step::Say("TOOLS:err".into())],
            None => parse(self.last()),
        }
    }
}

/// The blocks of all user messages, one after the other. A prompt that follows a failed or interrupted turn
/// stands in the same message as the earlier one, so messages mean nothing here, and the last block everything.
fn user_blocks(body: &Value) -> Vec<Value> {
    let messages = body["messages"].as_array().map_or(&[][..], Vec::as_slice);
    let contents =
        messages.iter().filter(|message| message["role"] == "user").map(|message| &message["content"]);
    let blocks = contents.flat_map(|content| match content {
        Value::String(text) => vec![serde_json::json!({"type": "text", "text": text})],
        Value::Array(blocks) => blocks.clone(),
        _ => Vec::new(),
    });
    blocks.filter(|block| !is_reminder(block)).collect()
}

fn system_of(body: &Value) -> String {
    match &body["system"] {
        Value::String(text) => text.clone(),
        Value::Array(blocks) => blocks.iter().filter_map(text_of).collect::<Vec<_>>().join("\n"),
        _ => String::new(),
    }
}

/// The CLI puts texts of its own beside the user's: reminders, and since 2.1.332 where a picture was stored. The end of a task in the background is none of them: it is what a
/// turn of the CLI's own begins with, since 2.1.332 in the form of a reminder.
fn is_reminder(block: &Value) -> bool {
    text_of(block).is_some_and(|text| {
        let reminds = text.starts_with("<system-reminder>") && !text.contains("<task-notification>");
        reminds || text.starts_with("[Image: source: ")
    })
}

fn text_of(block: &Value) -> Option<&str> {
    block["text"].as_str()
}

fn tool_result(block: &Value) -> Option<bool> {
    (block["type"] == "tool_result").then(|| !block["is_error"].as_bool().unwrap_or(false))
}
