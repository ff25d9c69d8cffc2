//! The JSON Schema of an answer. A caller can send any: what could take long, or much memory, is refused. Pure.

use std::sync::Arc;

use jsonschema::{PatternOptions, Validator};
use serde_json::{Map, Value, json};

use crate::server::api::error::ApiError;

/// Maximum parts of a schema with all references followed: checking an answer takes as many steps for each of its parts.
const MAX_PARTS: usize = 4096;

/// Maximum depth of a schema with all references followed. The walk, and the check of an answer, take stack for each level.
const MAX_DEPTH: usize = 256;

/// Maximum patterns of a schema. Each of them can take [`PATTERN_BYTES`] once it is used.
const MAX_PATTERNS: usize = 64;

/// Maximum memory of a compiled pattern.
const PATTERN_BYTES: usize = 1 << 20;

/// Maximum parts of all schemas of strict tools together: requests have dozens of tools, and repeat them.
const MAX_PARTS_OF_TOOLS: usize = 4 * MAX_PARTS;

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
    pub(crate) fn read(schema: Value, at: &str) -> Result<Self, ApiError> {
        let wrong = |problem: &str| ApiError::field(at, problem);
        let Value::Object(fields) = &schema else { return Err(wrong("must be an object")) };
        if fields.get("type").is_some_and(|kind| kind != "object") {
            return Err(wrong("must describe an object (type \"object\")"));
        }
        let mut survey = Survey { root: &schema, room: MAX_PARTS, patterns: MAX_PATTERNS };
        let is_recursive = match survey.walk(&schema, 0) {
            Ok(()) => false,
            Err(Problem::Large) if is_recursive(&schema) => true,
            Err(problem) => return Err(wrong(problem.message())),
        };
        if is_recursive {
            // The time to check an answer has no bound that follows from its size.
            return match jsonschema::meta::is_valid(&schema) {
                true => Ok(Self { schema, validator: None }),
                false => Err(wrong("is no JSON Schema")),
            };
        }
        let validator = validator(&schema).map_err(|problem| wrong(&problem))?;
        Ok(Self { schema, validator: Some(Arc::new(validator)) })
    }

    /// Any object.
    pub(in crate::server::dialect) fn any() -> Self {
        Self { schema: json!({ "type": "object" }), validator: None }
    }

    /// Whether a document can be compared with it here.
    pub(crate) fn is_checked(&self) -> bool {
        self.validator.is_some()
    }

    pub(in crate::server::dialect) fn value(&self) -> &Value {
        &self.schema
    }

    /// Where a document does not match; `None`: it does.
    pub(crate) fn problem(&self, document: &Value) -> Option<String> {
        mismatch(self.validator.as_ref()?, document)
    }
}

/// What the schemas of a request's strict tools may have together.
#[derive(Debug)]
pub(in crate::server::dialect) struct Room {
    parts: usize,
    patterns: usize,
}

impl Default for Room {
    fn default() -> Self {
        Self { parts: MAX_PARTS_OF_TOOLS, patterns: MAX_PATTERNS }
    }
}

impl Room {
    /// Whether inputs can be checked against this schema within the limits.
    pub(in crate::server::dialect) fn admits(&mut self, schema: &Value) -> bool {
        let parts = self.parts.min(MAX_PARTS);
        let mut survey = Survey { root: schema, room: parts, patterns: self.patterns };
        let walked = survey.walk(schema, 0);
        self.parts -= parts - survey.room;
        if walked.is_ok() {
            self.patterns = survey.patterns;
        }
        walked.is_ok()
    }
}

/// The validator of a schema that was surveyed.
pub(super) fn validator(schema: &Value) -> Result<Validator, String> {
    let patterns = PatternOptions::regex().size_limit(PATTERN_BYTES).dfa_size_limit(PATTERN_BYTES);
    let built = jsonschema::options().with_pattern_options(patterns).build(schema);
    built.map_err(|error| format!("is no JSON Schema: {}", error.masked()))
}

/// Where a document does not match; `None`: it does. Nothing of its values.
pub(super) fn mismatch(validator: &Validator, document: &Value) -> Option<String> {
    let error = validator.validate(document).err()?;
    Some(format!("at \"{}\": {}", error.instance_path(), error.masked()))
}

#[derive(Debug, Clone, Copy)]
enum Problem {
    Large,
    Patterns,
    Reference,
}

impl Problem {
    fn message(self) -> &'static str {
        match self {
            Self::Large => "is too complex: it has too many parts when its references are followed",
            Self::Patterns => "is too complex: it has more than 64 patterns when its references are followed",
            Self::Reference => "has a reference that is no \"#/…\" to one of its own parts",
        }
    }
}

/// Follows all references of a schema, as far as there is room.
struct Survey<'a> {
    root: &'a Value,
    room: usize,
    patterns: usize,
}

impl Survey<'_> {
    fn walk(&mut self, part: &Value, depth: usize) -> Result<(), Problem> {
        self.room = self.room.checked_sub(1).filter(|_| depth <= MAX_DEPTH).ok_or(Problem::Large)?;
        match part {
            Value::Array(parts) => {
                for part in parts {
                    self.walk(part, depth + 1)?;
                }
            }
            Value::Object(fields) => {
                if let Some(target) = reference(self.root, fields)? {
                    self.walk(target, depth + 1)?;
                }
                if fields.contains_key("pattern") || fields.contains_key("patternProperties") {
                    let of_names = fields.get("patternProperties").and_then(Value::as_object);
                    let count = 1 + of_names.map_or(0, Map::len);
                    self.patterns = self.patterns.checked_sub(count).ok_or(Problem::Patterns)?;
                }
                // Definitions count where they are referred to.
                for (name, part) in fields {
                    if !matches!(name.as_str(), "$defs" | "definitions") {
                        self.walk(part, depth + 1)?;
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// Where the reference of a part leads to, if it has one.
fn reference<'a>(root: &'a Value, fields: &Map<String, Value>) -> Result<Option<&'a Value>, Problem> {
    // With an id of its own, a part gives references another meaning.
    let is_base = std::ptr::eq(root.as_object().unwrap_or(fields), fields);
    if !is_base && ["$id", "id"].iter().any(|name| fields.get(*name).is_some_and(Value::is_string)) {
        return Err(Problem::Reference);
    }
    let mut targets = ["$ref", "$dynamicRef", "$recursiveRef"]
        .into_iter()
        .filter_map(|name| fields.get(name).and_then(Value::as_str));
    match (targets.next(), targets.next()) {
        (None, _) => Ok(None),
        (Some(target), None) => {
            let target = target.strip_prefix('#').and_then(|pointer| root.pointer(pointer));
            target.map(Some).ok_or(Problem::Reference)
        }
        (Some(_), Some(_)) => Err(Problem::Reference),
    }
}

/// Whether a reference leads back to itself.
fn is_recursive(root: &Value) -> bool {
    fn leads_back<'a>(
        root: &'a Value,
        part: &'a Value,
        depth: usize,
        above: &mut Vec<&'a Value>,
        room: &mut usize,
    ) -> bool {
        match room.checked_sub(1) {
            Some(rest) if depth <= MAX_DEPTH => *room = rest,
            _ => return false,
        }
        match part {
            Value::Array(parts) => parts.iter().any(|part| leads_back(root, part, depth + 1, above, room)),
            Value::Object(fields) => {
                if let Ok(Some(target)) = reference(root, fields) {
                    if above.iter().any(|other| std::ptr::eq(*other, target)) || std::ptr::eq(root, target) {
                        return true;
                    }
                    above.push(target);
                    let found = leads_back(root, target, depth + 1, above, room);
                    above.pop();
                    if found {
                        return true;
                    }
                }
                fields.values().any(|part| leads_back(root, part, depth + 1, above, room))
            }
            _ => false,
        }
    }
    leads_back(root, root, 0, &mut Vec::new(), &mut (MAX_PARTS * 16))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema(schema: Value) -> Result<Schema, String> {
        Schema::read(schema, "s").map_err(|error| error.message().to_owned())
    }

    /// References one behind the other, which a walk follows one inside the other.
    #[test]
    fn long_chains_of_references_are_refused() {
        let mut defs = Map::new();
        for level in 0..60_000 {
            let next = json!({ "$ref": format!("#/zdefs/d{}", level + 1) });
            defs.insert(format!("d{level}"), next);
        }
        defs.insert("d60000".into(), json!({}));
        let start = json!({ "$ref": "#/zdefs/d0" });
        let chain =
            |also: Value| json!({ "type": "object", "properties": { "a": also, "b": start }, "zdefs": defs });
        assert!(schema(chain(json!({}))).is_err());
        let circle = schema(chain(json!({ "$ref": "#" })));
        assert!(circle.is_ok_and(|it| it.validator.is_none()), "nobody follows it here");
        let nested = (0..30).fold(json!({ "$ref": "#/$defs/d1" }), |inner, _| json!({ "not": inner }));
        let mut defs: Map<String, Value> = (0..60)
            .map(|level| {
                let next = json!({ "$ref": format!("#/$defs/d{}", level + 1) });
                (format!("d{level}"), (0..60).fold(next, |inner, _| json!({ "not": inner })))
            })
            .collect();
        defs.insert("d60".into(), json!({}));
        assert!(schema(json!({ "not": nested, "$defs": defs })).is_err());
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

    #[test]
    fn references_elsewhere_are_refused() {
        let with = |part: Value| {
            schema(json!({ "type": "object", "properties": { "a": part },
            "$defs": { "n": { "$anchor": "n" } } }))
        };
        for part in [
            json!({ "$ref": "#n" }),
            json!({ "$ref": "other.json" }),
            json!({ "$dynamicRef": "#n" }),
            json!({ "$id": "http://127.0.0.1/x", "$ref": "#/$defs/n" }),
        ] {
            assert!(with(part.clone()).unwrap_err().contains("reference"), "{part}");
        }
        let property = json!({ "properties": { "$ref": { "type": "string" }, "id": { "type": "string" } } });
        assert!(with(property).is_ok(), "names of properties");
        assert!(with(json!({ "$ref": "#/$defs/n" })).is_ok());
    }

    #[test]
    fn patterns_are_bounded() {
        let with = |count: usize, pattern: &str| {
            let parts = vec![json!({ "pattern": pattern }); count];
            schema(json!({ "type": "object", "properties": { "a": { "allOf": parts } } }))
        };
        assert!(with(65, "a").unwrap_err().contains("patterns"));
        let most = with(64, "^[a-z]+$").unwrap();
        assert_eq!(
            (most.problem(&json!({ "a": "a" })), most.problem(&json!({ "a": "1" })).is_some()),
            (None, true)
        );
    }
}
