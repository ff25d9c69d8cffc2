//! Bounds of the replica.

use std::time::Duration;

/// Tests reach a limit with less.
const fn limit(bytes: u64, in_tests: u64) -> u64 {
    if cfg!(test) { in_tests } else { bytes }
}

/// Size from which a part of an object is closed: what a transfer holds in memory, and what is sent again after a failure.
pub(crate) const PART_BYTES: usize = limit(8 << 20, 256 << 10) as usize;
/// Longest content of one entry: longer files are split.
pub(crate) const CHUNK_BYTES: usize = limit(1 << 20, 32 << 10) as usize;
/// Longest object that is read: a part, one more entry, and the list of parts.
pub(crate) const MAX_OBJECT_BYTES: usize = 16 << 20;
/// Parts of one object that are read. Each has [`PART_BYTES`] at least.
pub(crate) const MAX_PARTS: usize = 4096;
const _: () = assert!(MAX_PARTS as u64 * PART_BYTES as u64 > CHAIN_BYTES);

/// Longest path below a session's working directory.
pub(crate) const MAX_PATH_BYTES: usize = 4096;
/// Longest name in a path, as in file systems.
pub(crate) const MAX_NAME_BYTES: usize = 255;
/// Deepest directory that is replicated: each level of a scan holds a descriptor.
pub(crate) const MAX_DEPTH: usize = 64;

/// End and beginning of a log that are compared before bytes are appended to it.
pub(crate) const EDGE_BYTES: usize = 4096;

/// Bytes of `work/` that one turn sends. The rest goes with later turns, or when the session is evicted.
pub(crate) const WORK_BYTES_PER_TURN: u64 = limit(64 << 20, 4 << 20);
/// Bytes of `work/` that one turn reads to find out whether they have changed.
pub(crate) const WORK_READ_PER_TURN: u64 = limit(256 << 20, 8 << 20);
/// Files of `work/` that one turn sends.
pub(crate) const WORK_FILES_PER_TURN: u64 = limit(10_000, 100);
/// Bytes of `work/` of one session that are sent as a whole. More is not replicated.
pub(crate) const WORK_BYTES_WHOLE: u64 = 4 << 30;
/// A session may have as many bytes in its files as `limits.workspace_bytes` says, times this, and [`WORK_BYTES_WHOLE`] at most:
/// that limit counts what files take, the store counts what they have. Those of a file system that compresses take less; a
/// file with holes takes nothing and has what its child says.
pub(crate) const LENGTH_OF_BYTES: u64 = 4;
/// Files of one session's `work/` that are known, some 150 bytes of memory each. More are not replicated.
pub(crate) const WORK_FILES_KNOWN: u64 = limit(50_000, 500);
/// Directory entries that are looked at in one session: a child may create files without end.
pub(crate) const WORK_ENTRIES: u64 = limit(200_000, 2000);

/// Longest file of the server's own. A journal has `session.journal_bytes`, a response some megabytes.
pub(crate) const OWN_FILE_BYTES: u64 = 2 << 30;
/// Entries of a directory of the server's own: sessions of a user, or stored responses.
pub(crate) const OWN_ENTRIES: usize = crate::config::MAX_SESSIONS;

/// A file that was changed so recently may change again without another time stamp: it is read once more.
pub(crate) const UNSETTLED: Duration = Duration::from_millis(50);

/// Bytes of all objects of a chain. What a node would not take over is not written either.
pub(crate) const CHAIN_BYTES: u64 = limit(16 << 30, 8 << 20);
/// Entries of such a chain.
pub(crate) const CHAIN_ENTRIES: u64 = limit(5_000_000, 20_000);
/// Objects that are fetched ahead while one is applied.
pub(crate) const FETCHED_AHEAD: usize = 8;
/// Parts of one object.
pub(crate) const PARTS_AHEAD: usize = 3;

/// Turns that are replicated at a time; further ones wait. Each has up to two parts of an object in memory.
pub(crate) const TURNS_AT_ONCE: usize = 16;
/// Snapshots that are waited for, and users who leave.
pub(crate) const WHOLES_AT_ONCE: usize = 4;
/// Snapshots in the background.
pub(crate) const SNAPSHOTS_AT_ONCE: usize = 2;
/// Users who come. Each has the objects in memory that are fetched ahead.
pub(crate) const TAKEN_AT_ONCE: usize = 16;

/// Objects of one user that are listed at once.
pub(crate) const LISTED_PER_USER: usize = limit(100_000, 20) as usize;
/// Objects that one request deletes.
pub(crate) const DELETED_AT_ONCE: usize = limit(1000, 8) as usize;
