//! A started child that has no session yet. It is asked whether it answers, and nothing else: the handshake of its
//! session comes later, as with any child.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::pipe;
use tokio::time::{Duration, timeout};

use super::exit::{ExitCause, OomKills};
use super::secrets::Secrets;
use super::spawn::{Contained, Sweep};
use super::stderr::Tail;
use super::task::UNKILLABLE;
use crate::adapter::{self, LineKind};
use crate::error::StartFailure;

/// Output of a child without a turn: an answer to a ping has some hundred bytes, and notes of the CLI are rare.
const MOST_OUTPUT: usize = 1 << 20;

/// Bytes per read.
const READ: usize = 4096;

/// See the module. Dropping it kills the child's tree.
#[derive(Debug)]
pub(crate) struct WaitingChild {
    child: Box<Contained>,
    /// The beginning of a line.
    partial: Vec<u8>,
    taken: usize,
    pings: u64,
}

/// What may be left of a child that was ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Remains {
    /// Nothing: the shim has seen all of its processes end.
    Nothing,
    /// Processes, or the shim of this pid, which may not have started the child yet.
    Possible {
        /// `None`: not known.
        shim: Option<u32>,
    },
}

/// Why a child cannot wait for a session any longer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unfit {
    /// It ended.
    #[error("{0}")]
    Exited(String),
    /// It did not answer in time.
    #[error("it did not answer within {} s", .0.as_secs_f32())]
    Silent(Duration),
    /// It closed its output, or wrote what no child without a turn writes.
    #[error("it does not speak the expected protocol: {0}")]
    Protocol(&'static str),
}

impl WaitingChild {
    pub(crate) fn new(child: Box<Contained>) -> Self {
        Self { child, partial: Vec::new(), taken: 0, pings: 0 }
    }

    /// The root of the process tree.
    pub(crate) fn shim(&self) -> Option<u32> {
        self.child.shim.shim_pid()
    }

    /// Sends a ping and waits for its answer.
    ///
    /// # Errors
    /// [`Unfit`].
    pub(crate) async fn ping(&mut self, within: Duration) -> Result<(), Unfit> {
        self.pings += 1;
        let id = format!("waiting-{}", self.pings);
        let Self { child, partial, taken, .. } = self;
        let Contained { input, output, shim, oom_kills, .. } = &mut **child;
        let answered = async {
            let sent = input.write_all(&adapter::ping(&id)).await;
            sent.map_err(|_| Unfit::Protocol("it takes no input"))?;
            read_until(output, partial, taken, Some(&id)).await
        };
        let ends = async { Unfit::Exited(cause(shim.exited().await, oom_kills)) };
        tokio::select! {
            biased;
            unfit = ends => Err(unfit),
            answered = timeout(within, answered) => answered.unwrap_or(Err(Unfit::Silent(within))),
        }
    }

    /// Waits until the child is of no more use. Cancel-safe.
    pub(crate) async fn rest(&mut self) -> Unfit {
        let Self { child, partial, taken, .. } = self;
        let Contained { output, shim, oom_kills, .. } = &mut **child;
        let ends = async { Unfit::Exited(cause(shim.exited().await, oom_kills)) };
        tokio::select! {
            biased;
            unfit = ends => unfit,
            read = read_until(output, partial, taken, None) => {
                read.err().unwrap_or(Unfit::Protocol("it answered without a question"))
            }
        }
    }

    /// The child for its session.
    ///
    /// # Errors
    /// This, in the middle of a line.
    pub(crate) fn into_child(self) -> Result<Box<Contained>, Box<Self>> {
        if self.partial.is_empty() { Ok(self.child) } else { Err(Box::new(self)) }
    }

    /// Waits until the process has ended.
    pub(super) async fn cause(&mut self) -> ExitCause {
        ExitCause::classify(self.child.shim.exited().await, false, &self.child.oom_kills)
    }

    /// Waits until the process runs.
    ///
    /// # Errors
    /// [`SpawnError`], or the limit.
    pub(crate) async fn started(&mut self, within: Duration) -> Result<(), StartFailure> {
        match timeout(within, self.child.shim.started()).await {
            Ok(started) => Ok(started.map(|_| ())?),
            Err(_) => Err(StartFailure::NeverReady { limit: within }),
        }
    }

    /// The pid of the child, once its process runs.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.shim.pid()
    }

    /// Kills the tree, which has no conversation to save, and waits until it is gone. The end of its standard error, and
    /// what is left.
    pub(crate) async fn end(mut self, tail: usize, secrets: Secrets) -> (String, Remains) {
        let shim = self.shim();
        self.child.shim.kill_tree();
        let sweep = timeout(UNKILLABLE, self.child.shim.gone()).await;
        let mut tail = Tail::new(tail, secrets);
        tail.drain(&self.child.stderr);
        (tail.text(), remains(sweep.ok(), shim))
    }
}

fn remains(sweep: Option<Sweep>, shim: Option<u32>) -> Remains {
    match sweep {
        Some(Sweep::NothingStarted) => Remains::Nothing,
        Some(Sweep::Done(swept)) if swept.stuck == 0 => Remains::Nothing,
        // Without the shim nobody has seen all processes: some may have cleared their environment.
        Some(Sweep::Done(_) | Sweep::ShimDied { .. }) | None => Remains::Possible { shim },
    }
}

fn cause(exit: super::exit::Exit, oom_kills: &OomKills) -> String {
    ExitCause::classify(exit, false, oom_kills).to_string()
}

/// Reads lines and drops them, until the answer to the request of this id. Keeps what it has read of a line when it is
/// cancelled.
async fn read_until(
    output: &mut pipe::Receiver,
    partial: &mut Vec<u8>,
    taken: &mut usize,
    id: Option<&str>,
) -> Result<(), Unfit> {
    let mut block = [0; READ];
    loop {
        let read = output.read(&mut block).await.unwrap_or(0);
        if read == 0 {
            return Err(Unfit::Protocol("it closed its output"));
        }
        *taken += read;
        if *taken > MOST_OUTPUT {
            return Err(Unfit::Protocol("it writes much without a turn"));
        }
        partial.extend_from_slice(block.get(..read).unwrap_or_default());
        let mut is_answered = false;
        while let Some(end) = memchr::memchr(b'\n', partial) {
            let line: Vec<u8> = partial.drain(..=end).collect();
            is_answered |= id.is_some_and(|id| answers(line.trim_ascii_end(), id));
        }
        if is_answered {
            return Ok(());
        }
    }
}

fn answers(line: &[u8], id: &str) -> bool {
    adapter::classify(line) == LineKind::ControlResponse
        && adapter::control_response(line).is_some_and(|answer| answer.request_id == id)
}

#[cfg(test)]
mod tests {
    use pilotlight_shim::report::{KillMethod, SweepReport};

    use super::*;

    #[test]
    fn only_a_shim_that_saw_all_end_proves_it() {
        let swept = |stuck| {
            let method = KillMethod::Walk;
            Sweep::Done(SweepReport { method, killed: 1, stuck, took: Duration::ZERO })
        };
        let died = |method| Sweep::ShimDied { method, killed: 1 };
        let possible = Remains::Possible { shim: Some(7) };
        for (sweep, expected) in [
            (Some(Sweep::NothingStarted), Remains::Nothing),
            (Some(swept(0)), Remains::Nothing),
            (Some(swept(1)), possible),
            (Some(died(KillMethod::Marker)), possible),
            (Some(died(KillMethod::Cgroup)), possible),
            (None, possible),
        ] {
            assert_eq!(remains(sweep, Some(7)), expected, "{sweep:?}");
        }
    }
}
