//! The server under test: a process of its own, so that it can be killed and looked at from outside. It embeds the
//! library with its failpoints, takes orders from a socket and reports what its readers see.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use pilotlight::config::PermissionPolicy;
use pilotlight::model::SessionState;
use pilotlight::{Config, Pilotlight};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use crate::common::place::MARK;
use crate::plan::Reader;
use crate::reader::read;
use crate::recorder::Metrics;
use crate::wire::{DATA_DIR, News, Order, Report, SOCKET};

/// How long running turns may go on when the server gets the request to stop.
const GRACE: Duration = Duration::from_secs(2);

/// Orders and news that may wait; the run never has more outstanding.
const ROOM: usize = 4096;

/// A signal may overtake orders; this time after it none is left in the socket.
const LAST_ORDERS: Duration = Duration::from_millis(50);

/// Runs the server if this process was started as one; false if not.
pub fn run_if_asked() -> bool {
    let (Some(socket), Some(data)) = (std::env::var_os(SOCKET), std::env::var_os(DATA_DIR)) else {
        return false;
    };
    let to_stderr = tracing_subscriber::fmt().with_ansi(false).with_writer(std::io::stderr);
    to_stderr.with_max_level(tracing::Level::INFO).init();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let stream = UnixStream::connect(socket).await.unwrap();
        let mut config = Config::new(data);
        settle(&mut config);
        Host::start(config, stream).await;
    });
    true
}

/// Everything that waits in earnest waits shorter here.
fn settle(config: &mut Config) {
    config.cli.program = "sim".to_owned();
    config.cli.background_tasks = true;
    let mark = std::env::var(MARK).expect("the run marks its processes");
    config.cli.env.insert(MARK.to_owned(), mark);
    config.permissions.policy = PermissionPolicy::Allow;
    let session = &mut config.session;
    session.hibernate_after = Duration::from_millis(150);
    // What finds a child that was stopped while it started.
    session.spawn_timeout = Duration::from_secs(6);
    session.idle_timeout = Duration::from_secs(1);
    // A healthy child answers within this also while both processors are busy with others.
    session.stall_timeout = Duration::from_millis(1000);
    session.ping_timeout = Duration::from_millis(1500);
    session.write_timeout = Duration::from_secs(4);
    session.stop_interrupt = Duration::from_millis(600);
    session.stop_eof = Duration::from_millis(700);
    session.stop_term = Duration::from_millis(500);
    session.line_limit = 1 << 20;
    session.event_buffer = 32;
    // What a crash loop reaches and other misfortune does not.
    config.restart.intensity = 14;
    config.restart.window = Duration::from_secs(10);
    config.restart.backoff = Duration::from_millis(20);
    config.restart.backoff_max = Duration::from_millis(300);
    config.restart.circuit_pause = Duration::from_millis(800);
    config.limits.max_children = 18;
    config.spares.min = 2;
    config.metrics.sample_interval = Duration::from_millis(200);
}

struct Host {
    pilot: Pilotlight,
    metrics: Arc<Metrics>,
    news: mpsc::Sender<News>,
    readers: TaskTracker,
    /// One line of turns per user, so that they are submitted in the order in which they were given.
    lines: HashMap<usize, mpsc::Sender<(u64, String, Reader)>>,
}

impl Host {
    async fn start(config: Config, stream: UnixStream) {
        let metrics = Arc::new(Metrics::default());
        let pilot = Pilotlight::start_with(config, &*metrics).await.expect("the server starts");
        let (orders, mut writer) = stream.into_split();
        let (news, mut outbox) = mpsc::channel::<News>(ROOM);
        let writing = tokio::spawn(async move {
            while let Some(news) = outbox.recv().await {
                let line = format!("{}\n", serde_json::to_string(&news).unwrap());
                if writer.write_all(line.as_bytes()).await.is_err() {
                    return;
                }
            }
        });
        let mut host = Self { pilot, metrics, news, readers: TaskTracker::new(), lines: HashMap::new() };
        host.notify(News::Ready).await;
        let mut terminated = signal(SignalKind::terminate()).unwrap();
        let mut orders = BufReader::new(orders).lines();
        loop {
            tokio::select! {
                order = orders.next_line() => match order {
                    Ok(Some(order)) => match serde_json::from_str(&order).unwrap() {
                        Order::ShutDown => break,
                        order => host.take(order).await,
                    },
                    // The run is gone: so are we.
                    _ => break,
                },
                _ = terminated.recv() => break,
            }
        }
        let pilot = host.pilot.clone();
        let stopping = tokio::spawn(async move { pilot.shutdown(GRACE).await });
        // What was ordered before the signal has an answer, too.
        while let Ok(Ok(Some(order))) = timeout(LAST_ORDERS, orders.next_line()).await {
            host.take(serde_json::from_str(&order).unwrap()).await;
        }
        stopping.await.unwrap();
        // Every reader hears an end.
        host.lines.clear();
        host.readers.close();
        host.readers.wait().await;
        drop(host);
        writing.await.unwrap();
    }

    async fn notify(&self, news: News) {
        self.news.send(news).await.ok();
    }

    async fn take(&mut self, order: Order) {
        let pilot = self.pilot.clone();
        let session = |user: usize| pilot.session(name(user));
        match order {
            Order::Turn { number, user, text, reader } => {
                let line = self.line(user);
                line.send((number, text, reader)).await.expect("the line of a user lives as long as we do");
            }
            Order::Interrupt { user } => {
                // At once, as the next: what comes later must not be hit.
                session(user).interrupt().await.map(drop).unwrap_or_default();
            }
            Order::Evict { user } => {
                let session = session(user);
                self.readers.spawn(async move { session.evict().await.unwrap_or_default() });
            }
            Order::Warm { user } => {
                let session = session(user);
                self.readers.spawn(async move { session.warm().await.map(drop).unwrap_or_default() });
            }
            Order::Purge { user } => {
                let (session, news) = (session(user), self.news.clone());
                self.readers.spawn(async move {
                    let error = session.purge().await.err().map(|error| error.to_string());
                    news.send(News::Purged { user, error }).await.ok();
                });
            }
            Order::Panic { actor, user } => {
                pilot.fail(&actor, &name(user)).await;
            }
            Order::Report => self.notify(News::Report(self.report())).await,
            Order::ShutDown => {}
        }
    }

    fn line(&mut self, user: usize) -> mpsc::Sender<(u64, String, Reader)> {
        let make = || {
            let (line, mut turns) = mpsc::channel::<(u64, String, Reader)>(ROOM);
            let (session, news, readers) =
                (self.pilot.session(name(user)), self.news.clone(), self.readers.clone());
            self.readers.spawn(async move {
                while let Some((number, text, reader)) = turns.recv().await {
                    match session.send(text).await {
                        Ok(turn) => {
                            let news = news.clone();
                            readers.spawn(async move {
                                let ended = read(number, turn, reader).await;
                                news.send(News::Ended(ended)).await.ok();
                            });
                        }
                        Err(error) => {
                            let code = error.code().to_owned();
                            news.send(News::Refused { number, code }).await.ok();
                        }
                    }
                }
            });
            line
        };
        self.lines.entry(user).or_insert_with(make).clone()
    }

    fn report(&self) -> Report {
        let sessions = self.pilot.sessions();
        let rests = |state| matches!(state, SessionState::Dormant | SessionState::Failed);
        let unsettled = sessions.iter().filter(|(_, status)| !rests(status.state)).map(|(key, status)| {
            let (hash, state, pid) = (key.hash(), status.state, status.pid);
            format!("{} {state} pid {pid:?}, {} wait", hash.as_str(), status.queue_depth)
        });
        let mut report =
            Report { sessions: sessions.len(), unsettled: unsettled.collect(), ..Report::default() };
        self.metrics.fill(&mut report);
        report
    }
}

/// The user's id.
pub fn name(user: usize) -> String {
    format!("user {user}")
}
