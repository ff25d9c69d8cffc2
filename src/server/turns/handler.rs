//! From a received body to an accepted turn.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use tokio::time::Instant;

use super::asynchronous::Accepted;
use super::control::TurnControl;
use super::idempotency::{Begin, IdempotencyKey};
use super::judge::Judge;
use super::log::TurnLog;
use super::prefer::Prefer;
use super::restrict::restrict;
use super::{ON_DISCONNECT_HEADER, PendingTurn, SESSION_HEADER, TOOLS_HEADER, mcp};
use crate::config::OnDisconnect;
use crate::error::TurnError;
use crate::model::SessionState;
use crate::model::ids::UserId;
use crate::server::api::error::{ApiError, ErrorForm};
use crate::server::api::router::OfTurn;
use crate::server::app::App;
use crate::server::auth::caller::{self, Caller};
use crate::server::dialect::{self, Dialect, TurnRequest};
use crate::server::files::WorkspaceWatch;
use crate::server::net::body::Received;
use crate::support::keyed_gates::Inside;
use crate::system::Session;
use crate::turn::{Hold, TurnOptions};

/// Longest body parsed on the runtime; longer ones go to a blocking thread. A megabyte takes some milliseconds.
const PARSE_INLINE: usize = 256 << 10;

pub(super) type Parse = fn(&[u8]) -> Result<TurnRequest, ApiError>;

pub(super) struct TurnHandler {
    pub(super) app: Arc<App>,
    pub(super) caller: Caller,
    pub(super) parts: Parts,
    pub(super) request_id: String,
    pub(super) begin: Instant,
}

impl TurnHandler {
    /// Parses the body, runs the turn, and marks the response with the error form of its dialect.
    pub(super) async fn run(&self, received: Received, parse: Parse) -> Response {
        let (request, key) = match self.parse(&received.bytes, parse).await {
            Ok(parsed) => parsed,
            Err(error) => return error.into_response(),
        };
        let hold = received.into_hold();
        // The path does not determine the dialect.
        let form = match request.dialect {
            Dialect::Legacy => ErrorForm::Own,
            Dialect::Anthropic => ErrorForm::Messages,
            Dialect::OpenAi => ErrorForm::ChatCompletions,
            Dialect::Responses => ErrorForm::Responses,
        };
        let mut response = self.submit(request, key, hold, form).await.into_response();
        response.extensions_mut().insert(form);
        response
    }

    async fn parse(&self, bytes: &Bytes, parse: Parse) -> Result<Parsed, ApiError> {
        if bytes.len() <= PARSE_INLINE {
            return parsed(&self.parts.headers, bytes, parse);
        }
        let (headers, bytes) = (self.parts.headers.clone(), bytes.clone());
        let parsed = tokio::task::spawn_blocking(move || parsed(&headers, &bytes, parse)).await;
        parsed.map_err(|_| TurnError::Internal("a request could not be read"))?
    }

    /// Checks the request, sends its prompt to the session of its user, and responds.
    async fn submit(
        &self,
        mut request: Box<TurnRequest>,
        key: Option<IdempotencyKey>,
        hold: Hold,
        form: ErrorForm,
    ) -> Result<Response, ApiError> {
        self.app.exporter.metrics.turns.increment(request.dialect.metric_label());
        self.refuse_ignored_fields(&request)?;
        self.choose_mcp_servers(&mut request)?;
        restrict(&mut request.options, self.caller.limits())?;
        self.choose_own_tools(&mut request.options)?;
        let is_detached = self.on_disconnect()? == OnDisconnect::Detach;
        let is_background = request.response.as_ref().is_some_and(|asked| asked.is_background);
        let is_later = is_background || Prefer::of(&self.parts.headers).respond_async;
        let is_watched = is_later || is_detached && self.app.replays.reports_ends();
        let control = is_watched.then(Arc::<TurnControl>::default);
        let (user, inside) = self.user(&mut request).await?;
        let reservation = match key {
            None => None,
            Some(key) => {
                match self.app.idempotency.begin(&key, &self.caller, &user, self.parts.uri.path())? {
                    Begin::New(reservation) => Some(reservation),
                    Begin::Replay(response) => return Ok(response),
                }
            }
        };
        let permit = self.app.turn_permit(&user, &self.caller)?;
        let needs_others = request.response.as_ref().is_some_and(|asked| asked.needs_others());
        let (mut request, continued, more_hold) = match needs_others {
            // On the heap, so that the usual way stays small.
            true => Box::pin(self.complete(&user, request)).await?,
            false => (request, None, None),
        };
        let mut conversation = self.conversation(&inside, &request, continued).await?;
        let session = self.app.pilot.conversation(user.as_bytes(), &conversation.name);
        if let Some(credentials) = &request.credentials {
            session.write_credentials(credentials).await?;
        }
        let files = if request.include_files { Some(watch(&session).await?) } else { None };
        let is_queued =
            session.status().is_some_and(|now| now.state == SessionState::Busy || now.queue_depth > 0);
        let (prompt, options) = (std::mem::take(&mut request.prompt), std::mem::take(&mut request.options));
        let mut judge = Judge::new(&request.expected, &session, &options);
        let hold = match more_hold {
            Some(more) => Arc::new((hold, more)),
            None => hold,
        };
        if let Some(recording) = &mut conversation.held.recording {
            recording.keep(&mut request, hold.clone());
        }
        conversation.held.mark_sent();
        let turn = match session.send_held(prompt, options, Some(hold)).await {
            Ok(turn) => turn,
            Err(error) => {
                conversation.held.mark_unsent();
                return Err(error.into());
            }
        };
        // The turn is the session's now, and ends with it.
        drop(inside);
        if let Some(control) = &control {
            control.runs(&turn);
            judge.iter_mut().for_each(|judge| judge.controlled_by(control.clone()));
        }
        let log = TurnLog::new(self.request_id.clone(), self.begin)
            .reporting(control.clone())
            .recording(self.caller.entry().cloned());
        let app = self.app.clone();
        let turn = PendingTurn {
            app,
            request,
            conversation,
            turn,
            files,
            is_queued,
            permit,
            log,
            judge,
            control: control.clone(),
        };
        let turn = Box::new(turn);
        if let Some(control) = control.filter(|_| is_later) {
            let later = std::future::ready(self.respond_later(Accepted { turn, user, form, control }));
            return match reservation {
                None => Ok(later.await),
                Some(reservation) => {
                    let form = (form, self.request_id.clone());
                    // On the heap: the rarer way.
                    Box::pin(self.app.idempotency.record(reservation, form, later)).await
                }
            };
        }
        let responding = respond(turn, user, is_detached, form);
        match reservation {
            None => Ok(responding.await),
            Some(reservation) => {
                let form = (form, self.request_id.clone());
                self.app.idempotency.record(reservation, form, responding).await
            }
        }
    }

    /// With `http.strict`, refuses a request with fields or history parts that have no effect.
    pub(super) fn refuse_ignored_fields(&self, request: &TurnRequest) -> Result<(), ApiError> {
        let is_refusable = request.ignored.is_refused_by_strict || !request.left_out.is_empty();
        if !(is_refusable && self.app.pilot.current().http.strict) {
            return Ok(());
        }
        let fields = request.without_effect().join(", ");
        let message = format!("without effect here, and refused by configuration (http.strict): {fields}");
        Err(ApiError::invalid("ignored_field", message))
    }

    fn choose_mcp_servers(&self, request: &mut TurnRequest) -> Result<(), ApiError> {
        let config = &self.app.pilot.config().mcp;
        let requested = request.mcp_servers.take();
        let servers = mcp::choose(requested, &self.parts.headers, &self.caller, config)?;
        // SDK clients state everything with each request: no servers means none, not the former ones.
        request.options.mcp_servers = match request.dialect {
            Dialect::Legacy => servers,
            Dialect::Anthropic | Dialect::OpenAi | Dialect::Responses => Some(servers.unwrap_or_default()),
        };
        Ok(())
    }

    /// Switches off the CLI's own tools for this turn, if the request says so.
    fn choose_own_tools(&self, options: &mut TurnOptions) -> Result<(), ApiError> {
        match self.parts.headers.get(TOOLS_HEADER).map(HeaderValue::as_bytes) {
            None => Ok(()),
            Some(b"none") => {
                options.restrictions.get_or_insert_default().tools = Some(BTreeSet::new());
                Ok(())
            }
            Some(_) => Err(ApiError::invalid("invalid_header", format!("{TOOLS_HEADER} must be none"))),
        }
    }

    async fn user(&self, request: &mut TurnRequest) -> Result<(UserId, Inside<UserId>), ApiError> {
        let client = request.client.take().filter(|_| !self.caller.is_user());
        let named = match request.user.as_ref().or(client.as_ref()) {
            Some(name) => Some(UserId::new(name).map_err(|error| ApiError::field("user", error))?),
            None => None,
        };
        let owner = self.app.owner(&self.caller, named, request.credentials.as_ref()).await?;
        // Credentials may have identified the user.
        self.caller.is_about(&owner.0);
        self.app.count_new_user(&self.caller, &owner.0).await?;
        Ok(owner)
    }

    fn on_disconnect(&self) -> Result<OnDisconnect, ApiError> {
        match self.parts.headers.get(ON_DISCONNECT_HEADER).map(HeaderValue::as_bytes) {
            None => Ok(self.app.pilot.current().http.on_disconnect),
            Some(b"interrupt") => Ok(OnDisconnect::Interrupt),
            Some(b"detach") => Ok(OnDisconnect::Detach),
            Some(_) => {
                let message = format!("{ON_DISCONNECT_HEADER} must be interrupt or detach");
                Err(ApiError::invalid("invalid_header", message))
            }
        }
    }
}

/// A request, and its idempotency key.
type Parsed = (Box<TurnRequest>, Option<IdempotencyKey>);

/// Parses the body and the idempotency key, and collects fields without effect.
fn parsed(headers: &HeaderMap, bytes: &[u8], parse: Parse) -> Result<Parsed, ApiError> {
    let key = IdempotencyKey::of(headers, bytes)?;
    // On the heap: it passes several futures, each of which would move its hundreds of bytes.
    let mut request = Box::new(parse(bytes)?);
    request.ignored = dialect::judge(request.dialect, bytes)?;
    Ok((request, key))
}

pub(super) async fn respond(
    turn: Box<PendingTurn>,
    user: UserId,
    is_detached: bool,
    form: ErrorForm,
) -> Response {
    let name = caller::header_text(&turn.conversation.name);
    let mut response = turn.respond(user, is_detached, form).await.into_response();
    response.headers_mut().insert(SESSION_HEADER, name);
    response.extensions_mut().insert(OfTurn);
    response
}

async fn watch(session: &Session) -> Result<WorkspaceWatch, ApiError> {
    let watch = WorkspaceWatch::start(session.work().await?).await;
    watch.map_err(|error| TurnError::Storage(error.into()).into())
}
