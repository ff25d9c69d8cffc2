//! The clock of deadlines.

use std::time::Duration;

#[cfg(test)]
use tokio::time::Instant;

use crate::cluster::ownership::Moment;

/// Where the time comes from.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Clock {
    /// `CLOCK_BOOTTIME`, which counts while the machine is suspended: the lease ends meanwhile.
    Boot,
    /// The clock of the runtime, which a test may pause.
    #[cfg(test)]
    Runtime(Instant),
}

impl Clock {
    pub(crate) fn now(self) -> Moment {
        match self {
            Self::Boot => {
                let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
                let seconds = Duration::from_secs(u64::try_from(time.tv_sec).unwrap_or(0));
                let nanos = Duration::from_nanos(u64::try_from(time.tv_nsec).unwrap_or(0));
                Moment::default().after(seconds + nanos)
            }
            #[cfg(test)]
            Self::Runtime(began) => Moment::default().after(began.elapsed()),
        }
    }
}
