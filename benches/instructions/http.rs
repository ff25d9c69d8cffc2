//! Instructions of `pilotlight serve` for turns over HTTP. The client is this process, and not counted.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use self::client::{Client, keepalive, messages, responses, round_trip};
use crate::{DELTAS, LONG, MORE, WARM, callgrind, instant};

#[allow(dead_code, reason = "another bench needs the rest")]
#[path = "../http/client.rs"]
mod client;

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Dialect {
    Keepalive,
    Anthropic,
    /// The Responses API, with responses that are stored.
    Responses,
    /// A round trip of a caller's tool: two requests in the Anthropic dialect, the deltas in the second answer.
    Tools,
}

/// The configuration, but for the child. A measurement of memory would be in one run and not in the other.
const CONFIG: &str = "[http]\nrequests_per_minute = 0\n[metrics]\nsample_interval = \"1h\"\n[cli.env]\n";

/// Turns that are not counted, and the time in which the work of a start comes to its end. A start calibrates clocks, for
/// as many instructions as a hundred turns.
const UNCOUNTED: usize = 5;
const SETTLES_WITHIN: Duration = Duration::from_secs(3);

/// Instructions of a server for [`MORE`] turns of [`DELTAS`], and for [`WARM`] of [`LONG`].
pub(crate) fn count(dialect: Dialect) -> (u64, u64) {
    let home = tempfile::tempdir().unwrap();
    let [config, said, out] = ["config.toml", "said", "out"].map(|name| home.path().join(name));
    std::fs::write(&config, format!("{CONFIG}{} = \"1\"\n", instant::SWITCH)).unwrap();
    let mut server = callgrind(&out)
        .arg(env!("CARGO_BIN_EXE_pilotlight"))
        .args(["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--cli"])
        .arg(std::env::current_exe().unwrap())
        .arg("--data-dir")
        .arg(home.path().join("data"))
        .arg("--config")
        .arg(&config)
        .env("TOKIO_WORKER_THREADS", "1")
        .stdout(Stdio::piped())
        .stderr(File::create(&said).unwrap())
        .spawn()
        .expect("valgrind is to be installed");
    let mut line = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let address = line.split_once("http=http://").unwrap().1.split(' ').next().unwrap().parse().unwrap();
    let requests = |deltas: usize| {
        let text = format!("[[deltas:{deltas}]]");
        match dialect {
            Dialect::Keepalive => vec![keepalive(0, &text)],
            Dialect::Anthropic => vec![messages(0, &text)],
            Dialect::Responses => vec![responses(0, &text)],
            Dialect::Tools => round_trip(0, 0, &text).to_vec(),
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut client = Client::connect(address).await;
        take_turns(&mut client, &requests(DELTAS), UNCOUNTED).await;
        tokio::time::sleep(SETTLES_WITHIN).await;
        control("--zero", &server);
        take_turns(&mut client, &requests(DELTAS), MORE).await;
        control("--dump", &server);
        take_turns(&mut client, &requests(LONG), WARM).await;
        control("--dump", &server);
    });
    kill_process(Pid::from_raw(server.id().cast_signed()).unwrap(), Signal::TERM).unwrap();
    let ended = server.wait().unwrap();
    assert!(ended.success(), "{}", std::fs::read_to_string(&said).unwrap());
    (dumped(&out, 1), dumped(&out, 2))
}

/// Has callgrind do something. A dump begins to count again.
fn control(what: &str, server: &Child) {
    let done = Command::new("callgrind_control").args([what, &server.id().to_string()]).output().unwrap();
    assert!(done.status.success(), "{done:?}");
}

/// The sum of the dump with this number.
fn dumped(out: &Path, number: usize) -> u64 {
    let dump = std::fs::read_to_string(format!("{}.{number}", out.display())).expect("a dump");
    let total = dump.lines().find_map(|line| line.strip_prefix("totals: "));
    total.expect("its sum").trim().parse().unwrap()
}

async fn take_turns(client: &mut Client, requests: &[Vec<u8>], turns: usize) {
    for _ in 0..turns {
        for request in requests {
            client.turn(request).await;
        }
    }
}
