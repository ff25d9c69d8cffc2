//! A reserved key: reads the answer of its turn into the record, with the caller reading along.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures_core::Stream;
use http_body_util::BodyExt as _;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::records::{Digest, LONGEST, Records};
use crate::server::api::error::{ApiError, ErrorForm};
use crate::server::api::router::with_request_id;
use crate::server::turns::recorded::Recorded;
use crate::support::lock::MutexExt;

/// Maximum buffered pieces for the caller; a slow caller slows its own CLI, as without a key.
const WAITING_PIECES: usize = 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    Reserved,
    Running,
    Ended,
    /// Removed; the key may belong to another request by now.
    Removed,
}

/// Exclusive right to run the turn of a key. Dropped before a turn was accepted, it removes the key; dropped during the
/// turn, it keeps the key without an answer.
pub(crate) struct Reservation {
    records: Arc<Mutex<Records>>,
    key: Digest,
    continues: bool,
    progress: Progress,
}

impl Reservation {
    pub(super) fn new(records: Arc<Mutex<Records>>, key: Digest, continues: bool) -> Self {
        Self { records, key, continues, progress: Progress::Reserved }
    }

    pub(super) fn start(&mut self) {
        self.progress = Progress::Running;
    }

    fn end(&mut self, recorded: Option<Recorded>) {
        self.records.lock_unpoisoned().end(self.key, recorded, Instant::now());
        self.progress = Progress::Ended;
    }

    fn forget(&mut self) {
        self.records.lock_unpoisoned().forget(self.key);
        self.progress = Progress::Removed;
    }

    /// Reads the answer to its end, or until its reader disconnects if the turn ends with it.
    pub(super) async fn fill(
        &mut self,
        answering: impl Future<Output = Response>,
        mut head: oneshot::Sender<Response>,
        form: ErrorForm,
        request_id: &str,
    ) {
        let response = tokio::select! {
            response = answering => response,
            () = head.closed(), if !self.continues => return,
        };
        if let Some(error) = response.extensions().get::<ApiError>() {
            if error.is_refusal() {
                self.forget();
            } else {
                self.end(Recorded::of_error(error, form, request_id, response.headers()).await);
            }
            // A disconnected caller repeats the request.
            head.send(response).ok();
            return;
        }
        let (parts, mut body) = response.into_parts();
        let mut headers = parts.headers.clone();
        with_request_id(&mut headers, request_id);
        let mut recorded = Recorded { status: parts.status, headers, body: Vec::new() };
        let (live, pieces) = mpsc::channel(WAITING_PIECES);
        let is_read = head.send(Response::from_parts(parts, Body::from_stream(Pieces(pieces)))).is_ok();
        let mut live = Some(live).filter(|_| is_read);
        let (mut bytes, mut is_whole) = (0, true);
        loop {
            let gone = async {
                match &live {
                    Some(live) => live.closed().await,
                    None => std::future::ready(()).await,
                }
            };
            let frame = tokio::select! {
                biased;
                () = gone, if !self.continues => return,
                frame = body.frame() => frame,
            };
            let Some(frame) = frame else { break };
            let Ok(frame) = frame else {
                is_whole = false;
                break;
            };
            let Ok(piece) = frame.into_data() else { continue };
            bytes += piece.len();
            if bytes <= LONGEST {
                recorded.body.push(piece.clone());
            } else {
                recorded.body = Vec::new();
            }
            if let Some(reader) = &live
                && reader.send(piece).await.is_err()
            {
                live = None;
            }
        }
        self.end(Some(recorded).filter(|_| is_whole && bytes <= LONGEST));
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        match self.progress {
            Progress::Reserved => self.records.lock_unpoisoned().forget(self.key),
            Progress::Running => self.records.lock_unpoisoned().end(self.key, None, Instant::now()),
            Progress::Ended | Progress::Removed => {}
        }
    }
}

/// Stream of the answer for the caller that reads along.
struct Pieces(mpsc::Receiver<Bytes>);

impl Stream for Pieces {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(context).map(|piece| piece.map(Ok))
    }
}
