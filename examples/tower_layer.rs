//! A Tower layer that gives each request the session of its user, for any service and framework on `tower`.
//!
//! `cargo run --example tower_layer` sends two requests through the layer and prints the answers.

use std::convert::Infallible;
use std::error::Error;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::http::{Request, Response, StatusCode};
use pilotlight::{Config, Pilotlight, Session};
use tower::{Layer, Service, ServiceBuilder, ServiceExt};

/// Longest request body.
const BODY_LIMIT: usize = 64 * 1024;

/// Puts the [`Session`] of the caller into the extensions of the request.
#[derive(Clone)]
struct SessionLayer(Pilotlight);

#[derive(Clone)]
struct WithSession<S> {
    inner: S,
    pilot: Pilotlight,
}

impl<S> Layer<S> for SessionLayer {
    type Service = WithSession<S>;

    fn layer(&self, inner: S) -> Self::Service {
        WithSession { inner, pilot: self.0.clone() }
    }
}

impl<S, B> Service<Request<B>> for WithSession<S>
where
    S: Service<Request<B>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        // A real service takes the user from what authenticates the request, never from a header of the client.
        let user = request.headers().get("x-user").map(|user| user.as_bytes().to_vec());
        if let Some(user) = user {
            request.extensions_mut().insert(self.pilot.session(user));
        }
        self.inner.call(request)
    }
}

async fn chat(request: Request<Body>) -> Result<Response<Body>, Infallible> {
    let (parts, body) = request.into_parts();
    let Some(session) = parts.extensions.get::<Session>() else {
        return Ok(answer(StatusCode::UNAUTHORIZED, "who is calling?".to_owned()));
    };
    let Ok(text) = to_bytes(body, BODY_LIMIT).await else {
        return Ok(answer(StatusCode::PAYLOAD_TOO_LARGE, format!("at most {BODY_LIMIT} bytes")));
    };
    let turn = match session.send(String::from_utf8_lossy(&text).into_owned()).await {
        Ok(turn) => turn,
        Err(error) => return Ok(answer(StatusCode::SERVICE_UNAVAILABLE, error.to_string())),
    };
    // A turn that was accepted can still fail.
    Ok(match turn.finish().await.into_text() {
        Ok(text) => answer(StatusCode::OK, text),
        Err(error) => answer(StatusCode::BAD_GATEWAY, error.to_string()),
    })
}

fn answer(status: StatusCode, text: String) -> Response<Body> {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response
}

fn main() -> Result<(), Box<dyn Error>> {
    pilotlight::shim::run_if_asked();
    pilotlight::sim::run_if_asked();
    tokio::runtime::Runtime::new()?.block_on(run())
}

async fn run() -> Result<(), Box<dyn Error>> {
    let data_dir = std::env::temp_dir().join(format!("pilotlight-tower-{}", std::process::id()));
    let mut config = Config::new(&data_dir);
    config.cli.program = "sim".to_owned();
    let pilot = Pilotlight::start(config).await?;
    let service = ServiceBuilder::new().layer(SessionLayer(pilot.clone())).service_fn(chat);
    for user in [Some("alice"), None] {
        let mut request = Request::new(Body::from("Hello"));
        if let Some(user) = user {
            request.headers_mut().insert("x-user", user.parse()?);
        }
        let response = service.clone().oneshot(request).await?;
        let status = response.status();
        let text = to_bytes(response.into_body(), usize::MAX).await?;
        println!("{status}: {}", String::from_utf8_lossy(&text));
    }
    pilot.shutdown(Duration::from_secs(10)).await;
    std::fs::remove_dir_all(data_dir)?;
    Ok(())
}
