//! Frames of a journal and the records in them. Pure.
//!
//! ```text
//!  frame:  magic (4) │ kind (1) │ zeros (3) │ length of the body (4) │ CRC-32 of kind, length and body (4) │ body
//!  record: kind (1) │ length (4) │ bytes
//! ```

use std::io::{self, BufRead, Read as _};

use crate::adapter::Kept;

const MAGIC: [u8; 4] = *b"PLJ1";
pub(super) const HEADER: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Records of a conversation.
    Records = b'R' as isize,
    /// How far the conversation has come.
    Mark = b'M' as isize,
}

/// Kind and length.
const RECORD_HEADER: usize = 5;

/// Kinds of a record.
const ENTRY: u8 = b'E';
const MIRRORED: u8 = b'T';
const PROMPT: u8 = b'P';
const LINE: u8 = b'L';

/// Appends a frame. `None`: the body is longer than a frame can be.
pub(super) fn push(into: &mut Vec<u8>, kind: Kind, body: &[u8]) -> Option<()> {
    let length = u32::try_from(body.len()).ok()?.to_le_bytes();
    let kind = kind as u8;
    into.reserve(HEADER + body.len());
    into.extend_from_slice(&MAGIC);
    into.extend_from_slice(&[kind, 0, 0, 0]);
    into.extend_from_slice(&length);
    into.extend_from_slice(&checksum(kind, length, body).to_le_bytes());
    into.extend_from_slice(body);
    Some(())
}

/// What the header of a frame says of it.
struct Header {
    kind: Kind,
    length: [u8; 4],
    sum: u32,
}

impl Header {
    fn parse(header: &[u8; HEADER]) -> Option<Self> {
        let [m0, m1, m2, m3, kind, 0, 0, 0, l0, l1, l2, l3, c0, c1, c2, c3] = *header else { return None };
        let kind = [Kind::Records, Kind::Mark].into_iter().find(|named| *named as u8 == kind)?;
        let (length, sum) = ([l0, l1, l2, l3], u32::from_le_bytes([c0, c1, c2, c3]));
        ([m0, m1, m2, m3] == MAGIC).then_some(Self { kind, length, sum })
    }

    fn length(&self) -> u32 {
        u32::from_le_bytes(self.length)
    }
}

/// The frame at the beginning of `bytes`, and what follows it. `None`: it is not whole, or damaged.
pub(super) fn first(bytes: &[u8]) -> Option<(Kind, &[u8], &[u8])> {
    let (header, rest) = bytes.split_first_chunk::<HEADER>()?;
    let header = Header::parse(header)?;
    let (body, rest) = rest.split_at_checked(usize::try_from(header.length()).ok()?)?;
    (checksum(header.kind as u8, header.length, body) == header.sum).then_some((header.kind, body, rest))
}

/// Whether the next frame is undamaged, without a copy of it. `None`: there is none.
pub(super) fn check(reader: &mut impl BufRead) -> io::Result<Option<bool>> {
    if reader.fill_buf()?.is_empty() {
        return Ok(None);
    }
    let mut header = [0; HEADER];
    match reader.read_exact(&mut header) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(Some(false)),
        read => read?,
    }
    let Some(header) = Header::parse(&header) else { return Ok(Some(false)) };
    let mut sum = begun_checksum(header.kind as u8, header.length);
    let mut body = reader.take(header.length().into());
    loop {
        let piece = body.fill_buf()?;
        let read = piece.len();
        if read == 0 {
            return Ok(Some(body.limit() == 0 && sum.finalize() == header.sum));
        }
        sum.update(piece);
        body.consume(read);
    }
}

fn begun_checksum(kind: u8, length: [u8; 4]) -> crc32fast::Hasher {
    let mut sum = crc32fast::Hasher::new();
    sum.update(&[kind]);
    sum.update(&length);
    sum
}

fn checksum(kind: u8, length: [u8; 4], body: &[u8]) -> u32 {
    let mut sum = begun_checksum(kind, length);
    sum.update(body);
    sum.finalize()
}

/// Appends a record to the body of a frame. Lines are shorter than 1 GiB (`session.line_limit`).
pub(super) fn push_record(into: &mut Vec<u8>, record: Kept<'_>) {
    let (kind, bytes) = match record {
        Kept::Entry(bytes) => (ENTRY, bytes),
        Kept::Mirrored(bytes) => (MIRRORED, bytes),
        Kept::Prompt(bytes) => (PROMPT, bytes),
        Kept::Line(bytes) => (LINE, bytes),
        // Marks are frames of their own.
        Kept::Checkpoint(_) => return,
    };
    let Ok(length) = u32::try_from(bytes.len()) else { return };
    into.reserve(RECORD_HEADER + bytes.len());
    into.push(kind);
    into.extend_from_slice(&length.to_le_bytes());
    into.extend_from_slice(bytes);
}

/// The records of these lines of a transcript.
pub(crate) fn entries(lines: &[&[u8]]) -> Vec<u8> {
    let mut records = Vec::new();
    lines.iter().for_each(|line| push_record(&mut records, Kept::Entry(line)));
    records
}

/// A journal for the fuzz target: the first byte of a line chooses its kind.
#[cfg(fuzzing)]
pub(crate) fn of_records(lines: &[&[u8]]) -> Vec<u8> {
    let (mut body, mut journal) = (Vec::new(), Vec::new());
    for line in lines {
        let Some((kind, line)) = line.split_first() else { continue };
        push_record(
            &mut body,
            match kind % 4 {
                0 => Kept::Entry(line),
                1 => Kept::Mirrored(line),
                2 => Kept::Prompt(line),
                _ => Kept::Line(line),
            },
        );
    }
    push(&mut journal, Kind::Records, &body);
    journal
}

/// All records of a journal, in their order, up to the first damage.
pub(crate) fn records(mut journal: &[u8]) -> Vec<Kept<'_>> {
    let mut found = Vec::new();
    let mut is_beginning = true;
    while let Some((kind, body, rest)) = first(journal) {
        match kind {
            Kind::Records => records_of(body, &mut found),
            Kind::Mark => found.push(Kept::Checkpoint(super::mark::last_message(body, is_beginning))),
        }
        (journal, is_beginning) = (rest, false);
    }
    found
}

fn records_of<'a>(mut body: &'a [u8], found: &mut Vec<Kept<'a>>) {
    while let Some(([kind, length @ ..], rest)) = body.split_first_chunk::<5>() {
        let length = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
        let Some((bytes, rest)) = rest.split_at_checked(length) else { return };
        found.extend(match *kind {
            ENTRY => Some(Kept::Entry(bytes)),
            MIRRORED => Some(Kept::Mirrored(bytes)),
            PROMPT => Some(Kept::Prompt(bytes)),
            LINE => Some(Kept::Line(bytes)),
            _ => None,
        });
        body = rest;
    }
}
