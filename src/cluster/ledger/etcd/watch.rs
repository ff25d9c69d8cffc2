//! The stream of a watch: one JSON object per line.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::BytesMut;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::sync::watch::Receiver;
use tokio::time::{Instant, timeout_at};

use super::json::{self, Message};
use super::status::Failure;
use crate::cluster::ledger::error::LedgerError;
use crate::cluster::ledger::kv::Change;
use crate::cluster::ledger::{Answer, Watch};

/// Maximum size of a line: the end of a lease with 50,000 keys is one.
const MAX_LINE_BYTES: usize = 16 << 20;

/// Splits a stream into lines of bounded length.
#[derive(Default)]
pub(super) struct Lines {
    buffer: BytesMut,
    /// Bytes without an end of line, from the beginning.
    searched: usize,
    ready: VecDeque<BytesMut>,
}

impl Lines {
    /// Takes bytes; an error if a line is over the limit.
    pub(super) fn push(&mut self, data: &[u8], limit: usize) -> Result<(), LedgerError> {
        self.buffer.extend_from_slice(data);
        while let Some(at) =
            self.buffer.get(self.searched..).and_then(|rest| rest.iter().position(|byte| *byte == b'\n'))
        {
            let line = self.buffer.split_to(self.searched + at + 1);
            self.searched = 0;
            if !line.trim_ascii().is_empty() {
                self.ready.push_back(line);
            }
        }
        self.searched = self.buffer.len();
        if self.searched > limit { Err(LedgerError::TooLarge("change")) } else { Ok(()) }
    }

    pub(super) fn pop(&mut self) -> Option<BytesMut> {
        self.ready.pop_front()
    }
}

pub(super) struct Stream {
    body: Incoming,
    lines: Lines,
    silence: Duration,
    /// The endpoint of the stream, and the preferred one.
    at: usize,
    preferred: Receiver<usize>,
}

impl Stream {
    pub(super) fn new(body: Incoming, silence: Duration, at: usize, preferred: Receiver<usize>) -> Self {
        Self { body, lines: Lines::default(), silence, at, preferred }
    }

    async fn changes(&mut self) -> Result<Vec<Change>, LedgerError> {
        let end = Instant::now() + self.silence;
        loop {
            while let Some(line) = self.lines.pop() {
                match json::message(&line)? {
                    Message::Changes(changes) if !changes.is_empty() => return Ok(changes),
                    Message::Changes(_) => {}
                    Message::Compacted => return Err(LedgerError::Compacted),
                    Message::Ended => return Err(LedgerError::Unavailable("watch ended")),
                    Message::Error(kind) => {
                        return Err(match Failure::from(kind) {
                            Failure::Elsewhere(why) => LedgerError::Unavailable(why),
                            Failure::Final(error) => error,
                        });
                    }
                }
            }
            let frame = tokio::select! {
                frame = timeout_at(end, self.body.frame()) => frame,
                // A request has failed at an endpoint. This one may be cut off, of which a silent connection says nothing.
                () = another(&mut self.preferred, self.at) => return Err(LedgerError::Silent),
            };
            match frame {
                Err(_) => return Err(LedgerError::Silent),
                Ok(None | Some(Err(_))) => return Err(LedgerError::Unavailable("connection closed")),
                Ok(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data() {
                        self.lines.push(&data, MAX_LINE_BYTES)?;
                    }
                }
            }
        }
    }
}

/// Waits until another endpoint is preferred, if only for a moment.
async fn another(preferred: &mut Receiver<usize>, at: usize) {
    if *preferred.borrow() == at && preferred.changed().await.is_err() {
        std::future::pending().await
    }
}

impl Watch for Stream {
    fn next(&mut self) -> Answer<'_, Vec<Change>> {
        Box::pin(self.changes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_the_same_for_every_cut() {
        let text = b"{\"a\":1}\n\n  \n{\"b\":2}\r\n{\"c\":3}\n";
        for size in 1..=text.len() {
            let mut lines = Lines::default();
            let mut found = Vec::new();
            for part in text.chunks(size) {
                lines.push(part, 100).unwrap();
                while let Some(line) = lines.pop() {
                    found.push(String::from_utf8(line.trim_ascii().to_vec()).unwrap());
                }
            }
            assert_eq!(found, [r#"{"a":1}"#, r#"{"b":2}"#, r#"{"c":3}"#], "chunks of {size}");
        }
    }

    #[test]
    fn endless_line_is_refused() {
        let mut lines = Lines::default();
        assert_eq!(lines.push(&[b'x'; 10], 10), Ok(()));
        assert_eq!(lines.push(b"x", 10), Err(LedgerError::TooLarge("change")));
    }
}
