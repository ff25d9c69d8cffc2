//! `/v1/cluster`: the nodes of the cluster as this one sees them, and what an operator does about them.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::cluster::{Cluster, ClusterStatus, ForgetError};
use crate::server::api::error::ApiError;
use crate::server::api::query::SessionQuery;
use crate::server::app::App;

/// Users that one call moves, by default and at most.
const MOVED: (usize, usize) = (100, 10_000);

/// The nodes; none where this server is alone.
pub(crate) async fn show(
    State(app): State<Arc<App>>,
    query: SessionQuery,
) -> Result<Json<ClusterStatus>, ApiError> {
    refuse_others(&query)?;
    Ok(Json(app.pilot.cluster().map_or_else(ClusterStatus::default, |cluster| cluster.status())))
}

/// This node takes no further users and hands over those it has, as they come to rest.
pub(crate) async fn drain(
    State(app): State<Arc<App>>,
    query: SessionQuery,
) -> Result<Json<ClusterStatus>, ApiError> {
    let cluster = of(&app, &query)?;
    // A node that is about to stop drains already.
    cluster.drain(true);
    Ok(Json(cluster.status()))
}

/// This node takes users again.
pub(crate) async fn resume(
    State(app): State<Arc<App>>,
    query: SessionQuery,
) -> Result<Json<ClusterStatus>, ApiError> {
    let cluster = of(&app, &query)?;
    if !cluster.drain(false) {
        let message = "this node is about to stop: it takes users again once it is started again";
        return Err(ApiError::conflict("node_stopping", message.to_owned(), None));
    }
    Ok(Json(cluster.status()))
}

/// Lets users go who rest here and have their place on another node, as fast as `cluster.rebalance_per_minute` allows.
pub(crate) async fn rebalance(
    State(app): State<Arc<App>>,
    query: SessionQuery,
) -> Result<Json<Value>, ApiError> {
    let cluster = of(&app, &query)?;
    let most = query.fields.limit(MOVED.0, MOVED.1)?;
    let (moved, left) = cluster.rebalance(most);
    Ok(Json(json!({ "moved": moved, "left": left })))
}

/// Removes what a dead node has left in etcd.
pub(crate) async fn forget(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    query: SessionQuery,
) -> Result<Json<Value>, ApiError> {
    let cluster = of(&app, &query)?;
    match cluster.forget(&name).await {
        Ok(forgotten) => Ok(Json(json!({ "node": forgotten.node, "owners": forgotten.owners }))),
        Err(error @ ForgetError::Alive(_)) => Err(ApiError::conflict("node_alive", error.to_string(), None)),
        Err(error @ ForgetError::Unknown) => {
            Err(ApiError::new(StatusCode::NOT_FOUND, "node_not_found", error.to_string()))
        }
        Err(error) => Err(ApiError::overloaded(&error.to_string(), std::time::Duration::from_secs(1))),
    }
}

fn refuse_others(query: &SessionQuery) -> Result<(), ApiError> {
    if query.caller.is_admin() {
        return Ok(());
    }
    let message = "the cluster is for keys of the role admin";
    Err(ApiError::new(StatusCode::FORBIDDEN, "admin_only", message))
}

fn of<'a>(app: &'a App, query: &SessionQuery) -> Result<&'a Cluster, ApiError> {
    refuse_others(query)?;
    let cluster = app.pilot.cluster().map(AsRef::as_ref);
    cluster.ok_or_else(|| {
        let message = "this server is alone: it has no cluster (cluster.etcd)";
        ApiError::new(StatusCode::NOT_FOUND, "no_cluster", message)
    })
}
