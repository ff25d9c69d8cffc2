//! What a cluster costs a warm turn. Prints medians; asserts nothing about time.
//!
//! `cargo test --release --test cluster -- measure --ignored --nocapture`

use std::time::Duration;

use tokio::time::Instant;

use crate::common::client::Client;
use crate::common::installed;
use crate::common::place::Place;
use crate::common::server::Server;
use crate::nodes::{Nodes, SIM};

/// Turns of one measurement, after as many as warm up.
const TURNS: usize = 200;
const WARM_UP: usize = 20;

/// Median and 99th percentile of warm turns, one after the other on one connection.
async fn turns(client: &Client, user: &str) -> (Duration, Duration) {
    let mut took = Vec::with_capacity(TURNS);
    for number in 0..WARM_UP + TURNS {
        let began = Instant::now();
        let turn = client.turn(user, "[[say:ok]]").await;
        assert!(turn.error().is_none(), "{:?}", turn.events);
        if number >= WARM_UP {
            took.push(began.elapsed());
        }
    }
    took.sort_unstable();
    (took[TURNS / 2], took[TURNS * 99 / 100])
}

fn say(what: &str, (median, p99): (Duration, Duration)) {
    installed::say(&format!("{what}: median {median:.2?}, p99 {p99:.2?}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn measure_warm_turns() {
    let place = std::sync::Arc::new(Place::new());
    let alone = Server::start(&place, SIM).await;
    say("alone", turns(&alone.client(), "alice").await);
    drop(alone);
    for replication in ["async", "turn"] {
        let config = format!("{SIM}[cluster]replication = \"{replication}\"\n");
        let Some(cluster) = Nodes::start(2, &config).await else { return };
        let first = cluster.client(0).turn("alice", "hello").await;
        assert!(first.error().is_none(), "{:?}", first.events);
        let owner = cluster.owner(0, "alice").await;
        say(&format!("{replication}, on the owner"), turns(&cluster.client(owner), "alice").await);
        say(&format!("{replication}, forwarded"), turns(&cluster.client(1 - owner), "alice").await);
    }
}
