//! The audit log: who used which verb on which session, and what came of it.
//!
//! For the operator, in a file of its own (`audit.file`). A line has no text of a conversation and no credential. Users and
//! sessions appear as the digests that name their directories. A line is made when the request is over, a turn when it has ended:
//! an [`Entry`] is shared by all that know a part of it, and its end queues it. A thread writes; nothing waits for the disk.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, SystemTime};

use axum::http::{Method, StatusCode, Uri};
use axum::response::Response;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

use crate::config::{Config, ConfigError};
use crate::model::ids::UserId;
use crate::server::auth::caller::named_by_header;
use crate::server::turns::SESSION_HEADER;
use crate::support::lock::MutexExt;
use crate::telemetry::metrics::{AuditLoss, HttpMetrics};

mod file;
mod line;
mod refusals;
mod verb;

use file::LogFile;
use line::Line;
use refusals::Refusals;

/// Lines that wait for the disk, some 300 bytes each; a second of the fastest callers. Further ones are lost and counted.
const QUEUE: usize = 4096;
/// Lines that are written at once.
const BATCH: u64 = 256;
/// Maximum time for the last lines when the service stops.
const FINISH_TIMEOUT: Duration = Duration::from_secs(1);
/// Least time between two warnings.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// Time over which refusals of requests that have no entry are summed up.
const SUM_UP: Duration = Duration::from_secs(10);

/// The audit log of a server. Without a file, nothing is done.
#[derive(Clone, Default)]
pub(crate) struct Audit(Option<Arc<Running>>);

struct Running {
    sender: SyncSender<Message>,
    metrics: Arc<HttpMetrics>,
    /// Whether the loss of a line was logged since the last one that found room.
    is_losing: AtomicBool,
    refusals: Arc<Mutex<Refusals>>,
}

enum Message {
    Line(Box<Line>),
    /// Another program may have renamed the file.
    Reopen,
    Stop(oneshot::Sender<()>),
}

impl Audit {
    /// Opens the file and starts the thread that writes. Blocking.
    ///
    /// # Errors
    /// The file cannot be opened: an operator who wants a log is served by no server without one.
    pub(crate) fn start(config: &Config, metrics: Arc<HttpMetrics>) -> Result<Self, ConfigError> {
        let audit = &config.audit;
        let Some(path) = &audit.file else { return Ok(Self::default()) };
        let unusable = |problem: std::io::Error| {
            let problem = format!("{} cannot be written: {problem}", path.display());
            ConfigError::Key { key: "audit.file".to_owned(), problem }
        };
        let file = LogFile::open(path, audit.max_bytes, audit.files).map_err(unusable)?;
        let (sender, queue) = sync_channel(QUEUE);
        let refusals = Arc::<Mutex<Refusals>>::default();
        let writer = Writer {
            file,
            metrics: metrics.clone(),
            warned: None,
            refusals: refusals.clone(),
            summed_up: Instant::now(),
        };
        std::thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || writer.run(&queue))
            .map_err(unusable)?;
        Ok(Self(Some(Arc::new(Running { sender, metrics, is_losing: AtomicBool::new(false), refusals }))))
    }

    /// The entry of a request, if it is one that is recorded. `caller`: the id of its key; `role`: what it may do.
    pub(crate) fn begin(
        &self,
        method: &Method,
        route: Option<&str>,
        (caller, role): (Option<&str>, &'static str),
        request_id: &str,
        uri: &Uri,
    ) -> Option<Arc<Entry>> {
        self.0.as_ref()?;
        let route = route?;
        let entry = self.record(verb::verb(method, route)?, (caller, role), request_id)?;
        if let Some(name) = verb::session(route, uri) {
            entry.in_session(name);
        }
        Some(entry)
    }

    /// The entry of something that has no route.
    pub(crate) fn record(
        &self,
        verb: &'static str,
        (caller, role): (Option<&str>, &'static str),
        request_id: &str,
    ) -> Option<Arc<Entry>> {
        let running = self.0.clone()?;
        Some(Arc::new(Entry {
            running,
            at: SystemTime::now(),
            begin: Instant::now(),
            verb,
            caller: caller.map(str::to_owned),
            role,
            request_id: request_id.to_owned(),
            user: OnceLock::new(),
            session: OnceLock::new(),
            status: Mutex::default(),
            end: OnceLock::new(),
        }))
    }

    /// Counts a request that was refused before it had an entry: without a valid key, or beyond a rate limit. Many of them
    /// fill neither the queue nor the disk.
    pub(crate) fn refused(&self, code: &'static str, (caller, role): (Option<&str>, &'static str)) {
        if let Some(running) = &self.0 {
            running.refusals.lock_unpoisoned().count(code, caller, role, SystemTime::now());
        }
    }

    /// Opens the file again, for programs that rename it.
    pub(crate) fn reopen(&self) {
        if let Some(running) = &self.0 {
            running.queue(Message::Reopen);
        }
    }

    /// Waits until the lines that were queued are written, within a time.
    pub(crate) async fn finish(&self) {
        let Some(running) = &self.0 else { return };
        let (sender, done) = oneshot::channel();
        running.queue(Message::Stop(sender));
        timeout(FINISH_TIMEOUT, done).await.ok();
    }
}

impl Running {
    fn queue(&self, message: Message) {
        match self.sender.try_send(message) {
            Ok(()) => self.is_losing.store(false, Ordering::Relaxed),
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.metrics.audit_lost.increment(AuditLoss::QueueFull);
                if !self.is_losing.swap(true, Ordering::Relaxed) {
                    tracing::warn!("lines of the audit log are lost: too many wait for the disk");
                }
            }
        }
    }
}

/// What is known of one request. Queued when nothing of the request is left.
pub(crate) struct Entry {
    running: Arc<Running>,
    at: SystemTime,
    begin: Instant,
    verb: &'static str,
    caller: Option<String>,
    role: &'static str,
    request_id: String,
    user: OnceLock<UserId>,
    session: OnceLock<String>,
    /// Of the response, and the code of a refusal.
    status: Mutex<(Option<u16>, Option<&'static str>)>,
    /// How a turn ended, which is later than the head of its response.
    end: OnceLock<&'static str>,
}

impl Entry {
    /// Whose session it is about. The first one counts.
    pub(crate) fn about(&self, user: &UserId) {
        self.user.get_or_init(|| user.clone());
    }

    pub(crate) fn in_session(&self, name: String) {
        self.session.get_or_init(|| name);
    }

    /// The head of the response is known. Of a turn, it has the name of the session.
    pub(crate) fn answered(&self, response: &Response, code: Option<&'static str>) {
        if let Some(name) = response.headers().get(SESSION_HEADER).and_then(named_by_header) {
            self.in_session(name);
        }
        self.concluded(response.status(), code);
    }

    pub(crate) fn concluded(&self, status: StatusCode, code: Option<&'static str>) {
        *self.status.lock_unpoisoned() = (Some(status.as_u16()), code);
    }

    pub(crate) fn ended(&self, word: &'static str) {
        self.end.get_or_init(|| word);
    }
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entry").field("verb", &self.verb).finish_non_exhaustive()
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let (status, code) = *self.status.lock_unpoisoned();
        let line = Line {
            at: self.at,
            took: self.begin.elapsed(),
            request_id: std::mem::take(&mut self.request_id),
            caller: self.caller.take(),
            role: self.role,
            verb: self.verb,
            user: self.user.take(),
            session: self.session.take(),
            status,
            code,
            end: self.end.take(),
        };
        self.running.queue(Message::Line(Box::new(line)));
    }
}

struct Writer {
    file: LogFile,
    metrics: Arc<HttpMetrics>,
    warned: Option<Instant>,
    refusals: Arc<Mutex<Refusals>>,
    summed_up: Instant,
}

impl Writer {
    /// Writes until all senders are gone, or the service stops.
    fn run(mut self, queue: &Receiver<Message>) {
        let mut lines = Vec::new();
        loop {
            let first = match queue.recv_timeout(SUM_UP.saturating_sub(self.summed_up.elapsed())) {
                Ok(first) => Some(first),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            lines.clear();
            let (mut count, mut stop, mut next) = (0_u64, None, first);
            while let Some(message) = next.take() {
                match message {
                    Message::Line(line) => {
                        line.render(&mut lines);
                        count += 1;
                    }
                    Message::Reopen => {
                        let reopened = self.file.reopen();
                        self.warn_of(reopened);
                    }
                    Message::Stop(done) => stop = Some(done),
                }
                next = if stop.is_none() && count < BATCH { queue.try_recv().ok() } else { None };
            }
            if stop.is_some() || self.summed_up.elapsed() >= SUM_UP {
                self.summed_up = Instant::now();
                let refusals = std::mem::take(&mut *self.refusals.lock_unpoisoned());
                count += refusals.render(&mut lines);
            }
            self.append(&lines, count);
            if let Some(done) = stop {
                // The server no longer waits for it.
                done.send(()).ok();
                return;
            }
        }
    }

    fn append(&mut self, lines: &[u8], count: u64) {
        if count == 0 {
            return;
        }
        // The next lines are tried again: a full disk may have room then.
        let appended = self.file.append(lines);
        if appended.is_ok() {
            self.metrics.audit_lines.increment(count);
        } else {
            self.metrics.audit_lost.add(AuditLoss::Write, count);
        }
        self.warn_of(appended);
    }

    fn warn_of(&mut self, result: std::io::Result<()>) {
        let Err(error) = result else { return };
        if self.warned.is_none_or(|last| last.elapsed() >= WARN_EVERY) {
            self.warned = Some(Instant::now());
            tracing::warn!(%error, "the audit log cannot be written (audit.file)");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_queue_loses_lines_and_waits_for_nothing() {
        let recorder = metrics_util::debugging::DebuggingRecorder::new();
        let metrics = Arc::new(HttpMetrics::register(&recorder, "p_"));
        let (sender, queue) = sync_channel(1);
        let (is_losing, refusals) = (AtomicBool::new(false), Arc::default());
        let audit = Audit(Some(Arc::new(Running { sender, metrics, is_losing, refusals })));
        for _ in 0..3 {
            let entry = audit.record("turn", (Some("k1"), "user"), "r").unwrap();
            entry.ended("completed");
            let shared = entry.clone();
            drop(entry);
            drop(shared);
        }
        assert_eq!(queue.try_iter().count(), 1, "a line for each entry, however many share it");
        let snapshot = recorder.snapshotter().snapshot().into_vec();
        let lost = snapshot.into_iter().find_map(|(key, _, _, value)| {
            let is_meant = key.key().name().contains("audit_lost")
                && key.key().labels().any(|label| label.value() == "queue_full");
            is_meant.then_some(value)
        });
        assert_eq!(lost, Some(metrics_util::debugging::DebugValue::Counter(2)));
    }
}
