//! The account of one user: sums per day, and what running turns have requested.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::EndedTurn;
use crate::model::ids::SessionHash;
use crate::support::atomic_file::{self, Durability};
use crate::support::lock::MutexExt;
use crate::workspace::read_own;

/// Days that are kept: a month.
const MAX_DAYS: usize = 31;
/// Longest file that is read: a day has some 200 bytes.
const MAX_FILE_BYTES: u64 = 64 << 10;
const SECONDS_PER_DAY: u64 = 86_400;

/// A day since 1970, in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct DayNumber(u64);

impl DayNumber {
    pub(super) fn now() -> Self {
        Self::at(SystemTime::now())
    }

    pub(super) fn at(time: SystemTime) -> Self {
        Self(seconds(time) / SECONDS_PER_DAY)
    }

    /// Time until the next day begins.
    pub(super) fn time_left(time: SystemTime) -> Duration {
        Duration::from_secs(SECONDS_PER_DAY - seconds(time) % SECONDS_PER_DAY)
    }

    #[cfg(feature = "server")]
    pub(super) fn begin(self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(self.0.saturating_mul(SECONDS_PER_DAY))
    }

    /// Year, month and day of the Gregorian calendar.
    #[cfg(feature = "server")]
    fn date(self) -> String {
        // Counted in years that begin in March, so that the leap day is the last one.
        let days = self.0 + 719_468;
        let (era, of_era) = (days / 146_097, days % 146_097);
        let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year + year / 4 - year / 100);
        let month = (5 * of_year + 2) / 153;
        let day = of_year - (153 * month + 2) / 5 + 1;
        let month = if month < 10 { month + 3 } else { month - 9 };
        let year = era * 400 + year + u64::from(month <= 2);
        format!("{year:04}-{month:02}-{day:02}")
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Sums of one day.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Day {
    micro_usd: u64,
    /// Turns that ended.
    pub(crate) turns: u64,
    /// Tokens of these turns.
    pub(crate) input_tokens: u64,
    /// As above.
    pub(crate) output_tokens: u64,
    /// As above.
    pub(crate) cache_creation_input_tokens: u64,
    /// As above.
    pub(crate) cache_read_input_tokens: u64,
}

impl Day {
    #[cfg(feature = "server")]
    pub(crate) fn cost_usd(&self) -> f64 {
        super::dollars(self.micro_usd)
    }
}

#[derive(Debug, Default)]
struct Sums {
    days: BTreeMap<DayNumber, Day>,
    /// List price of the requests of running turns, by the day on which each ended.
    open: HashMap<SessionHash, BTreeMap<DayNumber, u64>>,
}

/// The file: the sums, with what was open as if it were charged.
#[derive(Serialize, Deserialize)]
struct Stored {
    days: Vec<(DayNumber, Day)>,
}

#[derive(Debug)]
pub(super) struct Account {
    file: PathBuf,
    sums: Mutex<Sums>,
    is_saving: AtomicBool,
    /// Its user was deleted: nothing is written any more.
    is_forgotten: AtomicBool,
    /// When the file was written last. Held while it is written.
    written: Mutex<Option<Instant>>,
}

impl Account {
    /// Reads the file; one that cannot be parsed is a new account. Blocking.
    pub(super) fn read(file: PathBuf) -> io::Result<Self> {
        let content = match read_own(&file, MAX_FILE_BYTES) {
            Ok(content) => Some(content),
            Err(error) if error.is_absent() => None,
            Err(error) if error.is_shortage() => return Err(error.into()),
            Err(error) => {
                tracing::warn!(%error, "an account of a user is unreadable and begins at zero");
                None
            }
        };
        let stored = content.and_then(|content| {
            let parsed = serde_json::from_slice::<Stored>(&content);
            parsed
                .inspect_err(
                    |error| tracing::warn!(%error, "an account of a user is broken and begins at zero"),
                )
                .ok()
        });
        let days = stored.map(|stored| stored.days.into_iter().collect()).unwrap_or_default();
        let sums = Mutex::new(Sums { days, open: HashMap::new() });
        Ok(Self {
            file,
            sums,
            is_saving: AtomicBool::new(false),
            is_forgotten: AtomicBool::new(false),
            written: Mutex::default(),
        })
    }

    /// What was spent on a day, with the requests of running turns.
    pub(super) fn spent(&self, day: DayNumber) -> u64 {
        let sums = self.sums.lock_unpoisoned();
        let charged = sums.days.get(&day).map_or(0, |day| day.micro_usd);
        let open = sums.open.values().filter_map(|days| days.get(&day));
        open.fold(charged, |sum, open| sum.saturating_add(*open))
    }

    /// Whether requests are not charged yet, or sums not written.
    pub(super) fn is_in_use(&self) -> bool {
        !self.sums.lock_unpoisoned().open.is_empty() || self.is_saving.load(Ordering::Acquire)
    }

    /// Whether there is something to write.
    #[cfg(feature = "broker")]
    pub(super) fn requested(&self, day: DayNumber, session: SessionHash, micro_usd: u64) -> bool {
        if micro_usd == 0 {
            return false;
        }
        let mut sums = self.sums.lock_unpoisoned();
        let open = sums.open.entry(session).or_default().entry(day).or_default();
        *open = open.saturating_add(micro_usd);
        true
    }

    /// Counts a turn, and gives what it was charged.
    pub(super) fn turn_ended(&self, day: DayNumber, session: &SessionHash, turn: &EndedTurn) -> u64 {
        let usage = &turn.usage;
        let mut sums = self.sums.lock_unpoisoned();
        if turn.is_part {
            let sum = sums.days.entry(day).or_default();
            sum.turns = sum.turns.saturating_add(1);
            return 0;
        }
        let mut requested = sums.open.remove(session).unwrap_or_default();
        let of_day = requested.remove(&day).unwrap_or_default();
        let before = sums.charge(requested);
        let sum = sums.days.entry(day).or_default();
        sum.turns = sum.turns.saturating_add(1);
        let of_turn = turn.charge(before.saturating_add(of_day)).saturating_sub(before);
        for (total, added) in [
            (&mut sum.micro_usd, of_turn),
            (&mut sum.input_tokens, usage.input_tokens),
            (&mut sum.output_tokens, usage.output_tokens),
            (&mut sum.cache_creation_input_tokens, usage.cache_creation_input_tokens),
            (&mut sum.cache_read_input_tokens, usage.cache_read_input_tokens),
        ] {
            *total = total.saturating_add(added);
        }
        sums.forget_old_days();
        before.saturating_add(of_turn)
    }

    /// Charges what is open, and gives its sum.
    pub(super) fn child_ended(&self, session: &SessionHash) -> u64 {
        let mut sums = self.sums.lock_unpoisoned();
        let Some(requested) = sums.open.remove(session) else { return 0 };
        let charged = sums.charge(requested);
        sums.forget_old_days();
        charged
    }

    #[cfg(feature = "server")]
    pub(super) fn today(&self, today: DayNumber) -> Option<Day> {
        self.sums.lock_unpoisoned().with_open().remove(&today)
    }

    /// The days, the latest first, with the requests of running turns.
    #[cfg(feature = "server")]
    pub(super) fn days(&self) -> Vec<(String, Day)> {
        let days = self.sums.lock_unpoisoned().with_open();
        days.into_iter().rev().map(|(number, day)| (number.date(), day)).collect()
    }

    /// Whether the caller has to call [`Account::save`]: nobody else is about to.
    pub(super) fn begin_saving(&self) -> bool {
        !self.is_saving.swap(true, Ordering::AcqRel)
    }

    /// Time until the file may be written again, if `every` lies between two writes.
    pub(super) fn pause(&self, every: Duration) -> Duration {
        // While it is written, the last time is not known yet.
        let written = self.written.try_lock().map_or(Some(Instant::now()), |written| *written);
        written.map_or(Duration::ZERO, |at| every.saturating_sub(at.elapsed()))
    }

    /// Writes nothing from now on. Blocking.
    pub(super) fn forget(&self) {
        // A write that has begun ends first.
        let _written = self.written.lock_unpoisoned();
        self.is_forgotten.store(true, Ordering::Release);
    }

    /// Writes the file. Blocking.
    pub(super) fn save(&self) -> io::Result<()> {
        let mut written = self.written.lock_unpoisoned();
        // Before the sums are read: a later change is written again.
        self.is_saving.store(false, Ordering::Release);
        let days = self.sums.lock_unpoisoned().with_open().into_iter().collect();
        *written = Some(Instant::now());
        if self.is_forgotten.load(Ordering::Acquire) {
            return Ok(());
        }
        if let Some(directory) = self.file.parent() {
            use std::os::unix::fs::DirBuilderExt;
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        }
        let content = serde_json::to_vec(&Stored { days })?;
        // Survives this process. After a crash of the machine the last seconds may be missing.
        atomic_file::replace(&self.file, &content, Durability::Kernel)
    }
}

impl Sums {
    fn with_open(&self) -> BTreeMap<DayNumber, Day> {
        let mut all = Self { days: self.days.clone(), open: HashMap::new() };
        for requested in self.open.values() {
            all.charge(requested.clone());
        }
        all.days
    }

    /// Charges requests to the days on which they ended; gives their sum.
    fn charge(&mut self, requested: BTreeMap<DayNumber, u64>) -> u64 {
        requested.into_iter().fold(0, |total: u64, (day, added)| {
            let sum = self.days.entry(day).or_default();
            sum.micro_usd = sum.micro_usd.saturating_add(added);
            total.saturating_add(added)
        })
    }

    fn forget_old_days(&mut self) {
        while self.days.len() > MAX_DAYS {
            self.days.pop_first();
        }
    }
}

#[cfg(feature = "server")]
#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Usage;
    use crate::workspace::TRAPS;

    const TURN: EndedTurn = EndedTurn {
        cost_usd: 0.5,
        usage: Usage {
            input_tokens: 1,
            output_tokens: 1,
            cache_creation_input_tokens: 0,
            cache_read_input_tokens: 0,
        },
        is_metered: false,
        is_part: false,
    };

    fn session() -> SessionHash {
        SessionHash::parse(&"0".repeat(32)).unwrap()
    }

    #[test]
    fn days_have_dates() {
        for (number, date) in [
            (0, "1970-01-01"),
            (58, "1970-02-28"),
            (59, "1970-03-01"),
            (11_016, "2000-02-29"),
            (20_454, "2026-01-01"),
            (20_818, "2026-12-31"),
            (24_836, "2037-12-31"),
            (47_540, "2100-02-28"),
            (47_541, "2100-03-01"),
        ] {
            assert_eq!(DayNumber(number).date(), date);
        }
        let before_midnight = UNIX_EPOCH + Duration::from_secs(2 * SECONDS_PER_DAY - 1);
        assert_eq!(DayNumber::at(before_midnight), DayNumber(1));
        assert_eq!(DayNumber::time_left(before_midnight), Duration::from_secs(1));
    }

    #[test]
    fn new_day_begins_at_zero_and_a_month_is_kept() {
        let data = tempfile::tempdir().unwrap();
        let account = Account::read(data.path().join("a")).unwrap();
        for day in 0..40 {
            assert_eq!(account.spent(DayNumber(day)), 0);
            account.turn_ended(DayNumber(day), &session(), &TURN);
            assert_eq!(account.spent(DayNumber(day)), 500_000);
        }
        let days = account.days();
        assert_eq!((days.len(), days[0].0.as_str()), (MAX_DAYS, "1970-02-09"));
        account.save().unwrap();
        let again = Account::read(data.path().join("a")).unwrap();
        assert_eq!(again.days(), days);
    }

    /// A turn over midnight: each day gets what was spent on it, and the rest counts for the day of the end.
    #[test]
    fn request_counts_for_the_day_on_which_it_ended() {
        let data = tempfile::tempdir().unwrap();
        for (cost, second) in [(100, 70), (40, 20), (0, 20)] {
            let account = Account::read(data.path().join("a")).unwrap();
            account.requested(DayNumber(1), session(), 30);
            account.requested(DayNumber(2), session(), 20);
            assert_eq!([1, 2, 3].map(|day| account.spent(DayNumber(day))), [30, 20, 0]);
            account.turn_ended(
                DayNumber(2),
                &session(),
                &EndedTurn { cost_usd: f64::from(cost) / 1e6, ..TURN },
            );
            assert_eq!([1, 2, 3].map(|day| account.spent(DayNumber(day))), [30, second, 0], "{cost}");
            account.requested(DayNumber(2), session(), 5);
            account.child_ended(&session());
            assert_eq!(account.spent(DayNumber(2)), second + 5);
        }
    }

    #[test]
    fn damaged_file_is_a_new_account() {
        let data = tempfile::tempdir().unwrap();
        for (number, set) in TRAPS.iter().enumerate() {
            let file = data.path().join(number.to_string());
            set(&file);
            assert_eq!(Account::read(file).unwrap().days(), []);
        }
        for content in ["", "{", "[]", r#"{"days":[[1]]}"#] {
            let file = data.path().join("broken");
            std::fs::write(&file, content).unwrap();
            let account = Account::read(file).unwrap();
            assert_eq!(account.days(), [], "{content}");
            account.turn_ended(DayNumber(1), &session(), &TURN);
            account.save().unwrap();
        }
        assert_eq!(Account::read(data.path().join("broken")).unwrap().spent(DayNumber(1)), 500_000);
    }
}
