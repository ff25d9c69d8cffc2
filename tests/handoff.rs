//! Model check of the handoff between a turn's reader and the child's task: loom runs every interleaving
//! with up to three preemptions.
//!
//! The handoff itself is the one of the library (`src/child/connection/handoff.rs`), with loom's primitives. Pipe,
//! channel and protocol are the smallest ones that behave as the real ones do towards it: the pipe wakes the task that asked
//! last, the reader looks into its channel before it asks the connection.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    dead_code,
    unreachable_pub,
    reason = "a test; it needs not all of the handoff"
)]

mod sync {
    pub(super) use loom::sync::{Mutex, MutexGuard};
}

#[path = "../src/child/connection/handoff.rs"]
mod handoff;

use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Context, Poll, Waker};

use handoff::{Handoff, HandsOff, LEASE, Shared};
use loom::future::block_on;
use loom::sync::{Arc, Mutex};
use loom::thread;
use tokio::time::Instant;

/// The line that ends the turn.
const END: u32 = 0;

/// The child's output: lines, and who is woken when there are more.
#[derive(Default)]
struct Pipe {
    lines: VecDeque<u32>,
    waker: Option<Waker>,
}

/// What was put for the reader, which looks here first.
#[derive(Default)]
struct Channel {
    lines: VecDeque<u32>,
    end: bool,
    waker: Option<Waker>,
}

/// The connection: lines for the reader are kept, the end goes into its channel.
struct Connection {
    handoff: Handoff,
    pipe: Arc<Mutex<Pipe>>,
    channel: Arc<Mutex<Channel>>,
    kept: Vec<u32>,
    ended: bool,
    /// The session has something for the task.
    signal: bool,
}

impl HandsOff for Connection {
    fn handoff(&mut self) -> &mut Handoff {
        &mut self.handoff
    }
}

/// As a turn's sender: dropping it ends the turn.
impl Drop for Connection {
    fn drop(&mut self) {
        if !self.ended {
            wake(finish(&self.channel));
        }
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

fn finish(channel: &Mutex<Channel>) -> Option<Waker> {
    let mut channel = channel.lock().unwrap();
    channel.end = true;
    channel.waker.take()
}

enum Pulled {
    Lines(Vec<u32>),
    Channel,
}

impl Connection {
    fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let lines = {
            let mut pipe = self.pipe.lock().unwrap();
            if pipe.lines.is_empty() {
                pipe.waker = Some(context.waker().clone());
                return Poll::Pending;
            }
            std::mem::take(&mut pipe.lines)
        };
        for line in lines {
            if line == END {
                self.ended = true;
                {
                    let mut channel = self.channel.lock().unwrap();
                    channel.lines.extend(self.kept.drain(..));
                }
                self.handoff.wake(finish(&self.channel));
            } else {
                self.kept.push(line);
            }
        }
        Poll::Ready(())
    }

    fn poll_for_reader(&mut self, now: Instant, context: &mut Context<'_>) -> Poll<Pulled> {
        if self.ended {
            return Poll::Pending;
        }
        if self.handoff.take_put() {
            return Poll::Ready(Pulled::Channel);
        }
        self.handoff.begin_poll(now);
        let mut pulled = Poll::Pending;
        for has_read in [false, true] {
            if !self.kept.is_empty() {
                pulled = Poll::Ready(Pulled::Lines(std::mem::take(&mut self.kept)));
            } else if self.ended {
                pulled = Poll::Ready(Pulled::Channel);
            } else if !has_read && self.poll_read(context).is_ready() {
                continue;
            }
            break;
        }
        self.handoff.end_poll();
        if std::mem::take(&mut self.handoff.changed) && self.handoff.lease < Some(self.handoff.armed) {
            self.handoff.call_task();
        }
        pulled
    }

    fn poll_for_task(&mut self, now: Instant, context: &mut Context<'_>) -> Poll<()> {
        let may_read = self.handoff.task_may_read(now) && !self.ended && self.kept.is_empty();
        let has_read = may_read && self.poll_read(context).is_ready();
        if has_read && !self.kept.is_empty() {
            let waiting = {
                let mut channel = self.channel.lock().unwrap();
                channel.lines.extend(self.kept.drain(..));
                channel.waker.take()
            };
            self.handoff.put(waiting);
        }
        if self.handoff.poll_called(context) || has_read { Poll::Ready(()) } else { Poll::Pending }
    }
}

/// All that the threads share.
#[derive(Clone)]
struct Bench {
    shared: Arc<Shared<Connection>>,
    pipe: Arc<Mutex<Pipe>>,
    channel: Arc<Mutex<Channel>>,
    start: Instant,
}

impl Bench {
    /// A turn that has just begun.
    fn new() -> Self {
        let start = Instant::now();
        let (pipe, channel) = (Arc::new(Mutex::default()), Arc::new(Mutex::default()));
        let mut handoff = Handoff::new(start + 2 * LEASE);
        handoff.grant(start);
        let connection = Connection {
            handoff,
            pipe: pipe.clone(),
            channel: channel.clone(),
            kept: Vec::new(),
            ended: false,
            signal: false,
        };
        Self { shared: Arc::new(Shared::new(connection)), pipe, channel, start }
    }

    /// The child writes a line.
    fn write(&self, line: u32) {
        let waker = {
            let mut pipe = self.pipe.lock().unwrap();
            pipe.lines.push_back(line);
            pipe.waker.take()
        };
        wake(waker);
    }

    /// The next lines; `None` at the end.
    fn poll_reader(&self, context: &mut Context<'_>) -> Poll<Option<Vec<u32>>> {
        loop {
            {
                let mut channel = self.channel.lock().unwrap();
                if !channel.lines.is_empty() {
                    return Poll::Ready(Some(channel.lines.drain(..).collect()));
                }
                if channel.end {
                    return Poll::Ready(None);
                }
                channel.waker = Some(context.waker().clone());
            }
            let pulled = self.shared.with(|connection| connection.poll_for_reader(self.start, context));
            match pulled.unwrap_or(Poll::Pending) {
                Poll::Ready(Pulled::Lines(lines)) => return Poll::Ready(Some(lines)),
                Poll::Ready(Pulled::Channel) => {}
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn read_all(&self) -> Vec<u32> {
        let mut got = Vec::new();
        while let Some(lines) = block_on(poll_fn(|context| self.poll_reader(context))) {
            got.extend(lines);
        }
        got
    }

    /// The child's task at the time `now`, until the turn has ended.
    fn run_task(&self, now: Instant) {
        block_on(poll_fn(|context| {
            loop {
                let (polled, ended) = self
                    .shared
                    .with(|connection| (connection.poll_for_task(now, context), connection.ended))
                    .unwrap_or((Poll::Pending, true));
                if ended {
                    return Poll::Ready(());
                }
                if polled.is_pending() {
                    return Poll::Pending;
                }
            }
        }));
    }
}

/// Runs every interleaving with at most `preemptions`: more take minutes.
fn check(preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

#[test]
fn reader_with_the_lease_gets_every_line() {
    check(3, || {
        let bench = Bench::new();
        let child = thread::spawn({
            let bench = bench.clone();
            move || [1, 2, END].into_iter().for_each(|line| bench.write(line))
        });
        assert_eq!(bench.read_all(), [1, 2]);
        child.join().unwrap();
    });
}

#[test]
fn reader_and_task_share_the_lines_in_order() {
    check(2, || {
        let bench = Bench::new();
        let task = thread::spawn({
            let bench = bench.clone();
            // The lease has always expired: both may read.
            move || bench.run_task(bench.start + 2 * LEASE)
        });
        let reader = thread::spawn({
            let bench = bench.clone();
            move || {
                let mut got = Vec::new();
                while got.len() < 2 {
                    got.extend(block_on(poll_fn(|context| bench.poll_reader(context))).unwrap());
                }
                assert_eq!(got, [1, 2]);
                bench.shared.with(|connection| {
                    connection.ended = true;
                    connection.handoff.call_task();
                });
            }
        });
        bench.write(1);
        bench.write(2);
        reader.join().unwrap();
        task.join().unwrap();
    });
}

#[test]
fn reader_and_task_race_for_the_end() {
    check(2, || {
        let bench = Bench::new();
        let task = thread::spawn({
            let bench = bench.clone();
            move || bench.run_task(bench.start + 2 * LEASE)
        });
        let reader = thread::spawn({
            let bench = bench.clone();
            move || assert_eq!(bench.read_all(), [1])
        });
        bench.write(1);
        bench.write(END);
        reader.join().unwrap();
        task.join().unwrap();
    });
}

#[test]
fn task_reads_on_when_the_reader_is_dropped() {
    check(3, || {
        let bench = Bench::new();
        let task = thread::spawn({
            let bench = bench.clone();
            // The lease never expires by itself.
            move || bench.run_task(bench.start)
        });
        let reader = thread::spawn({
            let bench = bench.clone();
            move || {
                // Asks once, and goes away.
                block_on(poll_fn(|context| {
                    let _whatever_came = bench.poll_reader(context);
                    Poll::Ready(())
                }));
                bench.shared.with(|connection| {
                    connection.kept.clear();
                    connection.handoff.revoke();
                });
            }
        });
        bench.write(END);
        reader.join().unwrap();
        task.join().unwrap();
    });
}

#[test]
fn close_ends_the_reader_that_waits() {
    check(3, || {
        let bench = Bench::new();
        let reader = thread::spawn({
            let bench = bench.clone();
            move || bench.read_all()
        });
        bench.write(1);
        drop(bench.shared.close());
        let got = reader.join().unwrap();
        assert!(got.is_empty() || got == [1], "{got:?}");
    });
}

#[test]
fn called_task_looks_for_its_signal() {
    check(3, || {
        let bench = Bench::new();
        let session = thread::spawn({
            let bench = bench.clone();
            move || {
                bench.shared.with(|connection| {
                    connection.signal = true;
                    connection.handoff.call_task();
                })
            }
        });
        // The task looks for signals after each poll that is ready, as it does for its timer.
        let taken = || bench.shared.with(|connection| std::mem::take(&mut connection.signal)).unwrap();
        while !taken() {
            block_on(poll_fn(|context| {
                let poll = |connection: &mut Connection| connection.poll_for_task(bench.start, context);
                bench.shared.with(poll).unwrap()
            }));
        }
        session.join().unwrap();
    });
}
