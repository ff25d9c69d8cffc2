//! The rows of the table.

use std::time::Duration;

use crate::client::{Client, Seen, keepalive};
use crate::pipe::Pipe;
use crate::server::Server;

const ROUNDS: usize = 7;

/// What a figure is held against.
struct Row {
    name: &'static str,
    value: f64,
    must: f64,
    aim: f64,
    note: String,
}

pub(crate) async fn run(wanted: &[String]) -> bool {
    let on = |name: &str| wanted.is_empty() || wanted.iter().any(|wanted| wanted == name);
    let mut rows = Vec::new();
    if on("W1") {
        rows.extend(w1().await);
    }
    if on("W6") {
        rows.extend(w6().await);
    }
    if on("first") {
        rows.extend(first_byte().await);
    }
    if on("memory") {
        rows.extend(memory().await);
    }
    println!("{:<62} {:>9} {:>7} {:>7}      figures", "", "measured", "must", "aim");
    for row in &rows {
        let verdict = if row.value <= row.aim {
            "aim "
        } else if row.value <= row.must {
            "must"
        } else {
            "MISS"
        };
        println!(
            "{:<62} {:>9.2} {:>7.2} {:>7.2} {verdict} {}",
            row.name, row.value, row.must, row.aim, row.note
        );
    }
    rows.iter().any(|row| row.value > row.must)
}

fn row(name: &'static str, value: f64, must: f64, aim: f64, note: String) -> Row {
    Row { name, value, must, aim, note }
}

fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Medians over the rounds of one side.
#[derive(Default)]
struct Side {
    latency: Vec<f64>,
    per_event: Vec<f64>,
}

impl Side {
    /// One round: all clients take `turns` turns at the same time.
    async fn round(&mut self, server: &Server, clients: &mut Vec<(Client, Vec<u8>)>, turns: usize) {
        let before = server.cpu();
        let tasks: Vec<_> = std::mem::take(clients)
            .into_iter()
            .map(|(mut client, request)| {
                tokio::spawn(async move {
                    let mut seen = Vec::with_capacity(turns);
                    for _ in 0..turns {
                        seen.push(client.turn(&request).await);
                    }
                    (client, request, seen)
                })
            })
            .collect();
        let mut all: Vec<Seen> = Vec::new();
        for task in tasks {
            let (client, request, seen) = task.await.unwrap();
            clients.push((client, request));
            all.extend(seen);
        }
        let events: usize = all.iter().map(|seen| seen.events).sum();
        self.per_event.push(server.cpu_since(&before) / events as f64);
        self.latency.push(median(all.iter().map(|seen| seen.whole.as_secs_f64())));
    }

    fn micros(&self) -> (f64, f64) {
        (median(self.latency.clone()) * 1e6, median(self.per_event.clone()) * 1e6)
    }
}

/// Both sides with `sessions` warm sessions, in turn; floor first in what is returned.
async fn compare(sessions: usize, turns: usize, text: &str) -> [(f64, f64); 2] {
    let servers = [Server::floor(sessions), Server::ours("[session]\nidle_timeout = \"1h\"").await];
    let mut clients = [Vec::new(), Vec::new()];
    for (server, clients) in servers.iter().zip(&mut clients) {
        for user in 0..sessions {
            let mut client = Client::connect(server.address).await;
            client.turn(&keepalive(user, "warm")).await;
            clients.push((client, keepalive(user, text)));
        }
    }
    let mut sides = [Side::default(), Side::default()];
    for _ in 0..ROUNDS {
        for ((server, clients), side) in servers.iter().zip(&mut clients).zip(&mut sides) {
            side.round(server, clients, turns).await;
        }
    }
    sides.map(|side| side.micros())
}

/// One warm session, turns of 50 deltas.
async fn w1() -> Vec<Row> {
    let [floor, ours] = compare(1, 300, "[[deltas:50]]").await;
    vec![
        row(
            "W1 one warm session, 50 deltas: latency / floor",
            ours.0 / floor.0,
            1.5,
            1.25,
            format!("{:.0} µs / {:.0} µs a turn", ours.0, floor.0),
        ),
        row(
            "W1 CPU per event / floor",
            ours.1 / floor.1,
            2.0,
            1.5,
            format!("{:.2} µs / {:.2} µs", ours.1, floor.1),
        ),
    ]
}

/// 64 sessions at 100 deltas a second each.
async fn w6() -> Vec<Row> {
    let [floor, ours] = compare(64, 1, "[[deltas:200]][[delay:10]]").await;
    vec![row(
        "W6 64 sessions at 100 deltas/s: CPU per event / floor",
        ours.1 / floor.1,
        1.3,
        1.0,
        format!("{:.2} µs / {:.2} µs", ours.1, floor.1),
    )]
}

/// From the child's first line to the caller's first event. The child's is measured at a pipe of our own, so the way of
/// the request to the child counts as well.
async fn first_byte() -> Vec<Row> {
    const TURNS: usize = 300;
    const TEXT: &str = "[[deltas:50]]";
    let home = tempfile::tempdir().unwrap();
    let mut pipe = Pipe::start(home.path());
    let server = Server::ours("").await;
    let mut client = Client::connect(server.address).await;
    let request = keepalive(0, TEXT);
    client.turn(&request).await;
    let (mut lines, mut bytes) = (Vec::new(), Vec::new());
    for turn in 0..TURNS + 1 {
        let begin = std::time::Instant::now();
        pipe.send(TEXT).await;
        let (_, mut is_last) = pipe.line().await;
        // The first turn is the one that starts everything.
        if turn > 0 {
            lines.push(begin.elapsed().as_secs_f64());
        }
        while !is_last {
            (_, is_last) = pipe.line().await;
        }
        bytes.push(client.turn(&request).await.first.as_secs_f64());
    }
    let (line, byte) = (median(lines) * 1e6, median(bytes) * 1e6);
    let later = (byte - line) / 1000.0;
    vec![row(
        "first event of a warm turn after the child's first line, ms",
        later,
        1.0,
        1.0,
        format!("{byte:.0} µs − {line:.0} µs"),
    )]
}

/// A thousand connections whose turns are silent.
async fn memory() -> Vec<Row> {
    const USERS: usize = 50;
    const EACH: usize = 20;
    let config = format!("[http]\nheartbeat = 1\n[session]\nturn_queue = {EACH}");
    let server = Server::ours(&config).await;
    let mut open = Vec::new();
    // What the sessions themselves need, and what the first connections need for all, is not counted.
    for user in 0..USERS {
        let mut client = Client::connect(server.address).await;
        client.turn(&keepalive(user, "warm")).await;
    }
    let before = server.memory();
    for user in 0..USERS {
        for _ in 0..EACH {
            let mut client = Client::connect(server.address).await;
            client.send(&keepalive(user, "[[sleep:600000]]")).await;
            open.push(client);
        }
    }
    for client in &mut open {
        client.begun().await;
    }
    // Each has had a heartbeat or two by then.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let each = (server.memory() - before) / open.len() as f64;
    vec![row(
        "1000 connections waiting on silent turns: own memory each, KiB",
        each,
        32.0,
        32.0,
        format!("{USERS} sessions"),
    )]
}
