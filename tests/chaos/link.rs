//! The run's end of the server under test: starts it, gives it orders, hears its news.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

use rustix::process::Signal;

use crate::common::place::{MARK, Place, wait_until};
use crate::common::process::Process;
use crate::wire::{DATA_DIR, News, Order, SOCKET};

/// For anything that should happen at once, on a machine that is busy.
pub const SOON: Duration = Duration::from_secs(20);

/// News that may wait to be heard.
const ROOM: usize = 4096;

/// A running server. Dropped, it is killed.
pub struct Link {
    child: Child,
    pub process: Process,
    orders: UnixStream,
    news: Receiver<News>,
    log: PathBuf,
}

/// Why there is no further news.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Silence {
    NothingYet,
    /// The server has closed its end.
    Ended,
}

impl Link {
    /// Starts the `number`th server of a place and waits until it takes orders.
    pub fn start(place: &Place, number: u64) -> Result<Self, String> {
        let socket = place.path().join(format!("server-{number}"));
        let log = place.path().join(format!("server-{number}.log"));
        let listener = UnixListener::bind(&socket).unwrap();
        listener.set_nonblocking(true).unwrap();
        let output = std::fs::File::create(&log).unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["server_under_test", "--exact", "--ignored", "--nocapture"])
            .env(SOCKET, &socket)
            .env(DATA_DIR, place.data_dir())
            .env(MARK, place.id())
            // Its actors panic all the time: where from is known.
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap();
        let process = Process::unreaped(&child);
        let mut stream = None;
        wait_until(SOON, || {
            stream = listener.accept().ok().map(|(stream, _)| stream);
            stream.is_some() || child.try_wait().unwrap().is_some()
        });
        let Some(stream) = stream else {
            child.kill().ok();
            child.wait().ok();
            return Err(format!("the server did not start:\n{}", tail(&log)));
        };
        stream.set_nonblocking(false).unwrap();
        let (sender, news) = sync_channel(ROOM);
        let reader = BufReader::new(stream.try_clone().unwrap());
        std::thread::spawn(move || {
            for line in reader.lines().map_while(Result::ok) {
                // A line that was cut by the server's death is none.
                let Ok(news) = serde_json::from_str(&line) else { return };
                if sender.send(news).is_err() {
                    return;
                }
            }
        });
        let link = Self { child, process, orders: stream, news, log };
        match link.hear(SOON) {
            Ok(News::Ready) => Ok(link),
            other => Err(format!("the server did not start: {other:?}\n{}", tail(&link.log))),
        }
    }

    /// Orders to a server that has just ended go nowhere.
    pub fn order(&mut self, order: &Order) {
        let line = format!("{}\n", serde_json::to_string(order).unwrap());
        self.orders.write_all(line.as_bytes()).ok();
    }

    /// The next news.
    pub fn hear(&self, within: Duration) -> Result<News, Silence> {
        self.news.recv_timeout(within).map_err(|error| match error {
            RecvTimeoutError::Timeout => Silence::NothingYet,
            RecvTimeoutError::Disconnected => Silence::Ended,
        })
    }

    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// How it ended, if it did within this time.
    pub fn ended(&mut self, within: Duration) -> Option<ExitStatus> {
        let mut status = None;
        wait_until(within, || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status
    }

    /// The end of what it wrote.
    pub fn log(&self) -> String {
        tail(&self.log)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
        std::fs::remove_file(&self.log).ok();
    }
}

fn tail(log: &Path) -> String {
    const LINES: usize = 40;
    let text = String::from_utf8_lossy(&std::fs::read(log).unwrap_or_default()).into_owned();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}
