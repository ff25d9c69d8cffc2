//! The export of spans, seen from the collector: what arrives, what never does, and that one which is gone is not waited
//! for.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]
#![allow(
    clippy::disallowed_methods,
    reason = "the collector ends with its test, and real processes live in real time"
)]

use pilotlight_test_support as common;

use std::collections::HashMap;
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::http::HeaderMap;
use axum::routing::post;
use common::program::{Answer, Program, Site, message, place};
use rustix::process::Signal;

const SAMPLED: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const UNSAMPLED: &str = "5bf92f3577b34da6a3ce929d0e0e4737";
const CALLER: &str = "00f067aa0ba902b7";
/// Less than the exporter's own patience (10 s), more than a turn, a stop and the wait for a collector take together.
const NOT_HELD_UP: Duration = Duration::from_secs(5);

type Received = Arc<Mutex<Vec<Bytes>>>;

/// A collector that keeps what it is sent.
async fn collector() -> (String, Received) {
    let received = Received::default();
    let kept = Arc::clone(&received);
    let traces = post(async move |headers: HeaderMap, body: Bytes| {
        assert_eq!(headers["content-type"], "application/x-protobuf");
        kept.lock().unwrap().push(body);
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let router = Router::new().route("/v1/traces", traces);
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    (address, received)
}

async fn serve(collector: &str) -> (Program, Site) {
    let place = place();
    let data = place.data_dir().display().to_string();
    let listen = ["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"];
    let arguments = [&["serve", "--cli", "sim", "--data-dir", &data], listen.as_slice()].concat();
    // What the log leaves out is exported all the same.
    let variables = [("OTEL_EXPORTER_OTLP_ENDPOINT", collector), ("PILOTLIGHT_LOG", "warn")];
    let mut program = Program::start(&place, &arguments, &variables);
    let site = program.listening().await;
    site.ready().await;
    (program, site)
}

async fn turn(site: &Site, trace: &str, flags: &str) {
    let asked = site
        .asking("alice@example.org", &message("my secret words"))
        .header("x-request-id", format!("request-{flags}"))
        .header("traceparent", format!("00-{trace}-{CALLER}-{flags}"));
    Answer::of(asked).await.text();
}

/// The spans of a request and its turn continue the caller's trace and contain no user data.
#[tokio::test(flavor = "multi_thread")]
async fn spans_continue_trace_without_user_data() {
    let (address, received) = collector().await;
    let (mut program, site) = serve(&address).await;
    turn(&site, UNSAMPLED, "00").await;
    turn(&site, SAMPLED, "01").await;
    program.signal(Signal::TERM);
    assert_eq!(program.code().await, Some(0));

    // Whatever was not sent before was sent at the stop.
    let received = received.lock().unwrap();
    let bytes: Vec<u8> = received.iter().flatten().copied().collect();
    let spans: Vec<Span> = received.iter().flat_map(|body| spans(body)).collect();
    let named = |name: &str| {
        let found: Vec<_> = spans.iter().filter(|span| span.name == name && span.trace == SAMPLED).collect();
        assert_eq!(found.len(), 1, "{name} in {spans:#?}");
        found[0]
    };
    let (request, turn) = (named("request"), named("turn"));
    assert_eq!(request.parent, CALLER);
    assert_eq!(turn.parent, request.id);
    assert_eq!(request.attributes["request_id"], "request-01");
    assert_eq!(request.attributes["http.request.method"], "POST");
    assert_eq!(request.attributes["http.route"], "/v1/messages/keepalive");
    assert_eq!(request.attributes["http.response.status_code"], "200");
    assert_eq!(turn.attributes["outcome"], "completed");
    assert_eq!(turn.attributes["session"].len(), 32);
    assert_eq!(turn.events, ["the turn is given to its child", "first output", "the turn has ended"]);
    // Nothing else that is logged.
    assert!(request.events.is_empty(), "{request:#?}");
    assert!(spans.iter().all(|span| ["request", "turn"].contains(&span.name.as_str())), "{spans:#?}");
    assert!(spans.iter().all(|span| span.trace != UNSAMPLED), "{spans:#?}");
    let holds = |text: &str| bytes.windows(text.len()).any(|part| part == text.as_bytes());
    assert!(holds("service.name") && holds("pilotlight"));
    for private in ["alice", "example.org", "secret words", "/tmp", "request-00"] {
        assert!(!holds(private), "{private} in {}", String::from_utf8_lossy(&bytes));
    }
}

/// A collector that never answers holds up neither a turn nor the stop.
#[tokio::test(flavor = "multi_thread")]
async fn silent_collector_delays_neither_turn_nor_stop() {
    // Connections are made, and nobody ever reads from them.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let (mut program, site) = serve(&format!("http://{}", silent.local_addr().unwrap())).await;
    for _ in 0..2 {
        let begin = Instant::now();
        turn(&site, SAMPLED, "01").await;
        assert!(begin.elapsed() < NOT_HELD_UP, "{:?}", begin.elapsed());
    }
    let begin = Instant::now();
    program.signal(Signal::TERM);
    assert_eq!(program.code().await, Some(0));
    assert!(begin.elapsed() < NOT_HELD_UP, "{:?}", begin.elapsed());
    assert!(program.logs("did not reach the collector"), "{}", program.err());
}

/// A collector address that cannot be used is refused and not printed.
#[tokio::test(flavor = "multi_thread")]
async fn unusable_collector_is_refused_unprinted() {
    let place = place();
    let data = place.data_dir().display().to_string();
    let arguments = ["serve", "--cli", "sim", "--data-dir", &data];
    let variables = [("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://me:my-password@collector")];
    let mut program = Program::start(&place, &arguments, &variables);
    assert_eq!(program.code().await, Some(2));
    let is_logged = async || program.err().contains("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT").then_some(());
    common::eventually_some("the variable is named", common::SOON, is_logged).await;
    assert!(!program.err().contains("my-password"));
}

/// What is looked at of a span.
#[derive(Debug, Default)]
struct Span {
    trace: String,
    id: String,
    parent: String,
    name: String,
    attributes: HashMap<String, String>,
    events: Vec<String>,
}

/// The spans of an `ExportTraceServiceRequest`: `resource_spans` (1), `scope_spans` (2), `spans` (2).
fn spans(request: &[u8]) -> Vec<Span> {
    let of = |number, body| parts(body).into_iter().filter(move |part| part.0 == number).map(|part| part.1);
    let scopes = of(1, request).flat_map(|resource| of(2, resource));
    scopes.flat_map(|scope| of(2, scope)).map(span).collect()
}

fn span(body: &[u8]) -> Span {
    let mut span = Span::default();
    for (number, value) in parts(body) {
        match number {
            1 => span.trace = hex(value),
            2 => span.id = hex(value),
            4 => span.parent = hex(value),
            5 => span.name = text(value),
            9 => {
                let pair = parts(value);
                // An AnyValue: text, or a number as a varint.
                let any = parts(pair[1].1)[0];
                let shown = if any.0 == 1 { text(any.1) } else { varint(any.1).0.to_string() };
                span.attributes.insert(text(pair[0].1), shown);
            }
            // An event: its time (1), its name (2).
            11 => span.events.extend(parts(value).iter().filter(|part| part.0 == 2).map(|part| text(part.1))),
            _ => {}
        }
    }
    span
}

/// The fields of a protobuf message, by number; numbers are left as their bytes.
fn parts(mut body: &[u8]) -> Vec<(u64, &[u8])> {
    let mut found = Vec::new();
    while !body.is_empty() {
        let (tag, skip) = varint(body);
        body = &body[skip..];
        let (skip, length) = match tag & 7 {
            0 => (0, varint(body).1),
            1 => (0, 8),
            2 => {
                let (length, skip) = varint(body);
                (skip, usize::try_from(length).unwrap())
            }
            5 => (0, 4),
            other => panic!("wire type {other}"),
        };
        found.push((tag >> 3, &body[skip..skip + length]));
        body = &body[skip + length..];
    }
    found
}

/// A varint and its length.
fn varint(body: &[u8]) -> (u64, usize) {
    let length = body.iter().position(|byte| byte & 0x80 == 0).expect("its last byte") + 1;
    let value = body[..length].iter().rev().fold(0, |value, byte| value << 7 | u64::from(byte & 0x7f));
    (value, length)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}
