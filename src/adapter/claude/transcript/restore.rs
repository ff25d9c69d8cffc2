//! A transcript restored from what is left of the file and from what a journal has kept. Pure.
//!
//! Entries of the file stay, in their order. Kept entries that are missing come before the next one that is there, unless
//! they are of a turn that the conversation has forgotten ([`order`]). A turn that was never mirrored has only the lines of
//! its stream: its entries are written again, each after the one before.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::time::SystemTime;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::entry::{Content, Writer, line_id, timestamp};
use super::gap::{Id, digest, gap};
use crate::adapter::{Import, Kept};
use crate::model::Dirs;

mod order;

/// Entries of one conversation, some 250 bytes of memory each: as many as a gap is looked for in. A child may write millions
/// of short ones; ordinary ones have some kilobytes.
const MOST_ENTRIES: usize = 200_000;

/// What matters of a line of a transcript.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry<'a> {
    #[serde(borrow)]
    uuid: Option<Cow<'a, str>>,
    #[serde(borrow)]
    parent_uuid: Option<Cow<'a, str>>,
    /// What a compacted conversation began as. For the CLI the way back ends there.
    #[serde(borrow)]
    logical_parent_uuid: Option<Cow<'a, str>>,
    #[serde(default)]
    is_sidechain: bool,
}

/// A mirrored line.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mirror<'a> {
    #[serde(borrow)]
    file_path: Cow<'a, str>,
    #[serde(borrow)]
    entries: Vec<&'a RawValue>,
}

/// A line of the stream, or the message of a turn.
#[derive(Deserialize)]
struct Spoken<'a> {
    #[serde(borrow)]
    r#type: Cow<'a, str>,
    #[serde(borrow)]
    message: &'a RawValue,
    #[serde(borrow)]
    uuid: Option<Cow<'a, str>>,
    #[serde(borrow)]
    timestamp: Option<Cow<'a, str>>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
    is_api_error_message: Option<bool>,
}

/// A user's entry, to tell a prompt from the result of a tool.
#[derive(Deserialize)]
struct Said<'a> {
    #[serde(borrow)]
    r#type: Cow<'a, str>,
    message: Option<Message<'a>>,
    #[serde(default, rename = "isMeta")]
    is_meta: bool,
    /// The CLI's own, in the place of what was said before.
    #[serde(default, rename = "isCompactSummary")]
    is_compact_summary: bool,
}

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow)]
    content: &'a RawValue,
}

#[derive(Deserialize)]
struct Block<'a> {
    #[serde(borrow)]
    r#type: Cow<'a, str>,
}

/// A line of the restored transcript.
struct Line<'a> {
    text: Cow<'a, [u8]>,
    id: Option<Id>,
    parent: Option<Id>,
    is_sidechain: bool,
    origin: Origin,
}

/// Where a line comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    File,
    /// A child has found it in the file.
    EarlierFile,
    /// A child has said it.
    Stream,
}

/// The transcript of the conversation of this id that leads from `checkpoint`, or from the last entry without one, back to
/// the beginning. `None` if `file` and `kept` together do not have it.
pub(crate) fn restore(
    file: &[u8],
    kept: &[Kept<'_>],
    checkpoint: Option<&str>,
    session_id: &str,
    dirs: &Dirs,
    now: SystemTime,
) -> Option<Import> {
    let mut restored = Restored::new(file, session_id, dirs, now)?;
    for piece in kept {
        restored.add(*piece);
    }
    if restored.is_too_long() {
        return None;
    }
    let last = match checkpoint {
        Some(checkpoint) => checkpoint.to_owned(),
        None => restored.last.clone()?,
    };
    let transcript = restored.finish(digest(&last));
    gap(transcript.as_slice(), false, &last).ok()?.is_none().then_some(Import { transcript, last })
}

/// The lines of a transcript that a journal begins with, in their order; `None` if they are more than `limit` bytes or
/// too many. Up to the limit all entries, else those that lead back from the last one, and what hangs on them.
pub(crate) fn snapshot(transcript: &[u8], limit: usize) -> Option<Vec<&[u8]>> {
    let own = |line| parse(line).filter(|(entry, _)| !entry.is_sidechain && entry.uuid.is_some());
    let lines: Vec<_> = lines(transcript).filter_map(own).take(MOST_ENTRIES + 1).collect();
    if lines.len() > MOST_ENTRIES {
        return None;
    }
    let size = |lines: &[&[u8]]| lines.iter().map(|line| line.len()).sum::<usize>() <= limit;
    let all: Vec<_> = lines.iter().map(|(_, text)| *text).collect();
    if size(&all) {
        return Some(all);
    }
    let ids =
        |entry: &Entry<'_>| (entry.uuid.as_deref().map(digest), entry.parent_uuid.as_deref().map(digest));
    let mut parents: HashMap<_, _> = lines.iter().map(|(entry, _)| ids(entry)).collect();
    let mut next = lines.last().and_then(|(entry, _)| ids(entry).0);
    let mut chain = HashSet::new();
    while let Some(parent) = parents.remove(&next) {
        chain.insert(next);
        next = parent;
    }
    let hangs_on = |entry: &Entry<'_>| {
        let (id, parent) = ids(entry);
        chain.contains(&id) || (parent.is_some() && chain.contains(&parent))
    };
    let reached: Vec<_> = lines.iter().filter(|(entry, _)| hangs_on(entry)).map(|(_, text)| *text).collect();
    size(&reached).then_some(reached)
}

/// The entries that the end of a transcript has after `checkpoint`, or all without one; `None` if it is not there.
pub(crate) fn entries_after<'a>(tail: &'a [u8], checkpoint: Option<&str>) -> Option<Vec<&'a [u8]>> {
    let from = match checkpoint {
        Some(checkpoint) => {
            let named = memchr::memmem::find(tail, checkpoint.as_bytes())?;
            tail.get(..named)?.iter().rposition(|byte| *byte == b'\n').unwrap_or(0)
        }
        None => 0,
    };
    let entries: Vec<_> = lines(tail.get(from..)?).filter_map(parse).collect();
    let is_checkpoint = |(entry, _): &(Entry<'_>, _)| entry.uuid.as_deref() == checkpoint;
    let first = match checkpoint {
        Some(_) => entries.iter().rposition(is_checkpoint)? + 1,
        None => 0,
    };
    let own = entries.iter().skip(first).filter(|(entry, _)| !entry.is_sidechain && entry.uuid.is_some());
    Some(own.map(|(_, text)| *text).collect())
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii)
}

/// A line that is a JSON object, as a whole.
fn parse(line: &[u8]) -> Option<(Entry<'_>, &[u8])> {
    line.first().filter(|first| **first == b'{')?;
    Some((serde_json::from_slice(line).ok()?, line))
}

struct Restored<'a> {
    writer: Writer<'a>,
    session_id: &'a str,
    now: SystemTime,
    /// Lines of the file, and what is to be put before each.
    file: Vec<(Vec<Line<'a>>, Line<'a>)>,
    /// Where the entries of the file are.
    places: HashMap<Id, usize>,
    /// Entries that are there or are to be added.
    known: HashSet<Id>,
    /// Entries to be added, until a place for them is found.
    pending: Vec<Line<'a>>,
    /// The last entry of the conversation so far.
    last: Option<String>,
    /// Entries that the journal has had so far.
    seen: HashSet<Id>,
    /// Last messages of turns that were answered.
    answered: HashSet<Id>,
    /// The message of the turn that is read, while it is not known whether the transcript has it.
    prompt: Option<&'a [u8]>,
    has_prompt: bool,
}

impl<'a> Restored<'a> {
    fn new(file: &'a [u8], session_id: &'a str, dirs: &'a Dirs, now: SystemTime) -> Option<Self> {
        let mut places = HashMap::new();
        let mut kept = Vec::new();
        for (entry, text) in lines(file).filter_map(parse) {
            if kept.len() == MOST_ENTRIES {
                return None;
            }
            let line = Line::new(Cow::Borrowed(text), &entry, Origin::File);
            if let Some(id) = line.id {
                places.insert(id, kept.len());
            }
            kept.push((Vec::new(), line));
        }
        Some(Self {
            writer: Writer::new(session_id, dirs),
            session_id,
            now,
            file: kept,
            known: places.keys().copied().collect(),
            places,
            pending: Vec::new(),
            last: None,
            seen: HashSet::new(),
            answered: HashSet::new(),
            prompt: None,
            has_prompt: false,
        })
    }

    fn is_too_long(&self) -> bool {
        self.known.len() > MOST_ENTRIES
    }

    fn add(&mut self, piece: Kept<'a>) {
        if self.is_too_long() {
            return;
        }
        match piece {
            Kept::Entry(line) => self.entry(line, Origin::EarlierFile),
            Kept::Mirrored(line) => {
                let mirror = serde_json::from_slice::<Mirror<'a>>(line).ok();
                for entry in
                    mirror.filter(|it| self.is_own(&it.file_path)).into_iter().flat_map(|it| it.entries)
                {
                    self.has_prompt |= is_prompt(entry.get().as_bytes());
                    self.entry(entry.get().as_bytes(), Origin::Stream);
                }
            }
            Kept::Prompt(line) => self.prompt = Some(line),
            Kept::Line(line) => drop(self.spoken(line)),
            Kept::Checkpoint(checkpoint) => {
                (self.prompt, self.has_prompt) = (None, false);
                self.answered.extend(checkpoint.map(digest));
                // The journal does not have the turns before: what follows comes after them, or leaves a gap.
                if let Some(checkpoint) = checkpoint.filter(|it| !self.seen.contains(&digest(it))) {
                    self.last = Some(checkpoint.to_owned());
                }
            }
        }
    }

    fn is_own(&self, path: &str) -> bool {
        let name = path.rsplit('/').next().and_then(|name| name.strip_suffix(".jsonl"));
        name == Some(self.session_id)
    }

    fn entry(&mut self, text: &'a [u8], origin: Origin) {
        let Some((entry, text)) = parse(text).filter(|(entry, _)| !entry.is_sidechain) else { return };
        let Some(uuid) = entry.uuid.as_deref().filter(|_| !self.is_too_long()) else { return };
        let id = digest(uuid);
        self.seen.insert(id);
        // A line of a transcript has no line end within.
        if self.known.insert(id) && !text.contains(&b'\n') {
            self.pending.push(Line::new(Cow::Borrowed(text), &entry, origin));
        } else {
            self.found(id);
        }
        self.last = Some(uuid.to_owned());
    }

    /// What is to be added belongs before this entry.
    fn found(&mut self, id: Id) {
        if let Some((before, _)) = self.places.get(&id).and_then(|at| self.file.get_mut(*at)) {
            before.append(&mut self.pending);
        }
    }

    /// A line of the stream, whose entry names no parent.
    fn spoken(&mut self, line: &'a [u8]) -> Option<()> {
        let spoken: Spoken<'a> = serde_json::from_slice(line).ok()?;
        let uuid = spoken.uuid.as_deref()?.to_owned();
        let prompt = self.prompt.take().filter(|_| !self.has_prompt);
        let prompt = prompt.and_then(|prompt| serde_json::from_slice::<Spoken<'a>>(prompt).ok());
        let id = digest(&uuid);
        self.seen.insert(id);
        let is_known = self.known.contains(&id);
        let mut parent = self.last.take();
        if let Some(prompt) = prompt {
            let own = prompt.uuid.as_deref().map(str::to_owned);
            // The parent of a known line has the id that it came with, or one that only the file has.
            if let Some(own) = own.or_else(|| (!is_known).then(|| line_id(&uuid, 0))) {
                let before = parent.replace(own.clone());
                let id = digest(&own);
                if self.known.contains(&id) {
                    // The CLI had written it down when it died. Two entries of one id would part the conversation.
                    self.found(id);
                } else {
                    self.write(before.as_deref(), &own, &prompt)?;
                }
            }
        }
        if is_known {
            self.found(id);
            self.last = Some(uuid);
            return Some(());
        }
        self.write(parent.as_deref(), &uuid, &spoken)?;
        self.last = Some(uuid);
        Some(())
    }

    fn write(&mut self, parent: Option<&str>, uuid: &str, spoken: &Spoken<'_>) -> Option<()> {
        let has_error = spoken.error.is_some_and(|error| error.get() != "null");
        let content = Content {
            r#type: &spoken.r#type,
            message: spoken.message,
            timestamp: spoken.timestamp.as_deref().map_or_else(|| timestamp(self.now, 0), str::to_owned),
            api_error: has_error || spoken.is_api_error_message == Some(true),
        };
        let text = self.writer.line(parent, uuid, &content)?;
        let (id, parent) = (digest(uuid), parent.map(digest));
        self.known.insert(id);
        let text = Cow::Owned(text);
        self.pending.push(Line { text, id: Some(id), parent, is_sidechain: false, origin: Origin::Stream });
        Some(())
    }

    /// The text of the conversation, in which this message must be.
    fn finish(mut self, checkpoint: Id) -> Vec<u8> {
        self.answered.insert(checkpoint);
        let lines = self.file.into_iter().flat_map(|(before, line)| before.into_iter().chain([line]));
        let lines: Vec<Line<'a>> = lines.chain(self.pending).collect();
        let mut text = Vec::with_capacity(lines.iter().map(|line| line.text.len() + 1).sum());
        for line in
            order::order(&lines, checkpoint, &self.answered).into_iter().filter_map(|at| lines.get(at))
        {
            text.extend_from_slice(&line.text);
            text.push(b'\n');
        }
        text
    }
}

impl<'a> Line<'a> {
    fn new(text: Cow<'a, [u8]>, entry: &Entry<'_>, origin: Origin) -> Self {
        let parent = entry.parent_uuid.as_deref().or(entry.logical_parent_uuid.as_deref());
        let (id, parent) = (entry.uuid.as_deref().map(digest), parent.map(digest));
        Self { text, id, parent, is_sidechain: entry.is_sidechain, origin }
    }

    fn is_in_conversation(&self) -> bool {
        self.id.is_some() && !self.is_sidechain
    }
}

fn is_prompt(entry: &[u8]) -> bool {
    let Some(said) = serde_json::from_slice::<Said<'_>>(entry).ok() else { return false };
    let Some(message) =
        said.message.filter(|_| said.r#type == "user" && !said.is_meta && !said.is_compact_summary)
    else {
        return false;
    };
    let blocks: Vec<Block<'_>> = serde_json::from_str(message.content.get()).unwrap_or_default();
    !blocks.iter().any(|block| block.r#type == "tool_result")
}

#[cfg(test)]
mod tests;
