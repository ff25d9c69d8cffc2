//! The floor as a server: warm children, each line an event.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use bytes::{BufMut, BytesMut};
use futures_util::stream;
use serde::Deserialize;
use tokio::sync::Mutex;

use crate::pipe::Pipe;

#[derive(Deserialize)]
struct Asked {
    messages: Vec<Message>,
}

#[derive(Deserialize)]
struct Message {
    content: String,
}

type Children = Arc<Vec<Arc<Mutex<Pipe>>>>;

/// Serves on a free port, which it prints, until standard input ends.
pub(crate) async fn serve(children: usize) {
    let home = tempfile::tempdir().unwrap();
    let start = |number: usize| Arc::new(Mutex::new(Pipe::start(&home.path().join(number.to_string()))));
    let children: Children = Arc::new((0..children).map(start).collect());
    let app = Router::new().route("/v1/messages/keepalive", post(turn)).with_state(children);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("listening http=http://{} admin=none", listener.local_addr().unwrap());
    let listener = axum::serve::ListenerExt::tap_io(listener, |stream| stream.set_nodelay(true).unwrap());
    let end = tokio::task::spawn_blocking(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink()));
    tokio::select! {
        served = async { axum::serve(listener, app).await } => served.unwrap(),
        ended = end => drop(ended.unwrap().unwrap()),
    }
}

async fn turn(State(children): State<Children>, headers: HeaderMap, Json(asked): Json<Asked>) -> Response {
    let number: usize = headers["x-pilotlight-user"].to_str().unwrap().parse().unwrap();
    let mut child = children[number].clone().lock_owned().await;
    child.send(&asked.messages.last().unwrap().content).await;
    let events = stream::unfold(Some(child), async |child| {
        let mut child = child?;
        let (line, is_last) = child.line().await;
        let mut event = BytesMut::with_capacity(line.len() + 8);
        event.put_slice(b"data: ");
        event.put_slice(&line);
        event.put_slice(b"\n\n");
        Some((Ok::<_, Infallible>(event.freeze()), (!is_last).then_some(child)))
    });
    ([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(events)).into_response()
}
