//! Writer of transcripts: for what a client brings and for what a journal restores. Pure.
//!
//! The CLI resumes such a file as its own (verified with 2.0.76, 2.1.197 and 2.1.332).

use std::time::{Duration, SystemTime};

use serde::Serialize;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::adapter::Import;
use crate::model::Dirs;

/// Version in the lines. Other versions read them as well.
const WRITTEN_AS: &str = "2.1.197";

/// What a line says.
pub(crate) struct Content<'a, M> {
    pub(crate) r#type: &'a str,
    pub(crate) message: M,
    pub(crate) timestamp: String,
    /// A failure of the API, which the CLI does not send to the model.
    pub(crate) api_error: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a, M> {
    parent_uuid: Option<&'a str>,
    is_sidechain: bool,
    user_type: &'static str,
    cwd: &'a str,
    session_id: &'a str,
    version: &'static str,
    r#type: &'a str,
    message: &'a M,
    uuid: &'a str,
    timestamp: &'a str,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    is_api_error_message: bool,
}

/// Writes lines each of which follows the one before.
pub(crate) struct Writer<'a> {
    session_id: &'a str,
    cwd: std::borrow::Cow<'a, str>,
    transcript: Vec<u8>,
    parent: Option<String>,
}

impl<'a> Writer<'a> {
    pub(crate) fn new(session_id: &'a str, dirs: &'a Dirs) -> Self {
        Self { session_id, cwd: dirs.work.to_string_lossy(), transcript: Vec::new(), parent: None }
    }

    pub(crate) fn push<M: Serialize>(&mut self, uuid: &str, content: &Content<'_, M>) -> Option<()> {
        let parent = self.parent.replace(uuid.to_owned());
        let mut line = self.line(parent.as_deref(), uuid, content)?;
        line.push(b'\n');
        self.transcript.extend(line);
        Some(())
    }

    /// A line of its own, without its end.
    pub(crate) fn line<M: Serialize>(
        &self,
        parent: Option<&str>,
        uuid: &str,
        content: &Content<'_, M>,
    ) -> Option<Vec<u8>> {
        let line = Line {
            parent_uuid: parent,
            is_sidechain: false,
            user_type: "external",
            cwd: &self.cwd,
            session_id: self.session_id,
            version: WRITTEN_AS,
            r#type: content.r#type,
            message: &content.message,
            uuid,
            timestamp: &content.timestamp,
            is_api_error_message: content.api_error,
        };
        // Values with text keys always serialise into memory.
        serde_json::to_vec(&line).ok()
    }

    /// `None` without a line.
    pub(crate) fn finish(self) -> Option<Import> {
        Some(Import { last: self.parent?, transcript: self.transcript })
    }
}

/// Id of a line: a function of what it belongs to and a number.
pub(crate) fn line_id(of: &str, number: usize) -> String {
    let digest = Sha256::new().chain_update(of).chain_update(number.to_le_bytes()).finalize();
    let mut bytes = [0; 16];
    bytes.iter_mut().zip(digest).for_each(|(byte, digest)| *byte = digest);
    let id: Uuid = uuid::Builder::from_random_bytes(bytes).into_uuid();
    id.hyphenated().to_string()
}

/// Time of a line: `before` milliseconds ago.
pub(crate) fn timestamp(now: SystemTime, before: usize) -> String {
    let before = Duration::from_millis(before.try_into().unwrap_or(u64::MAX));
    humantime::format_rfc3339_millis(now.checked_sub(before).unwrap_or(now)).to_string()
}
