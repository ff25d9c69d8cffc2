//! What an operator or a prober asks: is it alive, is it ready, is it well, what is it.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::{Extension, Json};
use serde_json::{Value, json};

use crate::model::SessionState;
use crate::server::api::openapi;
use crate::server::app::App;
use crate::server::auth::caller::Caller;
use crate::server::exporter::CONTENT_TYPE;

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// 200 as long as the process answers.
pub(crate) async fn livez() -> Json<Value> {
    Json(json!({ "status": "alive" }))
}

/// 200 only while turns are taken; the body says why not.
pub(crate) async fn readyz(State(app): State<Arc<App>>) -> (StatusCode, Json<Value>) {
    let reasons = app.not_ready();
    (
        status(&reasons),
        Json(json!({ "ready": reasons.is_empty(), "reasons": reasons, "warnings": warnings(&app) })),
    )
}

/// The same check for people. How much is going on is told to the operator alone.
pub(crate) async fn health(
    State(app): State<Arc<App>>,
    caller: Option<Extension<Caller>>,
) -> (StatusCode, Json<Value>) {
    let reasons = app.not_ready();
    let mut body = json!({
        "status": if reasons.is_empty() { "healthy" } else { "unhealthy" },
        "version": VERSION,
        "service": "pilotlight",
        "uptime": app.uptime().as_secs_f64(),
        "reasons": reasons,
        "warnings": warnings(&app),
    });
    if let (true, Some(body)) = (caller.is_some_and(|caller| caller.is_admin()), body.as_object_mut()) {
        body.insert("sessions".to_owned(), sessions(&app));
    }
    (status(&reasons), Json(body))
}

/// What an operator should look at, though turns are taken.
fn warnings(app: &App) -> Vec<String> {
    app.pilot().cli_warning().into_iter().collect()
}

fn sessions(app: &App) -> Value {
    let sessions = app.pilot().sessions();
    let count = |state| sessions.iter().filter(|(_, now)| now.state == state).count();
    json!({
        "known": sessions.len(),
        "with_child": sessions.iter().filter(|(_, now)| now.pid.is_some()).count(),
        "idle": count(SessionState::Idle),
        "busy": count(SessionState::Busy),
        "failed": count(SessionState::Failed),
    })
}

/// What this is and what it offers.
pub(crate) async fn document() -> Json<Value> {
    Json(json!({
        "service": "pilotlight",
        "version": VERSION,
        "description": env!("CARGO_PKG_DESCRIPTION"),
        "endpoints": openapi::endpoints(),
    }))
}

/// The figures, in Prometheus' text format.
pub(crate) async fn metrics(State(app): State<Arc<App>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], app.exporter().render())
}

fn status(reasons: &[String]) -> StatusCode {
    if reasons.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}
