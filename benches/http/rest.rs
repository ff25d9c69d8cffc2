//! Sessions at rest: what they cost the start of a server, its memory, a token that nobody knows, and a sweep.

use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use pilotlight::{Config, Pilotlight};
use serde_json::json;
use tokio::task::JoinSet;

use crate::server::Server;
use crate::table::{Row, median, row};

/// Users, each with a session and two tokens.
const USERS: usize = 100_000;
/// Requests at the same time while the tokens are made known.
const AT_ONCE: usize = 32;
const CONFIG: &str = "[http]\nrequests_per_minute = 0\nnew_users_per_minute = 0";

pub(crate) async fn rows() -> Vec<Row> {
    let empty = tempfile::tempdir().unwrap();
    let begin = Instant::now();
    drop(Server::at(empty.path(), CONFIG));
    let without = begin.elapsed().as_secs_f64();

    let data = tempfile::tempdir().unwrap();
    sessions(&data.path().join("data")).await;
    let server = Server::at(data.path(), CONFIG);
    tokens(&server).await;
    drop(server);
    // As if each had had an answer.
    std::fs::remove_dir_all(data.path().join("data/records/identities/new")).unwrap();

    let begin = Instant::now();
    let server = Server::at(data.path(), CONFIG);
    let start = begin.elapsed().as_secs_f64();
    let memory = server.memory() / 1024.0;
    let (mut unknown, mut floor) = (Vec::new(), Vec::new());
    for number in 0..20 {
        floor.push(written(data.path(), number));
        let begin = Instant::now();
        ask(&reqwest::Client::new(), server.address, &format!("stranger-{number}")).await;
        unknown.push(begin.elapsed().as_secs_f64() * 1000.0);
    }
    let note = format!("{USERS} users; an empty directory takes {without:.2} s");
    let disk = format!("a file of 64 bytes is on this disk after {:.2} ms", median(floor));
    vec![
        row("R1 100,000 sessions at rest: start, s", start, 1.0, 0.5, note),
        row("R1 own memory after the start, MiB", memory, 50.0, 25.0, String::new()),
        row("R1 an unknown OAuth token, ms", median(unknown), 50.0, 10.0, disk),
    ]
}

/// Milliseconds until a small new file is on the disk.
fn written(directory: &Path, number: usize) -> f64 {
    let begin = Instant::now();
    let mut file = std::fs::File::create(directory.join(format!("floor-{number}"))).unwrap();
    file.write_all(&[1; 64]).unwrap();
    file.sync_all().unwrap();
    begin.elapsed().as_secs_f64() * 1000.0
}

/// The first sweep over as many sessions, in real time: three quarters of an hour.
pub(crate) async fn sweep() -> Vec<Row> {
    let data = tempfile::tempdir().unwrap();
    sessions(&data.path().join("data")).await;
    let config = format!("{CONFIG}\n[retention]\nidle_days = 30\nsweep_interval = \"100ms\"");
    let server = Server::at(data.path(), &config);
    let (begin, before, at_start) = (Instant::now(), server.cpu(), server.memory());
    let mut memory = at_start;
    while server.metric("pilotlight_sessions_on_disk").await < USERS as f64 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        memory = memory.max(server.memory());
    }
    let took = begin.elapsed().as_secs_f64();
    let (cpu, grown) = (server.cpu_since(&before), (memory - at_start) / 1024.0);
    // Each session is looked at twice: once after the start, once in the round.
    let looked = 2.0 * USERS as f64;
    let rate = looked / took * 60.0;
    let note = format!("{:.0} µs of processor time a session; {took:.0} s", cpu / looked * 1e6);
    vec![
        row("R2 100,000 sessions swept: looked at in a minute", rate, 6000.0, 6000.0, note),
        row("R2 share of a processor, %", 100.0 * cpu / took, 10.0, 5.0, String::new()),
        row("R2 memory that the sweep adds, MiB", grown, 25.0, 10.0, String::new()),
    ]
}

async fn sessions(data_dir: &Path) {
    let mut config = Config::new(data_dir);
    config.cli.program = "sim".to_owned();
    config.cli.shim = Some(env!("CARGO_BIN_EXE_pilotlight-shim").into());
    config.isolation.rungs = Vec::new();
    let pilot = Pilotlight::start(config).await.unwrap();
    for number in 0..USERS {
        pilot.session(format!("user-{number}")).workspace().await.unwrap();
    }
    pilot.shutdown(std::time::Duration::ZERO).await;
}

async fn tokens(server: &Server) {
    let client = reqwest::Client::new();
    let mut running = JoinSet::new();
    for number in 0..USERS {
        if running.len() == AT_ONCE {
            running.join_next().await.unwrap().unwrap();
        }
        let (client, address) = (client.clone(), server.address);
        running.spawn(async move { ask(&client, address, &format!("user-{number}")).await });
    }
    running.join_all().await;
}

/// Presents tokens in a request that is refused once their user is known: its session has no valid name.
async fn ask(client: &reqwest::Client, address: std::net::SocketAddr, name: &str) {
    let body = json!({ "messages": [{ "role": "user", "content": "hello" }], "oauth_credentials": {
        "access_token": format!("a-{name}"), "refresh_token": format!("r-{name}"), "expires_at": 1 } });
    let request = client.post(format!("http://{address}/v1/messages/keepalive"));
    let answer = request.header("x-pilotlight-session", "%").json(&body).send().await.unwrap();
    assert_eq!(answer.status(), 400);
}
