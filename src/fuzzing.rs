//! Entry points of the fuzz targets into private modules. Built with `--cfg fuzzing` alone.

use std::path::Path;

use crate::adapter::{self, HostRequest};
use crate::journal;
use crate::model::{Decision, Dirs};

/// Reads a line of a child in every way that a connection does.
///
/// # Panics
/// If a session id could be a path, or if an answer is not exactly one line.
pub fn read_every_way(line: &[u8]) {
    adapter::classify(line);
    let terminal = adapter::terminal(line);
    if let Some(id) = terminal.as_ref().and_then(|terminal| terminal.session_id.as_deref()) {
        assert!(Path::new(id).file_name().is_some_and(|name| name == id));
    }
    adapter::launch_refusal(terminal.as_ref(), &String::from_utf8_lossy(line));
    adapter::control_response(line);
    adapter::cancelled_request(line);
    adapter::checkpoint(line);
    adapter::text_delta(line);
    if let Some(HostRequest::Permission(request)) = adapter::host_request(line) {
        let answer = adapter::permission_response(&request, &Decision::Allow { updated_input: None });
        assert_eq!(answer.iter().filter(|&&byte| byte == b'\n').count(), 1);
    }
}

/// Restores a conversation from any bytes as a journal and as what is left of a transcript.
///
/// # Panics
/// If what is restored has a gap, or cannot be restored from itself.
pub fn restore(left: &[u8], kept: &[u8]) {
    const ID: &str = "7b0f9d1e-0d4c-4f7e-9f0e-0d1c2b3a4f5e";
    let dirs = Dirs { work: "/w".into(), home: "/h".into(), tmp: "/t".into() };
    let records = journal::records(kept);
    let now = std::time::SystemTime::UNIX_EPOCH;
    let Some(restored) = adapter::restore(left, &records, None, ID, &dirs, now) else { return };
    let again = adapter::restore(&restored.transcript, &records, Some(&restored.last), ID, &dirs, now);
    assert!(again.is_some());
    adapter::snapshot(&restored.transcript, left.len());
}

/// A journal with these lines, each as a record of a kind that its first byte chooses.
#[must_use]
pub fn journal_of(lines: &[&[u8]]) -> Vec<u8> {
    journal::of_records(lines)
}

/// Reads an object of a cluster's store, also under a checksum that fits. Returns the number of entries.
///
/// # Panics
/// If what was read has another form when it is written again, or a path leaves its place.
#[cfg(feature = "cluster")]
pub fn replica_object(bytes: &[u8]) -> usize {
    crate::cluster::replica::delta::read_any(bytes)
}
