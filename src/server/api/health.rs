//! Liveness, readiness, health, service document and metrics.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::{Extension, Json};
use serde_json::{Value, json};

use crate::model::SessionState;
use crate::server::api::openapi;
use crate::server::api::sessions::SparesView;
use crate::server::app::App;
use crate::server::auth::caller::Caller;
use crate::server::exporter::CONTENT_TYPE;

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// `GET /livez`: 200 while the process answers.
pub(crate) async fn livez() -> Json<Value> {
    Json(json!({ "status": "alive" }))
}

/// `GET /readyz`: 200 while turns are accepted; else the body gives the reasons.
pub(crate) async fn readyz(State(app): State<Arc<App>>) -> (StatusCode, Json<Value>) {
    let reasons = app.not_ready();
    (
        status(&reasons),
        Json(json!({ "ready": reasons.is_empty(), "reasons": reasons, "warnings": app.warnings() })),
    )
}

/// `GET /health`: readiness for people. Load is visible to the operator only.
pub(crate) async fn health(
    State(app): State<Arc<App>>,
    caller: Option<Extension<Caller>>,
) -> (StatusCode, Json<Value>) {
    let reasons = app.not_ready();
    let mut body = json!({
        "status": if reasons.is_empty() { "healthy" } else { "unhealthy" },
        "version": VERSION,
        "service": "pilotlight",
        "uptime": app.since.elapsed().as_secs_f64(),
        "reasons": reasons,
        "warnings": app.warnings(),
    });
    if let (true, Some(body)) = (caller.is_some_and(|caller| caller.is_admin()), body.as_object_mut()) {
        body.insert("sessions".to_owned(), sessions(&app));
        body.insert("spares".to_owned(), json!(SparesView::of(&app)));
    }
    (status(&reasons), Json(body))
}

fn sessions(app: &App) -> Value {
    let sessions = app.pilot.sessions();
    let count = |state| sessions.iter().filter(|(_, now)| now.state == state).count();
    json!({
        "known": sessions.len(),
        "with_child": sessions.iter().filter(|(_, now)| now.pid.is_some()).count(),
        "idle": count(SessionState::Idle),
        "busy": count(SessionState::Busy),
        "failed": count(SessionState::Failed),
    })
}

/// `GET /` for programs: the service document.
pub(crate) async fn document() -> Json<Value> {
    Json(json!({
        "service": "pilotlight",
        "version": VERSION,
        "description": env!("CARGO_PKG_DESCRIPTION"),
        "endpoints": openapi::endpoints(),
    }))
}

/// `GET /metrics`: Prometheus text format.
pub(crate) async fn metrics(State(app): State<Arc<App>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], app.exporter.render())
}

fn status(reasons: &[String]) -> StatusCode {
    if reasons.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}
