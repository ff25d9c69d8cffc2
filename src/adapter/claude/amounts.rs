//! Tokens and costs that the CLI and the API report. A tool can write to its CLI's output, so a report may state anything.

use super::fields::Fields;
use crate::model::Usage;

/// Most tokens of one kind in a turn: ten thousand requests, each with a full context of a million tokens.
const MAX_TOKENS: u64 = 10_000_000_000;
/// Highest cost of a turn in US dollars: twice what as many tokens cost that a cache holds.
const MAX_USD: f64 = 10_000.0;

/// Reader of amounts. What is no amount, or none of one turn, is 0.
#[derive(Default)]
pub(super) struct Amounts {
    /// An amount was negative, too large or no number.
    pub(super) implausible: bool,
}

impl Amounts {
    /// Tokens in the object `usage`.
    pub(super) fn usage(&mut self, usage: &Fields<'_>) -> Usage {
        let mut count = |name| {
            let stated = usage.has(name).then(|| usage.get(name).and_then(plausible_tokens));
            self.or_zero(stated)
        };
        Usage {
            input_tokens: count("input_tokens"),
            output_tokens: count("output_tokens"),
            cache_creation_input_tokens: count("cache_creation_input_tokens"),
            cache_read_input_tokens: count("cache_read_input_tokens"),
        }
    }

    /// A cost in US dollars, where one is stated.
    pub(super) fn cost(&mut self, stated: Option<Option<f64>>) -> f64 {
        let plausible = |usd: &f64| (0.0..=MAX_USD).contains(usd);
        self.or_zero(stated.map(|usd| usd.filter(plausible)))
    }

    /// `Some(None)`: something is stated, and it is implausible.
    fn or_zero<T: Default>(&mut self, stated: Option<Option<T>>) -> T {
        self.implausible |= matches!(stated, Some(None));
        stated.flatten().unwrap_or_default()
    }
}

pub(super) fn plausible_tokens(count: u64) -> Option<u64> {
    (count <= MAX_TOKENS).then_some(count)
}
