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
    /// Whether the event that was begun last is the end of a turn's stream.
    is_last: bool,
    is_turn: bool,
    gone: Gone,
}

/// What the last event of a turn's stream begins with, in all dialects.
const ENDS: [&[u8]; 6] = [
    b"data: [DONE]\n",
    b"event: message_stop\n",
    b"event: error\n",
    b"event: response.completed\n",
    b"event: response.incomplete\n",
    b"event: response.failed\n",
];

/// Whether the answer ends with a turn. Views of what happens do not.
pub(super) fn is_of_turn(uri: &Uri) -> bool {
    let path = uri.path();
    let is_view = path.starts_with("/v1/events") || path == "/v1/happenings" || path.ends_with("/live");
    !is_view
}

impl EndsOnLoss {
    /// Wraps the body of an event stream; others are whole before they begin.
    pub(super) fn wrap(response: Response, form: ErrorForm, uri: &Uri, gone: Gone) -> Response {
        let is_stream =
            response.headers().get(header::CONTENT_TYPE).is_some_and(|it| it == "text/event-stream");
        if !is_stream {
            return response;
        }
        let is_turn = is_of_turn(uri);
        let last = last_event(&ApiError::node_lost(), form, is_turn);
        response.map(|body| {
            Body::new(Self { body: Some(body), last, is_whole: true, is_last: false, is_turn, gone })
        })
    }

    fn note(&mut self, data: &[u8]) {
        let goes_on = !std::mem::replace(&mut self.is_whole, data.ends_with(b"\n\n"));
        let events = data.strip_suffix(b"\n\n").unwrap_or(data);
        let begins_at = memchr::memmem::rfind(events, b"\n\n").map(|at| at + 2);
        if let Some(event) = begins_at.or((!goes_on).then_some(0)).and_then(|at| data.get(at..)) {
            self.is_last = self.is_turn && ENDS.iter().any(|end| event.starts_with(end));
        }
    }

    /// What follows when the other node is lost, in place of what it has not sent.
    fn lose(&mut self, why: std::io::ErrorKind) -> Option<Result<Frame<Bytes>, axum::Error>> {
        self.body = None;
        match (self.is_whole, self.is_last) {
            // Nothing is missing but the end of the connection.
            (true, true) => None,
            (true, false) => Some(Ok(Frame::data(std::mem::take(&mut self.last)))),
            // Half an event cannot be ended: the broken connection says it.
            (false, _) => Some(Err(axum::Error::new(std::io::Error::from(why)))),
        }
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
                    self.note(data);
                }
            }
            Poll::Ready(Some(Err(_))) => {
                return Poll::Ready(self.lose(std::io::ErrorKind::ConnectionReset));
            }
            Poll::Pending if self.gone.as_mut().poll(cx).is_ready() => {
                return Poll::Ready(self.lose(std::io::ErrorKind::TimedOut));
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

    #[test]
    fn views_are_of_no_turn() {
        for (path, is_turn) in [
            ("/v1/messages", true),
            ("/v1/sessions/a/events", true),
            ("/v1/turns/a/events", true),
            ("/v1/events/stream", false),
            ("/v1/happenings", false),
            ("/v1/sessions/a/live", false),
        ] {
            assert_eq!(is_of_turn(&Uri::from_static(path)), is_turn, "{path}");
        }
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

    /// A node may be killed between the last event and the end of its connection.
    #[tokio::test]
    async fn stream_with_its_end_gets_no_other() {
        for (pieces, has_ended) in [
            (vec!["data: 1\n\n", "data: [DONE]\n\n"], true),
            (vec!["data: 1\n\ndata: [DONE]\n\n"], true),
            (vec!["event: message_stop\ndata: {}\n\n"], true),
            (vec!["event: error\ndata: {}\n\n"], true),
            (vec!["event: response.completed\ndata: {\"long\"", ": 1}", "\n\n"], true),
            (vec!["event: response.failed\ndata: {}\n\n"], true),
            (vec!["data: \"event: error\"\n\n"], false),
            (vec!["event: message_stop\ndata: {}\n\n", "data: 1\n\n"], false),
            (vec!["event: response.created\ndata: {}\n\n", ": ping\n\n"], false),
        ] {
            let frames = pieces.iter().copied().map(Ok).chain([Err(lost())]).collect();
            let whole = received(frames, "text/event-stream").await.unwrap();
            let added = whole.strip_prefix(&pieces.concat()).unwrap();
            assert_eq!(added.is_empty(), has_ended, "{pieces:?}: {added}");
        }
    }
}
