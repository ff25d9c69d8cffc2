//! What the turns of one child cost, from the totals that it reports.

use crate::adapter::Terminal;

#[derive(Debug)]
pub(in crate::child::connection) struct Spending {
    pub(in crate::child::connection) model: Option<String>,
    /// The first announcement was read.
    pub(in crate::child::connection) announced: bool,
    /// Highest total that was reported.
    cumulative_usd: f64,
}

impl Spending {
    pub(in crate::child::connection) fn new(model: Option<String>) -> Self {
        Self { model, announced: false, cumulative_usd: 0.0 }
    }

    /// The cost since the turn before: as the CLI reports it, else the growth of the process's total. With it, whether
    /// the report is plausible: a total only grows.
    pub(in crate::child::connection) fn cost_of(&mut self, terminal: &Terminal) -> (f64, bool) {
        let total = terminal.cumulative_cost_usd;
        // A turn that could not even begin has 0.
        let is_shrinking = terminal.cost_usd.is_none() && total != 0.0 && total < self.cumulative_usd;
        let cumulative = total.max(self.cumulative_usd);
        let more = cumulative - std::mem::replace(&mut self.cumulative_usd, cumulative);
        (terminal.cost_usd.unwrap_or(more), !is_shrinking && !terminal.implausible)
    }
}
