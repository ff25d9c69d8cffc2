//! The processes: the API, the plain proxy, the broker. Each prints its address and its token, and ends with its input.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use crate::EVENTS;

async fn listen() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

fn announce(address: std::net::SocketAddr, token: &str) {
    println!("{address} {token}");
}

async fn until_input_ends() {
    let copy = || std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
    tokio::task::spawn_blocking(copy).await.unwrap().unwrap();
}

/// Answers with server-sent events, at once or one a millisecond.
pub(crate) async fn api() {
    let listener = listen().await;
    announce(listener.local_addr().unwrap(), "none");
    let serving = async {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            let service = service_fn(|request: Request<Incoming>| async move {
                let body = request.into_body().collect().await.unwrap().to_bytes();
                let pause = Duration::from_millis(u64::from(body.starts_with(b"{\"model\":\"/paced")));
                let events = stream::unfold(0, move |number| async move {
                    if number == EVENTS {
                        return None;
                    }
                    if !pause.is_zero() {
                        tokio::time::sleep(pause).await;
                    }
                    let event = format!(
                        "event: content_block_delta\ndata: {{\"type\":\"content_block_delta\",\"index\":0,\
                         \"delta\":{{\"type\":\"text_delta\",\"text\":\"word {number} and some more of them\"}}}}\n\n"
                    );
                    Some((Ok::<_, Infallible>(Frame::data(Bytes::from(event))), number + 1))
                });
                let response = Response::builder().header("content-type", "text/event-stream");
                Ok::<_, Infallible>(response.body(StreamBody::new(events)).unwrap())
            });
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    };
    tokio::select! {
        () = serving => {}
        () = until_input_ends() => {}
    }
}

pub(crate) async fn plain_proxy(base: &str) {
    let listener = listen().await;
    announce(listener.local_addr().unwrap(), "none");
    tokio::select! {
        () = crate::proxy::serve(listener, base) => {}
        () = until_input_ends() => {}
    }
}

pub(crate) async fn broker(base: &str) {
    let data = tempfile::tempdir().unwrap();
    let listener = listen().await.into_std().unwrap();
    let address = listener.local_addr().unwrap();
    let probe = pilotlight::broker_probe::Probe::serve(base, data.path(), listener).unwrap();
    announce(address, &probe.token);
    until_input_ends().await;
}
