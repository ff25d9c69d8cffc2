//! What a request expects of its answer: one JSON document, a call of a tool, calls that match their schemas. Pure, and slow
//! for large answers.

use std::collections::HashMap;

use serde_json::Value;

use super::tools::Choice;
use crate::model::{CallerTool, Prompt, ToolCall, ToolResult};
use crate::turn::Outcome;

mod schema;

pub(super) use schema::Room;
pub(crate) use schema::Schema;

#[derive(Debug, Clone, Default)]
pub(crate) struct Expected {
    answer: Answer,
    /// Tools whose calls have to match their schemas.
    strict: Vec<String>,
}

#[derive(Debug, Clone, Default)]
enum Answer {
    #[default]
    Any,
    Call(Choice),
    Document(Schema),
}

/// Why an answer cannot be used.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Misfit {
    /// In words.
    pub(crate) problem: String,
    /// What is wrong with each call that does not match its schema, by its id.
    calls: HashMap<String, String>,
}

impl Expected {
    /// `strict`: names of tools whose calls have to match their schemas.
    pub(super) fn of(schema: Option<Schema>, choice: Choice, strict: Vec<String>) -> Self {
        let answer = match (schema, choice) {
            (Some(schema), _) => Answer::Document(schema),
            (None, Choice::Free) => Answer::Any,
            (None, choice) => Answer::Call(choice),
        };
        Self { answer, strict }
    }

    pub(crate) fn is_anything(&self) -> bool {
        matches!(self.answer, Answer::Any) && self.strict.is_empty()
    }

    pub(crate) fn is_document(&self) -> bool {
        matches!(self.answer, Answer::Document(_))
    }

    /// What is wrong with an answer to a request with these tools; `None`: nothing.
    pub(crate) fn misfit(&self, outcome: &Outcome, tools: &[CallerTool]) -> Option<Misfit> {
        if !outcome.is_ok() {
            return None;
        }
        let calls = self.wrong_calls(&outcome.tool_calls, tools);
        if let Some((call, problem)) = outcome.tool_calls.iter().find_map(|it| Some((it, calls.get(&it.id)?)))
        {
            let problem =
                format!("the input of a call of \"{}\" does not match its schema, {problem}", call.name);
            return Some(Misfit { problem, calls });
        }
        let problem = match &self.answer {
            Answer::Any => None,
            Answer::Call(choice) => {
                let is_met = outcome.tool_calls.iter().any(|call| match choice {
                    Choice::One(name) => call.name == *name,
                    Choice::Free | Choice::Any => true,
                });
                (!is_met).then(|| "it is no call of the tool that was asked for".to_owned())
            }
            // A call comes before the document.
            Answer::Document(_) if !outcome.tool_calls.is_empty() => None,
            Answer::Document(schema) => match serde_json::from_str::<Value>(&outcome.text) {
                Ok(answer) if answer.is_object() => schema.problem(&answer),
                Ok(_) => Some("it is no JSON object".to_owned()),
                Err(_) => Some("it is no JSON document".to_owned()),
            },
        };
        problem.map(|problem| Misfit { problem, calls })
    }

    /// Where inputs of strict tools do not match their schemas.
    fn wrong_calls(&self, calls: &[ToolCall], tools: &[CallerTool]) -> HashMap<String, String> {
        let mut validators = HashMap::new();
        let mut problem = |call: &ToolCall| {
            let tool = tools.iter().find(|tool| tool.name() == call.name)?;
            let validator = validators
                .entry(tool.name())
                .or_insert_with(|| schema::validator(&Value::Object(tool.input_schema().clone())));
            match validator {
                Ok(validator) => schema::mismatch(validator, &call.input),
                Err(problem) => Some(format!("which {problem}")),
            }
        };
        let strict = calls.iter().filter(|call| self.strict.contains(&call.name));
        strict.filter_map(|call| Some((call.id.clone(), problem(call)?))).collect()
    }

    /// What asks for another answer: a message, or the results of calls that the model waits for.
    pub(crate) fn repair(&self, misfit: &Misfit, outcome: &Outcome) -> Prompt {
        let asked = match &self.answer {
            Answer::Document(_) => {
                "Call the tool StructuredOutput with a document that matches its schema.".to_owned()
            }
            Answer::Call(choice) => choice.instruction().unwrap_or_default(),
            Answer::Any => String::new(),
        };
        if outcome.tool_calls.is_empty() {
            return Prompt::Text(format!("Your answer cannot be used: {}. {asked}", misfit.problem));
        }
        let result = |call: &ToolCall| {
            let text = match misfit.calls.get(&call.id) {
                Some(problem) => {
                    format!(
                        "The tool was not run: the input does not match its schema, {problem}. Call it again."
                    )
                }
                None if misfit.calls.is_empty() => {
                    format!("The tool was not run. Your answer cannot be used: {}. {asked}", misfit.problem)
                }
                None => NOT_RUN.to_owned(),
            };
            ToolResult::text(&call.id, text).failed()
        };
        Prompt::ToolResults(outcome.tool_calls.iter().map(result).collect())
    }
}

const NOT_RUN: &str =
    "The tool was not run, because another call of the same message cannot be used. Call it again.";

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::turn::{Status, aborted};

    fn outcome(text: &str, calls: &[(&str, Value)]) -> Outcome {
        let call = |(number, (name, input)): (usize, &(&str, Value))| {
            ToolCall::new(format!("t{number}"), (*name).into(), input.clone())
        };
        Outcome {
            status: Status::Completed,
            text: text.into(),
            tool_calls: calls.iter().enumerate().map(call).collect(),
            ..aborted(crate::error::TurnError::Cancelled)
        }
    }

    fn schema(schema: Value) -> Result<Schema, String> {
        Schema::read(schema, "s").map_err(|error| error.message().to_owned())
    }

    fn of(answer: Answer) -> Expected {
        Expected { answer, strict: Vec::new() }
    }

    fn problem(expected: &Expected, outcome: &Outcome) -> Option<String> {
        expected.misfit(outcome, &[]).map(|misfit| misfit.problem)
    }

    #[test]
    fn document_is_compared_with_its_schema() {
        let wanted =
            json!({ "type": "object", "properties": { "a": { "type": "number" } }, "required": ["a"] });
        let expected = of(Answer::Document(schema(wanted).unwrap()));
        let said = |text: &str| problem(&expected, &outcome(text, &[]));
        assert_eq!(said(r#"{"a":1}"#), None);
        assert_eq!(said("Sure!").unwrap(), "it is no JSON document");
        assert_eq!(said("[1]").unwrap(), "it is no JSON object");
        let wrong = said(r#"{"a":"secret"}"#).unwrap();
        assert!(wrong.starts_with("at \"/a\"") && !wrong.contains("secret"), "{wrong}");
        assert_eq!(problem(&expected, &outcome("", &[("add", json!({}))])), None, "a call comes first");
        assert_eq!(problem(&of(Answer::Document(Schema::any())), &outcome("{}", &[])), None);
    }

    #[test]
    fn forced_call_has_to_be_made() {
        let is_wrong = |choice: Choice, calls: &[&str]| {
            let calls: Vec<_> = calls.iter().map(|name| (*name, json!({}))).collect();
            problem(&of(Answer::Call(choice)), &outcome("x", &calls)).is_some()
        };
        assert!(is_wrong(Choice::Any, &[]) && !is_wrong(Choice::Any, &["add"]));
        let one = || Choice::One("sub".into());
        assert!(is_wrong(one(), &["add"]) && !is_wrong(one(), &["add", "sub"]));
        let expected = of(Answer::Call(one()));
        let (none, other) = (outcome("x", &[]), outcome("x", &[("add", json!({}))]));
        let repair = |outcome: &Outcome| expected.repair(&expected.misfit(outcome, &[]).unwrap(), outcome);
        let Prompt::Text(text) = repair(&none) else { panic!("text") };
        assert!(text.contains("mcp__caller__sub"));
        let Prompt::ToolResults(results) = repair(&other) else { panic!("the CLI waits for results") };
        assert!(results[0].is_error && results[0].content[0].to_string().contains("mcp__caller__sub"));
    }

    #[test]
    fn calls_of_strict_tools_match_their_schemas() {
        let number = json!({ "properties": { "a": { "type": "number" } }, "required": ["a"] });
        let tool = |name: &str, schema: &Value| {
            CallerTool::new(name, None, schema.as_object().unwrap().clone()).unwrap()
        };
        let tools = [tool("add", &number), tool("loose", &number), tool("odd", &json!({ "required": 7 }))];
        let expected = Expected::of(None, Choice::Free, vec!["add".into(), "odd".into()]);
        assert!(!expected.is_anything() && !expected.is_document());
        let misfit = |calls: &[(&str, Value)]| expected.misfit(&outcome("x", calls), &tools);
        let (right, wrong) = (json!({ "a": 1 }), json!({ "a": "secret" }));
        assert_eq!(misfit(&[]), None);
        assert_eq!(misfit(&[("add", right.clone()), ("loose", wrong.clone())]), None);
        assert!(misfit(&[("odd", right.clone())]).unwrap().problem.contains("no JSON Schema"));
        let calls = [("add", right), ("add", wrong)];
        let found = misfit(&calls).unwrap();
        assert!(found.problem.contains("\"add\"") && found.problem.contains("at \"/a\""), "{found:?}");
        assert!(!format!("{found:?}").contains("secret"), "{found:?}");
        let Prompt::ToolResults(results) = expected.repair(&found, &outcome("x", &calls)) else {
            panic!("the CLI waits for results")
        };
        let texts: Vec<_> = results.iter().map(|it| it.content[0]["text"].as_str().unwrap()).collect();
        assert!(results.iter().all(|result| result.is_error), "{texts:?}");
        assert!(texts[0] == NOT_RUN && texts[1].contains("at \"/a\""), "{texts:?}");
    }
}
