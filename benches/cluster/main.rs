//! What a cluster costs, measured from outside: nodes as processes of their own, a real etcd, a directory as object storage.
//!
//! The floors are a node without a cluster, a plain proxy ([`proxy`]) in front of the node that has the user, and the two
//! steps of a commit by themselves: an object of the same size, a transaction of etcd of the same size. All are measured
//! in the same run, in alternating rounds; medians are compared. The child is [`instant`]. Processor time is that of one
//! process alone. etcd has one member, the election times of the documentation, and waits for its disk.
//!
//! `cargo bench --bench cluster` prints the table; `-- turns` or `-- known` a part of it, `-- --quick` fewer rounds and
//! users. etcd is the program that `PILOTLIGHT_ETCD` names, or the one that `tests/run` has installed.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a bench fails by panicking"
)]

#[allow(dead_code, reason = "another bench needs the rest")]
#[path = "../http/client.rs"]
mod client;
mod etcd;
#[path = "../common/instant.rs"]
mod instant;
mod known;
mod nodes;
mod parts;
#[path = "../common/proxy.rs"]
mod proxy;
#[allow(dead_code, reason = "another bench needs the rest")]
#[path = "../http/server.rs"]
mod server;
#[allow(dead_code, reason = "another bench needs the rest")]
#[path = "../http/side.rs"]
mod side;
#[path = "../common/table.rs"]
mod table;
mod turns;

/// The argument that makes this program the plain proxy, before the address of the server behind it.
const PROXY: &str = "be-the-proxy";

fn main() {
    instant::run_if_asked();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    if arguments.first().is_some_and(|first| first == PROXY) {
        return runtime.block_on(be_the_proxy(&arguments[1]));
    }
    if pilotlight_test_support::installed::etcd().is_none() {
        println!("Nothing was measured: etcd is missing. Set PILOTLIGHT_ETCD to its program.");
        return;
    }
    let is_quick = arguments.iter().any(|argument| argument == "--quick");
    let wanted: Vec<String> = arguments.into_iter().filter(|argument| !argument.starts_with("--")).collect();
    let on = move |name: &str| wanted.is_empty() || wanted.iter().any(|wanted| wanted == name);
    let running = async move {
        let mut rows = Vec::new();
        if on("turns") {
            rows.extend(turns::rows(is_quick).await);
        }
        if on("known") {
            rows.extend(known::rows(is_quick).await);
        }
        table::print(&rows)
    };
    let failed = runtime.block_on(running);
    drop(runtime);
    if failed {
        println!("\nAt least one value misses its bound.");
    }
}

/// Until standard input ends.
async fn be_the_proxy(base: &str) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("listening http=http://{} admin=none", listener.local_addr().unwrap());
    let end = tokio::task::spawn_blocking(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink()));
    tokio::select! {
        () = proxy::serve(listener, base) => {}
        ended = end => drop(ended.unwrap().unwrap()),
    }
}
