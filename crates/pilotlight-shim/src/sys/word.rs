//! A word of memory that two processes share: one writes it, the others read it.

use std::{
    io,
    os::fd::BorrowedFd,
    ptr::{NonNull, null_mut},
    sync::atomic::{AtomicU64, Ordering},
};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// The first word of a file, mapped for reading.
#[derive(Debug)]
pub(crate) struct Word(NonNull<AtomicU64>);

/// The same, mapped for writing too.
#[derive(Debug)]
pub(crate) struct OwnWord(Word);

impl Word {
    /// Maps a file that has a first word and cannot shrink: an access past its end would be a SIGBUS.
    pub(crate) fn map(file: BorrowedFd<'_>) -> io::Result<Self> {
        Self::mapped(file, ProtFlags::READ)
    }

    #[expect(unsafe_code, reason = "there is no safe shared mapping")]
    fn mapped(file: BorrowedFd<'_>, access: ProtFlags) -> io::Result<Self> {
        // SAFETY: the kernel chooses the address, so the new mapping replaces none.
        let at = unsafe { mmap(null_mut(), size_of::<AtomicU64>(), access, MapFlags::SHARED, file, 0) }?;
        NonNull::new(at.cast()).map(Self).ok_or(io::ErrorKind::AddrNotAvailable.into())
    }

    #[expect(unsafe_code, reason = "the memory is not Rust's own")]
    fn atomic(&self) -> &AtomicU64 {
        // SAFETY: the mapping begins at a page, hence aligned, and lives until `self` is dropped. All bytes are valid
        // values, and both processes access them atomically only.
        unsafe { self.0.as_ref() }
    }

    pub(crate) fn load(&self) -> u64 {
        // Relaxed: nothing else is read because of it, and only such loads may read memory without write access.
        self.atomic().load(Ordering::Relaxed)
    }
}

impl Drop for Word {
    #[expect(unsafe_code, reason = "there is no safe shared mapping")]
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and no reference to it outlives the value.
        let _unmapped = unsafe { munmap(self.0.as_ptr().cast(), size_of::<AtomicU64>()) };
    }
}

#[expect(unsafe_code, reason = "a pointer is neither by itself")]
// SAFETY: the mapping belongs to the process, not to a thread.
unsafe impl Send for Word {}

#[expect(unsafe_code, reason = "a pointer is neither by itself")]
// SAFETY: through a reference the word is accessed atomically only.
unsafe impl Sync for Word {}

impl OwnWord {
    /// As [`Word::map`].
    pub(crate) fn map(file: BorrowedFd<'_>) -> io::Result<Self> {
        Word::mapped(file, ProtFlags::READ | ProtFlags::WRITE).map(Self)
    }

    pub(crate) fn load(&self) -> u64 {
        self.0.load()
    }

    pub(crate) fn store(&self, value: u64) {
        self.0.atomic().store(value, Ordering::Relaxed);
    }
}
