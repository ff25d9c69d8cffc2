//! The rows of the table.

use std::time::Duration;

use crate::client::{Client, Seen, keepalive, messages};
use crate::pipe::Pipe;
use crate::rest;
use crate::server::Server;
use crate::table::{Row, median, print, row};

const ROUNDS: usize = 15;

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
    // Takes minutes, most of them to create the sessions.
    if on("R1") {
        rows.extend(rest::rows().await);
    }
    // Not by default: the sweep takes its time.
    if wanted.iter().any(|wanted| wanted == "R2") {
        rows.extend(rest::sweep().await);
    }
    print(&rows)
}

/// One of the servers that are compared, and how it is asked.
struct Side {
    server: Server,
    /// A client for each session, with its request.
    clients: Vec<(Client, Vec<u8>)>,
    latency: Vec<f64>,
    cpu: Vec<f64>,
    events: usize,
}

type Ask = fn(usize, &str) -> Vec<u8>;

impl Side {
    /// With a warm session for each client.
    async fn warm(server: Server, sessions: usize, ask: Ask, text: &str) -> Self {
        let mut clients = Vec::new();
        for user in 0..sessions {
            let mut client = Client::connect(server.address).await;
            client.turn(&ask(user, "warm")).await;
            clients.push((client, ask(user, text)));
        }
        Self { server, clients, latency: Vec::new(), cpu: Vec::new(), events: 0 }
    }

    /// All clients take `turns` turns at the same time.
    async fn round(&mut self, turns: usize) {
        let before = self.server.cpu();
        let tasks: Vec<_> = std::mem::take(&mut self.clients)
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
            self.clients.push((client, request));
            all.extend(seen);
        }
        self.cpu.push(self.server.cpu_since(&before) / all.len() as f64);
        self.latency.push(median(all.iter().map(|seen| seen.whole.as_secs_f64())));
        self.events = all[0].events;
    }

    /// Microseconds of a turn and of processor time for each of the floor's events: a dialect that sends less than the
    /// child does has not less to do.
    fn micros(&self, events: usize) -> (f64, f64) {
        (median(self.latency.clone()) * 1e6, median(self.cpu.clone()) * 1e6 / events as f64)
    }
}

/// The floor and the dialects with this number of warm sessions, in turn.
async fn compare(sessions: usize, turns: usize, text: &str) -> [(f64, f64); 3] {
    const CONFIG: &str = "[session]\nidle_timeout = \"1h\"\n[http]\nrequests_per_minute = 0";
    let mut sides = [
        Side::warm(Server::floor(sessions), sessions, keepalive, text).await,
        Side::warm(Server::ours(CONFIG).await, sessions, keepalive, text).await,
        Side::warm(Server::ours(CONFIG).await, sessions, messages, text).await,
    ];
    for _ in 0..ROUNDS {
        for side in &mut sides {
            side.round(turns).await;
        }
    }
    // Ours keeps to itself that the child is busy and idle.
    assert_eq!(sides[0].events, sides[1].events + 2, "both children send the same");
    sides.each_ref().map(|side| side.micros(sides[0].events))
}

/// One warm session, turns of 50 deltas.
async fn w1() -> Vec<Row> {
    let [floor, original, anthropic] = compare(1, 300, "[[deltas:50]]").await;
    let rows = |ours: (f64, f64), latency, cpu| {
        [
            row(latency, ours.0 / floor.0, 1.5, 1.25, format!("{:.0} µs / {:.0} µs a turn", ours.0, floor.0)),
            row(cpu, ours.1 / floor.1, 2.0, 1.5, format!("{:.2} µs / {:.2} µs", ours.1, floor.1)),
        ]
    };
    let mut all = Vec::new();
    all.extend(rows(original, "W1 one warm session, 50 deltas: latency / floor", "W1 CPU per event / floor"));
    all.extend(rows(
        anthropic,
        "W1 Anthropic dialect: latency / floor",
        "W1 Anthropic dialect: CPU per event / floor",
    ));
    all
}

/// 64 sessions at 100 deltas a second each.
async fn w6() -> Vec<Row> {
    let [floor, original, anthropic] = compare(64, 1, "[[deltas:200]][[delay:10]]").await;
    let row = |name, ours: (f64, f64)| {
        row(name, ours.1 / floor.1, 1.3, 1.0, format!("{:.2} µs / {:.2} µs", ours.1, floor.1))
    };
    vec![
        row("W6 64 sessions at 100 deltas/s: CPU per event / floor", original),
        row("W6 Anthropic dialect: CPU per event / floor", anthropic),
    ]
}

/// From the child's first line to the caller's first event. The child's is measured at a pipe of our own, so the way of
/// the request to the child counts as well.
async fn first_byte() -> Vec<Row> {
    const TURNS: usize = 300;
    const TEXT: &str = "[[deltas:50]]";
    let home = tempfile::tempdir().unwrap();
    let mut pipe = Pipe::start(home.path());
    let server = Server::ours("[http]\nrequests_per_minute = 0").await;
    let mut client = Client::connect(server.address).await;
    let request = keepalive(0, TEXT);
    client.turn(&request).await;
    let (mut lines, mut bytes) = (Vec::new(), Vec::new());
    for turn in 0..TURNS + 1 {
        let begin = std::time::Instant::now();
        pipe.send(TEXT).await;
        // What is read before it is the end of the turn before.
        while !pipe.line().await.0.starts_with(b"{\"type\":\"system\",\"subtype\":\"init\"") {}
        let mut is_last = false;
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
    let config = format!("[http]\nheartbeat = 1\nrequests_per_minute = 0\n[session]\nturn_queue = {EACH}");
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
