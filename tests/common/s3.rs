//! An S3 server over loopback that does what a test wants: creates objects once, reads, lists and deletes them, and fails.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::FutureExt as _;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::{Duration, sleep};
use tokio_util::task::TaskTracker;

/// What servers and stores need to reach it. The secret is none.
pub const REGION: &str = "eu-test-1";
pub const ACCESS_KEY_ID: &str = "AKIATEST";
pub const SECRET_ACCESS_KEY: &str = "s3cret-key";

/// What the server does with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    None,
    /// Answers with this status.
    Status(u16),
    /// Stores an object, and closes the connection without an answer.
    LostAnswer,
    /// Closes the connection without an answer, and does nothing else.
    Cut,
    /// Closes the connection in the middle of an answer.
    HalfAnswer,
    /// Never answers.
    Silent,
    /// Does it and answers after this time.
    Slow(Duration),
    /// Does it and answers once [`S3::let_go`] is called.
    Held,
    /// An object that has no end.
    Endless,
}

type Faults = Box<dyn Fn(&Method, &str, usize) -> Fault + Send>;

/// A server with one bucket.
pub struct S3 {
    address: SocketAddr,
    shared: Arc<Shared>,
    tasks: TaskTracker,
    accepting: tokio::task::JoinHandle<()>,
}

struct Shared {
    objects: Mutex<BTreeMap<String, Bytes>>,
    faults: Mutex<Faults>,
    requests: AtomicUsize,
    held: AtomicUsize,
    let_go: watch::Sender<()>,
}

impl S3 {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            objects: Mutex::default(),
            faults: Mutex::new(Box::new(|_, _, _| Fault::None)),
            requests: AtomicUsize::new(0),
            held: AtomicUsize::new(0),
            let_go: watch::Sender::new(()),
        });
        let (tasks, serving) = (TaskTracker::new(), shared.clone());
        let connections = tasks.clone();
        let accepting = tasks.spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { return };
                let shared = serving.clone();
                let service = service_fn(move |request| answer(shared.clone(), request));
                connections
                    .spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service).map(drop));
            }
        });
        Self { address, shared, tasks, accepting }
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Number of requests that wait for [`Self::let_go`].
    pub fn held(&self) -> usize {
        self.shared.held.load(Ordering::SeqCst)
    }

    /// Those that wait are done.
    pub fn let_go(&self) {
        self.shared.let_go.send_replace(());
    }

    /// What happens to each request from now on: method, key, and how many came before it.
    pub fn set(&self, faults: impl Fn(&Method, &str, usize) -> Fault + Send + 'static) {
        self.shared.requests.store(0, Ordering::SeqCst);
        *self.shared.faults.lock().unwrap() = Box::new(faults);
    }

    pub fn requests(&self) -> usize {
        self.shared.requests.load(Ordering::SeqCst)
    }

    pub fn objects(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Bytes>> {
        self.shared.objects.lock().unwrap()
    }

    /// The server is gone, with its address.
    pub async fn stop(self) -> Arc<dyn Fn() -> usize + Send + Sync> {
        self.accepting.abort();
        self.tasks.close();
        let shared = self.shared.clone();
        Arc::new(move || shared.requests.load(Ordering::SeqCst))
    }
}

async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Response<Piece>, std::io::Error> {
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let key = uri.path().strip_prefix("/bucket").unwrap_or_default().trim_start_matches('/').to_owned();
    let number = shared.requests.fetch_add(1, Ordering::SeqCst);
    let fault = (shared.faults.lock().unwrap())(&method, &key, number);
    let closed = || std::io::Error::from(std::io::ErrorKind::ConnectionAborted);
    match fault {
        Fault::Silent => return std::future::pending().await,
        Fault::Cut => return Err(closed()),
        Fault::Slow(pause) => sleep(pause).await,
        Fault::Held => {
            let mut let_go = shared.let_go.subscribe();
            shared.held.fetch_add(1, Ordering::SeqCst);
            let_go.changed().await.ok();
            shared.held.fetch_sub(1, Ordering::SeqCst);
        }
        Fault::Status(status) => {
            let body = format!(
                "<Error><Code>X</Code><AWSAccessKeyId>AKIATEST</AWSAccessKeyId><Key>{key}</Key></Error>"
            );
            return Ok(reply(status, body.into()));
        }
        Fault::Endless => return Ok(Response::new(Piece::Endless)),
        _ => {}
    }
    let header = |name: &str| {
        request.headers().get(name).and_then(|it| it.to_str().ok()).unwrap_or_default().to_owned()
    };
    assert!(header("authorization").starts_with("AWS4-HMAC-SHA256 Credential=AKIATEST/"), "a signed request");
    let is_create = header("if-none-match") == "*";
    let body = request.into_body().collect().await.map_err(|_| closed())?.to_bytes();
    let response = match method {
        Method::PUT => {
            let mut objects = shared.objects.lock().unwrap();
            if is_create && objects.contains_key(&key) {
                reply(412, "<Error><Code>PreconditionFailed</Code></Error>".into())
            } else {
                objects.insert(key, body);
                reply(200, Bytes::new())
            }
        }
        Method::GET if key.is_empty() => {
            reply(200, list(&shared.objects.lock().unwrap(), uri.query().unwrap_or_default()))
        }
        Method::GET => match shared.objects.lock().unwrap().get(&key) {
            Some(object) if fault == Fault::HalfAnswer => {
                let length = object.len();
                let half = Piece::Half(object.slice(..length / 2), length);
                let response = Response::builder().header("content-length", length).header("etag", "\"x\"");
                response.header("last-modified", "Wed, 21 Oct 2026 07:28:00 GMT").body(half).unwrap()
            }
            Some(object) => reply(200, object.clone()),
            None => reply(404, "<Error><Code>NoSuchKey</Code></Error>".into()),
        },
        Method::POST => {
            let text = String::from_utf8_lossy(&body).into_owned();
            let keys = text.split("<Key>").skip(1).filter_map(|it| it.split_once("</Key>"));
            let mut objects = shared.objects.lock().unwrap();
            let mut deleted = String::new();
            for (key, _) in keys {
                objects.remove(key);
                deleted += &format!("<Deleted><Key>{key}</Key></Deleted>");
            }
            reply(200, format!("<DeleteResult>{deleted}</DeleteResult>").into())
        }
        Method::DELETE => {
            shared.objects.lock().unwrap().remove(&key);
            reply(204, Bytes::new())
        }
        _ => reply(405, Bytes::new()),
    };
    if fault == Fault::LostAnswer { Err(closed()) } else { Ok(response) }
}

fn reply(status: u16, body: Bytes) -> Response<Piece> {
    let response = Response::builder().status(status).header("etag", "\"x\"");
    let response = response.header("last-modified", "Wed, 21 Oct 2026 07:28:00 GMT");
    response.body(Piece::Whole(Full::new(body))).unwrap()
}

/// `ListObjectsV2`, two keys at a time.
fn list(objects: &BTreeMap<String, Bytes>, query: &str) -> Bytes {
    let query: BTreeMap<_, _> = url::form_urlencoded::parse(query.as_bytes()).into_owned().collect();
    let part = |name: &str| query.get(name).cloned().unwrap_or_default();
    let (prefix, delimiter, after) = (part("prefix"), part("delimiter"), part("continuation-token"));
    let mut names: Vec<(String, usize, bool)> = Vec::new();
    for (key, object) in objects.iter().filter(|(key, _)| key.starts_with(&prefix)) {
        let rest = key.strip_prefix(&prefix).unwrap();
        let name = match rest.split_once('/').filter(|_| !delimiter.is_empty()) {
            Some((directory, _)) => (format!("{prefix}{directory}/"), 0, true),
            None => (key.clone(), object.len(), false),
        };
        if names.last() != Some(&name) {
            names.push(name);
        }
    }
    names.retain(|(name, _, _)| *name > after);
    let is_truncated = names.len() > 2;
    names.truncate(2);
    let mut text = format!("<ListBucketResult><Name>bucket</Name><IsTruncated>{is_truncated}</IsTruncated>");
    for (name, size, is_prefix) in &names {
        text += &if *is_prefix {
            format!("<CommonPrefixes><Prefix>{name}</Prefix></CommonPrefixes>")
        } else {
            format!(
                "<Contents><Key>{name}</Key><LastModified>2026-10-21T07:28:00.000Z</LastModified><ETag>x</ETag><Size>{size}</Size></Contents>"
            )
        };
    }
    if is_truncated {
        text += &format!("<NextContinuationToken>{}</NextContinuationToken>", names[1].0);
    }
    (text + "</ListBucketResult>").into()
}

/// The body of an answer.
enum Piece {
    Whole(Full<Bytes>),
    /// The beginning of a body of this length.
    Half(Bytes, usize),
    Endless,
}

impl hyper::body::Body for Piece {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<hyper::body::Frame<Bytes>, Self::Error>>> {
        let frame = |bytes| std::task::Poll::Ready(Some(Ok(hyper::body::Frame::data(bytes))));
        match &mut *self {
            Self::Whole(body) => {
                std::pin::Pin::new(body).poll_frame(context).map_err(|never: Infallible| match never {})
            }
            Self::Half(bytes, _) if bytes.is_empty() => {
                std::task::Poll::Ready(Some(Err(std::io::ErrorKind::ConnectionAborted.into())))
            }
            Self::Half(bytes, _) => frame(std::mem::take(bytes)),
            Self::Endless => frame(vec![0; 1 << 16].into()),
        }
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        match self {
            Self::Whole(body) => body.size_hint(),
            Self::Half(_, length) => hyper::body::SizeHint::with_exact(*length as u64),
            Self::Endless => hyper::body::SizeHint::new(),
        }
    }
}
