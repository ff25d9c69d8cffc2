//! Inside an axum service: one route that streams the answer of a user's session, and an orderly end.
//!
//! `cargo run --example axum_service` serves, sends itself one request, prints the answer and ends.
//! `cargo run --example axum_service -- --listen 127.0.0.1:8080` stays until Ctrl-C:
//!
//! ```text
//! curl -N http://127.0.0.1:8080/chat/alice -d 'Hello'
//! ```
//!
//! The user is taken from the path, which is fit for an example only: a real service knows who is calling.

use std::convert::Infallible;
use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use futures_util::{StreamExt, future, stream};
use pilotlight::{Config, Pilotlight, TurnError};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

fn main() -> Result<(), Box<dyn Error>> {
    pilotlight::shim::run_if_asked();
    pilotlight::sim::run_if_asked();
    let listen = match std::env::args().skip(1).collect::<Vec<_>>().as_slice() {
        [] => None,
        [flag, address] if flag == "--listen" => Some(address.parse()?),
        _ => return Err("usage: axum_service [--listen ADDRESS:PORT]".into()),
    };
    tokio::runtime::Runtime::new()?.block_on(run(listen))
}

async fn run(listen: Option<SocketAddr>) -> Result<(), Box<dyn Error>> {
    let data_dir = std::env::temp_dir().join(format!("pilotlight-axum-{}", std::process::id()));
    let mut config = Config::new(&data_dir);
    config.cli.program = "sim".to_owned();
    let pilot = Pilotlight::start(config).await?;

    let served = match listen {
        Some(address) => stay(&pilot, address).await,
        None => ask_once(&pilot).await,
    };
    pilot.shutdown(Duration::from_secs(10)).await;
    std::fs::remove_dir_all(data_dir)?;
    served
}

fn service(pilot: Pilotlight) -> Router {
    Router::new().route("/chat/{user}", post(chat)).with_state(pilot)
}

/// Streams the answer's text as it is written. If the caller hangs up, the body is dropped, and with it the turn: it is
/// interrupted, and the child stays warm for the next one.
async fn chat(State(pilot): State<Pilotlight>, Path(user): Path<String>, prompt: String) -> Response {
    let turn = match pilot.session(user).send(prompt).await {
        Ok(turn) => turn,
        Err(error) => return refusal(&error),
    };
    let text = turn.filter_map(|event| {
        future::ready(match event {
            Ok(event) => event.text_delta().map(|text| Ok::<_, Infallible>(Bytes::from(text))),
            Err(error) => Some(Ok(Bytes::from(format!("\n[{}]", error.code())))),
        })
    });
    let newline = stream::iter([Ok(Bytes::from_static(b"\n"))]);
    ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], Body::from_stream(text.chain(newline)))
        .into_response()
}

/// An error of `send` means that the child has seen nothing: trying again is safe.
fn refusal(error: &TurnError) -> Response {
    let status = match error {
        TurnError::InvalidName(_) | TurnError::InvalidPrompt(_) => StatusCode::BAD_REQUEST,
        TurnError::PromptTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
        TurnError::QueueFull { .. } => StatusCode::TOO_MANY_REQUESTS,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    (status, format!("{}: {error}\n", error.code())).into_response()
}

async fn stay(pilot: &Pilotlight, address: SocketAddr) -> Result<(), Box<dyn Error>> {
    let listener = TcpListener::bind(address).await?;
    println!("listening on http://{}", listener.local_addr()?);
    let stopping = pilot.clone();
    let stop = async move {
        if let Err(error) = tokio::signal::ctrl_c().await {
            eprintln!("cannot listen for signals: {error}");
        }
        // New turns are refused from now on; axum waits for the running ones.
        stopping.drain();
    };
    axum::serve(listener, service(pilot.clone())).with_graceful_shutdown(stop).await?;
    Ok(())
}

async fn ask_once(pilot: &Pilotlight) -> Result<(), Box<dyn Error>> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/chat/alice", listener.local_addr()?);
    let (stop, stopped) = oneshot::channel::<()>();
    let server = axum::serve(listener, service(pilot.clone())).with_graceful_shutdown(async {
        // Dropped without a word, it means the same.
        stopped.await.ok();
    });
    let asking = async {
        let answer = reqwest::Client::builder().no_proxy().build()?.post(&url).body("Hello").send().await?;
        println!("POST {url}\n{}", answer.status());
        print!("{}", answer.text().await?);
        drop(stop);
        Ok::<_, reqwest::Error>(())
    };
    let (served, asked): (io::Result<()>, _) = tokio::join!(server.into_future(), asking);
    served?;
    Ok(asked?)
}
