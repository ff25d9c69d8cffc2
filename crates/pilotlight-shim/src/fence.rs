//! The deadline at which a shim ends its tree by itself, also while its server is stopped or cut off.
//!
//! A server that holds its sessions by a lease has to be sure that their processes are gone when another server gets the
//! lease. It writes the deadline into a [`Page`] and gives each shim the page. A shim looks at the deadline when a timer
//! rings: if the server has moved the deadline, it sets the timer again, otherwise it ends the tree.
//!
//! The deadline is in nanoseconds of CLOCK_BOOTTIME, see [`now`]: nobody sets this clock, and it runs on while the machine
//! is suspended. A deadline of 0, as of a new page, has passed. One that is moved back counts when the former one is over.
//!
//! Only the mapping that was made before the seals can write the page. A holder of the descriptor can read it: the
//! shim. The CLI gets neither. A page needs Linux 5.1.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use rustix::{
    fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, ftruncate, memfd_create},
    io::Errno,
    time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
        timerfd_settime,
    },
};

use super::sys::{
    self,
    word::{OwnWord, Word},
};

/// Bytes of a page: the deadline.
const SIZE: u64 = 8;

/// What a shim wants of a page: it keeps its size, and nobody but the server changes it.
const SEALS: SealFlags =
    SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::FUTURE_WRITE).union(SealFlags::SEAL);

/// Maximum time between the deadline and the kill, in which the CLI may flush. The lease outlives the deadline by half
/// a second.
const MOST_GRACE: Duration = Duration::from_millis(200);

const NANOS: u64 = 1_000_000_000;

/// The time of CLOCK_BOOTTIME in nanoseconds.
pub fn now() -> u64 {
    let now = sys::boot_time();
    let [seconds, nanos] = [now.tv_sec, now.tv_nsec].map(|part| u64::try_from(part).unwrap_or_default());
    seconds.saturating_mul(NANOS).saturating_add(nanos)
}

/// The server's side. A dropped page keeps its last deadline for the shims that have it.
#[derive(Debug)]
pub struct Page {
    word: OwnWord,
    file: OwnedFd,
}

impl Page {
    /// Creates a page whose deadline has passed.
    ///
    /// # Errors
    /// The error of the system call, `InvalidInput` on kernels before 5.1.
    pub fn create() -> io::Result<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let create = |flags| memfd_create("pilotlight-fence", flags);
        // A host may refuse files in memory that could be executed; kernels before 6.3 do not know the flag.
        let file = match create(flags | MemfdFlags::NOEXEC_SEAL) {
            Err(Errno::INVAL) => create(flags)?,
            created => created?,
        };
        ftruncate(&file, SIZE)?;
        let word = OwnWord::map(file.as_fd())?;
        fcntl_add_seals(&file, SEALS)?;
        Ok(Self { word, file })
    }

    /// Moves the deadline.
    pub fn set(&self, deadline: u64) {
        self.word.store(deadline);
    }

    /// The deadline.
    pub fn deadline(&self) -> u64 {
        self.word.load()
    }
}

impl AsFd for Page {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The shim's side.
#[derive(Debug)]
pub(crate) struct Watch {
    page: Word,
    timer: OwnedFd,
}

/// A deadline that has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Passed(u64);

impl Watch {
    /// Maps the page. The descriptor is needed no longer then.
    pub(crate) fn open(page: OwnedFd) -> io::Result<Self> {
        let is_whole = u64::try_from(fstat(&page)?.st_size).is_ok_and(|size| size >= SIZE);
        if !is_whole || !fcntl_get_seals(&page)?.contains(SEALS) {
            return Err(Errno::INVAL.into());
        }
        let timer = timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        Ok(Self { page: Word::map(page.as_fd())?, timer })
    }

    /// Readable when it is time to look.
    pub(crate) fn timer(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }

    /// Sets the timer to the deadline; `Some` if the deadline has passed, or cannot be waited for.
    pub(crate) fn look(&self) -> Option<Passed> {
        let deadline = self.page.load();
        if deadline <= now() {
            return Some(Passed(deadline));
        }
        let it_value = Timespec {
            tv_sec: i64::try_from(deadline / NANOS).unwrap_or(i64::MAX),
            tv_nsec: i64::try_from(deadline % NANOS).unwrap_or_default(),
        };
        let it_interval = Timespec { tv_sec: 0, tv_nsec: 0 };
        let at = Itimerspec { it_interval, it_value };
        // It also forgets that the timer has rung.
        match timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &at) {
            Ok(_) => None,
            Err(_) => Some(Passed(deadline)),
        }
    }
}

impl Passed {
    /// What is left of the time to flush. It counts from the deadline: a machine that was suspended has none.
    pub(crate) fn grace(self, term_grace: Duration) -> Duration {
        self.grace_at(now(), term_grace)
    }

    fn grace_at(self, now: u64, term_grace: Duration) -> Duration {
        term_grace.min(MOST_GRACE).saturating_sub(Duration::from_nanos(now.saturating_sub(self.0)))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::Write as _,
        os::{fd::AsRawFd as _, unix::fs::FileExt as _},
    };

    use rustix::event::{PollFd, PollFlags, poll};
    use rustix::fs::{FallocateFlags, fallocate};

    use super::*;

    const HOUR: u64 = 3600 * NANOS;

    fn opened(page: &Page) -> Watch {
        Watch::open(page.as_fd().try_clone_to_owned().unwrap()).unwrap()
    }

    fn rings(watch: &Watch, within: Duration) -> bool {
        let limit = crate::kill::timespec(within);
        poll(&mut [PollFd::from_borrowed_fd(watch.timer(), PollFlags::IN)], Some(&limit)).unwrap() == 1
    }

    #[test]
    fn deadline_of_the_page_is_the_shims() {
        let page = Page::create().unwrap();
        let watch = opened(&page);
        assert_eq!(watch.look(), Some(Passed(0)), "a new page");
        let soon = now() + NANOS / 50;
        page.set(soon);
        assert_eq!((page.deadline(), watch.look()), (soon, None));
        assert!(rings(&watch, Duration::from_secs(20)));
        assert_eq!(watch.look(), Some(Passed(soon)));
        page.set(now() + HOUR);
        assert_eq!(watch.look(), None);
        assert!(!rings(&watch, Duration::ZERO), "it has forgotten the former deadline");
        page.set(u64::MAX);
        assert_eq!(watch.look(), None, "the last of all deadlines");
    }

    #[test]
    fn holder_of_the_descriptor_cannot_change_the_page() {
        let page = Page::create().unwrap();
        page.set(HOUR);
        let mut file = File::from(page.as_fd().try_clone_to_owned().unwrap());
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let reopened = File::options().write(true).read(true).open(path).unwrap();
        let denied = Some(libc::EPERM);
        assert_eq!(file.write(&[1; 8]).unwrap_err().raw_os_error(), denied);
        assert_eq!(reopened.write_at(&[1; 8], 0).unwrap_err().raw_os_error(), denied);
        for size in [0, SIZE - 1, SIZE + 1] {
            assert_eq!(reopened.set_len(size).unwrap_err().raw_os_error(), denied, "{size}");
        }
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        assert_eq!(fallocate(&reopened, hole, 0, SIZE), Err(Errno::PERM));
        assert_eq!(fcntl_add_seals(&reopened, SealFlags::WRITE), Err(Errno::PERM));
        let mapped = OwnWord::map(reopened.as_fd());
        assert_eq!(mapped.unwrap_err().raw_os_error(), denied);
        assert_eq!(page.deadline(), HOUR);
        page.set(2 * HOUR);
        assert_eq!(Word::map(reopened.as_fd()).unwrap().load(), 2 * HOUR, "the server's mapping writes on");
    }

    #[test]
    fn other_files_are_no_pages() {
        let memory = |size: u64, seals: SealFlags| {
            let file = memfd_create("other", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
            ftruncate(&file, size).unwrap();
            fcntl_add_seals(&file, seals).unwrap();
            file
        };
        assert!(Watch::open(memory(SIZE, SEALS)).is_ok());
        assert!(Watch::open(memory(SIZE - 1, SEALS)).is_err(), "too small");
        for missing in [SealFlags::SHRINK, SealFlags::FUTURE_WRITE, SealFlags::SEAL] {
            assert!(Watch::open(memory(SIZE, SEALS - missing)).is_err(), "without {missing:?}");
        }
        assert!(Watch::open(File::open("/dev/zero").unwrap().into()).is_err());
    }

    #[test]
    fn grace_counts_from_the_deadline() {
        let millis = Duration::from_millis;
        for (late, term_grace, grace) in
            [(0, 200, 200), (0, 5000, 200), (0, 50, 50), (150, 200, 50), (50, 50, 0), (3_600_000, 5000, 0)]
        {
            let passed = Passed(HOUR);
            let now = HOUR + late * 1_000_000;
            assert_eq!(passed.grace_at(now, millis(term_grace)), millis(grace), "{late} ms late");
        }
        assert_eq!(Passed(0).grace_at(HOUR, millis(200)), Duration::ZERO);
        assert_eq!(Passed(HOUR).grace_at(0, millis(200)), millis(200), "cannot be waited for");
    }
}
