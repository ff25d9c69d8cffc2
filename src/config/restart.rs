//! Section `restart`: behaviour after a failure of a child.

use std::time::Duration;

use serde::Deserialize;

use super::value;

/// Restarts and the circuit breaker.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct RestartConfig {
    /// Maximum number of failures within [`RestartConfig::window`] that lead to a restart; one more opens the circuit.
    /// Default 5.
    pub intensity: u32,
    /// Time window in which failures are counted. Default 60 s.
    #[serde(with = "value::duration")]
    pub window: Duration,
    /// Delay before the second consecutive restart; the first is immediate. Grows by a factor of 2.5. Default 100 ms.
    #[serde(with = "value::duration")]
    pub backoff: Duration,
    /// Maximum delay. Default 30 s.
    #[serde(with = "value::duration")]
    pub backoff_max: Duration,
    /// Time the circuit stays open before one turn may try again. Default 60 s.
    #[serde(with = "value::duration")]
    pub circuit_pause: Duration,
    /// Retries a turn once with the next child if its child died before any output. Default true.
    pub retry_turn: bool,
}

impl Default for RestartConfig {
    fn default() -> Self {
        Self {
            intensity: 5,
            window: Duration::from_secs(60),
            backoff: Duration::from_millis(100),
            backoff_max: Duration::from_secs(30),
            circuit_pause: Duration::from_secs(60),
            retry_turn: true,
        }
    }
}
