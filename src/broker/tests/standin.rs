//! A stand-in of a host: records requests and answers as a test says, plain or with TLS.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::Response;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// A request as it arrived.
#[derive(Debug, Clone)]
pub(super) struct Received {
    pub(super) method: Method,
    pub(super) target: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Received {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

type Answer = dyn Fn(&Received) -> Response + Send + Sync;

/// A listening host; it ends when it is dropped.
pub(super) struct StandIn {
    pub(super) address: SocketAddr,
    received: Arc<Mutex<Vec<Received>>>,
    connections: Arc<Mutex<usize>>,
    _tasks: JoinSet<()>,
}

/// An own certificate authority, and a certificate of it for a loopback address.
pub(super) struct Authority {
    pub(super) pem: String,
    server: Arc<ServerConfig>,
}

impl Authority {
    pub(super) fn new(address: Ipv4Addr) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, "own authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![address.to_string(), "localhost".into()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, "stand-in");
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &issuer).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
        let server = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        Self { pem: issuer.pem(), server: Arc::new(server) }
    }
}

impl StandIn {
    pub(super) async fn new(answer: impl Fn(&Received) -> Response + Send + Sync + 'static) -> Self {
        Self::at(Ipv4Addr::LOCALHOST, None, answer).await
    }

    pub(super) async fn with_tls(
        authority: &Authority,
        answer: impl Fn(&Received) -> Response + Send + Sync + 'static,
    ) -> Self {
        Self::at(Ipv4Addr::LOCALHOST, Some(authority), answer).await
    }

    pub(super) async fn at(
        address: Ipv4Addr,
        authority: Option<&Authority>,
        answer: impl Fn(&Received) -> Response + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind((address, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let received = Arc::<Mutex<Vec<Received>>>::default();
        let connections = Arc::<Mutex<usize>>::default();
        let tls = authority.map(|authority| TlsAcceptor::from(authority.server.clone()));
        let answer: Arc<Answer> = Arc::new(answer);
        let mut tasks = JoinSet::new();
        let (all, count) = (received.clone(), connections.clone());
        tasks.spawn(async move {
            let mut serving = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                *count.lock().unwrap() += 1;
                let (all, answer, tls) = (all.clone(), answer.clone(), tls.clone());
                serving.spawn(async move {
                    match tls {
                        None => serve(stream, all, answer).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(stream, all, answer).await;
                            }
                        }
                    }
                });
            }
        });
        Self { address, received, connections, _tasks: tasks }
    }

    pub(super) fn received(&self) -> Vec<Received> {
        self.received.lock().unwrap().clone()
    }

    /// The only request.
    pub(super) fn only(&self) -> Received {
        let received = self.received();
        assert_eq!(received.len(), 1, "{received:?}");
        received.into_iter().next().unwrap()
    }

    pub(super) fn connections(&self) -> usize {
        *self.connections.lock().unwrap()
    }
}

async fn serve<S>(stream: S, all: Arc<Mutex<Vec<Received>>>, answer: Arc<Answer>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let (all, answer) = (all.clone(), answer.clone());
        async move {
            let (parts, body) = Request::from(request).into_parts();
            // A request that is given up is recorded too.
            let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
            let target = parts.uri.to_string();
            let received = Received { method: parts.method, target, headers: parts.headers, body };
            all.lock().unwrap().push(received.clone());
            Ok::<_, Infallible>(answer(&received))
        }
    });
    // Children give up in some tests.
    http1::Builder::new().serve_connection(TokioIo::new(stream), service).await.ok();
}

/// A short answer of the API.
pub(super) fn message() -> Response {
    json(
        200,
        r#"{"type":"message","model":"claude-opus-4-5","usage":{"input_tokens":10,"output_tokens":20}}"#,
    )
}

pub(super) fn json(status: u16, body: &str) -> Response {
    let response = Response::builder().status(StatusCode::from_u16(status).unwrap());
    response.header("content-type", "application/json").body(Body::from(body.to_owned())).unwrap()
}

/// A response whose pieces the test sends one by one.
pub(super) fn streamed(pieces: mpsc::Receiver<Bytes>) -> Response {
    let pieces = futures_util::stream::unfold(pieces, async |mut pieces| {
        let piece = pieces.recv().await?;
        Some((Ok::<_, Infallible>(piece), pieces))
    });
    let response = Response::builder().header("content-type", "text/event-stream");
    response.body(Body::from_stream(pieces)).unwrap()
}
