//! Tail of a child's standard error: always drained, bounded, and redacted.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Poll, ready};

use tokio::io::{AsyncRead as _, ReadBuf};
use tokio::net::unix::pipe;

use super::secrets::Secrets;

/// Bytes per read; the buffer is on the stack.
const READ: usize = 4096;

/// Maximum number of reads per wake-up: a flood on standard error must not delay standard output.
const READS_PER_WAKE: usize = 16;

const TOKEN_PREFIXES: [&str; 4] = ["sk-", "eyJ", "Bearer", "ghp_"];

#[derive(Debug)]
pub(crate) struct Tail {
    bytes: VecDeque<u8>,
    limit: usize,
    secrets: Secrets,
    total: u64,
    reported: u64,
}

impl Tail {
    /// Keeps at most `limit` bytes, and redacts the `secrets`.
    pub(crate) fn new(limit: usize, secrets: Secrets) -> Self {
        Self { bytes: VecDeque::new(), limit, secrets, total: 0, reported: 0 }
    }

    /// Waits for bytes and keeps them; false once the other end is closed. Cancel-safe.
    pub(crate) async fn read(&mut self, pipe: &mut pipe::Receiver) -> bool {
        let first = poll_fn(|context| {
            let mut block = [0; READ];
            let mut buffer = ReadBuf::new(&mut block);
            let read = ready!(Pin::new(&mut *pipe).poll_read(context, &mut buffer));
            self.push(buffer.filled());
            Poll::Ready(read.is_ok() && !buffer.filled().is_empty())
        });
        first.await && self.drain(pipe)
    }

    /// Keeps the available bytes; false once the other end is closed.
    pub(crate) fn drain(&mut self, pipe: &pipe::Receiver) -> bool {
        let mut block = [0; READ];
        for _ in 0..READS_PER_WAKE {
            match pipe.try_read(&mut block) {
                Ok(0) => return false,
                Ok(length) => self.push(block.get(..length).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        true
    }

    fn push(&mut self, bytes: &[u8]) {
        self.total += bytes.len() as u64;
        let kept = bytes.get(bytes.len().saturating_sub(self.limit)..).unwrap_or_default();
        let excess = (self.bytes.len() + kept.len()).saturating_sub(self.limit);
        self.bytes.drain(..excess);
        self.bytes.extend(kept);
    }

    pub(crate) fn take_new(&mut self) -> u64 {
        let new = self.total - self.reported;
        self.reported = self.total;
        new
    }

    pub(crate) fn is_cut(&self) -> bool {
        self.total > self.bytes.len() as u64
    }

    /// The tail as one line of text, without control characters, secrets and tokens.
    pub(crate) fn text(&self) -> String {
        let (front, back) = self.bytes.as_slices();
        let bytes = [front, back].concat();
        redact(&self.secrets.redact(&String::from_utf8_lossy(&bytes)))
    }
}

fn redact(text: &str) -> String {
    let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let mut words = Vec::new();
    let mut after_bearer = false;
    for word in clean.split_whitespace() {
        let bare = word.trim_start_matches(|c: char| !c.is_ascii_alphanumeric());
        let is_token =
            after_bearer || TOKEN_PREFIXES.iter().any(|prefix| bare.starts_with(prefix) && bare != "Bearer");
        after_bearer = bare == "Bearer";
        words.push(if is_token { "[redacted]" } else { word });
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tail_is_bounded_and_counts_all_bytes() {
        let mut tail = Tail::new(8, Secrets::default());
        for piece in ["abc", "defghi", "", "jk"] {
            tail.push(piece.as_bytes());
        }
        assert_eq!((tail.text().as_str(), tail.take_new(), tail.is_cut()), ("defghijk", 11, true));
        tail.push(&[b'x'; 100]);
        assert_eq!(tail.text(), "xxxxxxxx");
        let mut none = Tail::new(0, Secrets::default());
        none.push(b"abc");
        assert_eq!(none.text(), "");
    }

    #[test]
    fn tokens_and_control_characters_are_removed() {
        let text = redact(
            "error: key \"sk-ant-secret1\" was refused\n\x1b[31mAuthorization: Bearer secret2 eyJsecret3",
        );
        assert!(!text.contains("secret") && !text.contains('\n') && !text.contains('\x1b'), "{text}");
        assert!(text.starts_with("error: key [redacted] was refused"), "{text}");
    }
}
