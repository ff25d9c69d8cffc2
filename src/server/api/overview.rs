//! `GET /v1/overview`: the whole service at a glance, for the operator: limits against use, the last hours, the last
//! failures, who spends, and what isolates children.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use serde_json::{Value, json};

#[cfg(feature = "cluster")]
use crate::cluster::ClusterStatus;
use crate::model::ids::UserId;
use crate::server::api::error::ApiError;
use crate::server::api::query::SessionQuery;
use crate::server::api::sessions::{SparesView, encode, seconds};
use crate::server::app::App;
use crate::server::history::{BUCKET, Bucket, Failure};
use crate::spend::Day;
use crate::system::Load;

/// Maximum users listed by what they spent today.
const MOST_SPENDERS: usize = 50;
/// Seconds of a day.
const DAY: u64 = 86_400;

#[derive(Serialize)]
pub(crate) struct Overview {
    version: &'static str,
    uptime_seconds: f64,
    /// Why no new turns are accepted; empty while they are.
    reasons: Vec<String>,
    warnings: Vec<String>,
    spares: SparesView,
    #[serde(rename = "use")]
    used: Value,
    history: Value,
    failures: Vec<FailureView>,
    spend: SpendView,
    isolation: Vec<Value>,
    containment: &'static str,
    /// Where this server is a node of one.
    #[cfg(feature = "cluster")]
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<ClusterStatus>,
}

#[derive(Serialize)]
struct FailureView {
    at: f64,
    user: String,
    session: String,
    kind: &'static str,
    detail: String,
}

#[derive(Serialize)]
struct SpendView {
    /// `limits.usd_per_user_day`.
    limit_usd: Option<f64>,
    today_usd: f64,
    users: usize,
    /// Accounts with work today, if `users` may lack some: ten thousand are in memory.
    accounts: Option<usize>,
    /// Those who spent most come first.
    top: Vec<Spender>,
}

#[derive(Serialize)]
struct Spender {
    user: String,
    cost_usd: f64,
    turns: u64,
    input_tokens: u64,
    output_tokens: u64,
}

impl From<Failure> for FailureView {
    fn from(failure: Failure) -> Self {
        Self {
            at: seconds(failure.at),
            user: encode(failure.session.user()),
            session: failure.session.conversation().to_owned(),
            kind: failure.kind,
            detail: failure.detail,
        }
    }
}

pub(crate) async fn show(
    State(app): State<Arc<App>>,
    query: SessionQuery,
) -> Result<Json<Overview>, ApiError> {
    if !query.caller.is_admin() {
        let message = "the whole service is shown to keys of the role admin";
        return Err(ApiError::new(StatusCode::FORBIDDEN, "admin_only", message));
    }
    let since = query.fields.number("since")?.unwrap_or(0);
    app.spend_read.get_or_try_init(|| read_accounts(&app)).await?;
    let load = app.pilot.load().await;
    let accounts = app.pilot.spend().accounts_of_today().await.unwrap_or_else(|error| {
        tracing::warn!(%error, "the accounts of today cannot be counted");
        None
    });
    let isolation = app.pilot.isolation().into_iter();
    let isolation =
        isolation.map(|(rung, state)| json!({ "rung": rung.as_str(), "state": state.to_string() }));
    Ok(Json(Overview {
        version: env!("CARGO_PKG_VERSION"),
        uptime_seconds: app.since.elapsed().as_secs_f64(),
        reasons: app.not_ready(),
        warnings: app.warnings(),
        spares: SparesView::of(&app),
        used: used(&load),
        history: columns(&app.history.buckets(since)),
        failures: app.history.failures().into_iter().map(FailureView::from).collect(),
        spend: spend(app.pilot.spend().today(), accounts, app.pilot.spend().limit_usd()),
        isolation: isolation.collect(),
        containment: app.pilot.containment(),
        #[cfg(feature = "cluster")]
        cluster: app.pilot.cluster().map(|cluster| cluster.status()),
    }))
}

/// Brings the accounts of users who had work today into memory: after a restart none is there. Once for each start.
async fn read_accounts(app: &App) -> Result<(), ApiError> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let midnight = UNIX_EPOCH + Duration::from_secs(now - now % DAY);
    let (sessions, truncated) = app.pilot.known_sessions(None).await?;
    if truncated {
        app.pilot.spend().lacks_some();
    }
    let today = sessions.iter().filter(|(_, status)| status.last_used >= midnight);
    let users: std::collections::HashSet<&UserId> = today.map(|(key, _)| key.user()).collect();
    for user in users {
        if let Err(error) = app.pilot.spend().statement(user).await {
            tracing::warn!(%error, "an account of a user cannot be read: the overview lacks it");
            app.pilot.spend().lacks_some();
        }
    }
    Ok(())
}

fn used(load: &Load) -> Value {
    json!({
        "children": { "used": load.starts.children, "limit": load.max_children, "busy": load.busy },
        "starting": { "used": load.starts.starting, "limit": load.max_starting },
        "waiting": { "used": load.starts.waiting, "limit": load.max_waiting },
        "memory": {
            "used": load.memory_bytes,
            "limit": load.memory_budget,
            "per_session": load.session_memory,
        },
        "processors": { "used": load.cpu_cores, "limit": load.processors },
        "disk": load.disk.as_ref().map(|disk| json!({
            "used": disk.total_bytes.saturating_sub(disk.free_bytes),
            "limit": disk.total_bytes,
        })),
        "open_files": load.open_files.map(|open| json!({ "used": open, "limit": load.open_files_limit })),
    })
}

/// One list for each value, which is half as long as one object for each bucket.
fn columns(buckets: &[Bucket]) -> Value {
    let column = |value: fn(&Bucket) -> Value| buckets.iter().map(value).collect::<Vec<Value>>();
    json!({
        "bucket_seconds": BUCKET.as_secs(),
        "ends_at": column(|it| it.ends_at.into()),
        "answered": column(|it| it.answered.into()),
        "failed": column(|it| it.failed.into()),
        "refused": column(|it| it.refused.into()),
        "crashed": column(|it| it.crashed.into()),
        "started": column(|it| it.started.into()),
        "turn_p50": column(|it| it.turn_p50.into()),
        "turn_p95": column(|it| it.turn_p95.into()),
        "ready_p50": column(|it| it.ready_p50.into()),
        "ready_p95": column(|it| it.ready_p95.into()),
        "children": column(|it| it.children.into()),
        "busy": column(|it| it.busy.into()),
        "waiting": column(|it| it.waiting.into()),
        "memory_bytes": column(|it| it.memory_bytes.into()),
        "spent_usd": column(|it| it.spent_usd.into()),
    })
}

fn spend(mut spent: Vec<(UserId, Day)>, accounts: Option<usize>, limit_usd: Option<f64>) -> SpendView {
    spent.sort_by(|(_, one), (_, other)| other.cost_usd().total_cmp(&one.cost_usd()));
    let spender = |(user, day): &(UserId, Day)| Spender {
        user: encode(user),
        cost_usd: day.cost_usd(),
        turns: day.turns,
        input_tokens: day
            .input_tokens
            .saturating_add(day.cache_creation_input_tokens)
            .saturating_add(day.cache_read_input_tokens),
        output_tokens: day.output_tokens,
    };
    SpendView {
        limit_usd,
        today_usd: spent.iter().map(|(_, day)| day.cost_usd()).sum(),
        users: spent.len(),
        accounts: accounts.map(|count| count.max(spent.len())),
        top: spent.iter().take(MOST_SPENDERS).map(spender).collect(),
    }
}
