//! Requests of the CLI that a person answers, and the answers: permissions of tools, the tool that asks the user, and
//! questions of MCP servers. Pure.

use serde_json::{Map, Value, json};

use super::control::line;
use super::fields::Fields;
use super::read::ID_LIMIT;
use crate::model::{Decision, PermissionRequest, RequestKind};

/// The tool with which the model asks the user. The CLI offers it only to hosts that answer permissions.
const ASK_USER: &str = "AskUserQuestion";

/// Maximum length of what an MCP server asks, its schema included. A form for a person has some kilobytes.
const LONGEST_ELICITATION: usize = 64 << 10;

/// Maximum length of one answer in the user's own words.
#[cfg(feature = "server")]
const LONGEST_ANSWER: usize = 4 << 10;

/// Maximum answers to one question. The CLI's have four options.
#[cfg(feature = "server")]
const MOST_ANSWERS: usize = 16;

/// What the model sees when a tool was declined in words that are for MCP servers.
const DECLINED: &str = "the user declined it";

pub(super) fn permission(request_id: &str, request: &Fields<'_>) -> Option<PermissionRequest> {
    let (tool_name, input) = (request.text("tool_name")?, request.get::<Value>("input")?);
    let is_question = tool_name == ASK_USER && input.get("questions").is_some_and(Value::is_array);
    Some(PermissionRequest {
        request_id: request_id.to_owned(),
        kind: if is_question { RequestKind::Question } else { RequestKind::Tool },
        tool_name,
        input,
        description: request.text("description"),
    })
}

/// A question of an MCP server; `None` for one that is too long, or not readable.
pub(super) fn elicitation(request_id: &str, request: &Fields<'_>) -> Option<PermissionRequest> {
    let tool_name = request.text("mcp_server_name").filter(|name| name.len() <= ID_LIMIT)?;
    // Servers of older versions of MCP name no mode.
    let mode = request.text("mode").unwrap_or_else(|| "form".to_owned());
    let (shown, needed) = match mode.as_str() {
        "form" => (["requested_schema", "property_order"], "requested_schema"),
        "url" => (["url", "elicitation_id"], "url"),
        _ => return None,
    };
    let mut input = Map::new();
    input.insert("message".to_owned(), request.text("message")?.into());
    input.insert("mode".to_owned(), mode.into());
    for name in shown {
        if let Some(value) = request.get::<Value>(name).filter(|value| !value.is_null()) {
            input.insert(name.to_owned(), value);
        }
    }
    let input = Value::Object(input);
    let is_whole = input.get(needed).is_some() && input.to_string().len() <= LONGEST_ELICITATION;
    is_whole.then(|| PermissionRequest {
        request_id: request_id.to_owned(),
        kind: RequestKind::Elicitation,
        tool_name,
        input,
        description: None,
    })
}

/// Response to a request that a person, or a policy, has answered.
pub(crate) fn permission_response(request: &PermissionRequest, decision: &Decision) -> Vec<u8> {
    let answer = match request.kind {
        RequestKind::Elicitation => elicited(decision),
        RequestKind::Tool | RequestKind::Question => permitted(request, decision),
    };
    let response = json!({"subtype": "success", "request_id": request.request_id, "response": answer});
    line(&json!({"type": "control_response", "response": response}))
}

/// A permission requires the input, changed or not.
fn permitted(request: &PermissionRequest, decision: &Decision) -> Value {
    let input = match decision {
        Decision::Allow { updated_input } => updated_input.as_ref().unwrap_or(&request.input).clone(),
        Decision::Accept { .. } => request.input.clone(),
        Decision::Answer { answers } => {
            let mut input = request.input.clone();
            if let Some(fields) = input.as_object_mut() {
                fields.insert("answers".to_owned(), Value::Object(as_texts(answers)));
            }
            input
        }
        Decision::Deny { message } => return json!({"behavior": "deny", "message": message}),
        Decision::Decline | Decision::Cancel => return json!({"behavior": "deny", "message": DECLINED}),
    };
    json!({"behavior": "allow", "updatedInput": input})
}

fn elicited(decision: &Decision) -> Value {
    match decision {
        Decision::Accept { content } | Decision::Allow { updated_input: content } => match content {
            Some(content) => json!({"action": "accept", "content": content}),
            None => json!({"action": "accept"}),
        },
        Decision::Deny { .. } | Decision::Decline => json!({"action": "decline"}),
        Decision::Answer { .. } | Decision::Cancel => json!({"action": "cancel"}),
    }
}

/// The CLI joins the answers of a list with commas and no blank.
fn as_texts(answers: &Map<String, Value>) -> Map<String, Value> {
    let joined = |answer: &Value| match answer.as_array() {
        Some(list) => list.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", ").into(),
        None => answer.clone(),
    };
    answers.iter().map(|(question, answer)| (question.clone(), joined(answer))).collect()
}

/// Why these are no answers to the questions of a request: where, and what. `None`: they are.
#[cfg(feature = "server")]
pub(crate) fn answers_problem(
    request: &PermissionRequest,
    answers: &Map<String, Value>,
) -> Option<(String, &'static str)> {
    if request.kind != RequestKind::Question {
        return Some(("answers".to_owned(), "the request is no question of the model"));
    }
    if answers.is_empty() {
        return Some((
            "answers".to_owned(),
            "must answer a question at least; \"behavior\": \"deny\" answers none",
        ));
    }
    let questions = request.input.get("questions").and_then(Value::as_array);
    for (at, (text, answer)) in answers.iter().enumerate() {
        let asks = |question: &&Value| question.get("question").and_then(Value::as_str) == Some(text);
        let Some(question) = questions.and_then(|questions| questions.iter().find(asks)) else {
            return Some(("answers".to_owned(), "names a text that is no question of the request"));
        };
        let may_be_many = question.get("multiSelect").and_then(Value::as_bool).unwrap_or(false);
        if let Some(problem) = answer_problem(answer, may_be_many) {
            return Some((format!("answers.{at}"), problem));
        }
    }
    None
}

/// Labels and the user's own words are alike to the CLI.
#[cfg(feature = "server")]
fn answer_problem(answer: &Value, may_be_many: bool) -> Option<&'static str> {
    let text_problem = |text: &Value| match text.as_str() {
        None => Some("must be a text, or a list of texts where several options may be chosen"),
        Some(text) if text.trim().is_empty() => Some("must not be empty"),
        Some(text) if text.len() > LONGEST_ANSWER => Some("must have at most 4096 bytes"),
        Some(_) => None,
    };
    let Some(list) = answer.as_array() else { return text_problem(answer) };
    if !may_be_many {
        return Some("must be one text: the question takes one option");
    }
    if list.is_empty() || list.len() > MOST_ANSWERS {
        return Some("must have 1 to 16 texts");
    }
    let is_repeated =
        list.iter().enumerate().any(|(at, text)| list.iter().take(at).any(|other| other == text));
    if is_repeated {
        return Some("must not repeat a text");
    }
    list.iter().find_map(text_problem)
}

#[cfg(test)]
mod tests {
    use super::super::control::tests::parse;
    use super::super::read::host_request;
    use super::*;
    use crate::adapter::HostRequest;

    fn read(request: Value) -> Option<HostRequest> {
        let line = json!({"type": "control_request", "request_id": "r1", "request": request});
        host_request(line.to_string().as_bytes())
    }

    fn asked(request: Value) -> PermissionRequest {
        match read(request) {
            Some(HostRequest::Permission(request)) => request,
            other => panic!("{other:?}"),
        }
    }

    fn bash() -> PermissionRequest {
        asked(json!({"subtype": "can_use_tool", "tool_name": "Bash", "input": {"command": "ls"}}))
    }

    /// As both versions send it.
    fn question() -> PermissionRequest {
        asked(json!({"subtype": "can_use_tool", "tool_name": "AskUserQuestion", "input": {"questions": [
            {"question": "Which color?", "header": "Color", "multiSelect": false,
                "options": [{"label": "Red", "description": "r"}, {"label": "Blue", "description": "b"}]},
            {"question": "Which fruits?", "header": "Fruit", "multiSelect": true, "options": [{"label": "Apple"}]},
        ]}}))
    }

    fn form(schema: Value) -> Value {
        json!({"subtype": "elicitation", "mcp_server_name": "m", "message": "Who?", "mode": "form", "requested_schema": schema})
    }

    fn answer(request: &PermissionRequest, decision: &Decision) -> Value {
        let response = parse(&permission_response(request, decision))["response"].clone();
        assert_eq!((&response["subtype"], &response["request_id"]), (&json!("success"), &json!("r1")));
        response["response"].clone()
    }

    #[test]
    fn permission_responses_are_complete() {
        let other = json!({"command": "true"});
        for (updated, expected) in [(None, json!({"command": "ls"})), (Some(other.clone()), other)] {
            let allowed = answer(&bash(), &Decision::Allow { updated_input: updated });
            assert_eq!(allowed, json!({"behavior": "allow", "updatedInput": expected}));
        }
        let denied = answer(&bash(), &Decision::Deny { message: "no".to_owned() });
        assert_eq!(denied, json!({"behavior": "deny", "message": "no"}));
        for decision in [Decision::Decline, Decision::Cancel] {
            assert_eq!(answer(&bash(), &decision)["behavior"], "deny");
        }
    }

    #[test]
    fn answers_go_into_the_input_of_the_question() {
        let question = question();
        assert_eq!(question.kind, RequestKind::Question);
        let given = json!({"Which color?": "Red", "Which fruits?": ["Apple", "my own"]});
        let answers = given.as_object().unwrap().clone();
        let allowed = answer(&question, &Decision::Answer { answers });
        assert_eq!(
            allowed["updatedInput"]["answers"],
            json!({"Which color?": "Red", "Which fruits?": "Apple, my own"})
        );
        assert_eq!(allowed["updatedInput"]["questions"], question.input["questions"]);
        let odd = asked(json!({"subtype": "can_use_tool", "tool_name": "AskUserQuestion", "input": {}}));
        assert_eq!(odd.kind, RequestKind::Tool);
    }

    #[cfg(feature = "server")]
    #[test]
    fn wrong_answers_are_found() {
        let long = "x".repeat(LONGEST_ANSWER + 1);
        let many: Vec<_> = (0..=MOST_ANSWERS).map(|number| number.to_string()).collect();
        for (answers, problem) in [
            (json!({"Which color?": "Red"}), None),
            (json!({"Which color?": "none of them, \u{1F980}"}), None),
            (json!({"Which fruits?": ["Apple", "Pear"], "Which color?": "Blue"}), None),
            (json!({"Which fruits?": "Apple"}), None),
            (json!({}), Some("at least")),
            (json!({"Color": "Red"}), Some("no question")),
            (json!({"Which color?": ["Red"]}), Some("one text")),
            (json!({"Which color?": 7}), Some("a text")),
            (json!({"Which color?": " "}), Some("empty")),
            (json!({"Which color?": long}), Some("4096")),
            (json!({"Which fruits?": []}), Some("1 to 16")),
            (json!({"Which fruits?": many}), Some("1 to 16")),
            (json!({"Which fruits?": ["Apple", "Apple"]}), Some("repeat")),
            (json!({"Which fruits?": ["Apple", null]}), Some("a text")),
        ] {
            let found = answers_problem(&question(), answers.as_object().unwrap());
            match problem {
                None => assert_eq!(found, None, "{answers}"),
                Some(problem) => assert!(found.unwrap().1.contains(problem), "{answers}"),
            }
        }
        let answers = json!({"Which color?": "Red"});
        assert!(answers_problem(&bash(), answers.as_object().unwrap()).is_some());
    }

    #[test]
    fn elicitation_is_read_and_answered() {
        let schema = json!({"type": "object", "properties": {"name": {"type": "string"}}});
        let asked_for = asked(form(schema.clone()));
        assert_eq!((asked_for.kind, asked_for.tool_name.as_str()), (RequestKind::Elicitation, "m"));
        assert_eq!(asked_for.input, json!({"message": "Who?", "mode": "form", "requested_schema": schema}));
        let content = Some(json!({"name": "Bob"}));
        let accepted = answer(&asked_for, &Decision::Accept { content: content.clone() });
        assert_eq!(accepted, json!({"action": "accept", "content": content}));
        assert_eq!(answer(&asked_for, &Decision::Decline), json!({"action": "decline"}));
        assert_eq!(answer(&asked_for, &Decision::Cancel), json!({"action": "cancel"}));
        let url = json!({"subtype": "elicitation", "mcp_server_name": "m", "message": "Log in", "mode": "url",
            "url": "https://example.com/x", "elicitation_id": "e"});
        let address = asked(url);
        assert_eq!(address.input["url"], "https://example.com/x");
        assert_eq!(answer(&address, &Decision::Accept { content: None }), json!({"action": "accept"}));
    }

    /// The CLI cancels what it gets an error for.
    #[test]
    fn elicitation_that_is_too_long_is_refused() {
        let long = json!({"type": "object", "description": "x".repeat(LONGEST_ELICITATION)});
        let mut odd = form(json!({}));
        odd["mode"] = "telepathy".into();
        let mut nameless = form(json!({}));
        nameless["mcp_server_name"] = "m".repeat(ID_LIMIT + 1).into();
        for request in [form(long), form(Value::Null), odd, nameless] {
            assert!(matches!(read(request), Some(HostRequest::Unsupported { .. })));
        }
    }
}
