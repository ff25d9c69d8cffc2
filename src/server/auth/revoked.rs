//! Ends requests whose key is revoked: with 401 before the response has begun, with an error event of their dialect
//! after it. Dropping the body has the effect of a disconnected caller.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, HttpBody};
use axum::http::{StatusCode, header};
use axum::response::Response;
use bytes::{BufMut, Bytes, BytesMut};
use hyper::body::{Frame, SizeHint};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::server::api::error::{ApiError, ErrorForm};
use crate::server::dialect::sse::{self, DONE};

pub(crate) fn error() -> ApiError {
    let message = "the key was revoked while the request was being served";
    ApiError::new(StatusCode::UNAUTHORIZED, "key_revoked", message)
}

/// Wraps an event stream, so that it ends when the key is revoked.
pub(crate) fn watched(
    response: Response,
    revoked: CancellationToken,
    form: ErrorForm,
    is_turn: bool,
) -> Response {
    let is_stream = response.headers().get(header::CONTENT_TYPE).is_some_and(|it| it == "text/event-stream");
    if !is_stream {
        return response;
    }
    let last = last_event(&error(), form, is_turn);
    let revoked = Box::pin(revoked.cancelled_owned());
    response.map(|body| Body::new(Watched { body: Some(body), revoked, last: Some(last) }))
}

/// Error event and end of the stream, in the dialect's form.
pub(crate) fn last_event(error: &ApiError, form: ErrorForm, is_turn: bool) -> Bytes {
    let mut frames = BytesMut::new();
    let has_names = matches!(form, ErrorForm::Messages | ErrorForm::Responses);
    if has_names {
        frames.put_slice(b"event: error\n");
    }
    match form {
        ErrorForm::Responses => sse::event(&error.response_event(), &mut frames),
        _ => sse::event(&error.body_in(form, None), &mut frames),
    }
    if is_turn && !has_names {
        frames.put_slice(DONE);
    }
    frames.freeze()
}

struct Watched {
    /// `None` once the key is revoked.
    body: Option<Body>,
    revoked: Pin<Box<WaitForCancellationFutureOwned>>,
    last: Option<Bytes>,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        let Some(body) = &mut this.body else { return Poll::Ready(None) };
        if this.revoked.as_mut().poll(context).is_ready() {
            this.body = None;
            return Poll::Ready(this.last.take().map(|last| Ok(Frame::data(last))));
        }
        Pin::new(body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}
