//! A plain proxy, as a floor: hyper's server and its pooled client, and nothing between them but the address of the request.

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Uri};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpListener;

/// Passes requests on to the server at `base`, for ever.
pub(crate) async fn serve(listener: TcpListener, base: &str) {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let client: Client<_, Incoming> =
        Client::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(connector);
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (client, base) = (client.clone(), base.to_owned());
        let service = service_fn(move |mut request: Request<Incoming>| {
            *request.uri_mut() = format!("{base}{}", request.uri()).parse::<Uri>().unwrap();
            client.request(request)
        });
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}
