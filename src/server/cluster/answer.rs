//! Answers a request here, or has the node answer it that has its user.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::request::Parts;
use axum::http::{HeaderValue, Method};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use tokio::time::{Instant, sleep};

use super::forward::ForwardError;
use super::lost::is_of_turn;
use super::{ClusterSide, NODE_HEADER};
use crate::cluster::{Grant, NodeAddress};
use crate::error::TurnError;
use crate::model::ids::UserId;
use crate::server::api::error::{ApiError, ErrorForm};
use crate::server::api::router::{BodyRead, OfTurn, Replayed};
use crate::server::app::App;
use crate::server::auth::caller::Caller;
use crate::telemetry::metrics::ForwardResult;

/// Pause before a request is routed again: a lease of a node that is lost ends after seconds.
const PAUSE: Duration = Duration::from_millis(100);
/// Header of a repeated answer, which keeps the request id of the first.
const REPLAYED_HEADER: &str = "idempotent-replayed";
/// Header by which a node says that it does not have the user of a request.
pub(super) const NOT_OWNER_HEADER: &str = "x-pilotlight-not-owner";

/// Runs the handler. If another node has the user, sends the request there. Requests `from_peer` are answered here in any case.
pub(crate) async fn answer(
    app: &Arc<App>,
    request: Request,
    next: Next,
    from_peer: bool,
    form: ErrorForm,
) -> Response {
    let Some(side) = &app.cluster else { return next.run(request).await };
    let is_change = !matches!(*request.method(), Method::GET | Method::HEAD);
    let caller = request.extensions().get::<Caller>().cloned();
    let mut response = match &caller {
        Some(caller) if !from_peer => here_or_there(app, side, request, next, caller, form).await,
        _ => next.run(request).await,
    };
    if is_change && let Some((user, grant)) = caller.as_ref().and_then(Caller::served) {
        response = committed(side, &user, &grant, response).await;
    }
    if from_peer && response.extensions().get::<ApiError>().is_some_and(ApiError::is_for_another) {
        response.headers_mut().insert(NOT_OWNER_HEADER, HeaderValue::from_static("1"));
    }
    if !response.headers().contains_key(NODE_HEADER)
        && let Ok(name) = HeaderValue::from_str(side.cluster.name())
    {
        response.headers_mut().insert(NODE_HEADER, name);
    }
    response
}

/// A change is answered once other nodes can go on after it. Turns see to it themselves.
async fn committed(side: &ClusterSide, user: &UserId, grant: &Grant, response: Response) -> Response {
    let is_turn = response.extensions().get::<OfTurn>().is_some();
    if is_turn || !response.status().is_success() {
        return response;
    }
    if !side.cluster.waits(user) {
        side.cluster.commit_changes_later(user);
        return response;
    }
    match side.cluster.commit_changes(user, grant).await {
        Ok(()) => response,
        // It was done: who repeats it would do it twice.
        Err(TurnError::Moved) => ApiError::from(TurnError::NodeFenced { in_turn: true }).into_response(),
        Err(error) => ApiError::from(error).into_response(),
    }
}

async fn here_or_there(
    app: &Arc<App>,
    side: &ClusterSide,
    request: Request,
    next: Next,
    caller: &Caller,
    form: ErrorForm,
) -> Response {
    let (parts, body) = request.into_parts();
    // The body may be needed twice.
    let received = match app.bodies.receive(caller, body).await {
        Ok(received) => received,
        Err(error) => return error.into_response(),
    };
    let body: Bytes = received.bytes.clone();
    // The handler takes its own share of the memory for the same bytes.
    drop(received);
    // Also between two tries: a node that stops waits for it.
    let _passing = side.passing.token();
    let deadline = caller.routes_by(side.cluster.route_deadline());
    loop {
        caller.route_again();
        let request = Request::from_parts(parts.clone(), Body::from(body.clone()));
        let mut response = next.clone().run(request).await;
        let error = response.extensions().get::<ApiError>();
        let node = error.and_then(ApiError::node).cloned();
        let mut held = None;
        if let Some(node) = node {
            held = match app.bodies.reserve(caller, body.len()).await {
                Ok(hold) => Some(hold),
                Err(error) => return error.into_response(),
            };
            match there(side, (&parts, body.clone()), caller, &node, form).await {
                Ok(Some(response)) => return response,
                // It is not there: the lease of its node ends, or the user moves.
                Ok(None) => {}
                Err(lost) => return lost.into_response(),
            }
        } else if !error.is_some_and(ApiError::is_unbegun) {
            response.extensions_mut().insert(BodyRead);
            return response;
        }
        if Instant::now() + PAUSE >= side.at_close(deadline) {
            return response;
        }
        sleep(PAUSE).await;
        drop(held);
    }
}

/// The answer of another node; `None` if it has not begun the request.
async fn there(
    side: &ClusterSide,
    request: (&Parts, Bytes),
    caller: &Caller,
    node: &NodeAddress,
    form: ErrorForm,
) -> Result<Option<Response>, ApiError> {
    // A machine that has vanished ends no connection.
    let gone = side.cluster.gone(&node.id);
    // A view may go on for as long as its client looks.
    let passing = is_of_turn(&request.0.uri).then(|| side.passing.token());
    let gone = async move {
        gone.await;
        drop(passing);
    };
    let sent = side.forwarder.send(&side.peers, request, caller, (node.address.as_str(), gone), form).await;
    side.cluster.count_forwarded(match &sent {
        Ok(_) => ForwardResult::Answered,
        Err(ForwardError::Unreached) => ForwardResult::Unreached,
        Err(ForwardError::Lost) => ForwardResult::Lost,
    });
    match sent {
        Ok(response) if is_of_no_owner(&response) => Ok(None),
        Ok(mut response) => {
            if response.headers().contains_key(REPLAYED_HEADER) {
                response.extensions_mut().insert(Replayed);
            }
            response.extensions_mut().insert(BodyRead);
            Ok(Some(response))
        }
        Err(ForwardError::Unreached) => Ok(None),
        Err(ForwardError::Lost) => Err(ApiError::node_lost()),
    }
}

fn is_of_no_owner(response: &Response) -> bool {
    response.headers().contains_key(NOT_OWNER_HEADER)
}
