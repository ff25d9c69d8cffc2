//! Messages of a conversation, page by page, out of its transcript.

use std::io::{self, Read, Seek, SeekFrom};
use std::time::SystemTime;

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::gap::digest;
use super::index::{Attachment, Index, Indexed, Kind};
use crate::adapter::claude::caller_tools::as_offered;
use crate::model::{ContextCategory, ContextUsage, MessagePage, Role, SpokenMessage, Usage, is_model_name};

/// Bytes of content in one page; the message that exceeds them is in the next one.
const MOST_PAGE_BYTES: usize = 4 << 20;

/// Longest block that is given; of a longer one only its kind and its size are.
const MOST_BLOCK_BYTES: usize = 1 << 20;

/// Blocks of one message that are given. Models write some dozens.
const MOST_BLOCKS: usize = 1000;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    uuid: String,
    r#type: String,
    timestamp: Option<String>,
    #[serde(default)]
    is_compact_summary: bool,
    #[serde(default)]
    is_api_error_message: bool,
    #[serde(borrow)]
    message: Option<Message<'a>>,
    #[serde(borrow)]
    attachment: Option<Attachment<'a>>,
}

#[derive(Deserialize)]
struct Message<'a> {
    model: Option<String>,
    #[serde(borrow)]
    content: &'a RawValue,
    #[serde(borrow)]
    usage: Option<&'a RawValue>,
}

/// A page of at most `limit` messages after the one with the id `after`, or from the first one. `None`: there is no such
/// message. Parts of an answer that follow each other are one message, with the id of the last part.
pub(crate) fn messages(
    source: &mut (impl Read + Seek),
    after: Option<&str>,
    limit: usize,
) -> io::Result<Option<MessagePage>> {
    let index = Index::read(source)?;
    let mut places = index.conversation(None);
    if let Some(after) = after {
        let id = digest(after);
        let known = places.iter().rposition(|at| index.get(*at).is_some_and(|entry| entry.id == id));
        let Some(known) = known else { return Ok(None) };
        places.drain(..=known);
    }
    let shown = places.into_iter().filter_map(|at| index.get(at)).filter(|entry| entry.is_shown);
    let mut page = Page::default();
    for entry in shown {
        if !page.take(source, entry, limit)? {
            return Ok(Some(MessagePage { messages: page.messages, has_more: true }));
        }
    }
    Ok(Some(MessagePage { messages: page.messages, has_more: false }))
}

/// What the last answer's request has used of the context; `None`: there is no answer since the beginning, or since the
/// conversation was compacted.
pub(crate) fn last_usage(source: &mut (impl Read + Seek)) -> io::Result<Option<ContextUsage>> {
    let index = Index::read(source)?;
    for entry in index.conversation(None).into_iter().rev().filter_map(|at| index.get(at)) {
        if !entry.is_shown {
            continue;
        }
        let mut text = vec![0; entry.length];
        source.seek(SeekFrom::Start(entry.offset))?;
        source.read_exact(&mut text)?;
        let Some(Said { message, .. }) = read(&text, entry) else { continue };
        if message.is_summary {
            return Ok(None);
        }
        let Some(usage) = message.usage.filter(|usage| *usage != Usage::default()) else { continue };
        return Ok(Some(used(message.model, usage)));
    }
    Ok(None)
}

fn used(model: Option<String>, usage: Usage) -> ContextUsage {
    let counted = [
        ("input_tokens", usage.input_tokens),
        ("cache_creation_input_tokens", usage.cache_creation_input_tokens),
        ("cache_read_input_tokens", usage.cache_read_input_tokens),
        ("output_tokens", usage.output_tokens),
    ];
    ContextUsage {
        model,
        total_tokens: Some(counted.iter().map(|(_, tokens)| *tokens).fold(0, u64::saturating_add)),
        categories: counted.map(|(name, tokens)| ContextCategory { name: name.to_owned(), tokens }).to_vec(),
        ..ContextUsage::default()
    }
}

#[derive(Default)]
struct Page {
    messages: Vec<SpokenMessage>,
    bytes: usize,
    last: Option<Kind>,
}

impl Page {
    /// Adds an entry; false: the page is full.
    fn take(&mut self, source: &mut (impl Read + Seek), entry: &Indexed, limit: usize) -> io::Result<bool> {
        let goes_on = matches!(entry.kind, Kind::Answer(Some(_))) && self.last == Some(entry.kind);
        let is_full = self.messages.len() >= limit || self.bytes >= MOST_PAGE_BYTES;
        if !goes_on && is_full {
            return Ok(false);
        }
        let mut text = vec![0; entry.length];
        source.seek(SeekFrom::Start(entry.offset))?;
        if let Err(error) = source.read_exact(&mut text) {
            // It was cut since: a child may do that.
            return if error.kind() == io::ErrorKind::UnexpectedEof { Ok(true) } else { Err(error) };
        }
        let Some(mut said) = read(&text, entry) else { return Ok(true) };
        let before = if goes_on { self.messages.last().map_or(0, |last| last.blocks.len()) } else { 0 };
        let budget = MOST_PAGE_BYTES.saturating_sub(self.bytes);
        let (blocks, bytes) = blocks(said.content, budget, MOST_BLOCKS - before.min(MOST_BLOCKS));
        let has_room = self.bytes + bytes <= MOST_PAGE_BYTES && !said.is_shortened(&blocks, budget);
        if !goes_on && !has_room && !self.messages.is_empty() {
            return Ok(false);
        }
        self.bytes += bytes;
        self.last = Some(entry.kind);
        said.message.blocks = blocks;
        match self.messages.last_mut().filter(|_| goes_on) {
            Some(last) => {
                last.blocks.append(&mut said.message.blocks);
                *last = SpokenMessage { blocks: std::mem::take(&mut last.blocks), ..said.message };
            }
            None => self.messages.push(said.message),
        }
        Ok(true)
    }
}

struct Said<'a> {
    message: SpokenMessage,
    content: &'a RawValue,
}

impl Said<'_> {
    /// Whether blocks were left out that would be given with a whole page for them.
    fn is_shortened(&self, blocks: &[Value], budget: usize) -> bool {
        budget < MOST_PAGE_BYTES
            && self.content.get().len() > budget
            && blocks.iter().any(|block| block.get(OMITTED).is_some())
    }
}

/// The size of a block that is left out.
const OMITTED: &str = "omitted_bytes";

fn read<'a>(text: &'a [u8], entry: &Indexed) -> Option<Said<'a>> {
    let line: Line<'a> = serde_json::from_slice(text).ok()?;
    if digest(&line.uuid) != entry.id {
        return None;
    }
    let role = if line.r#type == "assistant" { Role::Assistant } else { Role::User };
    let said = match (line.message, line.attachment.and_then(|attachment| attachment.said())) {
        (Some(message), _) => message,
        (None, Some(content)) => Message { model: None, content, usage: None },
        (None, None) => return None,
    };
    let usage = said.usage.and_then(|usage| serde_json::from_str::<Usage>(usage.get()).ok());
    let time = line.timestamp.as_deref().and_then(|time| humantime::parse_rfc3339(time).ok());
    let message = SpokenMessage {
        uuid: line.uuid,
        role,
        blocks: Vec::new(),
        time: time.filter(|time| *time >= SystemTime::UNIX_EPOCH),
        model: said.model.filter(|model| is_model_name(model)),
        usage: usage.filter(|_| role == Role::Assistant),
        is_summary: line.is_compact_summary,
        is_error: line.is_api_error_message,
    };
    Some(Said { message, content: said.content })
}

/// The blocks of a message within `budget` bytes, and their size.
fn blocks(content: &RawValue, budget: usize, most: usize) -> (Vec<Value>, usize) {
    let raw: Vec<&RawValue> = match serde_json::from_str(content.get()) {
        Ok(blocks) => blocks,
        Err(_) => vec![content],
    };
    let mut bytes = 0;
    let given = raw.into_iter().take(most).filter_map(|block| {
        let size = block.get().len();
        let fits = size <= MOST_BLOCK_BYTES && bytes + size <= budget;
        let mut block = block_of(block);
        as_offered(&mut block);
        if !block.is_object() {
            return None;
        }
        if fits {
            bytes += size;
            return Some(block);
        }
        let left_out = omitted(&block, size);
        bytes += left_out.to_string().len();
        Some(left_out)
    });
    (given.collect(), bytes)
}

/// A message that is a text alone is one block.
fn block_of(raw: &RawValue) -> Value {
    match serde_json::from_str(raw.get()).unwrap_or_default() {
        Value::String(text) => json!({ "type": "text", "text": text }),
        block => block,
    }
}

/// What is left of a block that is too long: what it is, and which call it belongs to.
fn omitted(block: &Value, size: usize) -> Value {
    let named = ["type", "id", "tool_use_id", "name"].into_iter().filter_map(|name| {
        let value = block.get(name)?.as_str().filter(|value| value.len() <= 256)?;
        Some((name.to_owned(), value.into()))
    });
    let mut left: Map<String, Value> = named.collect();
    left.insert(OMITTED.to_owned(), size.into());
    Value::Object(left)
}

#[cfg(test)]
mod tests;
