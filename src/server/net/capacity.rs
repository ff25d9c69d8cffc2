//! How many connections the limit on open files leaves slots for. Pure.

/// Files that are neither callers' connections nor children's: 64 connections of the operator's listener, 64 of callers
/// who are told that there is no slots, and 128 for listeners, the log, the key file, transcripts and starts under way.
const RESERVE: u64 = 256;
/// Files of this process for each child: its three pipes, the lifeline and a handle on the shim.
const FILES_PER_CHILD: u64 = 5;
/// Connections that are served in any case: with so few files nothing works well, and refusing everybody helps nobody.
const LEAST: u64 = 8;

/// Connections at once, of at most `wanted`, in a process that may open `files` and have `children`. Children and callers
/// share what is left beside the reserve: neither gets more than half while the other may want it.
pub(crate) fn connections(files: Option<u64>, wanted: usize, children: usize) -> usize {
    let Some(files) = files else { return wanted };
    let shared = files.saturating_sub(RESERVE);
    let of_children = (children as u64).saturating_mul(FILES_PER_CHILD).min(shared / 2);
    let left = (shared - of_children).max(LEAST);
    usize::try_from(left).unwrap_or(usize::MAX).min(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_shared_with_children() {
        // Files, connections wanted, children; then the connections.
        let table = [
            (None, 1024, 256, 1024),
            (Some(1 << 20), 1024, 256, 1024),
            (Some(4096), 1024, 256, 1024),
            (Some(2048), 1024, 256, 896),
            (Some(1024), 1024, 256, 384),
            (Some(1024), 1024, 16, 688),
            (Some(1024), 100, 256, 100),
            (Some(256), 1024, 256, 8),
            (Some(0), 1024, 256, 8),
            (Some(0), 1, 256, 1),
            (Some(u64::MAX), usize::MAX, usize::MAX, usize::MAX / 2 + 1),
        ];
        for (files, wanted, children, expected) in table {
            let found = connections(files, wanted, children);
            // The last row is about overflow alone.
            assert!(found == expected || expected > 1 << 40, "{files:?} {wanted} {children}: {found}");
        }
    }
}
