//! The rows of the table.

use std::future::Future;
use std::time::Duration;

use pilotlight::{Pilotlight, Session};
use rustix::process::{Pid, Signal, kill_process};

use crate::floor::{Floor, Look};
use crate::measure::{Cost, Effort, Stopwatch, anonymous_kb, children, own_fds, own_status};
use crate::table::{Row, median, print, row};
use crate::{isolation, journal, kernel_memory, ours, starts, watching};

pub(crate) async fn run(wanted: &[String], effort: Effort) -> bool {
    let on = |name: &str| wanted.is_empty() || wanted.iter().any(|wanted| wanted == name);
    let mut rows = Vec::new();
    // First, while the allocator holds nothing in reserve that it could use.
    if on("W4") {
        rows.extend(w4(effort).await);
    }
    if on("W1") {
        rows.extend(w1(effort).await);
    }
    if on("W2") {
        rows.extend(w2(effort).await);
    }
    if on("W3") {
        rows.extend(w3(effort).await);
    }
    if on("W5") {
        rows.extend(w5(effort).await);
    }
    if on("W6") {
        rows.extend(w6(effort).await);
    }
    if on("J1") {
        rows.extend(journal::shares(effort).await);
    }
    if on("S1") {
        rows.extend(starts::together(effort).await);
    }
    if on("S2") {
        rows.extend(starts::storm(effort).await);
    }
    if on("I1") {
        rows.extend(isolation::cold_starts(effort).await);
    }
    if on("I2") {
        rows.extend(isolation::beside_a_hog(effort).await);
    }
    if on("I3") {
        rows.extend(kernel_memory::idle_sessions(effort).await);
    }
    if on("slow") {
        rows.extend(slow_reader(effort).await);
    }
    if on("M1") {
        rows.extend(watching::metrics(effort).await);
    }
    if on("M2") {
        rows.extend(watching::idle_sessions(effort).await);
    }
    print(&rows)
}

pub(crate) fn directory() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

pub(crate) async fn end(pilot: Pilotlight) {
    pilot.shutdown(Duration::from_secs(10)).await;
}

pub(crate) async fn timed<T>(work: impl Future<Output = T>) -> (T, Cost) {
    let watch = Stopwatch::start();
    let value = work.await;
    (value, watch.stop())
}

pub(crate) fn micros(values: &[f64]) -> f64 {
    median(values.to_vec()) * 1e6
}

/// One warm session, turns of 50 deltas.
async fn w1(effort: Effort) -> Vec<Row> {
    const TEXT: &str = "[[deltas:50]]";
    let turns = effort.of(200, 100);
    let (home, data) = (directory(), directory());
    let pilot = ours::start(data.path()).await;
    let session = pilot.session("one");
    let mut floor = Floor::start(home.path());
    floor.turn(TEXT, Look::Peek).await;
    ours::turn(&session, TEXT).await;
    let (mut latency, mut per_event) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    for _ in 0..effort.rounds() {
        let (lines, cost) = timed(async {
            let mut lines = 0;
            for _ in 0..turns {
                lines += floor.turn(TEXT, Look::Peek).await;
            }
            lines
        })
        .await;
        latency[0].push(cost.wall.as_secs_f64() / turns as f64);
        per_event[0].push(cost.cpu.as_secs_f64() / lines as f64);
        let (events, cost) = timed(async {
            let mut events = 0;
            for _ in 0..turns {
                events += ours::turn(&session, TEXT).await;
            }
            events
        })
        .await;
        latency[1].push(cost.wall.as_secs_f64() / turns as f64);
        per_event[1].push(cost.cpu.as_secs_f64() / events as f64);
    }
    floor.end().await;
    end(pilot).await;
    let [floor_latency, our_latency] = latency.map(|values| micros(&values));
    let [floor_cpu, our_cpu] = per_event.map(|values| micros(&values));
    vec![
        row(
            "W1 one warm session, 50 deltas: latency / floor",
            our_latency / floor_latency,
            1.2,
            1.1,
            format!("{our_latency:.0} µs / {floor_latency:.0} µs a turn"),
        ),
        row(
            "W1 CPU per event / floor",
            our_cpu / floor_cpu,
            1.4,
            1.25,
            format!("{our_cpu:.2} µs / {floor_cpu:.2} µs"),
        ),
    ]
}

async fn many(count: usize, home: &std::path::Path, pilot: &Pilotlight) -> (Vec<Floor>, Vec<Session>) {
    let (mut floors, mut sessions) = (Vec::new(), Vec::new());
    for number in 0..count {
        let own = home.join(number.to_string());
        std::fs::create_dir_all(&own).unwrap();
        let mut floor = Floor::start(&own);
        floor.turn("warm", Look::Peek).await;
        floors.push(floor);
        let session = pilot.session(format!("user {number}"));
        ours::turn(&session, "warm").await;
        sessions.push(session);
    }
    (floors, sessions)
}

/// All floors take a turn at the same time; returns processor time per line.
async fn floors_turn(floors: Vec<Floor>, text: &'static str, look: Look) -> (Vec<Floor>, f64) {
    let (results, cost) = timed(async {
        let tasks: Vec<_> = floors
            .into_iter()
            .map(|mut floor| tokio::spawn(async move { (floor.turn(text, look).await, floor) }))
            .collect();
        let mut results = Vec::new();
        for task in tasks {
            results.push(task.await.unwrap());
        }
        results
    })
    .await;
    let lines: usize = results.iter().map(|(lines, _)| lines).sum();
    (results.into_iter().map(|(_, floor)| floor).collect(), cost.cpu.as_secs_f64() / lines as f64)
}

/// All sessions take a turn at the same time; returns processor time per event.
async fn sessions_turn(sessions: &[Session], text: &'static str) -> f64 {
    let (events, cost) = timed(async {
        let tasks: Vec<_> = sessions
            .iter()
            .map(|session| {
                let session = session.clone();
                tokio::spawn(async move { ours::turn(&session, text).await })
            })
            .collect();
        let mut events = 0;
        for task in tasks {
            events += task.await.unwrap();
        }
        events
    })
    .await;
    cost.cpu.as_secs_f64() / events as f64
}

async fn fleet(text: &'static str, look: Look, effort: Effort) -> (f64, f64) {
    let (home, data) = (directory(), directory());
    let pilot = ours::start(data.path()).await;
    let (mut floors, sessions) = many(64, home.path(), &pilot).await;
    let (mut floor_cpu, mut our_cpu) = (Vec::new(), Vec::new());
    for _ in 0..effort.rounds() {
        let (back, cpu) = floors_turn(floors, text, look).await;
        floors = back;
        floor_cpu.push(cpu);
        our_cpu.push(sessions_turn(&sessions, text).await);
    }
    for floor in floors {
        floor.end().await;
    }
    end(pilot).await;
    (micros(&our_cpu), micros(&floor_cpu))
}

/// 64 sessions flat out.
async fn w2(effort: Effort) -> Vec<Row> {
    let (ours, floor) = fleet("[[deltas:200]]", Look::Parse, effort).await;
    vec![row(
        "W2 64 sessions, 200 deltas: CPU per event / parsing floor",
        ours / floor,
        0.25,
        0.2,
        format!("{ours:.2} µs / {floor:.2} µs"),
    )]
}

/// 64 sessions at 100 lines a second each.
async fn w6(effort: Effort) -> Vec<Row> {
    let (ours, floor) = fleet("[[deltas:100]][[delay:10]]", Look::Peek, effort).await;
    vec![row(
        "W6 64 sessions at 100 lines/s: CPU per event / floor",
        ours / floor,
        1.2,
        0.8,
        format!("{ours:.2} µs / {floor:.2} µs"),
    )]
}

/// From nothing to the first result.
async fn w3(effort: Effort) -> Vec<Row> {
    let (home, data) = (directory(), directory());
    let pilot = ours::start(data.path()).await;
    let (mut floor, mut own) = (Vec::new(), Vec::new());
    for number in 0..effort.of(20, 6) {
        let dir = home.path().join(number.to_string());
        std::fs::create_dir_all(&dir).unwrap();
        let (started, cost) = timed(async {
            let mut started = Floor::start(&dir);
            started.turn("hello", Look::Peek).await;
            started
        })
        .await;
        floor.push(cost.wall.as_secs_f64());
        started.end().await;
        let session = pilot.session(format!("user {number}"));
        let (_, cost) = timed(ours::turn(&session, "hello")).await;
        own.push(cost.wall.as_secs_f64());
        session.evict().await.unwrap();
    }
    end(pilot).await;
    let (own, floor) = (micros(&own), micros(&floor));
    vec![row(
        "W3 cold start to first result, more than the floor, ms",
        (own - floor) / 1000.0,
        1.5,
        1.0,
        format!("{:.1} ms − {:.1} ms", own / 1000.0, floor / 1000.0),
    )]
}

/// A thousand idle sessions.
async fn w4(effort: Effort) -> Vec<Row> {
    let sessions = effort.of(1000, 300);
    let data = directory();
    let pilot = ours::start(data.path()).await;
    for number in 0..50 {
        // What the first ones need for all, the allocator's reserves included, is not counted.
        let session = pilot.session(format!("before {number}"));
        session.warm().await.unwrap();
        session.evict().await.unwrap();
    }
    let (memory, threads, fds) = (own_status("RssAnon"), own_status("Threads"), own_fds());
    for number in 0..sessions {
        pilot.session(format!("user {number}")).warm().await.unwrap();
    }
    let each = (own_status("RssAnon") - memory) / sessions as f64;
    let threads = own_status("Threads") - threads;
    // A few are of no session.
    let fds = ((own_fds() - fds) as f64 / sessions as f64).round();
    let shims = children('S').max(1);
    let first = std::fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
        let pid: u32 = entry.file_name().to_string_lossy().parse().ok()?;
        let command = std::fs::read(entry.path().join("comm")).ok()?;
        command.starts_with(b"pilotlight-shim").then_some(pid)
    });
    let shim = first.map_or(f64::NAN, anonymous_kb);
    let zombies_before = children('Z');
    end(pilot).await;
    let zombies = children('Z').saturating_sub(zombies_before);
    vec![
        row(
            format!("W4 {sessions} idle sessions: own memory each, KiB"),
            each,
            12.0,
            8.0,
            format!("{shims} shims"),
        ),
        row("W4 threads more than with none", threads, 8.0, 0.0, String::new()),
        row("W4 descriptors each", fds, 5.0, 5.0, String::new()),
        row("shim: resident private memory, KiB", shim, 512.0, 128.0, String::new()),
        row(format!("zombies after {sessions} sessions"), zombies as f64, 0.0, 0.0, String::new()),
    ]
}

/// A turn that takes longer than this after a kill waits for something that does not come.
const HUNG: Duration = Duration::from_secs(5);

/// SIGKILL while idle, then a turn.
async fn w5(effort: Effort) -> Vec<Row> {
    let kills = effort.of(20, 6);
    let (home, data) = (directory(), directory());
    let pilot = ours::start(data.path()).await;
    let session = pilot.session("one");
    let mut floor = Floor::start(home.path());
    let (mut floors, mut own) = (Vec::new(), Vec::new());
    for _ in 0..kills {
        floor.turn("hello", Look::Peek).await;
        ours::turn(&session, "hello").await;
        // Both transcripts are written by then: only what follows is measured.
        tokio::time::sleep(Duration::from_millis(150)).await;
        let (next, cost) = timed(async {
            let mut next = floor.respawn().await;
            next.turn("again", Look::Peek).await;
            next
        })
        .await;
        floor = next;
        floors.push(cost.wall.as_secs_f64());
        let pid = session.status().unwrap().pid.unwrap();
        let (_, cost) = timed(async {
            kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL).unwrap();
            ours::turn(&session, "again").await
        })
        .await;
        own.push(cost.wall.as_secs_f64());
    }
    floor.end().await;
    end(pilot).await;
    let hung = own.iter().filter(|seconds| **seconds > HUNG.as_secs_f64()).count();
    let (own, floor) = (micros(&own), micros(&floors));
    vec![
        row(
            "W5 SIGKILL idle, then a turn: more than the floor, ms",
            (own - floor) / 1000.0,
            1.5,
            1.0,
            format!("{:.1} ms − {:.1} ms", own / 1000.0, floor / 1000.0),
        ),
        row("turns that hung after a kill", hung as f64, 0.0, 0.0, format!("of {kills}, limit {HUNG:?}")),
    ]
}

/// A reader that is slower than the child loses nothing.
async fn slow_reader(effort: Effort) -> Vec<Row> {
    let expected = effort.of(20_000, 5_000);
    let data = directory();
    let pilot = ours::start(data.path()).await;
    let mut turn = pilot.session("slow").send(format!("[[deltas:{expected}]]")).await.unwrap();
    let (mut deltas, mut events) = (0, 0);
    while let Some(event) = turn.next().await {
        deltas += usize::from(event.unwrap().text_delta().is_some());
        events += 1;
        if events % 1000 == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    end(pilot).await;
    let lost = deltas.abs_diff(expected);
    vec![row("events lost to a slow reader", lost as f64, 0.0, 0.0, format!("{deltas} deltas"))]
}
