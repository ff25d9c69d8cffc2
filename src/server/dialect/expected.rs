//! What a request expects of its answer: one JSON document, or a call of a tool. Pure, and slow for large answers.

use std::sync::Arc;

use jsonschema::{PatternOptions, Validator};
use serde_json::{Map, Value, json};

use super::tools::Choice;
use crate::model::Prompt;
use crate::server::api::error::ApiError;
use crate::turn::Outcome;

/// Maximum parts of a schema with all references followed: checking an answer takes as many steps for each of its parts.
const MAX_PARTS: usize = 4096;

#[derive(Debug, Clone, Default)]
pub(crate) enum Expected {
    #[default]
    Anything,
    Call(Choice),
    Document(Schema),
}

/// Schema of an answer.
#[derive(Debug, Clone)]
pub(crate) struct Schema {
    schema: Value,
    /// `None`: only the CLI compares the answer with it.
    validator: Option<Arc<Validator>>,
}

impl Schema {
    /// Reads the schema of a request at `at`.
    ///
    /// # Errors
    /// 400 if the CLI could not use it, or checking an answer could take long.
    pub(super) fn read(schema: Value, at: &str) -> Result<Self, ApiError> {
        let wrong = |problem: &str| ApiError::field(at, problem);
        let Value::Object(fields) = &schema else { return Err(wrong("must be an object")) };
        if fields.get("type").is_some_and(|kind| kind != "object") {
            return Err(wrong("must describe an object (type \"object\")"));
        }
        let is_recursive = match parts(&schema) {
            Some(_) => false,
            None if !is_recursive(&schema) => {
                return Err(wrong("is too complex: it has too many parts when its references are followed"));
            }
            // The time to check an answer has no bound that follows from its size.
            None => true,
        };
        let options = jsonschema::options().with_pattern_options(PatternOptions::regex());
        let validator =
            options.build(&schema).map_err(|error| wrong(&format!("is no JSON Schema: {error}")))?;
        Ok(Self { validator: (!is_recursive).then(|| Arc::new(validator)), schema })
    }

    /// Any object.
    pub(super) fn any() -> Self {
        Self { schema: json!({ "type": "object" }), validator: None }
    }

    pub(super) fn value(&self) -> &Value {
        &self.schema
    }
}

/// Number of a schema's parts with references followed; `None` if that has no end or is more than [`MAX_PARTS`].
fn parts(schema: &Value) -> Option<usize> {
    let mut room = MAX_PARTS;
    walk(schema, schema, 0, &mut room).then_some(MAX_PARTS - room)
}

/// References within references; more are either a circle or a joke.
const MAX_DEPTH: usize = 64;

fn walk(root: &Value, part: &Value, depth: usize, room: &mut usize) -> bool {
    let Some(rest) = room.checked_sub(1) else { return false };
    *room = rest;
    match part {
        Value::Array(parts) => parts.iter().all(|part| walk(root, part, depth, room)),
        Value::Object(fields) => {
            let target = reference(root, fields);
            let is_bounded = match target {
                Some(_) if depth == MAX_DEPTH => false,
                Some(target) => walk(root, target, depth + 1, room),
                None => true,
            };
            // Definitions count where they are referred to.
            let own = fields.iter().filter(|(name, _)| !matches!(name.as_str(), "$defs" | "definitions"));
            is_bounded && own.map(|(_, part)| part).all(|part| walk(root, part, depth, room))
        }
        _ => true,
    }
}

fn reference<'a>(root: &'a Value, fields: &Map<String, Value>) -> Option<&'a Value> {
    let target = fields.get("$ref").or_else(|| fields.get("$dynamicRef"))?.as_str()?;
    root.pointer(target.strip_prefix('#')?)
}

/// Whether a reference leads back to itself.
fn is_recursive(root: &Value) -> bool {
    fn leads_back<'a>(
        root: &'a Value,
        part: &'a Value,
        above: &mut Vec<&'a Value>,
        room: &mut usize,
    ) -> bool {
        let Some(rest) = room.checked_sub(1) else { return false };
        *room = rest;
        match part {
            Value::Array(parts) => parts.iter().any(|part| leads_back(root, part, above, room)),
            Value::Object(fields) => {
                if let Some(target) = reference(root, fields) {
                    if above.iter().any(|other| std::ptr::eq(*other, target)) || std::ptr::eq(root, target) {
                        return true;
                    }
                    above.push(target);
                    let found = leads_back(root, target, above, room);
                    above.pop();
                    if found {
                        return true;
                    }
                }
                fields.values().any(|part| leads_back(root, part, above, room))
            }
            _ => false,
        }
    }
    leads_back(root, root, &mut Vec::new(), &mut (MAX_PARTS * 16))
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
                let error = schema.validator.as_ref()?.validate(&answer).err()?;
                Some(format!("at \"{}\": {}", error.instance_path(), error.masked()))
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

    #[test]
    fn schemas_that_could_take_long_are_refused() {
        let mut defs = Map::new();
        for level in 0..30 {
            let next = json!({ "$ref": format!("#/$defs/d{}", level + 1) });
            defs.insert(format!("d{level}"), json!({ "allOf": [next, next] }));
        }
        defs.insert("d30".into(), json!({}));
        let bomb = json!({ "$ref": "#/$defs/d0", "$defs": defs });
        assert!(schema(bomb).unwrap_err().contains("too complex"));
        let tree = json!({ "type": "object", "properties": { "children": { "type": "array", "items": { "$ref": "#" } } } });
        assert!(schema(tree).unwrap().validator.is_none(), "the CLI alone checks it");
        let plain = json!({ "type": "object", "properties": { "a": { "$ref": "#/$defs/n" } }, "$defs": { "n": { "type": "null" } } });
        assert!(schema(plain).unwrap().validator.is_some());
        for wrong in [json!(7), json!({ "type": "array" }), json!({ "type": "object", "required": 7 })] {
            assert!(schema(wrong.clone()).is_err(), "{wrong}");
        }
        let remote = json!({ "type": "object", "properties": { "a": { "$ref": "http://127.0.0.1:1/x" } } });
        assert!(schema(remote).is_err(), "nothing is fetched");
    }
}
