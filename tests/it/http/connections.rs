//! Connections: idle ones keep nobody out, those in use are left alone, and children get none of the files.

use std::process::Command;
use std::sync::Arc;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::common::place::Place;
use crate::common::program::{Answer, Program, Site, message, place};
use crate::common::{SOON, eventually_some};

const LIVEZ: &[u8] = b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n";

/// A server with this limit of open files, soft and hard.
async fn with_files(place: &Arc<Place>, soft_and_hard: &str, config: &str) -> (Program, Site) {
    let mut limited = Command::new("prlimit");
    limited.args([&format!("--nofile={soft_and_hard}"), env!("CARGO_BIN_EXE_pilotlight")]);
    Program::ready_by(place, limited, config).await
}

async fn connect(address: &str) -> TcpStream {
    TcpStream::connect(address.strip_prefix("http://").unwrap()).await.unwrap()
}

/// Sends a request over a connection that is kept, and reads the answer.
async fn asked_on(connection: &mut TcpStream) {
    connection.write_all(LIVEZ).await.unwrap();
    let (mut answer, mut piece) = (String::new(), [0; 1024]);
    while !answer.contains("alive") {
        let read = timeout(SOON, connection.read(&mut piece)).await.expect("an answer").unwrap();
        assert!(read > 0, "closed after {answer:?}");
        answer.push_str(&String::from_utf8_lossy(&piece[..read]));
    }
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

/// Waits until the other end has closed the connection.
async fn is_closed(connection: &mut TcpStream) {
    let mut rest = Vec::new();
    timeout(SOON, connection.read_to_end(&mut rest)).await.expect("it is closed").ok();
}

/// The soft and the hard limit on open files of a process.
fn limits_of(pid: impl std::fmt::Display) -> (u64, u64) {
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    let mut numbers = line.split_whitespace().map_while(|word| word.parse().ok());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_keep_nobody_out() {
    // The test holds as many.
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
    let place = place();
    let (program, site) = with_files(&place, "1024:1024", "").await;
    assert_eq!(site.turn("alice", "before").await.text(), "echo 1: before");
    let mut idle = Vec::new();
    for number in 0..1100 {
        let mut connection = connect(&site.http).await;
        match number % 3 {
            // Nothing was ever sent, the head of a request is on its way, a request was answered.
            0 => {}
            1 => connection.write_all(b"POST /v1/messages HTTP/1.1\r\nhost: loc").await.unwrap(),
            _ => asked_on(&mut connection).await,
        }
        idle.push(connection);
    }
    for _ in 0..100 {
        idle.push(connect(&site.admin).await);
    }
    for user in ["alice", "bob", "carol"] {
        assert!(site.turn(user, "among them").await.text().ends_with("among them"));
    }
    for path in ["/livez", "/readyz", "/health"] {
        assert_eq!(site.get(path).await.status, 200, "{path}");
    }
    for path in ["/metrics", "/livez", "/readyz"] {
        assert_eq!(site.get_admin(path).await.status, 200, "{path} of the operator");
    }
    let files = std::fs::read_dir(format!("/proc/{}/fd", program.process().pid)).unwrap().count();
    assert!(files < 700, "some are kept for children: {files} of 1024 are open");
    assert!(
        program.err().contains("RLIMIT_NOFILE"),
        "that there is room for fewer is said: {}",
        program.err()
    );
    // The first have made way.
    for connection in idle.iter_mut().take(3) {
        is_closed(connection).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_idlest_connection_makes_way() {
    let place = place();
    let (_program, site) = Program::ready(&place, "[http]\nmax_connections = 2").await;
    let (mut first, mut second) = (connect(&site.http).await, connect(&site.http).await);
    asked_on(&mut first).await;
    asked_on(&mut second).await;
    // Used again, it is no longer the one that was idle longest.
    asked_on(&mut first).await;
    assert_eq!(site.turn("alice", "hello").await.text(), "echo 1: hello");
    is_closed(&mut second).await;
    asked_on(&mut first).await;
    assert_eq!(site.metric("http_limited_total", &["limit=\"connections\""]).await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_in_use_never_makes_way() {
    let place = place();
    let (_program, site) = Program::ready(&place, "[http]\nmax_connections = 3").await;
    let streaming = site.asking("alice", &message("[[deltas:60]] [[delay:20]]")).send().await.unwrap();
    // Its turn has ended long before its answer is out.
    let unread = site.asking("bob", &message("[[bytes:30000000]]")).send().await.unwrap();
    let turns_ended = async || (site.metric("turns_total", &[]).await >= 1.0).then_some(());
    for _ in 0..20 {
        assert_eq!(site.get("/livez").await.status, 200);
        drop(connect(&site.http).await);
    }
    eventually_some("a turn has ended", SOON, turns_ended).await;
    for _ in 0..20 {
        assert_eq!(site.get("/livez").await.status, 200);
    }
    let whole = streaming.text().await.unwrap();
    assert!(whole.contains("059 ") && whole.ends_with("data: [DONE]\n\n"), "{whole}");
    let whole = unread.text().await.unwrap();
    assert!(whole.len() > 30_000_000 && whole.ends_with("data: [DONE]\n\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn children_keep_the_limit_the_server_was_given() {
    for (config, expected) in [("", (512, 2048)), ("[limits]\nchild_open_files = 100", (100, 100))] {
        let place = place();
        let (program, site) = with_files(&place, "512:4096", config).await;
        site.turn("alice", "hello").await.text();
        assert_eq!(limits_of(program.process().pid), (4096, 4096), "the server takes what it may have");
        assert_eq!(limits_of(site.pid("alice").await), expected, "{config}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_a_file_left_serves_who_comes_next() {
    let place = place();
    let (_program, site) = with_files(&place, "64:64", "").await;
    // Children take what there is.
    let mut warm = 0;
    for number in 0..20 {
        let answer = site.turn(&format!("user-{number}"), "hello").await;
        warm += usize::from(answer.status == 200);
    }
    assert!((1..20).contains(&warm), "64 files are enough for {warm} children");
    let mut idle = Vec::new();
    for _ in 0..60 {
        idle.push(connect(&site.http).await);
    }
    assert_eq!(Answer::of(site.of("GET", "/livez", "user-0")).await.status, 200);
    assert_eq!(site.turn("user-0", "again").await.text(), "echo 2: again");
}
