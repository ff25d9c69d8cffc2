//! The rows of the table.

use std::time::{Duration, Instant};

use crate::client::{Client, keepalive, messages, responses, round_trip};
use crate::pipe::Pipe;
use crate::rest;
use crate::server::Server;
use crate::side::Side;
use crate::table::{Row, median, print, row};

pub(crate) async fn run(wanted: &[String], is_quick: bool) -> bool {
    let on = |name: &str| wanted.is_empty() || wanted.iter().any(|wanted| wanted == name);
    let rounds = if is_quick { 5 } else { 15 };
    let mut rows = Vec::new();
    if on("W1") {
        rows.extend(w1(rounds).await);
    }
    if on("tools") {
        rows.push(tools("tool round trip, 50 deltas in each answer", 50, rounds).await);
        rows.push(tools("tool round trip, a call alone first", 0, rounds).await);
    }
    if on("W6") {
        // A round takes two seconds for each side.
        rows.extend(w6(if is_quick { 2 } else { rounds }).await);
    }
    if on("users") {
        rows.extend(users(if is_quick { 3 } else { rounds }).await);
    }
    if on("first") {
        rows.extend(first_byte().await);
    }
    if on("memory") {
        rows.extend(memory().await);
    }
    // Takes minutes, most of them to create the sessions.
    if on("R1") && !is_quick {
        rows.extend(rest::rows().await);
    }
    // Not by default: the sweep takes its time.
    if wanted.iter().any(|wanted| wanted == "R2") {
        rows.extend(rest::sweep().await);
    }
    print(&rows)
}

/// A value by round.
type Rounds = fn(&Side) -> &[f64];

const LATENCY: Rounds = |side| &side.latency;
const CPU: Rounds = |side| &side.cpu;

/// The floor and the dialects with warm sessions, in turn.
struct Compared {
    floor: Side,
    keepalive: Side,
    anthropic: Side,
    /// Where it is asked for.
    responses: Option<Side>,
}

/// Runs the rounds with this number of sessions.
async fn compare(rounds: usize, sessions: usize, turns: usize, text: &str, has_responses: bool) -> Compared {
    let config = format!(
        "[session]\nidle_timeout = \"1h\"\n[http]\nrequests_per_minute = 0\nheader_timeout = \"1h\"\n[limits]\nmax_children = {sessions}"
    );
    let mut sides = Compared {
        floor: Side::warm(
            Server::role(&[crate::FLOOR, &sessions.to_string()]).into(),
            0..sessions,
            keepalive,
            text,
        )
        .await,
        keepalive: Side::warm(Server::ours(&config).await.into(), 0..sessions, keepalive, text).await,
        anthropic: Side::warm(Server::ours(&config).await.into(), 0..sessions, messages, text).await,
        responses: None,
    };
    if has_responses {
        let side = Side::warm(Server::ours(&config).await.into(), 0..sessions, responses, text).await;
        sides.responses = Some(side);
    }
    for _ in 0..rounds {
        let all = [&mut sides.floor, &mut sides.keepalive, &mut sides.anthropic];
        for side in all.into_iter().chain(&mut sides.responses) {
            side.round(turns).await;
        }
    }
    // Ours keeps to itself that the child is busy and idle.
    assert_eq!(sides.floor.events, sides.keepalive.events + 2, "both children send the same");
    sides
}

impl Compared {
    /// A ratio to the floor, in microseconds by `parts` of a turn. A dialect that sends fewer events than the child does
    /// not have less to do: all are divided by the same number.
    fn row(&self, name: &str, ours: &Side, of: Rounds, parts: usize, (must, aim): (f64, f64)) -> Row {
        let ratios = of(ours).iter().zip(of(&self.floor)).map(|(ours, floor)| ours / floor);
        let (least, most) =
            ratios.fold((f64::MAX, 0.0_f64), |(least, most), ratio| (least.min(ratio), most.max(ratio)));
        let micros = |side: &Side| median(of(side).iter().copied()) * 1e6 / parts as f64;
        let (ours, floor) = (micros(ours), micros(&self.floor));
        row(
            name,
            ours / floor,
            must,
            aim,
            format!("{ours:.2} µs / {floor:.2} µs; rounds {least:.2}–{most:.2}"),
        )
    }
}

/// One warm session, turns of 50 deltas.
async fn w1(rounds: usize) -> Vec<Row> {
    let all = compare(rounds, 1, 300, "[[deltas:50]]", true).await;
    let (keepalive, anthropic, events) = (&all.keepalive, &all.anthropic, all.floor.events);
    let mut rows = vec![
        all.row("W1 one warm session, 50 deltas: latency / floor", keepalive, LATENCY, 1, (1.3, 1.2)),
        all.row("W1 CPU per event / floor", keepalive, CPU, events, (1.8, 1.5)),
        all.row("W1 Anthropic dialect: latency / floor", anthropic, LATENCY, 1, (1.3, 1.2)),
        all.row("W1 Anthropic dialect: CPU per event / floor", anthropic, CPU, events, (1.8, 1.5)),
    ];
    if let Some(responses) = &all.responses {
        rows.push(all.row("W1 Responses API: latency / floor", responses, LATENCY, 1, (1.3, 1.2)));
        rows.push(all.row("W1 Responses API: CPU per event / floor", responses, CPU, events, (1.8, 1.5)));
    }
    rows
}

/// A tool round trip against a keepalive turn of 50 deltas: two requests, the second with an answer of 50 deltas, the first
/// with a text of `before` deltas and the call.
async fn tools(name: &str, before: usize, rounds: usize) -> Row {
    const TURNS: usize = 200;
    const TEXT: &str = "[[deltas:50]]";
    let server = Server::ours("[http]\nrequests_per_minute = 0").await;
    let (mut plain, mut calling) =
        (Client::connect(server.address).await, Client::connect(server.address).await);
    let (turn, [call, result]) = (keepalive(0, TEXT), round_trip(1, before, TEXT));
    let (mut ratios, mut each) = (Vec::new(), Vec::new());
    // The first round starts the children.
    for round in 0..=rounds {
        let (before, mut events) = (server.cpu(), 0);
        for _ in 0..TURNS {
            events += plain.turn(&turn).await.events;
        }
        let of_turn = server.cpu_since(&before) / events as f64;
        let (before, mut events) = (server.cpu(), 0);
        for _ in 0..TURNS {
            events += calling.turn(&call).await.events + calling.turn(&result).await.events;
        }
        let of_round_trip = server.cpu_since(&before) / events as f64;
        if round > 0 {
            ratios.push(of_round_trip / of_turn);
            each.push((of_round_trip * 1e6, of_turn * 1e6));
        }
    }
    let [ours, floor] =
        [|pair: &(f64, f64)| pair.0, |pair: &(f64, f64)| pair.1].map(|side| median(each.iter().map(side)));
    row(
        format!("{name}: CPU per event / keepalive turn's"),
        median(ratios),
        1.5,
        1.25,
        format!("{ours:.2} µs / {floor:.2} µs"),
    )
}

/// 64 sessions at 100 deltas a second each.
async fn w6(rounds: usize) -> Vec<Row> {
    let all = compare(rounds, 64, 1, "[[deltas:200]][[delay:10]]", false).await;
    let events = all.floor.events;
    vec![
        all.row(
            "W6 64 sessions at 100 deltas/s: CPU per event / floor",
            &all.keepalive,
            CPU,
            events,
            (1.2, 0.9),
        ),
        all.row("W6 Anthropic dialect: CPU per event / floor", &all.anthropic, CPU, events, (1.2, 0.9)),
    ]
}

/// 200 users at once, each as fast as it is answered; the client and the children have the same processors.
async fn users(rounds: usize) -> Vec<Row> {
    let all = compare(rounds, 200, 20, "[[deltas:50]]", false).await;
    let row = |name, ours: &Side| {
        let per_second = |side: &Side| 1.0 / median(side.wall.iter().copied());
        let (turns, floor) = (per_second(ours), per_second(&all.floor));
        let cpu = all.row("", ours, CPU, 1, (0.0, 0.0)).note;
        row(name, floor / turns, 1.5, 1.2, format!("{turns:.0} turns/s / {floor:.0} turns/s; CPU {cpu}"))
    };
    vec![
        row("200 users, 50 deltas: turns/s of the floor / turns/s", &all.keepalive),
        row("200 users, Anthropic dialect: turns/s of the floor / turns/s", &all.anthropic),
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
        let begin = Instant::now();
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
    let server = Server::with_sim(&config).await;
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
