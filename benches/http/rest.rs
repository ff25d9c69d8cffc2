//! Sessions at rest: what they cost the start of a server, its memory, and a token that nobody knows.

use std::path::Path;
use std::time::Instant;

use pilotlight::{Config, Pilotlight};
use serde_json::json;
use tokio::task::JoinSet;

use crate::server::Server;
use crate::table::{Row, median, row};

/// Users, each with a session and two tokens.
const USERS: usize = 100_000;
/// Requests at the same time while the tokens are made known.
const AT_ONCE: usize = 32;
const CONFIG: &str = "[http]\nrequests_per_minute = 0";

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

    let begin = Instant::now();
    let server = Server::at(data.path(), CONFIG);
    let start = begin.elapsed().as_secs_f64();
    let memory = server.memory() / 1024.0;
    let mut unknown = Vec::new();
    for number in 0..20 {
        let begin = Instant::now();
        ask(&reqwest::Client::new(), server.address, &format!("stranger-{number}")).await;
        unknown.push(begin.elapsed().as_secs_f64() * 1000.0);
    }
    let note = format!("{USERS} users; an empty directory takes {without:.2} s");
    vec![
        row("R1 100,000 sessions at rest: start, s", start, 1.0, 0.5, note),
        row("R1 own memory after the start, MiB", memory, 50.0, 25.0, String::new()),
        row("R1 an unknown OAuth token, ms", median(unknown), 50.0, 10.0, String::new()),
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
