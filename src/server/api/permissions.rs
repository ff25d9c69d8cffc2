//! What waits for a person (`permissions.policy = "ask"`): permissions of tools, questions of the model and of MCP
//! servers. And the answers.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::body::{parsed, with_body};
use crate::adapter;
use crate::model::{Decision, PendingPermission, PermissionError, PermissionRequest, RequestKind};
use crate::server::api::error::ApiError;
use crate::server::api::query::SessionQuery;
use crate::server::api::sessions::{SessionName, existing, seconds};
use crate::server::app::App;
use crate::server::dialect::Schema;
use crate::server::turns::restrict;

/// Reason sent to the model for a denial without one.
const DENIED: &str = "the user denied it";

#[derive(Serialize)]
pub(crate) struct Pending {
    permissions: Vec<Shown>,
}

#[derive(Serialize)]
struct Shown {
    request_id: String,
    kind: &'static str,
    tool_name: String,
    input: Value,
    description: Option<String>,
    /// Seconds since 1970.
    created_at: f64,
}

/// Body of an answer; unknown fields are ignored.
#[derive(Deserialize)]
struct AnswerBody {
    behavior: Option<Behavior>,
    message: Option<String>,
    updated_input: Option<Map<String, Value>>,
    answers: Option<Map<String, Value>>,
    action: Option<Action>,
    content: Option<Map<String, Value>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Behavior {
    Allow,
    Deny,
}

impl AnswerBody {
    /// Refuses a field that the chosen answer has no use for: it would be lost without a word.
    fn check_fields(&self) -> Result<(), ApiError> {
        let is_allow = matches!(self.behavior, Some(Behavior::Allow));
        let is_deny = matches!(self.behavior, Some(Behavior::Deny));
        let is_accept = matches!(self.action, Some(Action::Accept));
        let given = [
            ("answers", self.answers.is_some(), is_allow, "\"allow\""),
            ("updated_input", self.updated_input.is_some(), is_allow, "\"allow\""),
            ("message", self.message.is_some(), is_deny, "\"deny\""),
            ("content", self.content.is_some(), is_accept, "\"accept\""),
        ];
        let unfit = given.into_iter().find(|(_, is_given, fits, _)| *is_given && !fits);
        unfit.map_or(Ok(()), |(field, .., answer)| {
            Err(ApiError::field(field, format_args!("is for the answer {answer} alone")))
        })
    }
}

/// For a question of an MCP server, in its protocol's words.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Action {
    Accept,
    Decline,
    Cancel,
}

impl From<PendingPermission> for Shown {
    fn from(PendingPermission { request, created }: PendingPermission) -> Self {
        Self {
            request_id: request.request_id,
            kind: match request.kind {
                RequestKind::Tool => "tool",
                RequestKind::Question => "question",
                RequestKind::Elicitation => "elicitation",
            },
            tool_name: request.tool_name,
            input: request.input,
            description: request.description,
            created_at: seconds(created),
        }
    }
}

pub(crate) async fn list(
    State(app): State<Arc<App>>,
    SessionName(name): SessionName,
    query: SessionQuery,
) -> Result<Json<Pending>, ApiError> {
    let (session, _) = existing(&app, &query.subject()?, &name).await?;
    let permissions = session.permissions().into_iter().map(Shown::from).collect();
    Ok(Json(Pending { permissions }))
}

pub(crate) async fn answer(
    State(app): State<Arc<App>>,
    SessionName(name): SessionName,
    path: Result<Path<(String, String)>, PathRejection>,
    query: SessionQuery,
    request: Request,
) -> Result<Response, ApiError> {
    let user = query.owner()?;
    let unknown =
        || ApiError::new(StatusCode::NOT_FOUND, "permission_not_found", PermissionError::Unknown.to_string());
    let Path((_, request_id)) = path.map_err(|_| unknown())?;
    with_body(&app, &query.caller, request, decision, async |decision| {
        let (session, _) = existing(&app, &user, &name).await?;
        let pending = session.permissions().into_iter().find(|it| it.request.request_id == request_id);
        let answered = match pending {
            Some(PendingPermission { request, .. }) => {
                restrict::check_answer(&decision, &request, query.caller.limits())?;
                // The schema of a server may take long to check.
                let checked = decision.clone();
                let check = tokio::task::spawn_blocking(move || check(&checked, &request));
                check.await.map_err(|_| ApiError::field("content", "could not be checked"))??;
                session.answer_permission(&request_id, decision).await
            }
            // One that has come since was not checked, and is refused.
            None => {
                session.answer_permission(&request_id, Decision::Cancel).await.and(Err(PermissionError::Late))
            }
        };
        answered.map(|()| StatusCode::NO_CONTENT).map_err(|error| match error {
            PermissionError::Unknown => unknown(),
            PermissionError::Late => {
                ApiError::new(StatusCode::CONFLICT, "permission_late", error.to_string())
            }
        })
    })
    .await
}

/// Parses an answer; an error names the field.
fn decision(body: &[u8]) -> Result<Decision, ApiError> {
    let answer: AnswerBody = parsed(body)?;
    answer.check_fields()?;
    Ok(match (answer.behavior, answer.action) {
        (Some(Behavior::Allow), None) => match (answer.answers, answer.updated_input) {
            (Some(_), Some(_)) => {
                return Err(ApiError::field("answers", "cannot be sent with updated_input"));
            }
            (Some(answers), None) => Decision::Answer { answers },
            (None, updated_input) => Decision::Allow { updated_input: updated_input.map(Value::Object) },
        },
        (Some(Behavior::Deny), None) => {
            Decision::Deny { message: answer.message.unwrap_or_else(|| DENIED.to_owned()) }
        }
        (None, Some(Action::Accept)) => Decision::Accept { content: answer.content.map(Value::Object) },
        (None, Some(Action::Decline)) => Decision::Decline,
        (None, Some(Action::Cancel)) => Decision::Cancel,
        (Some(_), Some(_)) => return Err(ApiError::field("action", "cannot be sent with behavior")),
        (None, None) => {
            let problem = "is missing: \"allow\" or \"deny\"; for an elicitation send action instead";
            return Err(ApiError::field("behavior", problem));
        }
    })
}

/// Compares an answer with what is asked.
fn check(decision: &Decision, request: &PermissionRequest) -> Result<(), ApiError> {
    match (request.kind, decision) {
        (RequestKind::Elicitation, Decision::Accept { content }) => check_content(content.as_ref(), request),
        (RequestKind::Elicitation, Decision::Decline | Decision::Cancel) => Ok(()),
        (RequestKind::Elicitation, _) => {
            Err(ApiError::field("behavior", "is for tools; an elicitation takes action"))
        }
        (_, Decision::Accept { .. } | Decision::Decline | Decision::Cancel) => {
            Err(ApiError::field("action", "is for elicitations; this request takes behavior"))
        }
        (_, Decision::Answer { answers }) => match adapter::answers_problem(request, answers) {
            Some((field, problem)) => Err(ApiError::field(field, problem)),
            None => Ok(()),
        },
        (_, Decision::Allow { .. } | Decision::Deny { .. }) => Ok(()),
    }
}

/// The content against the schema of the MCP server, which is a stranger's as well.
fn check_content(content: Option<&Value>, request: &PermissionRequest) -> Result<(), ApiError> {
    let wrong = |problem: &str| ApiError::field("content", problem);
    let Some(schema) = request.input.get("requested_schema") else {
        return match content {
            None => Ok(()),
            Some(_) => Err(wrong("an address takes no content")),
        };
    };
    let content = content.ok_or_else(|| wrong("is missing: requested_schema describes it"))?;
    let unusable = "the server's requested_schema cannot be checked; decline or cancel";
    let schema = Schema::read(schema.clone(), "content").map_err(|_| wrong(unusable))?;
    if !schema.is_checked() {
        return Err(wrong(unusable));
    }
    schema.problem(content).map_or(Ok(()), |problem| Err(wrong(&problem)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answer_is_parsed_or_its_field_named() {
        let read = |body: &str| decision(body.as_bytes()).map_err(|error| format!("{error:?}"));
        assert_eq!(read(r#"{"behavior":"allow","more":1}"#), Ok(Decision::Allow { updated_input: None }));
        assert_eq!(
            read(r#"{"behavior":"allow","updated_input":{"command":"ls"}}"#),
            Ok(Decision::Allow { updated_input: Some(serde_json::json!({ "command": "ls" })) })
        );
        assert_eq!(read(r#"{"behavior":"deny"}"#), Ok(Decision::Deny { message: DENIED.into() }));
        assert_eq!(
            read(r#"{"behavior":"deny","message":"no"}"#),
            Ok(Decision::Deny { message: "no".into() })
        );
        for (body, named) in [
            ("", "EOF"),
            ("{}", "behavior"),
            (r#"["deny"]"#, "object"),
            (r#"{"behavior":"perhaps"}"#, "behavior"),
            (r#"{"behavior":1}"#, "behavior"),
            (r#"{"behavior":"deny","message":1}"#, "message"),
            (r#"{"behavior":"allow","updated_input":"ls"}"#, "updated_input"),
            (r#"{"behavior":"allow","updated_input":[1]}"#, "updated_input"),
            (r#"{"behavior":"allow"} {}"#, "trailing"),
            (r#"{"behavior":"allow","action":"accept"}"#, "action"),
            (r#"{"behavior":"deny","answers":{}}"#, "answers"),
            (r#"{"behavior":"deny","updated_input":{}}"#, "updated_input"),
            (r#"{"behavior":"allow","message":"yes"}"#, "message"),
            (r#"{"action":"decline","content":{}}"#, "content"),
            (r#"{"action":"accept","answers":{}}"#, "answers"),
            (r#"{"behavior":"allow","content":{}}"#, "content"),
            (r#"{"behavior":"allow","answers":{},"updated_input":{}}"#, "answers"),
            (r#"{"behavior":"allow","answers":["Red"]}"#, "answers"),
            (r#"{"action":"perhaps"}"#, "action"),
            (r#"{"action":"accept","content":[1]}"#, "content"),
        ] {
            let error = read(body).unwrap_err();
            assert!(error.contains(named) && error.contains("invalid_body"), "{body}: {error}");
        }
    }

    fn elicitation(schema: Value) -> PermissionRequest {
        let line = serde_json::json!({"type": "control_request", "request_id": "r", "request": {
            "subtype": "elicitation", "mcp_server_name": "m", "message": "Who?", "mode": "form", "requested_schema": schema}});
        match adapter::host_request(line.to_string().as_bytes()) {
            Some(adapter::HostRequest::Permission(request)) => request,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn content_is_compared_with_the_servers_schema() {
        let schema = serde_json::json!({"type": "object", "required": ["name"],
            "properties": {"name": {"type": "string", "maxLength": 4}, "color": {"enum": ["red"]}}});
        let request = elicitation(schema);
        let accept = |content: Value| check(&Decision::Accept { content: Some(content) }, &request);
        accept(serde_json::json!({"name": "Bob", "color": "red"})).unwrap();
        for content in [
            serde_json::json!({}),
            serde_json::json!({"name": "Robert"}),
            serde_json::json!({"name": "Bob", "color": "blue"}),
        ] {
            assert!(accept(content).is_err());
        }
        assert!(check(&Decision::Accept { content: None }, &request).is_err());
        assert!(check(&Decision::Allow { updated_input: None }, &request).is_err());
        check(&Decision::Decline, &request).unwrap();
        // What would take long to check is not checked: it can only be refused.
        let endless = serde_json::json!({"type": "object", "properties": {"a": {"$ref": "#"}}});
        let request = elicitation(endless);
        assert!(check(&Decision::Accept { content: Some(serde_json::json!({})) }, &request).is_err());
        check(&Decision::Cancel, &request).unwrap();
    }
}
