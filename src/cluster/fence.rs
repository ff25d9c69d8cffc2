//! The deadline up to which this node holds its users, as the shims of their children see it.
//!
//! A node holds its users by a lease that it renews ([`membership`](super::membership)). The deadline counts from the moment at
//! which the last acknowledged renewal was sent, and is earlier than the end of the lease by a margin, in which the shims end their
//! trees: also while this process is stopped, since they look at the deadline themselves. A clock decides about nothing else: only
//! the ledger decides who may commit.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};

use pilotlight_shim::fence::{self, Page};

/// See the module. One task moves it; everybody may read it.
#[derive(Debug)]
pub(crate) struct Fence(Page);

impl Fence {
    /// A fence whose deadline has passed: no child starts before there is a lease.
    ///
    /// # Errors
    /// The error of the system call; the kernel must be 5.1 or later.
    pub(crate) fn new() -> io::Result<Self> {
        Page::create().map(Self)
    }

    /// Moves the deadline, in nanoseconds of `CLOCK_BOOTTIME`. `None`: the lease is lost or given up; the shims end their trees at
    /// the former deadline, unless this process does first.
    pub(crate) fn put(&self, deadline: Option<u64>) {
        self.0.set(deadline.unwrap_or(0));
    }

    /// Whether this node may no longer have children.
    pub(crate) fn has_passed(&self) -> bool {
        self.0.deadline() <= fence::now()
    }

    /// For the shim of a child, which can read it only.
    pub(crate) fn page(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fence_has_passed_without_a_lease() {
        let fence = Fence::new().unwrap();
        assert!(fence.has_passed(), "there was none yet");
        fence.put(Some(fence::now() + 3_600_000_000_000));
        assert!(!fence.has_passed());
        fence.put(None);
        assert!(fence.has_passed());
    }
}
