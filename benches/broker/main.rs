//! What the credential broker costs, as a ratio to a plain proxy that is measured in the same run.
//!
//! The plain proxy is hyper's server and its pooled client with nothing between them: no token, no limits, no reading of
//! tokens. Both proxies, and the API behind them, are processes of their own. One client asks the API directly and through
//! each proxy, in alternating rounds; medians are compared; processor time is that of the proxy's process alone.
//!
//! `cargo bench --bench broker` prints the table, in about half a minute; `-- --quick` in a quarter of it.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a bench fails by panicking"
)]

#[path = "../common/proxy.rs"]
mod proxy;
mod servers;
#[path = "../common/table.rs"]
mod table;

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use table::{median, print, row};

/// Events of a response, each in a piece of its own.
const EVENTS: usize = 50;
/// Connections at the same time, and paced responses on each in a round. A paced response lasts as long as its events are
/// apart, a tenth of a second: the rounds take most of their time to wait.
const CONNECTIONS: usize = 8;
const PACED: usize = 8;
const ROUNDS: usize = 11;
const QUICK_ROUNDS: usize = 3;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    match arguments.first().map(String::as_str) {
        Some("be-the-api") => return runtime.block_on(servers::api()),
        Some("be-the-proxy") => return runtime.block_on(servers::plain_proxy(&arguments[1])),
        Some("be-the-broker") => return runtime.block_on(servers::broker(&arguments[1])),
        _ => {}
    }
    let is_quick = arguments.iter().any(|argument| argument == "--quick");
    if runtime.block_on(run(if is_quick { QUICK_ROUNDS } else { ROUNDS })) {
        println!("\nAt least one value misses its bound.");
    }
}

async fn run(rounds: usize) -> bool {
    let api = Server::start(&["be-the-api"]);
    let base = format!("http://{}", api.address);
    let (proxy, broker) = (Server::start(&["be-the-proxy", &base]), Server::start(&["be-the-broker", &base]));
    let sides = [&api, &proxy, &broker];
    let mut first: [Vec<f64>; 3] = Default::default();
    let mut cpu: [Vec<f64>; 3] = Default::default();
    for _ in 0..rounds {
        for (number, side) in sides.into_iter().enumerate() {
            first[number].push(one_by_one(side, 100).await);
            let before = side.cpu();
            together(side).await;
            cpu[number].push(side.cpu_since(&before) / (CONNECTIONS * PACED * EVENTS) as f64);
        }
    }
    let [direct, plain, through] = first.map(|times| median(times) * 1e6);
    let [_, plain_cpu, broker_cpu] = cpu.map(|times| median(times) * 1e6);
    let added = (through - direct) / 1000.0;
    let rows = [
        row(
            "broker: first byte added over direct, ms",
            added,
            1.0,
            0.5,
            format!("{through:.0} µs / {direct:.0} µs direct, {plain:.0} µs plain proxy"),
        ),
        row(
            "broker: CPU per event / plain hyper proxy",
            broker_cpu / plain_cpu,
            1.5,
            1.25,
            format!("{broker_cpu:.2} µs / {plain_cpu:.2} µs"),
        ),
    ];
    print(&rows)
}

/// Median time to the first event of requests that follow each other on one connection.
async fn one_by_one(side: &Server, requests: usize) -> f64 {
    let mut client = Client::connect(side).await;
    client.turn("/first").await;
    let mut times = Vec::with_capacity(requests);
    for _ in 0..requests {
        times.push(client.turn("/first").await.as_secs_f64());
    }
    median(times)
}

/// Paced responses on several connections at the same time.
async fn together(side: &Server) {
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..CONNECTIONS {
        let mut client = Client::connect(side).await;
        clients.spawn(async move {
            for _ in 0..PACED {
                client.turn("/paced").await;
            }
        });
    }
    clients.join_all().await;
}

/// A client that costs little: bytes written, bytes read, nothing parsed.
struct Client {
    stream: TcpStream,
    token: String,
    answer: Vec<u8>,
}

impl Client {
    async fn connect(side: &Server) -> Self {
        let stream = TcpStream::connect(side.address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, token: side.token.clone(), answer: Vec::with_capacity(64 << 10) }
    }

    /// Time from the request to its first event. Reads the whole response.
    async fn turn(&mut self, kind: &str) -> Duration {
        let body = format!("{{\"model\":\"{kind}\",\"messages\":\"{}\"}}", "x".repeat(40_000));
        let request = format!(
            "POST /v1/messages HTTP/1.1\r\nhost: 127.0.0.1\r\nx-api-key: {}\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            self.token,
            body.len()
        );
        self.answer.clear();
        let begun = Instant::now();
        self.stream.write_all(request.as_bytes()).await.unwrap();
        let mut first = None;
        while !self.answer.ends_with(b"\r\n0\r\n\r\n") {
            let count = self.stream.read_buf(&mut self.answer).await.unwrap();
            let text = || String::from_utf8_lossy(&self.answer).into_owned();
            assert!(count > 0 && self.answer.starts_with(b"HTTP/1.1 200"), "{}", text());
            if first.is_none() && memchr::memmem::find(&self.answer, b"data: ").is_some() {
                first = Some(begun.elapsed());
            }
        }
        first.unwrap()
    }
}

/// A server in a process of its own, which ends with its input.
struct Server {
    child: Child,
    address: SocketAddr,
    token: String,
}

impl Server {
    fn start(arguments: &[&str]) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let (address, token) = line.trim_end().split_once(' ').unwrap();
        Self { child, address: address.parse().unwrap(), token: token.to_owned() }
    }

    /// Processor time by thread, in nanoseconds.
    fn cpu(&self) -> HashMap<String, u64> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap().flatten();
        let read = |entry: std::fs::DirEntry| {
            let text = std::fs::read_to_string(entry.path().join("schedstat")).ok()?;
            Some((entry.file_name().into_string().ok()?, text.split(' ').next()?.parse().ok()?))
        };
        tasks.filter_map(read).collect()
    }

    /// Processor time since then, in seconds.
    fn cpu_since(&self, before: &HashMap<String, u64>) -> f64 {
        let used =
            self.cpu().into_iter().map(|(thread, now)| now - before.get(&thread).copied().unwrap_or(0));
        used.sum::<u64>() as f64 / 1e9
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        self.child.wait().ok();
    }
}
