//! Entries of a transcript, and which of them are the conversation. Pure but for the reads.
//!
//! The entries are a tree. The conversation leads from its last entry back to the first one, also over a compaction, whose
//! entry names its predecessor in a field of its own. Results of parallel tool calls hang beside that way, for each names the
//! call that it answers. Prompts beside it are of turns that the conversation has forgotten.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};

use serde::Deserialize;
use serde_json::value::RawValue;

use super::gap::{Id, digest};

/// Bytes that are read, from the end: the CLI needs some gigabytes of memory for a longer transcript.
const MOST_READ: u64 = 256 << 20;

/// Entries that are kept in mind, some 90 bytes each. A child may write millions of short ones.
const MOST_ENTRIES: usize = 200_000;

/// Longest line that is read. Messages with images have some megabytes; a child may write any.
pub(super) const MOST_LINE: u64 = 32 << 20;

/// Longest id of an entry. The CLI's are UUIDs.
const LONGEST_ID: usize = 128;

/// What an entry is to the conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A message of the user that begins something, also one that the CLI has put there.
    Prompt,
    /// A part of an answer of the model, with the answer's id.
    Answer(Option<Id>),
    /// The result of a tool, the beginning of a compacted conversation, its summary, or an attachment.
    Follower,
}

/// An entry, and where its line is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Indexed {
    pub(super) offset: u64,
    pub(super) length: usize,
    pub(super) id: Id,
    parent: Option<Id>,
    pub(super) kind: Kind,
    /// Whether it is a message of the user or the model, and none of the CLI's own.
    pub(super) is_shown: bool,
}

/// The entries of one transcript, in the order of the file.
#[derive(Debug, Default)]
pub(super) struct Index {
    entries: Vec<Indexed>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    #[serde(borrow)]
    uuid: Option<Cow<'a, str>>,
    #[serde(borrow)]
    parent_uuid: Option<Cow<'a, str>>,
    #[serde(borrow)]
    logical_parent_uuid: Option<Cow<'a, str>>,
    #[serde(borrow)]
    r#type: Option<Cow<'a, str>>,
    #[serde(default)]
    is_sidechain: bool,
    #[serde(default)]
    is_meta: bool,
    #[serde(default)]
    is_compact_summary: bool,
    #[serde(borrow)]
    prompt_source: Option<Cow<'a, str>>,
    #[serde(borrow)]
    message: Option<Message<'a>>,
    #[serde(borrow)]
    attachment: Option<Attachment<'a>>,
}

/// Something that the CLI has added to the conversation.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Attachment<'a> {
    #[serde(borrow, default)]
    r#type: Cow<'a, str>,
    #[serde(borrow, default)]
    command_mode: Cow<'a, str>,
    #[serde(borrow)]
    prompt: Option<&'a RawValue>,
}

impl<'a> Attachment<'a> {
    /// What the user has said while the turn ran. Notes about background tasks come in the same way, with another mode.
    pub(super) fn said(&self) -> Option<&'a RawValue> {
        self.prompt.filter(|_| self.r#type == "queued_command" && self.command_mode == "prompt")
    }
}

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow)]
    id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    content: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Block<'a> {
    #[serde(borrow)]
    r#type: Cow<'a, str>,
}

/// Beginnings of what the CLI notes of its own commands.
const COMMANDS: [&str; 2] = ["\"<command-name>", "\"<local-command-"];

/// Whether this is the answer that the CLI puts after a prompt that was never answered, when it resumes a conversation.
fn is_unanswered_note(content: &str) -> bool {
    content.len() <= 64 && content.contains(r#""No response requested.""#)
}

impl Index {
    pub(super) fn read(source: &mut (impl Read + Seek)) -> io::Result<Self> {
        let end = source.seek(SeekFrom::End(0))?;
        let mut offset = end.saturating_sub(MOST_READ);
        source.seek(SeekFrom::Start(offset))?;
        let mut reader = BufReader::new(source.take(MOST_READ));
        let mut entries = Vec::new();
        let mut line = Vec::new();
        loop {
            line.clear();
            let length = next_line(&mut reader, &mut line)?;
            if length == 0 {
                break;
            }
            if let Some(entry) = indexed(&line, offset) {
                if entries.len() == MOST_ENTRIES {
                    // The older half is beyond what one asks for.
                    entries.drain(..MOST_ENTRIES / 2);
                }
                entries.push(entry);
            }
            offset += length;
        }
        Ok(Self { entries })
    }

    pub(super) fn get(&self, at: usize) -> Option<&Indexed> {
        self.entries.get(at)
    }

    /// The places of the conversation that ends with the entry at `last`, or with the last one of all.
    pub(super) fn conversation(&self, last: Option<usize>) -> Vec<usize> {
        let Some(last) = last.or(self.entries.len().checked_sub(1)) else { return Vec::new() };
        let of_id: HashMap<Id, usize> =
            self.entries.iter().enumerate().map(|(at, entry)| (entry.id, at)).collect();
        let parent = |at: usize| self.get(at)?.parent.and_then(|parent| of_id.get(&parent).copied());
        let mut kept = vec![false; last + 1];
        let mut next = Some(last);
        // A mark ends a cycle.
        while let Some(is_kept) = next.and_then(|at| kept.get_mut(at)).filter(|is_kept| !**is_kept) {
            *is_kept = true;
            next = next.and_then(parent);
        }
        for at in 0..=last {
            let before = parent(at).filter(|before| kept.get(*before) == Some(&true));
            let hangs = before.is_some_and(|before| self.hangs_on(at, before));
            if let Some(is_kept) = kept.get_mut(at).filter(|_| hangs) {
                *is_kept = true;
            }
        }
        (0..=last).filter(|at| kept.get(*at) == Some(&true)).collect()
    }

    /// Whether an entry belongs to the conversation because its parent does.
    fn hangs_on(&self, at: usize, parent: usize) -> bool {
        match (self.get(at).map(|entry| entry.kind), self.get(parent).map(|entry| entry.kind)) {
            (Some(Kind::Follower), _) => true,
            (Some(Kind::Answer(own @ Some(_))), Some(Kind::Answer(other))) => own == other,
            _ => false,
        }
    }
}

/// Reads a line with its end, and gives its length. Of one that is too long nothing is kept.
fn next_line(reader: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<u64> {
    let mut length = reader.by_ref().take(MOST_LINE).read_until(b'\n', line)? as u64;
    if length < MOST_LINE || line.ends_with(b"\n") {
        return Ok(length);
    }
    line.clear();
    loop {
        let found = reader.fill_buf()?;
        let end = memchr::memchr(b'\n', found).map(|at| at + 1);
        let taken = end.unwrap_or(found.len());
        reader.consume(taken);
        length += taken as u64;
        if end.is_some() || taken == 0 {
            return Ok(length);
        }
    }
}

fn indexed(line: &[u8], offset: u64) -> Option<Indexed> {
    // A list would deserialise as well.
    line.trim_ascii_start().first().filter(|first| **first == b'{')?;
    let entry: Line<'_> = serde_json::from_slice(line).ok()?;
    let id = digest(entry.uuid.as_deref().filter(|id| !entry.is_sidechain && id.len() <= LONGEST_ID)?);
    let parent = entry.parent_uuid.as_deref().or(entry.logical_parent_uuid.as_deref()).map(digest);
    let content = entry.message.as_ref().and_then(|message| message.content).map_or("", RawValue::get);
    let kind = match entry.r#type.as_deref() {
        Some("assistant") => {
            Kind::Answer(entry.message.as_ref().and_then(|message| message.id.as_deref()).map(digest))
        }
        Some("user") if !entry.is_compact_summary && !is_result(content) => Kind::Prompt,
        _ => Kind::Follower,
    };
    let is_command =
        entry.prompt_source.is_none() && COMMANDS.iter().any(|beginning| content.starts_with(beginning));
    let is_message = matches!(entry.r#type.as_deref(), Some("user" | "assistant")) && !content.is_empty();
    let is_steer = entry.attachment.as_ref().is_some_and(|attachment| attachment.said().is_some());
    let is_shown = (is_message || is_steer) && !entry.is_meta && !is_command && !is_unanswered_note(content);
    Some(Indexed { offset, length: line.len(), id, parent, kind, is_shown })
}

fn is_result(content: &str) -> bool {
    let blocks: Vec<Block<'_>> = serde_json::from_str(content).unwrap_or_default();
    blocks.iter().any(|block| block.r#type == "tool_result")
}
