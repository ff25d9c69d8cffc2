//! One attached client, from its first line to the end of its child.

use std::io;

use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri};
use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::{Duration, timeout};

use super::refusal::{self, Presence};
use super::wire::{END, EXIT, Hello, NOTE, OUTPUT};
use super::{Attaching, peer, servers};
use crate::adapter::{self, AttachRules, Gate};
use crate::child::{LINES_IN_FLIGHT, RawClient, RawInput, RawOutput};
use crate::config::SlashCommands;
use crate::error::TurnError;
use crate::model::ids::{DEFAULT_CONVERSATION, UserId};
use crate::server::api::error::ApiError;
use crate::server::api::sessions::addressable;
use crate::server::auth::caller::{Caller, USER_HEADER};
use crate::server::auth::limits::TurnPermit;
use crate::server::turns::restrict::restrict;
use crate::session::attach::Attachment;
use crate::telemetry::metrics::AttachRefusal;
use crate::turn::{Turn, TurnOptions};

/// Maximum time to send the first line.
const HELLO_WITHIN: Duration = Duration::from_secs(10);
/// Maximum length of the first line: command lines with long prompts.
const MAX_HELLO: usize = 4 << 20;
/// Bytes of one read.
const READ: usize = 64 << 10;
/// Exit code of a refusal.
const REFUSED: i32 = 1;
/// What the caller's rules are asked about.
const PATH: &str = "/v1/attach";

/// Serves one connection.
pub(super) async fn serve(attaching: Attaching, stream: UnixStream, slot: Option<OwnedSemaphorePermit>) {
    let refusal = peer::refusal(&stream);
    let (read, write) = stream.into_split();
    let writer = Writer { write, limit: attaching.app.pilot.config().http.write_timeout };
    let metrics = attaching.app.exporter.metrics.clone();
    let problem = match (refusal, &slot) {
        (Some(refusal), _) => Some((AttachRefusal::Peer, refusal)),
        (None, None) => {
            Some((AttachRefusal::Connections, "too many clients are attached (attach.connections)"))
        }
        (None, Some(_)) => None,
    };
    if let Some((why, problem)) = problem {
        metrics.attach_refused.increment(why);
        return writer.refuse(problem).await;
    }
    let limit = attaching.app.pilot.config().session.line_limit;
    let mut reader = Reader { read, buffer: BytesMut::new(), searched: 0, limit: MAX_HELLO };
    let hello = timeout(HELLO_WITHIN, reader.line()).await;
    let hello: Option<Hello> =
        hello.ok().and_then(Result::ok).flatten().and_then(|line| serde_json::from_slice(&line).ok());
    reader.limit = limit;
    let Some(hello) = hello else {
        metrics.attach_refused.increment(AttachRefusal::Malformed);
        return writer.refuse("the first line of the client is not understood").await;
    };
    match Box::pin(attach(&attaching, hello)).await {
        Ok(attached) => Box::pin(attached.run(reader, writer)).await,
        Err(error) => {
            metrics.attach_refused.increment(refusal::reason(&error));
            writer.refuse(error.message()).await;
        }
    }
}

/// A client whose child is on its way.
struct Attached {
    turn: Turn,
    notes: Vec<String>,
    input: mpsc::Sender<RawInput>,
    output: mpsc::Receiver<RawOutput>,
    caller: Caller,
    presence: Presence,
    _permit: TurnPermit,
}

/// Checks who asks, and for what, and has the session start a child.
async fn attach(attaching: &Attaching, hello: Hello) -> Result<Attached, ApiError> {
    let app = &attaching.app;
    app.refuse_when_draining()?;
    let mut headers = HeaderMap::new();
    for (name, value) in [("x-api-key", &hello.key), (USER_HEADER, &hello.user)] {
        if let Some(value) = value {
            let value = HeaderValue::from_bytes(value.as_bytes());
            let value = value.map_err(|_| {
                ApiError::invalid("invalid_user", "user or key has characters that cannot be sent".to_owned())
            })?;
            headers.insert(name, value);
        }
    }
    let admitted = attaching.policy.admit(&Uri::from_static(PATH), &headers);
    let caller = admitted.inspect_err(|error| {
        let (key, role) = attaching.policy.refused_as(&headers);
        app.audit.refused(error.code(), (key.as_deref(), role));
    })?;
    // The path is none of those that are open without a key.
    let caller = caller.ok_or_else(|| ApiError::invalid("missing_key", "send a key"))?;
    let request_id = uuid::Uuid::new_v4().to_string();
    let entry = app.audit.record("attach", caller.recorded_as(), &request_id);
    let attached = Box::pin(admitted_as(attaching, hello, caller.recorded(entry.clone()))).await;
    if let Some(entry) = entry {
        match &attached {
            Ok(_) => entry.concluded(StatusCode::OK, None),
            Err(error) => entry.concluded(error.status(), Some(error.code())),
        }
    }
    attached
}

async fn admitted_as(attaching: &Attaching, hello: Hello, caller: Caller) -> Result<Attached, ApiError> {
    let app = &attaching.app;
    app.rate_limits.count(&caller)?;
    let (user, inside) = app.owner(&caller, None::<UserId>, None).await?;
    app.count_new_user(&caller, &user).await?;
    let name = hello.session.unwrap_or_else(|| DEFAULT_CONVERSATION.to_owned());
    addressable(&name)?;
    if let Some(entry) = caller.entry() {
        entry.in_session(name.clone());
    }
    let config = app.pilot.current();
    let limits = caller.limits();
    let rules = AttachRules {
        policy: config.permissions.policy.stricter(limits.policy),
        models: limits.models.as_ref().map(|models| models.iter().cloned().collect()),
        commands: match config.cli.slash_commands {
            // A command could choose another model.
            SlashCommands::Pass if limits.restrict_use() => SlashCommands::Text,
            commands => commands,
        },
        prompt_limit: config.session.prompt_limit,
    };
    let refused = |problem: String| ApiError::invalid(refusal::FLAG, problem);
    let request = adapter::parse_attach(&hello.arguments, &rules).map_err(refused)?;
    let mut options = TurnOptions {
        model: request.model,
        fallback_model: request.fallback_model,
        ..TurnOptions::default()
    };
    restrict(&mut options, limits)?;
    if let Some(tools) = request.tools {
        let restrictions = options.restrictions.get_or_insert_default();
        restrictions.tools = Some(match restrictions.tools.take() {
            Some(allowed) => allowed.intersection(&tools).cloned().collect(),
            None => tools,
        });
    }
    let servers = servers::accepted(request.servers, &caller, &config.mcp)?;
    let permit = app.turn_permit(&user, &caller)?;
    app.conversations.exclude(&inside, &name).await;
    let session = app.pilot.conversation(user.as_bytes(), &name);
    if !request.directories.is_empty() {
        let dirs = session.workspace().await?;
        if !request.directories.iter().all(|directory| servers::is_inside(directory, &dirs.work)) {
            let problem = "--add-dir: only directories within the session's working directory are taken";
            return Err(refused(problem.to_owned()));
        }
    }
    let reads = (request.flags.partial, request.flags.replay);
    let secrets = servers.clone();
    let gate =
        Gate::new(rules, request.opening, request.asks, reads).with_servers(servers, &request.own_servers);
    let (input, received) = mpsc::channel(LINES_IN_FLIGHT);
    let (sent, output) = mpsc::channel(LINES_IN_FLIGHT);
    let client = RawClient { gate, input: received, output: sent, idle_timeout: config.attach.idle_timeout };
    let attachment = Attachment::new(request.flags, request.conversation, secrets, client);
    let turn = session.attach(options, attachment).await?;
    let presence = Presence::begin(app.exporter.metrics.clone());
    Ok(Attached { turn, notes: request.notes, input, output, caller, presence, _permit: permit })
}

impl Attached {
    /// Passes lines both ways until the child has ended or the client is gone.
    async fn run(self, reader: Reader, mut writer: Writer) {
        let Self { turn, notes, input, mut output, caller, presence, _permit } = self;
        for note in &notes {
            if writer.line(NOTE, note.as_bytes()).await.is_err() {
                return;
            }
        }
        let revoked = async {
            match caller.revoked() {
                Some(revoked) => revoked.cancelled().await,
                None => std::future::pending().await,
            }
        };
        let reading = pass_on(reader, input);
        let mut ended = Box::pin(turn.outcome_only());
        tokio::pin!(reading, revoked);
        let mut end: Option<Option<TurnError>> = None;
        loop {
            tokio::select! {
                // The client is gone. Dropping the output tells the child.
                () = &mut reading => return,
                () = &mut revoked => return writer.refuse("the key was revoked").await,
                // What the child has sent is read first.
                error = &mut ended, if end.is_none() => end = Some(error),
                next = output.recv() => {
                    let sent = match next {
                        // No child has had the client, as a rule.
                        None => {
                            let error = match end {
                                Some(error) => error,
                                None => ended.await,
                            };
                            presence.refused();
                            let error = error.unwrap_or(TurnError::Internal("the child's task failed"));
                            let error = ApiError::from(error);
                            if let Some(entry) = caller.entry() {
                                entry.ended(error.code());
                            }
                            return writer.refuse(error.message()).await;
                        }
                        Some(RawOutput::Line(line)) => writer.line(OUTPUT, line.trim_ascii_end()).await,
                        Some(RawOutput::Note(note)) => writer.line(NOTE, note.as_bytes()).await,
                        Some(RawOutput::Exit { code, stderr }) => {
                            return writer.exit(code, &stderr).await;
                        }
                    };
                    if sent.is_err() {
                        return;
                    }
                }
            }
        }
    }
}

/// Passes the client's lines on; ends when the client is gone.
async fn pass_on(mut reader: Reader, input: mpsc::Sender<RawInput>) {
    while let Ok(Some(line)) = reader.line().await {
        let line = if line == END.trim_ascii_end() { RawInput::End } else { RawInput::Line(line) };
        if input.send(line).await.is_err() {
            // The child takes no more. How it ended is on the way to the client.
            return reader.end().await;
        }
    }
}

/// Lines from a client.
struct Reader {
    read: OwnedReadHalf,
    buffer: BytesMut,
    searched: usize,
    limit: usize,
}

impl Reader {
    /// The next line without its line end; `None` at the end.
    async fn line(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            let unread = self.buffer.get(self.searched..).unwrap_or_default();
            if let Some(at) = memchr::memchr(b'\n', unread) {
                let length = self.searched + at;
                self.searched = 0;
                let mut line = self.buffer.split_to(length + 1).freeze();
                line.truncate(length);
                if line.ends_with(b"\r") {
                    line.truncate(length - 1);
                }
                return if length > self.limit { Err(too_long()) } else { Ok(Some(line)) };
            }
            self.searched = self.buffer.len();
            if self.searched > self.limit {
                return Err(too_long());
            }
            self.buffer.reserve(READ);
            if self.read.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        }
    }

    /// Waits for the end of the client.
    async fn end(&mut self) {
        loop {
            self.buffer.clear();
            match self.read.read_buf(&mut self.buffer).await {
                Ok(read) if read > 0 => self.buffer.advance(read),
                _ => return,
            }
        }
    }
}

fn too_long() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a line is too long")
}

/// Lines for a client.
struct Writer {
    write: OwnedWriteHalf,
    limit: Duration,
}

impl Writer {
    async fn line(&mut self, kind: u8, text: &[u8]) -> io::Result<()> {
        let sent = async {
            self.write.write_all(&[kind]).await?;
            self.write.write_all(text).await?;
            self.write.write_all(b"\n").await
        };
        timeout(self.limit, sent).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    async fn exit(mut self, code: i32, stderr: &str) {
        for line in stderr.lines() {
            if self.line(NOTE, line.as_bytes()).await.is_err() {
                return;
            }
        }
        self.line(EXIT, code.to_string().as_bytes()).await.ok();
    }

    /// Says why the client is not served, or no longer.
    async fn refuse(self, problem: &str) {
        self.exit(REFUSED, problem).await;
    }
}

/// Only the end of a turn that has no lines of its own.
trait OutcomeOnly {
    async fn outcome_only(self) -> Option<TurnError>;
}

impl OutcomeOnly for Turn {
    async fn outcome_only(mut self) -> Option<TurnError> {
        while self.next().await.is_some() {}
        self.outcome().and_then(|outcome| outcome.status.error().cloned())
    }
}
