//! What a request expects of its answer: one JSON document, or a call of a tool. Pure, and slow for large answers.

use serde_json::Value;

use super::tools::Choice;
use crate::model::Prompt;
use crate::turn::Outcome;

mod schema;

pub(super) use schema::Schema;

#[derive(Debug, Clone, Default)]
pub(crate) enum Expected {
    #[default]
    Anything,
    Call(Choice),
    Document(Schema),
}

impl Expected {
    pub(super) fn of(schema: Option<Schema>, choice: Choice) -> Self {
        match (schema, choice) {
            (Some(schema), _) => Self::Document(schema),
            (None, Choice::Free) => Self::Anything,
            (None, choice) => Self::Call(choice),
        }
    }

    pub(crate) fn is_anything(&self) -> bool {
        matches!(self, Self::Anything)
    }

    pub(crate) fn is_document(&self) -> bool {
        matches!(self, Self::Document(_))
    }

    /// What is wrong with an answer; `None`: nothing.
    pub(crate) fn problem(&self, outcome: &Outcome) -> Option<String> {
        if !outcome.is_ok() {
            return None;
        }
        match self {
            Self::Anything => None,
            Self::Call(choice) => {
                let is_met = outcome.tool_calls.iter().any(|call| match choice {
                    Choice::One(name) => call.name == *name,
                    Choice::Free | Choice::Any => true,
                });
                (!is_met).then(|| "it is no call of the tool that was asked for".to_owned())
            }
            // A call comes before the document.
            Self::Document(_) if !outcome.tool_calls.is_empty() => None,
            Self::Document(schema) => {
                let Ok(answer) = serde_json::from_str::<Value>(&outcome.text) else {
                    return Some("it is no JSON document".to_owned());
                };
                if !answer.is_object() {
                    return Some("it is no JSON object".to_owned());
                }
                schema.problem(&answer)
            }
        }
    }

    /// The message that asks for another answer.
    pub(crate) fn repair(&self, problem: &str) -> Prompt {
        let asked = match self {
            Self::Document(_) => {
                "Call the tool StructuredOutput with a document that matches its schema.".to_owned()
            }
            Self::Call(choice) => choice.instruction().unwrap_or_default(),
            Self::Anything => String::new(),
        };
        Prompt::Text(format!("Your answer cannot be used: {problem}. {asked}"))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::ToolCall;
    use crate::turn::{Status, aborted};

    fn outcome(text: &str, calls: &[&str]) -> Outcome {
        let tool_calls =
            calls.iter().map(|name| ToolCall::new("t".into(), (*name).into(), json!({}))).collect();
        Outcome {
            status: Status::Completed,
            text: text.into(),
            tool_calls,
            ..aborted(crate::error::TurnError::Cancelled)
        }
    }

    fn schema(schema: Value) -> Result<Schema, String> {
        Schema::read(schema, "s").map_err(|error| error.message().to_owned())
    }

    #[test]
    fn document_is_compared_with_its_schema() {
        let wanted =
            json!({ "type": "object", "properties": { "a": { "type": "number" } }, "required": ["a"] });
        let expected = Expected::Document(schema(wanted).unwrap());
        let problem = |text: &str| expected.problem(&outcome(text, &[]));
        assert_eq!(problem(r#"{"a":1}"#), None);
        assert_eq!(problem("Sure!").unwrap(), "it is no JSON document");
        assert_eq!(problem("[1]").unwrap(), "it is no JSON object");
        let wrong = problem(r#"{"a":"secret"}"#).unwrap();
        assert!(wrong.starts_with("at \"/a\"") && !wrong.contains("secret"), "{wrong}");
        assert_eq!(expected.problem(&outcome("", &["add"])), None, "a call comes first");
        assert_eq!(Expected::Document(Schema::any()).problem(&outcome("{}", &[])), None);
    }

    #[test]
    fn forced_call_has_to_be_made() {
        let problem =
            |choice: Choice, calls: &[&str]| Expected::Call(choice).problem(&outcome("x", calls)).is_some();
        assert!(problem(Choice::Any, &[]) && !problem(Choice::Any, &["add"]));
        let one = || Choice::One("sub".into());
        assert!(problem(one(), &["add"]) && !problem(one(), &["add", "sub"]));
        let Prompt::Text(text) = Expected::Call(one()).repair("no") else { panic!("text") };
        assert!(text.contains("mcp__caller__sub"));
    }
}
