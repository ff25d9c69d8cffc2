//! Section `restart`: behaviour after a failure of a child.

use std::time::Duration;

use super::value;

section! {
    /// Restarts and the circuit breaker.
    #[derive(Debug)]
    pub struct RestartConfig {
        /// Maximum number of failures within [`RestartConfig::window`] that lead to a restart; one more opens the circuit.
        /// Default 5.
        pub intensity: u32 = 5,
        /// Time window in which failures are counted. Default 60 s.
        #[serde(with = "value::duration")]
        pub window: Duration = Duration::from_secs(60),
        /// Delay before the second consecutive restart; the first is immediate. Grows by a factor of 2.5. Default 100 ms.
        #[serde(with = "value::duration")]
        pub backoff: Duration = Duration::from_millis(100),
        /// Maximum delay. Default 30 s.
        #[serde(with = "value::duration")]
        pub backoff_max: Duration = Duration::from_secs(30),
        /// Time the circuit stays open before one turn may try again. Default 60 s.
        #[serde(with = "value::duration")]
        pub circuit_pause: Duration = Duration::from_secs(60),
        /// Retries a turn once with the next child if its child died before any output. Default true.
        pub retry_turn: bool = true,
    }
}
