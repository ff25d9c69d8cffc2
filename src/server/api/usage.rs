//! `GET /v1/usage`: what a user has spent, per day.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Serialize;

use crate::error::TurnError;
use crate::server::api::error::ApiError;
use crate::server::api::query::SessionQuery;
use crate::server::app::App;
use crate::spend::Day;

#[derive(Serialize)]
pub(crate) struct Report {
    /// `limits.usd_per_user_day`.
    limit_usd: Option<f64>,
    /// What may be spent until the day ends.
    remaining_usd: Option<f64>,
    /// Seconds until the day (UTC) ends.
    resets_in: u64,
    /// The latest day first.
    days: Vec<DayReport>,
}

/// Running turns count by the list price of their tokens.
#[derive(Serialize)]
struct DayReport {
    day: String,
    cost_usd: f64,
    turns: u64,
    input_tokens: u64,
    output_tokens: u64,
    cache_creation_input_tokens: u64,
    cache_read_input_tokens: u64,
}

/// The caller's own, or of the named user for services and admins.
pub(crate) async fn report(
    State(app): State<Arc<App>>,
    query: SessionQuery,
) -> Result<Json<Report>, ApiError> {
    let user = query.subject()?;
    let statement = app.pilot.spend().statement(&user).await;
    let statement = statement.map_err(|error| TurnError::Storage(error.into()))?;
    let today = statement.today.as_ref().map_or(0.0, Day::cost_usd);
    Ok(Json(Report {
        limit_usd: statement.limit_usd,
        remaining_usd: statement.limit_usd.map(|limit| (limit - today).max(0.0)),
        resets_in: statement.resets_in.as_secs(),
        days: statement.days.into_iter().map(|(day, sums)| DayReport::of(day, &sums)).collect(),
    }))
}

impl DayReport {
    fn of(day: String, sums: &Day) -> Self {
        Self {
            day,
            cost_usd: sums.cost_usd(),
            turns: sums.turns,
            input_tokens: sums.input_tokens,
            output_tokens: sums.output_tokens,
            cache_creation_input_tokens: sums.cache_creation_input_tokens,
            cache_read_input_tokens: sums.cache_read_input_tokens,
        }
    }
}
