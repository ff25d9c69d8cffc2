//! Paths of an object that may be used on a node. Pure.

use super::super::limits::{MAX_DEPTH, MAX_NAME_BYTES, MAX_PATH_BYTES};
use super::{Area, Change};
use crate::model::ids::SessionHash;
use crate::support::atomic_file::is_temporary_name;

/// Files of a session's record that an object may have. Another one would be the node's own, such as a copy of a broken
/// record.
const RECORD_FILES: [&[u8]; 5] =
    [b"session.json", b"directory", b"journal", b"progress", b"credentials.json"];

/// Whether the path may be changed so.
pub(crate) fn is_valid_path(area: &Area, path: &[u8], change: &Change<'_>) -> bool {
    let is_plain = matches!(
        change,
        Change::Whole { .. } | Change::Append { .. } | Change::Patch { .. } | Change::Removed
    );
    match area {
        Area::Record(_) if path.is_empty() => matches!(change, Change::Removed),
        Area::Record(_) => is_plain && RECORD_FILES.contains(&path),
        Area::User => is_plain && is_user_path(path),
        Area::Work(_) => is_relative(path),
    }
}

fn is_user_path(path: &[u8]) -> bool {
    let Ok(path) = std::str::from_utf8(path) else { return false };
    match path.split_once('/') {
        None => path == "usage" || path == "conversations",
        Some(("list", session)) => SessionHash::parse(session).is_some(),
        Some(("responses", name)) => is_name(name.as_bytes()) && !is_temporary_name(name),
        Some(_) => false,
    }
}

/// Whether the path leads to something below, without `.`, `..`, empty names and NUL.
fn is_relative(path: &[u8]) -> bool {
    let names = path.split(|byte| *byte == b'/');
    path.len() <= MAX_PATH_BYTES && names.clone().count() <= MAX_DEPTH && names.clone().all(is_name)
}

fn is_name(name: &[u8]) -> bool {
    let is_other = matches!(name, b"" | b"." | b"..");
    !is_other && name.len() <= MAX_NAME_BYTES && !name.iter().any(|byte| matches!(byte, 0 | b'/'))
}
