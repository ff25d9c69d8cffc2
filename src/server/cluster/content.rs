//! The digest of a request's body (RFC 9530), which the signature of a node covers.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use ring::digest;

/// Header with the digest.
pub(super) const DIGEST_HEADER: HeaderName = HeaderName::from_static("content-digest");

/// The digest of a body that is whole.
pub(super) fn digest_of(body: &[u8]) -> Option<HeaderValue> {
    header(&digest::digest(&digest::SHA256, body))
}

fn header(digest: &digest::Digest) -> Option<HeaderValue> {
    HeaderValue::try_from(format!("sha-256=:{}:", STANDARD.encode(digest))).ok()
}

/// A body that ends with an error if it is not the one of the digest.
pub(super) fn verified(body: Body, expected: HeaderValue) -> Body {
    Body::new(Verified { body, expected, seen: Some(digest::Context::new(&digest::SHA256)) })
}

struct Verified {
    body: Body,
    expected: HeaderValue,
    /// `None` after the end.
    seen: Option<digest::Context>,
}

impl hyper::body::Body for Verified {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        match &frame {
            Some(Ok(frame)) => {
                if let Some((seen, data)) = self.seen.as_mut().zip(frame.data_ref()) {
                    seen.update(data);
                }
            }
            Some(Err(_)) => self.seen = None,
            None => {
                let seen = self.seen.take().and_then(|seen| header(&seen.finish()));
                if seen.is_some_and(|seen| seen != self.expected) {
                    let error = axum::Error::new("the content is not the one that was signed");
                    return Poll::Ready(Some(Err(error)));
                }
            }
        }
        Poll::Ready(frame)
    }

    /// Before the end was seen nothing is known to be right.
    fn is_end_stream(&self) -> bool {
        self.seen.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    #[tokio::test]
    async fn other_content_ends_with_an_error() {
        // The example of RFC 9530, Appendix D.
        let digest = digest_of(b"{\"hello\": \"world\"}\n").unwrap();
        assert_eq!(digest, "sha-256=:RK/0qy18MlBSVnWgjwz6lZEWjP/lF5HF9bvEF8FabDg=:");
        for (content, is_it) in [("abc", true), ("abx", false), ("ab", false), ("abcx", false), ("", false)] {
            let body = verified(Body::from(content), digest_of(b"abc").unwrap());
            assert_eq!(body.collect().await.is_ok(), is_it, "{content}");
        }
        assert!(verified(Body::empty(), digest_of(b"").unwrap()).collect().await.is_ok());
    }
}
