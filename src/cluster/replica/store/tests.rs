//! Stores for tests: a directory, and an S3 server over loopback that does what a test wants.

use crate::cluster::replica::store::config::Secret;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use futures_util::FutureExt as _;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::time::Instant;

use super::super::delta::{Area, Change, Entry, Header, Kind, Meta, Writer};
use super::super::key::ObjectId;
use super::tries::TRIES;
use super::*;
use crate::support::lock::MutexExt as _;

/// What the server does with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cluster::replica) enum Fault {
    None,
    /// Answers with this status.
    Status(u16),
    /// Stores an object, and closes the connection without an answer.
    LostAnswer,
    /// Closes the connection in the middle of an answer.
    HalfAnswer,
    /// Never answers.
    Silent,
    /// An object that has no end.
    Endless,
}

type Faults = Box<dyn Fn(&Method, &str, usize) -> Fault + Send>;

/// A server with one bucket.
pub(in crate::cluster::replica) struct S3 {
    address: SocketAddr,
    shared: Arc<Shared>,
    tasks: TaskTracker,
    accepting: tokio::task::JoinHandle<()>,
}

struct Shared {
    objects: Mutex<BTreeMap<String, Bytes>>,
    faults: Mutex<Faults>,
    requests: AtomicUsize,
}

impl S3 {
    pub(in crate::cluster::replica) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            objects: Mutex::default(),
            faults: Mutex::new(Box::new(|_, _, _| Fault::None)),
            requests: AtomicUsize::new(0),
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

    pub(in crate::cluster::replica) fn config(&self) -> StoreConfig {
        StoreConfig {
            endpoint: Some(format!("http://{}", self.address)),
            region: Some("eu-test-1".to_owned()),
            access_key_id: Some(Secret::new("AKIATEST")),
            secret_access_key: Some(Secret::new("s3cret-key")),
            ..StoreConfig::new("s3://bucket/pre/fix")
        }
    }

    /// What happens to each request from now on: method, key, and how many came before it.
    pub(in crate::cluster::replica) fn set(
        &self,
        faults: impl Fn(&Method, &str, usize) -> Fault + Send + 'static,
    ) {
        self.shared.requests.store(0, Ordering::SeqCst);
        *self.shared.faults.lock_unpoisoned() = Box::new(faults);
    }

    pub(in crate::cluster::replica) fn requests(&self) -> usize {
        self.shared.requests.load(Ordering::SeqCst)
    }

    pub(in crate::cluster::replica) fn objects(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Bytes>> {
        self.shared.objects.lock_unpoisoned()
    }

    /// The server is gone, with its address.
    pub(in crate::cluster::replica) async fn stop(self) -> Arc<dyn Fn() -> usize + Send + Sync> {
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
    let fault = (shared.faults.lock_unpoisoned())(&method, &key, number);
    let closed = || std::io::Error::from(std::io::ErrorKind::ConnectionAborted);
    match fault {
        Fault::Silent => return std::future::pending().await,
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
            let mut objects = shared.objects.lock_unpoisoned();
            if is_create && objects.contains_key(&key) {
                reply(412, "<Error><Code>PreconditionFailed</Code></Error>".into())
            } else {
                objects.insert(key, body);
                reply(200, Bytes::new())
            }
        }
        Method::GET if key.is_empty() => {
            reply(200, list(&shared.objects.lock_unpoisoned(), uri.query().unwrap_or_default()))
        }
        Method::GET => match shared.objects.lock_unpoisoned().get(&key) {
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
            let mut objects = shared.objects.lock_unpoisoned();
            let mut deleted = String::new();
            for (key, _) in keys {
                objects.remove(key);
                deleted += &format!("<Deleted><Key>{key}</Key></Deleted>");
            }
            reply(200, format!("<DeleteResult>{deleted}</DeleteResult>").into())
        }
        Method::DELETE => {
            shared.objects.lock_unpoisoned().remove(&key);
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

pub(in crate::cluster::replica) fn directory(path: &std::path::Path) -> StoreConfig {
    StoreConfig::new(format!("file://{}", path.display()))
}

pub(in crate::cluster::replica) fn open(config: &StoreConfig) -> Store {
    Store::open(config, TaskTracker::new()).unwrap()
}

fn user(number: u8) -> UserHash {
    UserHash::from_bytes([number; 16])
}

fn key(number: u8, seq: u64) -> Key {
    Key { user: user(number), id: ObjectId { fence: 1, seq }, part: None }
}

fn object(content: &[u8]) -> Encoded {
    let mut writer = Writer::default();
    let change = Change::Whole { meta: Meta::default(), content };
    writer.push(&Entry { area: Area::User, path: b"usage", change });
    writer.finish(&Header {
        kind: Kind::Snapshot,
        user: user(1),
        id: ObjectId { fence: 1, seq: 1 },
        parts: Vec::new(),
    })
}

fn content(object: &Encoded) -> Bytes {
    super::super::testing::bytes(object)
}

/// What every store does.
async fn does_what_it_should(config: &StoreConfig) {
    let store = open(config);
    let (one, two) = (object(b"one"), object(b"two"));
    assert_eq!(store.get(&key(1, 1)).await.unwrap_err(), StoreError::Missing);
    assert_eq!(store.list(user(1)).await.unwrap(), (Vec::new(), true));
    assert_eq!(store.users().await.unwrap(), (Vec::new(), true));
    assert_eq!(store.create(&key(1, 1), &one).await.unwrap(), Created::Written);
    assert_eq!(store.create(&key(1, 1), &one).await.unwrap(), Created::Written, "the same once more");
    assert_eq!(store.create(&key(1, 1), &two).await.unwrap(), Created::Exists(content(&one)));
    assert_eq!(store.get(&key(1, 1)).await.unwrap(), content(&one));
    let part = Key { part: Some(two.digest), ..key(1, 2) };
    for key in [key(1, 2), part, key(1, 3), key(2, 1)] {
        assert_eq!(store.create(&key, &two).await.unwrap(), Created::Written);
    }
    let (mut listed, is_all) = store.list(user(1)).await.unwrap();
    listed.sort_by_key(|it| (it.key.id.seq, it.key.part));
    assert!(is_all);
    let bytes = one.len() as u64;
    assert_eq!(listed, [key(1, 1), key(1, 2), part, key(1, 3)].map(|key| Listed { key, bytes }));
    let (mut users, _) = store.users().await.unwrap();
    users.sort();
    assert_eq!(users, [user(1), user(2)]);
    store.delete(&[key(1, 1), part, key(1, 9)]).await.unwrap();
    store.delete(&[]).await.unwrap();
    assert_eq!(store.list(user(1)).await.unwrap().0.len(), 2);
    assert_eq!(store.get(&key(1, 1)).await.unwrap_err(), StoreError::Missing);
    assert_eq!(store.list(user(2)).await.unwrap().0.len(), 1);
}

#[tokio::test]
async fn directory_is_a_store() {
    let directory_of = tempfile::tempdir().unwrap();
    does_what_it_should(&directory(&directory_of.path().join("new/one"))).await;
    let mode = directory_of.path().join("new/one").metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[tokio::test]
async fn bucket_is_a_store() {
    let server = S3::start().await;
    does_what_it_should(&server.config()).await;
    assert!(server.objects().keys().all(|key| key.starts_with("pre/fix/s/")), "below its prefix");
}

#[tokio::test]
async fn lost_answer_is_found_again() {
    let server = S3::start().await;
    let store = open(&server.config());
    let is_first = |_: &Method, _: &str, number| if number == 0 { Fault::LostAnswer } else { Fault::None };
    server.set(is_first);
    assert_eq!(store.create(&key(1, 1), &object(b"one")).await.unwrap(), Created::Written);
    server.set(is_first);
    assert_eq!(store.get(&key(1, 1)).await.unwrap(), content(&object(b"one")));
    server.set(|_, _, number| if number < 2 { Fault::HalfAnswer } else { Fault::None });
    assert_eq!(store.get(&key(1, 1)).await.unwrap(), content(&object(b"one")));
    server.set(|_, _, number| if number < 3 { Fault::Status(503) } else { Fault::None });
    assert_eq!(store.create(&key(1, 2), &object(b"two")).await.unwrap(), Created::Written);
    assert_eq!(server.requests(), 4);
}

#[tokio::test]
async fn answers_have_their_error() {
    let server = S3::start().await;
    let store = open(&server.config());
    for status in [403, 401, 404, 507, 500, 429, 301] {
        server.set(move |_, _, _| Fault::Status(status));
        let get = store.get(&key(1, 1)).await.unwrap_err();
        let tries = server.requests();
        let put = store.create(&key(1, 1), &object(b"x")).await.unwrap_err();
        let expected = match status {
            401 | 403 => StoreError::Denied,
            404 => StoreError::Missing,
            301 => StoreError::Unavailable("an unexpected answer".to_owned()),
            507 => StoreError::Full,
            _ => StoreError::Unavailable(format!("status {status}")),
        };
        assert_eq!((&get, &put), (&expected, &expected.clone().of_put()));
        assert_eq!(tries, if expected.is_temporary() { TRIES as usize } else { 1 }, "{status}");
        assert_eq!(
            server.requests() - tries,
            if put.is_temporary() { TRIES as usize } else { 1 },
            "{status}"
        );
        for shown in [get.to_string(), format!("{put:?}")] {
            assert!(
                !shown.contains("AKIA") && !shown.contains("pre/fix") && !shown.contains("01010101"),
                "{shown}"
            );
        }
    }
}

#[tokio::test]
async fn endless_object_ends() {
    let server = S3::start().await;
    let store = open(&server.config());
    server.set(|_, _, _| Fault::Endless);
    let refused = store.get(&key(1, 1)).await.unwrap_err();
    assert!(matches!(refused, StoreError::TooLarge | StoreError::Unavailable(_)), "{refused}");
    let huge = vec![0; MAX_OBJECT_BYTES + 1];
    server.set(|_, _, _| Fault::None);
    server.objects().insert(format!("pre/fix/{}", key(1, 1)), huge.into());
    assert_eq!(store.get(&key(1, 1)).await.unwrap_err(), StoreError::TooLarge);
}

#[tokio::test]
async fn store_that_does_not_answer_is_given_up() {
    let server = S3::start().await;
    let limit = Duration::from_millis(100);
    let config = StoreConfig { try_for: limit, give_up_after: 3 * limit, ..server.config() };
    let store = open(&config);
    server.set(|_, _, _| Fault::Silent);
    let began = Instant::now();
    let refused = store.create(&key(1, 1), &object(b"x")).await.unwrap_err();
    assert!(refused.is_temporary() && began.elapsed() >= limit, "{refused}");
    assert!(began.elapsed() < pilotlight_test_support::SOON);
    assert!(store.list(user(1)).await.unwrap_err().is_temporary());
    let count = server.stop().await;
    assert!(store.get(&key(1, 1)).await.unwrap_err().is_temporary());
    assert!(count() >= 3);
}

#[tokio::test]
async fn killed_writers_leave_nothing_in_a_directory() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path().join("store");
    let store = open(&directory(&root));
    store.create(&key(1, 1), &object(b"x")).await.unwrap();
    let place = root.join(key(1, 1).to_string());
    let left = place.with_file_name(format!("{:020}#1", 2));
    fs::write(&left, "torn").unwrap();
    assert_eq!(store.list(user(1)).await.unwrap().0.len(), 1, "it is in no list");
    store.sweep(user(1), Duration::from_secs(3600)).await.unwrap();
    assert!(left.exists(), "it may be in use");
    store.sweep(user(1), Duration::ZERO).await.unwrap();
    assert!(!left.exists() && place.exists());
    store.sweep(user(9), Duration::ZERO).await.unwrap();
    // A deleted user leaves no directory.
    store.delete(&[key(1, 1)]).await.unwrap();
    assert!(!root.join("s").join(user(1).to_string()).exists());
}

#[tokio::test]
async fn damaged_directory_has_its_error() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path().join("store");
    let store = open(&directory(&root));
    store.create(&key(1, 1), &object(b"x")).await.unwrap();
    fs::remove_dir_all(root.join("s")).unwrap();
    fs::write(root.join("s"), "a file").unwrap();
    assert!(store.create(&key(1, 2), &object(b"x")).await.is_err());
    assert!(store.get(&key(1, 1)).await.is_err());
    fs::remove_dir_all(&root).unwrap();
    // What is not there because its file system is not mounted is not lost.
    assert!(matches!(store.get(&key(1, 1)).await.unwrap_err(), StoreError::Unavailable(_)));
}

#[tokio::test]
async fn full_directory_says_so() {
    use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
    let root = tempfile::tempdir().unwrap();
    let mounted = mount("none", root.path(), "tmpfs", MountFlags::empty(), Some(c"size=256k,mode=0700"));
    if mounted.is_err() {
        return pilotlight_test_support::installed::left_out("no file system can be mounted here");
    }
    let store = open(&directory(root.path()));
    assert_eq!(store.create(&key(1, 1), &object(b"fits")).await.unwrap(), Created::Written);
    let large = store.create(&key(1, 2), &object(&vec![0; 1 << 19])).await.unwrap_err();
    let after = store.create(&key(1, 2), &object(b"fits")).await;
    let listed = store.list(user(1)).await.map(|(listed, _)| listed.len());
    drop(store);
    unmount(root.path(), UnmountFlags::DETACH).unwrap();
    assert_eq!((large, after, listed), (StoreError::Full, Ok(Created::Written), Ok(2)));
}

#[test]
fn wrong_configuration_is_refused_without_secrets() {
    let root = tempfile::tempdir().unwrap();
    let refused = |config: StoreConfig| {
        let refused = Store::open(&config, TaskTracker::new()).unwrap_err();
        let shown = format!("{refused} {refused:?}");
        assert!(!shown.contains("hunter2"), "{shown}");
        shown
    };
    for url in [
        "",
        "bucket",
        "s3://",
        "ftp://x/y",
        "s3://AKIA:hunter2@bucket/x",
        "s3://bucket/x?key=hunter2",
        "s3://bucket/x#hunter2",
        "file://host/x",
        "file:///x?hunter2",
    ] {
        refused(StoreConfig::new(url));
    }
    fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).unwrap();
    assert!(refused(directory(root.path())).contains("chmod"));
    let file = root.path().join("file");
    fs::write(&file, "no certificate").unwrap();
    refused(directory(&file));
    for ca_file in [file.clone(), root.path().join("none"), root.path().to_owned()] {
        refused(StoreConfig { ca_file: Some(ca_file), ..StoreConfig::new("s3://bucket/x") });
    }
    let config = StoreConfig {
        access_key_id: Some(Secret::new("hunter2")),
        secret_access_key: Some(Secret::new("hunter2")),
        session_token: Some(Secret::new("hunter2")),
        ..StoreConfig::new("s3://bucket/x")
    };
    assert!(!format!("{config:?}").contains("hunter2"));
}

#[tokio::test]
async fn conversations_cross_no_network_in_clear() {
    let config = S3::start().await.config();
    for endpoint in
        ["http://192.0.2.1:9", "http://store.example", "http://localhost.example:80", "ftp://127.0.0.1", "x"]
    {
        let config = StoreConfig { endpoint: Some(endpoint.to_owned()), ..config.clone() };
        let refused = Store::open(&config, TaskTracker::new()).unwrap_err();
        assert!(matches!(refused, OpenError::Config(_)), "{endpoint}: {refused}");
    }
    for (address, expected) in [
        ("http://127.0.0.1:9000/x", true),
        ("http://[::1]/x", true),
        ("http://localhost/x", true),
        // Where clouds give credentials to their machines.
        ("http://169.254.169.254/latest", true),
        ("http://10.0.0.1/x", false),
        ("http://[2001:db8::1]/x", false),
        ("http://example/x", false),
        ("https://example/x", true),
        ("/x", false),
    ] {
        assert_eq!(connector::may_go_to(&address.parse().unwrap()), expected, "{address}");
    }
}
