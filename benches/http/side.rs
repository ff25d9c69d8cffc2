//! One of the sides of a comparison: a server, clients of it, and what was measured in each round.

use std::sync::Arc;
use std::time::Instant;

use crate::client::{Client, Seen};
use crate::server::Server;
use crate::table::median;

/// Sessions that start at the same time, before the first round.
const STARTS_AT_ONCE: usize = 8;

/// One of the servers that are compared, and how it is asked.
pub(crate) struct Side {
    pub(crate) server: Arc<Server>,
    /// A client for each session, with its request.
    clients: Vec<(Client, Vec<u8>)>,
    /// By round: median of a turn, processor time of a turn, time of the round by turns.
    pub(crate) latency: Vec<f64>,
    pub(crate) cpu: Vec<f64>,
    pub(crate) wall: Vec<f64>,
    pub(crate) events: usize,
}

pub(crate) type Ask = fn(usize, &str) -> Vec<u8>;

impl Side {
    /// With a warm session of each user, and a client for it.
    pub(crate) async fn warm(
        server: Arc<Server>,
        users: impl IntoIterator<Item = usize>,
        ask: Ask,
        text: &str,
    ) -> Self {
        let mut clients = Vec::new();
        for users in users.into_iter().collect::<Vec<_>>().chunks(STARTS_AT_ONCE) {
            let start = |user: &usize| {
                let (address, warm, request) = (server.address, ask(*user, "warm"), ask(*user, text));
                tokio::spawn(async move {
                    let mut client = Client::connect(address).await;
                    client.turn(&warm).await;
                    (client, request)
                })
            };
            let starting: Vec<_> = users.iter().map(start).collect();
            for started in starting {
                clients.push(started.await.unwrap());
            }
        }
        Self { server, clients, latency: Vec::new(), cpu: Vec::new(), wall: Vec::new(), events: 0 }
    }

    /// All clients take `turns` turns at the same time.
    pub(crate) async fn round(&mut self, turns: usize) {
        let (before, begin) = (self.server.cpu(), Instant::now());
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
        self.wall.push(begin.elapsed().as_secs_f64() / all.len() as f64);
        self.events = all[0].events;
    }
}
