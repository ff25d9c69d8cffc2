//! Many starts at once: how long the last one takes, and what they need of the host.

use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use pilotlight::{Pilotlight, Session};
use tokio::task::JoinHandle;

use crate::floor::{Floor, Look};
use crate::measure::{Effort, own_status};
use crate::ours;
use crate::rows::{directory, end};
use crate::table::{Row, median, row};

/// Starts at the same time.
const AT_ONCE: usize = 8;

/// The last of several cold starts, against as many of the floor that are all started directly and together: alone, and
/// beside two processes that want a processor.
pub(crate) async fn together(effort: Effort) -> Vec<Row> {
    let mut rows = Vec::new();
    for spinners in [0, 2] {
        let (home, data) = (directory(), directory());
        let pilot = ours::start(data.path()).await;
        let _spinners: Vec<_> = (0..spinners).map(|_| Spinner::start()).collect();
        let (mut floor, mut own) = (Vec::new(), Vec::new());
        for round in 0..effort.of(5, 2) {
            floor.push(floors(home.path(), round).await);
            own.push(sessions(&pilot, round).await);
        }
        end(pilot).await;
        let (own, floor) = (median(own) * 1e3, median(floor) * 1e3);
        rows.push(row(
            format!("S1 {AT_ONCE} cold starts at once, {spinners} spinners: last / directly"),
            own / floor,
            1.0,
            0.9,
            format!("{own:.1} ms / {floor:.1} ms"),
        ));
    }
    rows
}

/// Seconds to the first result of the last one.
async fn floors(home: &Path, round: usize) -> f64 {
    let began = Instant::now();
    let start = |number| {
        let dir = home.join(format!("{round}-{number}"));
        tokio::spawn(async move {
            std::fs::create_dir_all(&dir).unwrap();
            let mut started = Floor::start(&dir);
            started.turn("hello", Look::Peek).await;
            started
        })
    };
    let started = all((0..AT_ONCE).map(start).collect()).await;
    let last = began.elapsed();
    for started in started {
        started.end().await;
    }
    last.as_secs_f64()
}

async fn sessions(pilot: &Pilotlight, round: usize) -> f64 {
    let began = Instant::now();
    let starts = (0..AT_ONCE).map(|number| first_turn(pilot, format!("user {round} {number}")));
    let started = all(starts.collect()).await;
    let last = began.elapsed();
    for session in started {
        session.evict().await.unwrap();
    }
    last.as_secs_f64()
}

fn first_turn(pilot: &Pilotlight, user: String) -> JoinHandle<Session> {
    let session = pilot.session(user);
    tokio::spawn(async move {
        ours::turn(&session, "hello").await;
        session
    })
}

async fn all<T>(tasks: Vec<JoinHandle<T>>) -> Vec<T> {
    let mut results = Vec::new();
    for task in tasks {
        results.push(task.await.unwrap());
    }
    results
}

/// A thousand users who come at the same time.
pub(crate) async fn storm(effort: Effort) -> Vec<Row> {
    let users = effort.of(1000, 300);
    let data = directory();
    let pilot = ours::start(data.path()).await;
    ours::turn(&pilot.session("before"), "hello").await;
    let began = Instant::now();
    let mut starts = Box::pin(all((0..users).map(|it| first_turn(&pilot, format!("user {it}"))).collect()));
    let mut threads = 0_f64;
    loop {
        tokio::select! {
            _sessions = &mut starts => break,
            () = tokio::time::sleep(Duration::from_millis(2)) => threads = threads.max(own_status("Threads")),
        }
    }
    let each = began.elapsed().as_secs_f64() * 1e3 / users as f64;
    end(pilot).await;
    vec![
        row(
            format!("S2 {users} new users at once: ms for each"),
            each,
            1e3 / 450.0,
            1e3 / 582.0,
            format!("{:.0} starts/s", 1e3 / each),
        ),
        row("S2 threads at most", threads, 32.0, 24.0, String::new()),
    ]
}

/// A process that wants a processor until this is dropped.
struct Spinner(Child);

impl Spinner {
    fn start() -> Self {
        Self(Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap())
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}
