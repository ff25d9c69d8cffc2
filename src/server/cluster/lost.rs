//! The body of an answer from another node. If that node is lost in the middle of a stream, the stream ends with an error event of
//! its dialect, and not with a broken connection.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::http::{Uri, header};
use axum::response::Response;
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};

use crate::server::api::error::{ApiError, ErrorForm};
use crate::server::auth::revoked::last_event;

/// Ends when the other node is lost without a word.
pub(super) type Gone = Pin<Box<dyn Future<Output = ()> + Send>>;

pub(super) struct EndsOnLoss {
    /// `None` once the other node is lost.
    body: Option<Body>,
    /// The last event, if the other node is lost.
    last: Bytes,
    /// Whether what was sent ends with a whole event.
    is_whole: bool,
    gone: Gone,
}

impl EndsOnLoss {
    /// Wraps the body of an event stream; others are whole before they begin.
    pub(super) fn wrap(response: Response, form: ErrorForm, uri: &Uri, gone: Gone) -> Response {
        let is_stream =
            response.headers().get(header::CONTENT_TYPE).is_some_and(|it| it == "text/event-stream");
        if !is_stream {
            return response;
        }
        let is_turn = !uri.path().starts_with("/v1/events") && !uri.path().ends_with("/live");
        let last = last_event(&ApiError::node_lost(), form, is_turn);
        response.map(|body| Body::new(Self { body: Some(body), last, is_whole: true, gone }))
    }
}

impl hyper::body::Body for EndsOnLoss {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let polled = Pin::new(body).poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref().filter(|data| !data.is_empty()) {
                    self.is_whole = data.ends_with(b"\n\n");
                }
            }
            // Half an event cannot be ended: the broken connection says it.
            Poll::Ready(Some(Err(_))) if self.is_whole => {
                self.body = None;
                return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.last)))));
            }
            Poll::Pending if self.gone.as_mut().poll(cx).is_ready() => {
                self.body = None;
                return Poll::Ready(match self.is_whole {
                    true => Some(Ok(Frame::data(std::mem::take(&mut self.last)))),
                    false => Some(Err(axum::Error::new(std::io::Error::from(std::io::ErrorKind::TimedOut)))),
                });
            }
            _ => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        // The last event may follow.
        SizeHint::default()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use http_body_util::BodyExt as _;

    use super::*;

    async fn received(frames: Vec<Result<&'static str, std::io::Error>>, kind: &str) -> Option<String> {
        let gone: Gone = Box::pin(std::future::pending());
        let response = Response::builder().header("content-type", kind);
        let response = response.body(Body::from_stream(stream::iter(frames))).unwrap();
        let wrapped =
            EndsOnLoss::wrap(response, ErrorForm::Messages, &Uri::from_static("/v1/messages"), gone);
        let collected = wrapped.into_body().collect().await.ok()?;
        Some(String::from_utf8(collected.to_bytes().to_vec()).unwrap())
    }

    fn lost() -> std::io::Error {
        std::io::ErrorKind::ConnectionReset.into()
    }

    #[tokio::test]
    async fn lost_stream_ends_with_an_error_event() {
        const STREAM: &str = "text/event-stream";
        assert_eq!(received(vec![Ok("data: 1\n\n")], STREAM).await.unwrap(), "data: 1\n\n");
        let ended = received(vec![Ok("data: 1\n\n"), Err(lost())], STREAM).await.unwrap();
        assert!(ended.starts_with("data: 1\n\nevent: error\n") && ended.contains("node_lost"), "{ended}");
        assert_eq!(ended.matches("event: error").count(), 1);
        assert_eq!(received(vec![Ok("data: 1"), Err(lost())], STREAM).await, None, "half an event");
        assert_eq!(received(vec![Ok("{"), Err(lost())], "application/json").await, None);
    }
}
