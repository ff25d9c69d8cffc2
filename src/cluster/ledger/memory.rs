//! The ledger in memory, for tests: the store alone as a pure value, and with a clock and faults as a [`Ledger`].

mod store;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

pub(crate) use store::Store;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

use super::error::LedgerError;
use super::kv::{Change, LeaseId, Page, Revision, Txn, TxnReply};
use super::{Answer, Ledger, Watch};

/// Time without a change after which a watch ends.
const SILENCE: Duration = Duration::from_secs(5);
/// Time until a request without an answer fails.
const NO_ANSWER: Duration = Duration::from_millis(500);

/// What befalls the next requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Fault {
    #[default]
    None,
    /// Requests do not arrive.
    Cut,
    /// Requests take effect, but their answers do not arrive.
    NoAnswers,
    /// Requests take effect, and their answers arrive after this time.
    Slow(Duration),
}

/// A store that several nodes share. Its clock is that of the runtime, which a test may pause.
#[derive(Clone)]
pub(crate) struct Memory {
    shared: Arc<Shared>,
    fault: Arc<Mutex<Fault>>,
}

struct Shared {
    store: Mutex<Store>,
    changed: Notify,
    began: Instant,
}

impl Memory {
    pub(crate) fn new() -> Self {
        let shared = Shared { store: Mutex::default(), changed: Notify::new(), began: Instant::now() };
        Self { shared: Arc::new(shared), fault: Arc::default() }
    }

    /// The same store over another connection, with faults of its own.
    pub(crate) fn connect(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), fault: Arc::default() }
    }

    /// When the clock of the store was zero.
    pub(crate) fn began(&self) -> Instant {
        self.shared.began
    }

    pub(crate) fn set_fault(&self, fault: Fault) {
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = fault;
    }

    /// Runs a function on the store at the present time.
    pub(crate) fn with<T>(&self, act: impl FnOnce(&mut Store) -> T) -> T {
        let mut store = self.shared.store.lock().unwrap_or_else(PoisonError::into_inner);
        store.pass(u64::try_from(self.shared.began.elapsed().as_nanos()).unwrap_or(u64::MAX));
        let result = act(&mut store);
        self.shared.changed.notify_waiters();
        result
    }

    fn fault(&self) -> Fault {
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn answer<T>(
        &self,
        act: impl FnOnce(&mut Store) -> Result<T, LedgerError>,
    ) -> Result<T, LedgerError> {
        let fault = self.fault();
        if fault != Fault::Cut {
            let result = self.with(act);
            match fault {
                Fault::None => return result,
                Fault::Slow(time) => {
                    sleep(time).await;
                    return result;
                }
                Fault::Cut | Fault::NoAnswers => {}
            }
        }
        sleep(NO_ANSWER).await;
        Err(LedgerError::Unavailable("timeout"))
    }
}

impl Ledger for Memory {
    fn range(&self, start: Vec<u8>, end: Vec<u8>, at: Revision) -> Answer<'_, Page> {
        Box::pin(self.answer(move |store| store.range(&start, &end, at)))
    }

    fn txn(&self, txn: Txn) -> Answer<'_, TxnReply> {
        Box::pin(self.answer(move |store| store.txn(&txn)))
    }

    fn grant(&self, seconds: u64) -> Answer<'_, (LeaseId, u64)> {
        Box::pin(self.answer(move |store| Ok((store.grant(seconds), seconds))))
    }

    fn renew(&self, lease: LeaseId) -> Answer<'_, u64> {
        Box::pin(self.answer(move |store| store.renew(lease)))
    }

    fn revoke(&self, lease: LeaseId) -> Answer<'_, ()> {
        Box::pin(self.answer(move |store| {
            store.revoke(lease);
            Ok(())
        }))
    }

    fn remaining(&self, lease: LeaseId) -> Answer<'_, Option<u64>> {
        Box::pin(self.answer(move |store| Ok(store.remaining(lease))))
    }

    fn watch(&self, start: Vec<u8>, end: Vec<u8>, from: Revision) -> Answer<'_, Box<dyn Watch>> {
        let watch = Watching { memory: self.clone(), start, end, from };
        Box::pin(async move {
            watch.memory.answer(|_| Ok(())).await?;
            Ok(Box::new(watch) as Box<dyn Watch>)
        })
    }
}

struct Watching {
    memory: Memory,
    start: Vec<u8>,
    end: Vec<u8>,
    from: Revision,
}

impl Watching {
    async fn changes(&mut self) -> Result<Vec<Change>, LedgerError> {
        let shared = Arc::clone(&self.memory.shared);
        loop {
            let changed = shared.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.memory.fault() == Fault::None {
                let changes = self
                    .memory
                    .shared
                    .store
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .since(self.from)?;
                let is_mine = |key: &[u8]| key >= self.start.as_slice() && key < self.end.as_slice();
                let changes: Vec<_> = changes.into_iter().filter(|change| is_mine(change.key())).collect();
                if let Some(last) = changes.last() {
                    self.from = last.revision() + 1;
                    return Ok(changes);
                }
            }
            changed.await;
        }
    }
}

impl Watch for Watching {
    fn next(&mut self) -> Answer<'_, Vec<Change>> {
        Box::pin(async move { timeout(SILENCE, self.changes()).await.unwrap_or(Err(LedgerError::Silent)) })
    }
}
