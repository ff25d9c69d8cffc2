//! What users spend: cost and tokens per user and day (UTC), and the limit on them.
//!
//! The CLI reports the cost of a turn at its end. The broker sees each request: until the turn ends, the list price of its
//! tokens counts. The larger of both is charged, so that a tool that uses the session's token itself is charged too. One
//! file per user, among the server's own files.

mod account;

use std::collections::HashMap;
#[cfg(feature = "broker")]
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

#[cfg(feature = "server")]
pub(crate) use account::Day;
use account::{Account, DayNumber};

use crate::model::Usage;
use crate::model::ids::{SessionHash, UserId};
#[cfg(any(feature = "broker", feature = "server"))]
use crate::support::atomic_file::is_temporary_name;
use crate::support::blocking::blocking;
use crate::support::keyed_locks::Locks;
use crate::support::lock::MutexExt;
use crate::workspace::{remove_any, usage_dir, user_digest};

/// Accounts in memory, three kilobytes each at most. Those in use stay beyond it.
const MAX_ACCOUNTS: usize = 10_000;

/// Least time between two writes of an account: a write costs more than a short turn. A killed server forgets what was
/// spent within it.
const WRITE_EVERY: Duration = Duration::from_secs(1);

/// Between two counts of the accounts of today, and files that are looked at for one: each costs some microseconds.
#[cfg(feature = "server")]
const COUNT_EVERY: Duration = Duration::from_secs(60);
#[cfg(feature = "server")]
const MOST_COUNTED: usize = 1_000_000;

/// Highest cost of metered requests, in list prices. These are the lowest of a family; its dearest model costs three times
/// as much, fast modes and long caches up to three times that.
const MAX_OF_LIST_PRICE: u64 = 10;

/// Accounts of all users of one data directory.
#[derive(Debug)]
pub(crate) struct Spend {
    directory: PathBuf,
    /// Millionths of a US dollar per user and day.
    limit: Mutex<Option<u64>>,
    accounts: Mutex<HashMap<UserId, Arc<Account>>>,
    /// Accounts with sums of today may be on disk alone.
    lacks_some: AtomicBool,
    /// Number of the accounts of today, and when it was counted.
    #[cfg(feature = "server")]
    counted: tokio::sync::Mutex<Option<(tokio::time::Instant, usize)>>,
    /// Charged since the start, in millionths of a US dollar.
    charged: AtomicU64,
    /// Held while an account is read, changed by what waited for it, or forgotten.
    reading: Locks<UserId>,
    tasks: TaskTracker,
    /// Turns may be read, and so end, outside of it.
    runtime: Handle,
    /// Cancelled when the system has ended: accounts are then written at once.
    ended: CancellationToken,
}

/// A user has spent what one may in a day.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct SpentOut {
    /// The limit in US dollars.
    pub(crate) limit_usd: f64,
    /// It is the caller's own, not that of all users.
    #[cfg(feature = "broker")]
    pub(crate) is_of_key: bool,
    /// Time until the day ends.
    pub(crate) resets_in: Duration,
}

/// A turn as the CLI reports it. A tool can write to its CLI's output, so this may be forged.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EndedTurn {
    /// Cost in US dollars.
    pub(crate) cost_usd: f64,
    /// Tokens.
    pub(crate) usage: Usage,
    /// All requests of the turn passed the broker, which counted them.
    pub(crate) is_metered: bool,
    /// The CLI goes on with the turn and has not reported its cost: what the broker counts stays open.
    pub(crate) is_part: bool,
}

impl EndedTurn {
    /// What the user is charged, if the broker counted requests of `requested`. Both in millionths of a US dollar.
    fn charge(&self, requested: u64) -> u64 {
        let reported = micro(self.cost_usd);
        let most = if self.is_metered { requested.saturating_mul(MAX_OF_LIST_PRICE) } else { u64::MAX };
        reported.clamp(requested, most)
    }
}

/// Days of a user, the latest first, with the limit.
#[cfg(feature = "server")]
#[derive(Debug)]
pub(crate) struct Statement {
    /// The limit in US dollars.
    pub(crate) limit_usd: Option<f64>,
    /// Time until the day ends.
    pub(crate) resets_in: Duration,
    /// The present day, if anything was spent.
    pub(crate) today: Option<Day>,
    /// Date (`2026-01-31`) and sums, the latest day first.
    pub(crate) days: Vec<(String, Day)>,
}

impl Spend {
    /// `limit`: US dollars per user and day. Files are written by `tasks` in the runtime of the caller, at once when `ended` is
    /// cancelled.
    pub(crate) fn new(
        data_dir: &Path,
        limit: Option<f64>,
        tasks: TaskTracker,
        ended: CancellationToken,
    ) -> Self {
        let limit = Mutex::new(limit.map(micro));
        Self {
            directory: usage_dir(data_dir),
            limit,
            accounts: Mutex::default(),
            lacks_some: AtomicBool::new(false),
            #[cfg(feature = "server")]
            counted: tokio::sync::Mutex::default(),
            charged: AtomicU64::new(0),
            reading: Locks::default(),
            tasks,
            runtime: Handle::current(),
            ended,
        }
    }

    /// Takes over another limit, in US dollars per user and day. What was spent counts for it.
    pub(crate) fn set_limit(&self, limit: Option<f64>) {
        *self.limit.lock_unpoisoned() = limit.map(micro);
    }

    fn limit(&self) -> Option<u64> {
        *self.limit.lock_unpoisoned()
    }

    /// Checks that `user` may spend more. `own`: a lower limit for this caller, in US dollars.
    ///
    /// # Errors
    /// The account cannot be read. `Ok(Err(…))`: the limit is reached.
    pub(crate) async fn check(&self, user: &UserId, own: Option<f64>) -> io::Result<Result<(), SpentOut>> {
        let of_all = self.limit();
        let Some(limit) = of_all.into_iter().chain(own.map(micro)).min() else { return Ok(Ok(())) };
        let account = self.account(user).await?;
        let now = SystemTime::now();
        let spent_out = SpentOut {
            limit_usd: dollars(limit),
            #[cfg(feature = "broker")]
            is_of_key: of_all != Some(limit),
            resets_in: DayNumber::time_left(now),
        };
        Ok(if account.spent(DayNumber::at(now)) < limit { Ok(()) } else { Err(spent_out) })
    }

    /// Whether each user has a limit.
    #[cfg(feature = "broker")]
    pub(crate) fn has_limit(&self) -> bool {
        self.limit().is_some()
    }

    /// Whether more than one user has ever spent anything. Blocking.
    #[cfg(feature = "broker")]
    pub(crate) fn has_several_accounts(&self) -> bool {
        let is_account = |name: OsString| name.to_str().is_some_and(|name| !is_temporary_name(name));
        // Without the directory nobody has.
        let files = std::fs::read_dir(&self.directory).into_iter().flatten().flatten();
        files.filter(|file| is_account(file.file_name())).take(2).count() > 1
    }

    /// Counts a request of a running turn by its list price, in millionths of a US dollar.
    #[cfg(feature = "broker")]
    pub(crate) fn requested(self: &Arc<Self>, user: &UserId, session: &SessionHash, micro_usd: u64) {
        let session = session.clone();
        self.with_account(user, move |account| account.requested(DayNumber::now(), session, micro_usd));
    }

    /// Counts a turn that has ended. What the broker has seen on a day before counts for that day.
    pub(crate) fn turn_ended(self: &Arc<Self>, user: &UserId, session: &SessionHash, turn: EndedTurn) {
        let (session, spend) = (session.clone(), self.clone());
        self.with_account(user, move |account| {
            let charged = account.turn_ended(DayNumber::now(), &session, &turn);
            spend.charged.fetch_add(charged, Ordering::Relaxed);
            true
        });
    }

    /// Charges the requests of a child that has ended within a turn. Their sum in US dollars, which no CLI reports any more.
    pub(crate) fn child_ended(self: &Arc<Self>, user: &UserId, session: &SessionHash) -> f64 {
        let known = self.accounts.lock_unpoisoned().get(user).cloned();
        let Some(account) = known else {
            // As a rule nothing was requested: requests keep the account in memory.
            let (session, spend) = (session.clone(), self.clone());
            self.with_account(user, move |account| {
                let charged = account.child_ended(&session);
                spend.charged.fetch_add(charged, Ordering::Relaxed);
                charged > 0
            });
            return 0.0;
        };
        let charged = account.child_ended(session);
        self.charged.fetch_add(charged, Ordering::Relaxed);
        if charged > 0 {
            self.save(account);
        }
        dollars(charged)
    }

    /// The days of a user.
    #[cfg(feature = "server")]
    ///
    /// # Errors
    /// The account cannot be read.
    pub(crate) async fn statement(&self, user: &UserId) -> io::Result<Statement> {
        let account = self.account(user).await?;
        let now = SystemTime::now();
        Ok(Statement {
            limit_usd: self.limit().map(dollars),
            resets_in: DayNumber::time_left(now),
            today: account.today(DayNumber::at(now)),
            days: account.days(),
        })
    }

    /// What the users whose accounts are in memory have spent today, in no order.
    #[cfg(feature = "server")]
    pub(crate) fn today(&self) -> Vec<(UserId, Day)> {
        let today = DayNumber::now();
        let accounts = self.accounts.lock_unpoisoned();
        let spent = accounts.iter().filter_map(|(user, account)| Some((user.clone(), account.today(today)?)));
        spent.collect()
    }

    /// What was charged to all users since the start, in US dollars.
    #[cfg(feature = "server")]
    pub(crate) fn charged_usd(&self) -> f64 {
        dollars(self.charged.load(Ordering::Relaxed))
    }

    /// Not every account with sums of today was looked for.
    #[cfg(feature = "server")]
    pub(crate) fn lacks_some(&self) {
        self.lacks_some.store(true, Ordering::Relaxed);
    }

    /// Number of accounts that were written since midnight (UTC), if [`Self::today`] may lack some of them. Reads a directory.
    #[cfg(feature = "server")]
    pub(crate) async fn accounts_of_today(&self) -> io::Result<Option<usize>> {
        if !self.lacks_some.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let mut counted = self.counted.lock().await;
        if let Some((at, count)) = *counted
            && at.elapsed() < COUNT_EVERY
        {
            return Ok(Some(count));
        }
        let (directory, midnight) = (self.directory.clone(), DayNumber::now().begin());
        let count = blocking(move || {
            let is_of_today = |file: &std::fs::DirEntry| {
                let is_account = file.file_name().to_str().is_some_and(|name| !is_temporary_name(name));
                is_account
                    && file.metadata().and_then(|found| found.modified()).is_ok_and(|at| at >= midnight)
            };
            let files = std::fs::read_dir(&directory)?.flatten().take(MOST_COUNTED);
            Ok(files.filter(is_of_today).count())
        });
        let count = count.await?;
        *counted = Some((tokio::time::Instant::now(), count));
        Ok(Some(count))
    }

    /// The limit of each user and day in US dollars.
    #[cfg(feature = "server")]
    pub(crate) fn limit_usd(&self) -> Option<f64> {
        self.limit().map(dollars)
    }

    /// Applies a change at once if the account is in memory, else after reading it.
    fn with_account(self: &Arc<Self>, user: &UserId, change: impl FnOnce(&Account) -> bool + Send + 'static) {
        let known = self.accounts.lock_unpoisoned().get(user).cloned();
        if let Some(account) = known {
            if change(&account) {
                self.save(account);
            }
            return;
        }
        let (spend, user) = (self.clone(), user.clone());
        let charge = async move {
            let _held = spend.reading.acquire(&user).await;
            match spend.read_account(&user).await {
                Ok(account) if change(&account) => spend.save(account),
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(%error, "the cost of a turn is not counted: its account is unreadable")
                }
            }
        };
        self.tasks.spawn_on(charge, &self.runtime);
    }

    /// Deletes the account of a user without sessions.
    ///
    /// # Errors
    /// Its file cannot be removed.
    pub(crate) async fn forget(&self, user: &UserId) -> io::Result<()> {
        let _held = self.reading.acquire(user).await;
        let account = self.accounts.lock_unpoisoned().remove(user);
        let file = self.file(user);
        blocking(move || {
            if let Some(account) = account {
                account.forget();
            }
            remove_any(&file)
        })
        .await
    }

    /// Writes the account of a user who goes to another node of a cluster, and drops it.
    ///
    /// # Errors
    /// It cannot be written.
    #[cfg(feature = "cluster")]
    pub(crate) async fn put_away(&self, user: &UserId) -> io::Result<()> {
        let _held = self.reading.acquire(user).await;
        let Some(account) = self.accounts.lock_unpoisoned().remove(user) else { return Ok(()) };
        blocking(move || {
            let saved = account.save();
            account.forget();
            saved
        })
        .await
    }

    async fn account(&self, user: &UserId) -> io::Result<Arc<Account>> {
        let known = self.accounts.lock_unpoisoned().get(user).cloned();
        match known {
            Some(account) => Ok(account),
            None => {
                let _held = self.reading.acquire(user).await;
                self.read_account(user).await
            }
        }
    }

    async fn read_account(&self, user: &UserId) -> io::Result<Arc<Account>> {
        if let Some(account) = self.accounts.lock_unpoisoned().get(user) {
            return Ok(account.clone());
        }
        let file = self.file(user);
        let read = blocking(move || Account::read(file)).await?;
        let mut accounts = self.accounts.lock_unpoisoned();
        if accounts.len() >= MAX_ACCOUNTS {
            // Of each user with a running turn something else holds or needs the account.
            let before = accounts.len();
            accounts.retain(|_, account| Arc::strong_count(account) > 1 || account.is_in_use());
            if accounts.len() < before {
                self.lacks_some.store(true, Ordering::Relaxed);
            }
        }
        // Another caller may have been faster.
        Ok(accounts.entry(user.clone()).or_insert_with(|| Arc::new(read)).clone())
    }

    fn file(&self, user: &UserId) -> PathBuf {
        self.directory.join(user_digest(user))
    }

    /// Writes the account in the background. Changes meanwhile are written together.
    fn save(&self, account: Arc<Account>) {
        if !account.begin_saving() {
            return;
        }
        let (ended, pause) = (self.ended.clone(), account.pause(WRITE_EVERY));
        let save = async move {
            ended.run_until_cancelled(tokio::time::sleep(pause)).await;
            if let Err(error) = blocking(move || account.save()).await {
                tracing::warn!(%error, "what a user has spent could not be written; a restart would forget it");
            }
        };
        self.tasks.spawn_on(save, &self.runtime);
    }
}

/// Millionths of a US dollar; what is no amount counts as nothing.
fn micro(usd: f64) -> u64 {
    (usd * 1e6).round() as u64
}

fn dollars(micro_usd: u64) -> f64 {
    micro_usd as f64 / 1e6
}

#[cfg(feature = "server")]
#[cfg(test)]
mod tests {
    use super::*;
    use crate::support::atomic_file::temporary_name;

    fn user(name: &str) -> UserId {
        UserId::new(name).unwrap()
    }

    fn session(digit: char) -> SessionHash {
        SessionHash::parse(&digit.to_string().repeat(32)).unwrap()
    }

    fn turn(cost_usd: f64) -> EndedTurn {
        EndedTurn { cost_usd, usage: Usage::default(), is_metered: false, is_part: false }
    }

    fn spend(data: &Path, limit: Option<f64>) -> Arc<Spend> {
        Arc::new(Spend::new(data, limit, TaskTracker::new(), CancellationToken::new()))
    }

    async fn end(spend: Arc<Spend>) {
        spend.ended.cancel();
        spend.tasks.close();
        spend.tasks.wait().await;
    }

    #[cfg(feature = "broker")]
    #[tokio::test]
    async fn several_accounts_are_known_at_the_start() {
        let data = tempfile::tempdir().unwrap();
        for (name, expected) in [("alice", false), ("alice", false), ("bob", true)] {
            let spending = spend(data.path(), None);
            assert!(!spending.has_several_accounts(), "before {name}");
            spending.turn_ended(&user(name), &session('a'), turn(0.1));
            end(spending).await;
            assert_eq!(spend(data.path(), None).has_several_accounts(), expected, "{name}");
            // Left by a server that was killed while it wrote.
            std::fs::write(usage_dir(data.path()).join(temporary_name()), "").unwrap();
        }
    }

    #[tokio::test]
    async fn limit_holds_over_a_restart() {
        let data = tempfile::tempdir().unwrap();
        let alice = user("alice");
        let first = spend(data.path(), Some(1.0));
        assert_eq!(first.check(&alice, None).await.unwrap(), Ok(()));
        first.turn_ended(&alice, &session('a'), turn(0.6));
        assert_eq!(first.check(&alice, None).await.unwrap(), Ok(()));
        let own = first.check(&alice, Some(0.5)).await.unwrap().unwrap_err();
        assert!(own.limit_usd == 0.5 && own.resets_in <= Duration::from_secs(86_400));
        first.turn_ended(&alice, &session('b'), turn(0.4));
        assert!(first.check(&alice, None).await.unwrap().is_err());
        assert_eq!(first.check(&user("bob"), None).await.unwrap(), Ok(()));
        end(first).await;
        let second = spend(data.path(), Some(1.0));
        assert!(second.check(&alice, None).await.unwrap().is_err());
        let statement = second.statement(&alice).await.unwrap();
        let (_, today) = &statement.days[0];
        assert_eq!((today.turns, today.cost_usd()), (2, 1.0));
        assert_eq!(spend(data.path(), Some(1.1)).check(&alice, None).await.unwrap(), Ok(()));
    }

    #[tokio::test]
    async fn requests_count_before_the_turn_ends() {
        let data = tempfile::tempdir().unwrap();
        let alice = user("alice");
        let spend = spend(data.path(), Some(1.0));
        spend.check(&alice, None).await.unwrap().unwrap();
        spend.requested(&alice, &session('a'), 600_000);
        spend.requested(&alice, &session('b'), 500_000);
        assert!(spend.check(&alice, None).await.unwrap().is_err());
        // Charged: 0.7 by the CLI, then 0.5 by list price.
        spend.turn_ended(&alice, &session('a'), turn(0.7));
        assert_eq!(spend.child_ended(&alice, &session('b')), 0.5);
        assert_eq!(spend.child_ended(&alice, &session('b')), 0.0);
        assert_eq!(spend.statement(&alice).await.unwrap().days[0].1.cost_usd(), 1.2);
        end(spend).await;
    }

    /// The page must not pass a part for all.
    #[tokio::test]
    async fn accounts_that_left_the_memory_are_known() {
        let data = tempfile::tempdir().unwrap();
        let spending = spend(data.path(), None);
        spending.turn_ended(&user("alice"), &session('a'), turn(0.25));
        spending.tasks.close();
        spending.tasks.wait().await;
        assert_eq!((spending.today().len(), spending.charged_usd()), (1, 0.25));
        assert_eq!(spending.accounts_of_today().await.unwrap(), None, "all are in memory");
        for number in 0..MAX_ACCOUNTS {
            spending.statement(&user(&number.to_string())).await.unwrap();
        }
        assert_eq!(spending.today().len(), 0, "alice's has left");
        std::fs::write(usage_dir(data.path()).join(temporary_name()), "").unwrap();
        let old = std::fs::File::create(usage_dir(data.path()).join("old")).unwrap();
        old.set_modified(SystemTime::now() - Duration::from_secs(2 * 86_400)).unwrap();
        assert_eq!(spending.accounts_of_today().await.unwrap(), Some(1));
        assert_eq!(spending.charged_usd(), 0.25);
    }

    /// The CLI reports the cost of all parts at the end of its turn.
    #[tokio::test]
    async fn part_of_a_turn_is_not_charged_twice() {
        let data = tempfile::tempdir().unwrap();
        let alice = user("alice");
        let spend = spend(data.path(), Some(1.0));
        spend.check(&alice, None).await.unwrap().unwrap();
        spend.requested(&alice, &session('a'), 100_000);
        spend.turn_ended(&alice, &session('a'), EndedTurn { is_part: true, ..turn(0.0) });
        spend.requested(&alice, &session('a'), 100_000);
        let spent = async || spend.statement(&alice).await.unwrap().days[0].1.cost_usd();
        assert_eq!(spent().await, 0.2, "what is open counts");
        spend.turn_ended(&alice, &session('a'), turn(0.25));
        assert_eq!((spent().await, spend.child_ended(&alice, &session('a'))), (0.25, 0.0));
        end(spend).await;
    }

    #[tokio::test]
    async fn turn_of_an_unknown_account_is_counted() {
        let data = tempfile::tempdir().unwrap();
        let spending = spend(data.path(), None);
        let usage = Usage { input_tokens: 3, ..Usage::default() };
        spending.turn_ended(&user("alice"), &session('a'), EndedTurn { usage, ..turn(0.25) });
        end(spending).await;
        let again = spend(data.path(), None);
        assert_eq!(again.check(&user("alice"), None).await.unwrap(), Ok(()));
        let statement = again.statement(&user("alice")).await.unwrap();
        assert_eq!((statement.days[0].1.cost_usd(), statement.days[0].1.input_tokens), (0.25, 3));
        assert_eq!(again.statement(&user("bob")).await.unwrap().days, []);
    }

    #[tokio::test]
    async fn forgotten_account_is_not_written_again() {
        let data = tempfile::tempdir().unwrap();
        let (alice, bob) = (user("alice"), user("bob"));
        let spending = spend(data.path(), None);
        for user in [&alice, &bob] {
            spending.account(user).await.unwrap();
            spending.turn_ended(user, &session('a'), turn(0.25));
        }
        // A write waits while the account is forgotten.
        spending.turn_ended(&alice, &session('a'), turn(0.25));
        spending.forget(&alice).await.unwrap();
        spending.forget(&alice).await.unwrap();
        assert_eq!(spending.statement(&alice).await.unwrap().days, []);
        end(spending).await;
        let files = std::fs::read_dir(usage_dir(data.path())).unwrap().flatten();
        let names: Vec<_> = files.map(|file| file.file_name()).collect();
        assert_eq!(names, [user_digest(&bob).as_str()]);
    }

    #[tokio::test(start_paused = true)]
    async fn turns_in_quick_succession_are_written_together() {
        let data = tempfile::tempdir().unwrap();
        let alice = user("alice");
        let spending = spend(data.path(), None);
        let written = || async { spend(data.path(), None).statement(&alice).await.unwrap().today };
        let turns = async || written().await.map(|day| day.turns);
        spending.account(&alice).await.unwrap();
        #[expect(clippy::disallowed_methods, reason = "the clock of the test stands still")]
        let began = std::time::Instant::now();
        for _ in 0..3 {
            spending.turn_ended(&alice, &session('a'), turn(0.1));
            while turns().await.is_none() {
                assert!(began.elapsed() < pilotlight_test_support::SOON, "nothing is written");
                tokio::task::yield_now().await;
            }
        }
        // The first is written at once, the others after the pause.
        assert_eq!(turns().await, Some(1));
        end(spending).await;
        assert_eq!(turns().await, Some(3));
    }

    #[test]
    fn metered_turn_is_charged_by_what_was_counted() {
        let metered = |cost_usd| EndedTurn { is_metered: true, ..turn(cost_usd) };
        let forged = [f64::NAN, f64::INFINITY, 1e18, -1.0, 0.0];
        assert_eq!(forged.map(|cost| metered(cost).charge(7)), [7, 70, 70, 7, 7]);
        assert_eq!(forged.map(|cost| metered(cost).charge(0)), [0; 5], "nothing was requested");
        assert_eq!((metered(0.000_02).charge(7), metered(1.0).charge(u64::MAX)), (20, u64::MAX));
        // Without a broker nobody else counts.
        assert_eq!((turn(1.0).charge(0), turn(1e18).charge(0)), (1_000_000, u64::MAX));
    }

    #[test]
    fn odd_amounts_cost_nothing() {
        assert_eq!([f64::NAN, -1.0, f64::NEG_INFINITY].map(micro), [0, 0, 0]);
        assert_eq!((micro(0.000_001), dollars(1_500_000)), (1, 1.5));
    }
}
