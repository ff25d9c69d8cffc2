//! Section `retention`: when sessions are deleted that nobody asked to delete.

use std::time::Duration;

use super::validate::{bounded, invalid};
use super::{Config, ConfigError, value};

section! {
    /// When sessions are deleted. By default none is. A session in memory is in use and is never deleted.
    #[derive(Debug)]
    pub struct Retention {
        /// Days without use after which a session is deleted. Default: sessions stay.
        pub idle_days: Option<u32> = None,
        /// Maximum size of all sessions of one user, in bytes. Beyond it the least recently used ones are deleted, never the
        /// latest. Default: no limit.
        pub bytes_per_user: Option<u64> = None,
        /// Maximum number of named sessions of one user, the default conversation aside, as
        /// [`crate::config::Limits::sessions_per_user`] counts them. Beyond it the least recently used ones are deleted.
        /// Default: no limit.
        pub sessions_per_user: Option<usize> = None,
        /// Pause between two rounds over all sessions on disk. Default 1 h.
        #[serde(with = "value::duration")]
        pub sweep_interval: Duration = Duration::from_secs(3600),
    }
}

/// A hundred years.
const MOST_DAYS: u32 = 36_500;
/// Shorter pauses would only keep the disk busy; longer ones would let sessions live for days more.
const INTERVALS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(24 * 3600));

impl Retention {
    /// `idle_days` as a duration.
    pub(crate) fn idle(&self) -> Option<Duration> {
        self.idle_days.map(|days| Duration::from_secs(24 * 3600) * days)
    }
}

pub(super) fn validate(config: &Config) -> Result<(), ConfigError> {
    let (retention, limits) = (&config.retention, &config.limits);
    if let Some(days) = retention.idle_days {
        bounded("retention.idle_days", days, 1, MOST_DAYS)?;
    }
    if let Some(sessions) = retention.sessions_per_user {
        bounded("retention.sessions_per_user", sessions, 1, 1 << 20)?;
    }
    if let Some(bytes) = retention.bytes_per_user {
        // Less does not hold the files of one session.
        bounded("retention.bytes_per_user", bytes, 1 << 20, u64::MAX)?;
        if limits.workspace_bytes.is_some_and(|session| session > bytes) {
            let problem = "must not be less than limits.workspace_bytes, which one session may use";
            return Err(invalid("retention.bytes_per_user", problem));
        }
    }
    if !(INTERVALS.0..=INTERVALS.1).contains(&retention.sweep_interval) {
        return Err(invalid("retention.sweep_interval", "must be at least 100ms and at most 24h"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retention_out_of_bounds_is_refused() {
        let checked = |change: fn(&mut Config)| {
            let mut config = Config::new("/nowhere");
            change(&mut config);
            config.validate().map_err(|error| error.to_string())
        };
        assert_eq!(checked(|config| config.retention.idle_days = Some(30)), Ok(()));
        assert_eq!(checked(|config| config.retention.bytes_per_user = Some(1 << 20)), Ok(()));
        type Case = (&'static str, fn(&mut Config));
        let refused: [Case; 6] = [
            ("idle_days", |config| config.retention.idle_days = Some(0)),
            ("idle_days", |config| config.retention.idle_days = Some(MOST_DAYS + 1)),
            ("bytes_per_user", |config| config.retention.bytes_per_user = Some(1000)),
            ("sessions_per_user", |config| config.retention.sessions_per_user = Some(0)),
            ("sweep_interval", |config| config.retention.sweep_interval = Duration::from_millis(1)),
            ("bytes_per_user", |config| {
                config.limits.workspace_bytes = Some(2 << 20);
                config.retention.bytes_per_user = Some(1 << 20);
            }),
        ];
        for (key, change) in refused {
            let error = checked(change).unwrap_err();
            assert!(error.contains(&format!("retention.{key}")), "{error}");
        }
    }
}
