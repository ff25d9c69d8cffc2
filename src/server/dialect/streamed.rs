//! Streams in the dialects of the SDKs: the parts of an answer, written one by one.

use bytes::{BufMut, BytesMut};

use super::sse::lines as lines_of;
use super::{Reader, Render, TurnEnd, is_sdk_answer};
use crate::adapter::answer::Part;
use crate::server::api::error::ApiError;
use crate::server::files::ChangedFiles;
use crate::turn::Outcome;

/// Writer of one dialect. Writes directly, so that a part costs little more than its bytes.
pub(super) trait PartWriter: Send {
    /// Follows the last event.
    const DONE: &[u8];

    fn part(&mut self, part: Part<'_>, frames: &mut BytesMut);

    fn ping(&self) -> &'static [u8];

    /// Writes what follows the parts of an answer.
    fn end(&mut self, outcome: &Outcome, frames: &mut BytesMut);

    fn error(&mut self, error: &ApiError, frames: &mut BytesMut);

    /// See [`Render::document`].
    fn document(&mut self) -> Option<String> {
        None
    }
}

pub(super) struct Streamed<W> {
    reader: Reader,
    writer: W,
    /// Text of the answer, if kept: as the inside of a JSON string, which is decoded once at the end.
    text: Option<String>,
}

impl<W: PartWriter> Streamed<W> {
    pub(super) fn new(reader: Reader, writer: W, keep_text: bool) -> Self {
        Self { reader, writer, text: keep_text.then(String::new) }
    }
}

fn keep(text: &mut Option<String>, part: Part<'_>) {
    if let (Some(kept), Part::Text { text, .. }) = (text, part) {
        kept.push_str(text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or_default());
    }
}

impl<W: PartWriter> Render for Streamed<W> {
    fn lines(&mut self, lines: &[u8], frames: &mut BytesMut) {
        let Self { reader, writer, text } = self;
        frames.reserve(lines.len());
        for line in lines_of(lines) {
            reader.read(line, &mut |part| {
                writer.part(part, frames);
                keep(text, part);
            });
        }
    }

    fn ping(&self) -> &'static [u8] {
        self.writer.ping()
    }

    fn end(&mut self, ending: TurnEnd<'_>, _files: Option<&ChangedFiles>, frames: &mut BytesMut) {
        let Self { reader, writer, text } = self;
        match ending {
            TurnEnd::Finished(outcome) if is_sdk_answer(outcome) => {
                let said = if outcome.is_ok() { outcome.text.as_str() } else { "" };
                reader.end(said, &mut |part| {
                    writer.part(part, frames);
                    keep(text, part);
                });
                reader.calls(&outcome.tool_calls, &mut |part| writer.part(part, frames));
                writer.end(outcome, frames);
            }
            TurnEnd::Finished(outcome) => writer.error(&ApiError::from(&outcome.status), frames),
            TurnEnd::Failed(lost) => writer.error(&ApiError::from(lost.clone()), frames),
        }
        frames.put_slice(W::DONE);
    }

    fn document(&mut self) -> Option<String> {
        self.writer.document()
    }

    fn text(&self) -> String {
        let kept = self.text.as_deref().unwrap_or_default();
        serde_json::from_str(&format!("\"{kept}\"")).unwrap_or_default()
    }
}
