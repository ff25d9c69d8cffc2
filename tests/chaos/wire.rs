//! What the run and the server under test say to each other: one JSON object per line on a Unix socket.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::plan::Reader;

/// Where the socket is; in the environment of the server, and only there.
pub const SOCKET: &str = "PILOTLIGHT_CHAOS_SOCKET";
/// The server's data directory, likewise.
pub const DATA_DIR: &str = "PILOTLIGHT_CHAOS_DATA";

/// From the run.
#[derive(Debug, Serialize, Deserialize)]
pub enum Order {
    Turn { number: u64, user: usize, text: String, reader: Reader },
    Interrupt { user: usize },
    Evict { user: usize },
    Warm { user: usize },
    Purge { user: usize },
    Panic { actor: String, user: usize },
    Report,
    ShutDown,
}

/// From the server.
#[derive(Debug, Serialize, Deserialize)]
pub enum News {
    Ready,
    /// The turn was not accepted.
    Refused {
        number: u64,
        code: String,
    },
    Ended(Ended),
    Purged {
        user: usize,
        error: Option<String>,
    },
    Report(Report),
}

/// The end of an accepted turn, as its reader saw it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Ended {
    pub number: u64,
    pub fate: Fate,
    pub text: String,
    /// Whose nonces came in any event of the turn.
    pub nonces: Vec<Nonce>,
    /// What was read before the end said that context was lost.
    pub loss_reported: bool,
    pub events: usize,
    pub retries: u32,
    /// A rule of the stream that was broken.
    pub irregular: Option<String>,
}

/// How an accepted turn ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fate {
    Completed,
    Failed,
    Aborted {
        code: String,
        why: String,
    },
    /// Its reader went away.
    Dropped,
}

/// Names one turn of one user: `~USER.NUMBER~`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Nonce {
    pub user: usize,
    pub number: u64,
}

impl std::fmt::Display for Nonce {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "~{}.{}~", self.user, self.number)
    }
}

/// The server's metrics.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Report {
    /// Sessions in memory.
    pub sessions: usize,
    /// Those of them that have a child or are about to have one, with state and waiting turns.
    pub unsettled: Vec<String>,
    /// `name{label=value}`, without the prefix.
    pub counters: BTreeMap<String, u64>,
    pub gauges: BTreeMap<String, f64>,
    /// The largest value of each histogram.
    pub most: BTreeMap<String, f64>,
}

impl Report {
    /// The sum over all labels; those that contain `label` if it is not empty.
    pub fn sum(&self, name: &str, label: &str) -> u64 {
        let is_it = |key: &str| key.split('{').next() == Some(name) && key.contains(label);
        self.counters.iter().filter(|(key, _)| is_it(key)).map(|(_, value)| value).sum()
    }

    pub fn gauge(&self, name: &str) -> f64 {
        self.gauges
            .iter()
            .filter(|(key, _)| key.split('{').next() == Some(name))
            .map(|(_, value)| value)
            .sum()
    }
}

/// All nonces in a text, in their order.
pub fn nonces(text: &str) -> Vec<Nonce> {
    let parse = |piece: &str| {
        let (user, number) = piece.split_once('.')?;
        Some(Nonce { user: user.parse().ok()?, number: number.parse().ok()? })
    };
    text.split('~').filter_map(parse).collect()
}
