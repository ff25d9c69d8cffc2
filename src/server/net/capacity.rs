//! Maximum connections within the limit on open files. Pure.

/// Reserved files: 64 admin connections, 64 refused connections, and 128 for listeners, log, key file, transcripts and
/// starts in progress.
const RESERVE: u64 = 256;
/// Files per child: its three pipes, the lifeline, a pidfd of the shim, and at the broker a listener and two connections,
/// each with one to the model's API.
const FILES_PER_CHILD: u64 = 10;
/// Minimum connections: with so few files little works, but refusing everything helps nobody.
const MIN_CONNECTIONS: u64 = 8;

/// Connections, at most `wanted`, in a process that may open `files` and have `children`. Children and connections
/// share the files beside the reserve: neither gets more than half while the other may need it.
pub(crate) fn connections(files: Option<u64>, wanted: usize, children: usize) -> usize {
    let Some(files) = files else { return wanted };
    let shared = files.saturating_sub(RESERVE);
    let of_children = (children as u64).saturating_mul(FILES_PER_CHILD).min(shared / 2);
    let left = (shared - of_children).max(MIN_CONNECTIONS);
    usize::try_from(left).unwrap_or(usize::MAX).min(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_shared_with_children() {
        // Files, wanted connections, children; then the result.
        let table = [
            (None, 1024, 256, 1024),
            (Some(1 << 20), 1024, 256, 1024),
            (Some(4096), 1024, 256, 1024),
            (Some(2048), 1024, 256, 896),
            (Some(1024), 1024, 256, 384),
            (Some(1024), 1024, 16, 608),
            (Some(1024), 100, 256, 100),
            (Some(256), 1024, 256, 8),
            (Some(0), 1024, 256, 8),
            (Some(0), 1, 256, 1),
            (Some(u64::MAX), usize::MAX, usize::MAX, usize::MAX / 2 + 1),
        ];
        for (files, wanted, children, expected) in table {
            let found = connections(files, wanted, children);
            // The last row only checks overflow.
            assert!(found == expected || expected > 1 << 40, "{files:?} {wanted} {children}: {found}");
        }
    }
}
