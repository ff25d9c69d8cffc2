//! Pending tool permissions (`permissions.policy = "ask"`) and their answers.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::model::Decision;
use crate::model::{PendingPermission, PermissionError};
use crate::server::api::error::ApiError;
use crate::server::api::query::SessionQuery;
use crate::server::api::router::BodyRead;
use crate::server::api::sessions::{SessionName, existing, seconds};
use crate::server::app::App;
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
    tool_name: String,
    input: Value,
    description: Option<String>,
    /// Seconds since 1970.
    created_at: f64,
}

/// Body of an answer; unknown fields are ignored.
#[derive(Deserialize)]
struct AnswerBody {
    behavior: Behavior,
    message: Option<String>,
    updated_input: Option<Map<String, Value>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Behavior {
    Allow,
    Deny,
}

impl From<PendingPermission> for Shown {
    fn from(PendingPermission { request, created }: PendingPermission) -> Self {
        Self {
            request_id: request.request_id,
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
    let received = app.bodies.receive(&query.caller, request.into_body()).await?;
    let answered = async {
        let decision = decision(&received.bytes)?;
        let (session, _) = existing(&app, &user, &name).await?;
        let pending = session.permissions().into_iter().find(|it| it.request.request_id == request_id);
        let tool = pending.as_ref().map(|pending| pending.request.tool_name.as_str());
        restrict::check_answer(&decision, tool, query.caller.limits())?;
        let answered = session.answer_permission(&request_id, decision).await;
        answered.map_err(|error| match error {
            PermissionError::Unknown => unknown(),
            PermissionError::Late => {
                ApiError::new(StatusCode::CONFLICT, "permission_late", error.to_string())
            }
        })
    };
    let answered = answered.await.map(|()| StatusCode::NO_CONTENT);
    let mut response = answered.into_response();
    response.extensions_mut().insert(BodyRead);
    Ok(response)
}

/// Parses an answer; an error names the field.
fn decision(body: &[u8]) -> Result<Decision, ApiError> {
    let invalid = |problem: String| ApiError::invalid("invalid_body", problem);
    let body: Value = serde_json::from_slice(body).map_err(|error| invalid(error.to_string()))?;
    // Rejects lists, which serde would accept as fields in order.
    if !body.is_object() {
        return Err(invalid("must be an object".to_owned()));
    }
    let answer: AnswerBody = serde_path_to_error::deserialize(body).map_err(|error| {
        let path = error.path().to_string();
        let problem = error.into_inner().to_string();
        if path == "." { invalid(problem) } else { ApiError::field(path, problem) }
    })?;
    Ok(match answer.behavior {
        Behavior::Allow => Decision::Allow { updated_input: answer.updated_input.map(Value::Object) },
        Behavior::Deny => Decision::Deny { message: answer.message.unwrap_or_else(|| DENIED.to_owned()) },
    })
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
        ] {
            let error = read(body).unwrap_err();
            assert!(error.contains(named) && error.contains("invalid_body"), "{body}: {error}");
        }
    }
}
