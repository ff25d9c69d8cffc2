//! A request for a turn, in any dialect: from its head and body to an answer.
//!
//! The body is read and parsed by its dialect; the caller tells whose session is meant; the conversation is the one that
//! is named, or the one whose history fits. Then the session is asked, and what comes is rendered: as events while it
//! comes ([`Answer`]), or gathered into one document. Dropping the response drops the turn, which interrupts it; where
//! turns are kept for callers who come back, a task of its own reads it ([`replay`]).

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::extract::{Extension, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use tokio::time::Instant;

use super::api::error::{ApiError, ErrorForm};
use super::api::router::{BodyRead, OfTurn, RequestId};
use super::api::sessions::checked;
use super::app::App;
use super::auth::caller::{self, Caller};
use super::auth::limits::TurnPermit;
use super::conversations::Claim;
use super::dialect::{self, Asked, Dialect, Frame, renderer};
use super::files::Watch;
use super::net::body::Received;
use crate::config::OnDisconnect;
use crate::error::TurnError;
use crate::model::SessionState;
use crate::model::ids::{DEFAULT_CONVERSATION, UserId};
use crate::system::Session;
use crate::turn::{Hold, Turn};

mod body;
mod collect;
mod conclusion;
mod heartbeat;
pub(super) mod idempotency;
mod mcp;
pub(super) mod replay;

use body::{Answer, Files, Gathering, Log};

/// The header that names the conversation, both ways.
pub(super) const SESSION_HEADER: HeaderName = HeaderName::from_static("x-pilotlight-session");
/// The header that lists fields without effect.
pub(super) const IGNORED_HEADER: &str = "x-pilotlight-ignored";
/// The header that says what happens to the turn when its caller goes away.
const ON_DISCONNECT_HEADER: &str = "x-pilotlight-on-disconnect";
/// A body longer than this is parsed on a thread for blocking work: a megabyte takes some milliseconds.
const PARSE_INLINE: usize = 256 << 10;

type Parse = fn(&[u8]) -> Result<Asked, ApiError>;

/// `POST /v1/messages`, in the dialect that the body is written in.
pub(super) async fn messages(
    app: State<Arc<App>>,
    id: Extension<RequestId>,
    caller: Extension<Caller>,
    request: Request,
) -> Response {
    take(app, id, caller, request, dialect::messages).await
}

/// `POST /v1/messages/keepalive`: the CLI's own events.
pub(super) async fn keepalive(
    app: State<Arc<App>>,
    id: Extension<RequestId>,
    caller: Extension<Caller>,
    request: Request,
) -> Response {
    take(app, id, caller, request, |bytes| {
        dialect::legacy::parse(bytes).map(|asked| Asked { stream: true, ..asked })
    })
    .await
}

/// `POST /v1/chat/completions`.
pub(super) async fn chat(
    app: State<Arc<App>>,
    id: Extension<RequestId>,
    caller: Extension<Caller>,
    request: Request,
) -> Response {
    take(app, id, caller, request, dialect::openai::parse).await
}

async fn take(
    State(app): State<Arc<App>>,
    Extension(RequestId(request_id)): Extension<RequestId>,
    Extension(caller): Extension<Caller>,
    request: Request,
    parse: Parse,
) -> Response {
    let begin = Instant::now();
    let (parts, body) = request.into_parts();
    let received = async {
        app.refuse_when_draining()?;
        app.bodies().receive(&caller, body).await
    };
    let received = match received.await {
        Ok(received) => received,
        Err(error) => return error.into_response(),
    };
    let mut response = Taking { app, caller, parts, request_id, begin }.answer(received, parse).await;
    response.extensions_mut().insert(BodyRead);
    response
}

/// A request whose body has come.
struct Taking {
    app: Arc<App>,
    caller: Caller,
    parts: Parts,
    request_id: String,
    begin: Instant,
}

/// The conversation of a request.
struct Conversation {
    name: String,
    /// What is to be told to the history when the turn has ended.
    claim: Option<Claim>,
}

impl Taking {
    async fn answer(self, received: Received, parse: Parse) -> Response {
        let (asked, key) = match self.read(received.bytes.clone(), parse).await {
            Ok(read) => read,
            Err(error) => return error.into_response(),
        };
        let hold = received.into_hold();
        // The path alone does not tell the original dialect.
        let form = match asked.dialect {
            Dialect::Original => ErrorForm::Own,
            Dialect::Anthropic => ErrorForm::Messages,
            Dialect::OpenAi => ErrorForm::ChatCompletions,
        };
        let mut response = self.turn(asked, key, hold, form).await.into_response();
        response.extensions_mut().insert(form);
        response
    }

    async fn turn(
        self,
        mut asked: Asked,
        key: Option<idempotency::Asked>,
        hold: Hold,
        form: ErrorForm,
    ) -> Result<Response, ApiError> {
        self.app.exporter().metrics().turns.increment(asked.dialect.metric_label());
        let config = &self.app.pilot().config().http;
        let without_effect = without_effect(&asked);
        if config.strict && (asked.ignored.is_refused_by_strict || !asked.left_out.is_empty()) {
            let fields = without_effect.join(", ");
            let message =
                format!("without effect here, and refused by configuration (http.strict): {fields}");
            return Err(ApiError::invalid("ignored_field", message));
        }
        let servers = mcp::choose(
            asked.mcp_servers.take(),
            &self.parts.headers,
            &self.caller,
            &self.app.pilot().config().mcp,
        )?;
        // The clients of the other dialects say everything with each request: none is said as well.
        asked.options.mcp_servers = match asked.dialect {
            Dialect::Original => servers,
            Dialect::Anthropic | Dialect::OpenAi => Some(servers.unwrap_or_default()),
        };
        let kept = self.on_disconnect()? == OnDisconnect::Detach;
        let client = asked.client.take().filter(|_| !self.caller.is_user());
        let named = match asked.user.as_ref().or(client.as_ref()) {
            Some(name) => Some(UserId::new(name).map_err(|error| ApiError::field("user", error))?),
            None => None,
        };
        let user = self.app.owner(&self.caller, named, asked.credentials.as_ref()).await?;
        let slot = match key {
            None => None,
            Some(key) => {
                match self.app.idempotency().begin(&key, &self.caller, &user, self.parts.uri.path())? {
                    idempotency::Begun::First(slot) => Some(slot),
                    idempotency::Begun::Again(response) => return Ok(response),
                }
            }
        };
        let permit = self.app.turn_permit(&user, &self.caller)?;
        let mut conversation = self.conversation(&user, &asked).await?;
        let session = self.app.pilot().conversation(user.as_bytes(), &conversation.name);
        if let Some(credentials) = &asked.credentials {
            session.write_credentials(credentials).await?;
        }
        let files = if asked.include_files { Some(watch(&session).await?) } else { None };
        let waits =
            session.status().is_some_and(|now| now.state == SessionState::Busy || now.queue_depth > 0);
        let (prompt, options) = (std::mem::take(&mut asked.prompt), std::mem::take(&mut asked.options));
        if let Some(claim) = &mut conversation.claim {
            claim.reached();
        }
        let turn = match session.send_held(prompt, options, Some(hold)).await {
            Ok(turn) => turn,
            Err(error) => {
                if let Some(claim) = &mut conversation.claim {
                    claim.not_reached();
                }
                return Err(error.into());
            }
        };
        let name = caller::header_text(&conversation.name);
        let (app, request_id) = (self.app.clone(), self.request_id.clone());
        let log = Log::new(self.request_id, self.begin);
        let work = Work { app: self.app, asked, conversation, turn, files, waits, permit, log };
        let answering = async move {
            let mut response = work.respond(user, kept, form).await.into_response();
            response.headers_mut().insert(SESSION_HEADER, name);
            response.extensions_mut().insert(OfTurn);
            response
        };
        match slot {
            None => Ok(answering.await),
            Some(slot) => app.idempotency().record(slot, (form, request_id), answering).await,
        }
    }

    /// What is asked for, and the key that it came with.
    async fn read(
        &self,
        bytes: Bytes,
        parse: Parse,
    ) -> Result<(Asked, Option<idempotency::Asked>), ApiError> {
        let headers = self.parts.headers.clone();
        let length = bytes.len();
        let read = move || {
            let key = idempotency::Asked::of(&headers, &bytes)?;
            let mut asked = parse(&bytes)?;
            asked.ignored = dialect::judge(asked.dialect, &bytes)?;
            Ok((asked, key))
        };
        if length <= PARSE_INLINE {
            return read();
        }
        let read = tokio::task::spawn_blocking(read).await;
        read.map_err(|_| TurnError::Internal("a request could not be read"))?
    }

    /// The named conversation; else, for clients that tell the whole history, the one that fits; else the default one.
    async fn conversation(&self, user: &UserId, asked: &Asked) -> Result<Conversation, ApiError> {
        let header = match self.parts.headers.get(&SESSION_HEADER) {
            Some(value) => Some(caller::named_by_header(value).ok_or_else(|| {
                ApiError::invalid("invalid_session", format!("{SESSION_HEADER} is not percent-encoded UTF-8"))
            })?),
            None => None,
        };
        if let Some(name) = &header {
            checked(name)?;
        }
        if let Some(name) = &asked.conversation {
            checked(name).map_err(|error| ApiError::field("session_id", error.message()))?;
        }
        if let Some(name) = asked.conversation.clone().or(header) {
            self.app.conversations().named(user, &name).await;
            return Ok(Conversation { name, claim: None });
        }
        match &asked.told {
            Some(told) => {
                let claim = self.app.conversations().claim(user, told).await?;
                Ok(Conversation { name: claim.conversation().to_owned(), claim: Some(claim) })
            }
            None => Ok(Conversation { name: DEFAULT_CONVERSATION.to_owned(), claim: None }),
        }
    }

    fn on_disconnect(&self) -> Result<OnDisconnect, ApiError> {
        match self.parts.headers.get(ON_DISCONNECT_HEADER).map(HeaderValue::as_bytes) {
            None => Ok(self.app.pilot().config().http.on_disconnect),
            Some(b"interrupt") => Ok(OnDisconnect::Interrupt),
            Some(b"detach") => Ok(OnDisconnect::Detach),
            Some(_) => {
                let message = format!("{ON_DISCONNECT_HEADER} must be interrupt or detach");
                Err(ApiError::invalid("invalid_header", message))
            }
        }
    }
}

/// The names of fields, and of parts of the history, that have no effect.
fn without_effect(asked: &Asked) -> Vec<&str> {
    asked.ignored.names.iter().chain(&asked.left_out).map(String::as_str).collect()
}

/// An accepted turn that is to be answered.
struct Work {
    app: Arc<App>,
    asked: Asked,
    conversation: Conversation,
    turn: Turn,
    files: Option<Watch>,
    /// Other turns of the session come before this one.
    waits: bool,
    permit: TurnPermit,
    log: Log,
}

impl Work {
    async fn respond(self, user: UserId, kept: bool, form: ErrorForm) -> Result<Response, ApiError> {
        let name = self.conversation.name.clone();
        let ignored = without_effect(&self.asked).join(",");
        let frame = Frame { session: name.clone(), created: now(), model: self.asked.model.clone() };
        let replays = self.app.clone();
        let mut response = match (self.asked.stream, kept) {
            (true, false) => events(Body::from_stream(self.begin(&frame).await?)),
            (true, true) => {
                let begin = async move { self.begin(&frame).await };
                events(Body::from_stream(replays.replays().detach(&user, &name, form, begin).await?))
            }
            (false, false) => self.collect(&frame).await?,
            (false, true) => replays.replays().collect(&user, &name, form, self.collect_owned(frame)).await?,
        };
        if !ignored.is_empty() {
            response.headers_mut().insert(IGNORED_HEADER, caller::header_text(&ignored));
        }
        Ok(response)
    }

    /// The answer as events, begun: a failure before its first event is a status.
    async fn begin(mut self, frame: &Frame) -> Result<Answer, ApiError> {
        let config = self.app.pilot().config();
        let heartbeat = config.http.heartbeat;
        let reader = self.turn.answer_reader(config.cli.partial_messages);
        let render = renderer(&self.asked, frame, reader, self.conversation.claim.is_some());
        let render = (self.asked.dialect, render);
        let (started_once, claim) = (self.app.started_once().clone(), self.conversation.claim);
        let mut answer =
            Answer::new(self.turn, render, started_once, claim, self.permit, heartbeat, self.log);
        if let Some(watch) = self.files.take() {
            answer.gather(Box::new(Watched { app: self.app.clone(), watch, waits: self.waits }));
        }
        answer.begin().await?;
        Ok(answer)
    }
}

/// The workspace of a turn on its way.
struct Watched {
    app: Arc<App>,
    watch: Watch,
    /// Other turns of the session come before this one.
    waits: bool,
}

impl Files for Watched {
    fn turn_begins(&mut self) {
        if std::mem::take(&mut self.waits) {
            self.watch.look_again();
        }
    }

    fn gather(self: Box<Self>) -> Gathering {
        gathering(self.app, self.watch)
    }
}

/// What the turn wrote, when it is this answer's turn to look.
fn gathering(app: Arc<App>, watch: Watch) -> Gathering {
    Box::pin(async move {
        // Closed never.
        let _room = app.gathering().acquire().await;
        watch.written().await
    })
}

async fn watch(session: &Session) -> Result<Watch, ApiError> {
    let watch = Watch::start(session.work().await?).await;
    watch.map_err(|error| TurnError::Storage(error.to_string()).into())
}

/// A response of events.
fn events(body: Body) -> Response {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // nginx would collect events before it passes them on.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
