//! What a run did and found, as a table.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::model::Tally;

#[derive(Debug, Default)]
pub struct Summary {
    pub seed: u64,
    pub steps: BTreeMap<&'static str, u64>,
    /// Steps that found nobody to be done to.
    pub in_vain: u64,
    /// Transcripts and journals that were damaged.
    pub damaged: (u64, u64),
    pub turns: Tally,
    pub took: Duration,
    pub clis: u64,
    pub looks: u64,
    pub recalled: u64,
    pub losses_reported: u64,
    /// From the crash of a child to the next one being ready, as the server measured it.
    pub recovery: f64,
    /// From SIGKILL of the server until nothing of it is left.
    pub gone: Duration,
    /// From the start of a server until it takes orders.
    pub start: Duration,
    /// What was left of a tree that was over, and for how long.
    pub leftover: Duration,
    pub stop: Duration,
    pub fds: (usize, usize),
    pub memory: (u64, u64),
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = |time: Duration| format!("{} ms", time.as_millis());
        writeln!(
            f,
            "seed {}: {} steps in {:.0} s, no rule broken",
            self.seed,
            self.steps.values().sum::<u64>(),
            self.took.as_secs_f64()
        )?;
        for (name, count) in &self.steps {
            writeln!(f, "  {name:<44} {count:>8}")?;
        }
        writeln!(f, "  {:<44} {:>8}", "(of these in vain: nobody was there)", self.in_vain)?;
        writeln!(f, "  {:<44} {:>8}", "(transcripts that were damaged)", self.damaged.0)?;
        writeln!(f, "  {:<44} {:>8}", "(journals that were damaged)", self.damaged.1)?;
        writeln!(f, "what became of the turns")?;
        for (name, count) in &self.turns {
            writeln!(f, "  {name:<44} {count:>8}")?;
        }
        writeln!(f, "seen from outside")?;
        let mut line = |name: &str, value: String| writeln!(f, "  {name:<44} {value:>8}");
        line("CLIs", self.clis.to_string())?;
        line("looks at the process table", self.looks.to_string())?;
        line("conversations recalled and compared", self.recalled.to_string())?;
        line("turns with a reported loss", self.losses_reported.to_string())?;
        line("longest recovery of a child", format!("{:.0} ms", self.recovery * 1000.0))?;
        line("longest life of a dead child's leftovers", millis(self.leftover))?;
        line("all gone after SIGKILL of the server, at most", millis(self.gone))?;
        line("server takes turns after its start, at most", millis(self.start))?;
        line("server stopped after SIGTERM, at most", millis(self.stop))?;
        line("descriptors of a server at rest, least to most", format!("{} to {}", self.fds.0, self.fds.1))?;
        line("its own memory at rest, least to most", format!("{} to {} KiB", self.memory.0, self.memory.1))?;
        line("processes left at the end", "0".to_owned())
    }
}
