//! A whole answer as it was sent: status, headers, body.

use axum::http::{HeaderMap, StatusCode};
use bytes::Bytes;
use http_body_util::BodyExt as _;

use super::SESSION_HEADER;
use crate::server::api::error::{ApiError, ErrorForm};
use crate::server::api::router::with_request_id;

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Recorded {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Vec<Bytes>,
}

impl Recorded {
    /// Memory of the answer, including headers.
    pub(super) fn bytes(&self) -> usize {
        let headers = self.headers.iter().map(|(name, value)| name.as_str().len() + value.len());
        self.body.iter().map(Bytes::len).chain(headers).sum()
    }

    /// Record of a turn that ended with an error before its first event. `sent` has the headers of its response.
    pub(super) async fn of_error(
        error: &ApiError,
        form: ErrorForm,
        request_id: &str,
        sent: &HeaderMap,
    ) -> Option<Self> {
        let (mut parts, body) = error.render(form, request_id).into_parts();
        if let Some(session) = sent.get(&SESSION_HEADER) {
            parts.headers.insert(SESSION_HEADER, session.clone());
        }
        with_request_id(&mut parts.headers, request_id);
        let body = body.collect().await.ok()?.to_bytes();
        Some(Self { status: parts.status, headers: parts.headers, body: vec![body] })
    }
}
