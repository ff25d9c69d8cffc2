//! Warm turns: on the node that has the user, with each way of replication, and through another node.

use std::time::Duration;

use crate::client::keepalive;
use crate::etcd::Etcd;
use crate::nodes::{CONFIG, Cluster, users_of};
use crate::parts::Parts;
use crate::server::Server;
use crate::side::Side;
use crate::table::{Row, median, row};

/// A usual turn, and its number in a round.
const TURN: &str = "[[deltas:50]]";
const TURNS: usize = 100;
/// A turn at the pace of a model, in [`SESSIONS`] sessions at a time.
const PACED: &str = "[[deltas:200]][[delay:10]]";
const SESSIONS: usize = 32;
/// Turns whose transactions are counted, and the time in which what came before is stored.
const COUNTED: usize = 50;
const STORED_WITHIN: Duration = Duration::from_secs(2);

/// Medians of a round, as milliseconds or by a ratio.
struct Rounds(Vec<f64>);

impl Rounds {
    fn of(count: usize, value: impl Fn(usize) -> f64) -> Self {
        Self((0..count).map(value).collect())
    }

    fn median(&self) -> f64 {
        median(self.0.iter().copied())
    }

    fn spread(&self) -> String {
        let (least, most) =
            self.0.iter().fold((f64::MAX, f64::MIN), |(least, most), it| (least.min(*it), most.max(*it)));
        format!("rounds {least:.2} to {most:.2}")
    }
}

fn ms(seconds: &[f64]) -> f64 {
    median(seconds.iter().copied()) * 1e3
}

pub(crate) async fn rows(is_quick: bool) -> Vec<Row> {
    let etcd = Etcd::start().await;
    let (early, late) = (Cluster::new("early", &etcd), Cluster::new("late", &etcd));
    let owner = early.node("owner", CONFIG, "replication = \"async\"").await;
    let other = early.node("other", CONFIG, "replication = \"async\"").await;
    let users = users_of("owner", &owner, SESSIONS + 3).await;
    let base = format!("http://{}", owner.address);
    let proxy = std::sync::Arc::new(Server::role(&[crate::PROXY, &base]));
    let rounds = if is_quick { 5 } else { 15 };

    let one = |server, user: usize| Side::warm(server, [user], keepalive, TURN);
    let mut alone = one(Server::ours(CONFIG).await.into(), 0).await;
    let mut at_once = one(late.node("only", CONFIG, "replication = \"turn\"").await, 0).await;
    let mut asynchronous = one(owner.clone(), users[0]).await;
    let mut forwarded = one(other.clone(), users[1]).await;
    let mut proxied = one(proxy.clone(), users[2]).await;
    let mut parts = Parts::new(&etcd);
    let (mut objects, mut transactions) = (Vec::new(), Vec::new());
    let mut bytes = 0.0;
    for _ in 0..rounds {
        for side in [&mut alone, &mut asynchronous, &mut forwarded, &mut proxied, &mut at_once] {
            side.round(TURNS).await;
        }
        let written = at_once.server.metric("pilotlight_cluster_commit_bytes_total").await;
        bytes = written / (at_once.latency.len() * TURNS + 1) as f64;
        objects.push(parts.object(bytes as usize, TURNS).await);
        transactions.push(parts.transaction(TURNS).await);
    }
    let counted = transactions_of_a_turn(&etcd, &mut at_once).await;

    let added = |ours: &[f64], floor: &[f64]| Rounds::of(rounds, |round| (ours[round] - floor[round]) * 1e3);
    let latencies = |name: &str, ours: &[f64], floor: &[f64], must: f64, more: String| {
        let added = added(ours, floor);
        let note = format!("{:.2} ms / {:.2} ms; {}{more}", ms(ours), ms(floor), added.spread());
        row(name, added.median(), must, must / 2.0, note)
    };
    let cpu =
        |ours: &[f64], floor: &[f64]| format!("; CPU of a turn {:.2} ms / {:.2} ms", ms(ours), ms(floor));
    let (object, transaction) = (ms(&objects), ms(&transactions));
    let both = format!(
        "; object of {bytes:.0} bytes {object:.2} ms + transaction {transaction:.2} ms{}",
        cpu(&at_once.cpu, &alone.cpu)
    );
    let mut rows = vec![
        latencies(
            "warm turn, async: added to a node alone, ms",
            &asynchronous.latency,
            &alone.latency,
            1.0,
            cpu(&asynchronous.cpu, &alone.cpu),
        ),
        latencies(
            "warm turn, turn: added to a node alone, ms",
            &at_once.latency,
            &alone.latency,
            object + transaction + 1.0,
            both,
        ),
        row("the same: transactions of etcd for each turn", counted, 1.05, 1.0, String::new()),
        latencies(
            "forwarded turn: added to a turn on the owner, ms",
            &forwarded.latency,
            &asynchronous.latency,
            1.0,
            String::new(),
        ),
        latencies(
            "the same through a plain proxy, ms",
            &proxied.latency,
            &asynchronous.latency,
            f64::INFINITY,
            String::new(),
        ),
        of_proxy("forwarded turn of 50 deltas at once", &forwarded, &proxied),
    ];

    let users = users[3..].to_vec();
    let mut paced = Side::warm(other, users.clone(), keepalive, PACED).await;
    let mut floor = Side::warm(proxy, users, keepalive, PACED).await;
    // A round takes two seconds for each side.
    for _ in 0..if is_quick { 2 } else { rounds } {
        paced.round(1).await;
        floor.round(1).await;
    }
    rows.push(of_proxy("32 forwarded turns at 100 deltas/s", &paced, &floor));
    rows
}

/// Processor time of the node that passes a turn on, against that of the plain proxy.
fn of_proxy(name: &str, ours: &Side, floor: &Side) -> Row {
    let ratios = Rounds::of(ours.cpu.len(), |round| ours.cpu[round] / floor.cpu[round]);
    let [ours, floor] = [ours, floor].map(|side| ms(&side.cpu) * 1e3 / side.events as f64);
    let note = format!("{ours:.2} µs / {floor:.2} µs; {}", ratios.spread());
    row(format!("{name}: CPU per event / plain proxy"), ratios.median(), 1.3, 1.1, note)
}

async fn transactions_of_a_turn(etcd: &Etcd, side: &mut Side) -> f64 {
    tokio::time::sleep(STORED_WITHIN).await;
    let before = etcd.answered().await["Txn"];
    side.round(COUNTED).await;
    (etcd.answered().await["Txn"] - before) / COUNTED as f64
}
