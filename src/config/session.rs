//! Section `session`: limits of one session.

use std::time::Duration;

use serde::Deserialize;

use super::value;

/// Limits of one session.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct SessionConfig {
    /// Idle time after which a child is stopped; the next message resumes the conversation. Default 300 s.
    #[serde(with = "value::duration")]
    pub idle_timeout: Duration,
    /// Maximum time from the start of a child until it is ready. Default 30 s.
    #[serde(with = "value::duration")]
    pub spawn_timeout: Duration,
    /// Silence in a turn after which a liveness check is sent. Default 10 s, so that a hung child is found within 25 s.
    #[serde(with = "value::duration")]
    pub stall_timeout: Duration,
    /// Maximum time for the reply to a liveness check. Two checks are sent, a third if the child uses the processor.
    /// Default 5 s.
    #[serde(with = "value::duration")]
    pub ping_timeout: Duration,
    /// Maximum duration of a turn. Default 30 min.
    #[serde(with = "value::duration")]
    pub turn_timeout: Duration,
    /// Time after which an unanswered permission request is denied. Default 5 min.
    #[serde(with = "value::duration")]
    pub permission_timeout: Duration,
    /// Maximum number of turns that wait behind the running one. Default 8.
    pub turn_queue: usize,
    /// Maximum number of buffered reads of output; then a slow reader slows the child. Default 256.
    pub event_buffer: usize,
    /// Maximum size of buffered output, in bytes. Default 1 MiB.
    pub event_buffer_bytes: usize,
    /// Maximum length of a line of the CLI, in bytes. Default 32 MiB.
    pub line_limit: usize,
    /// Maximum length of a prompt on the wire, in bytes. Default 10 MiB.
    pub prompt_limit: usize,
    /// Maximum size of the history of earlier messages that a turn brings, in bytes of its content. Default 32 MiB, the
    /// largest request of the model's API.
    pub history_limit: usize,
    /// Maximum length of a system prompt, in bytes. Default 1 MiB: some copies stay in memory with the session.
    pub system_prompt_limit: usize,
    /// Bytes kept of the end of the child's standard error. Default 16 KiB.
    pub stderr_tail: usize,
    /// Maximum time for an interrupted turn to end; then its child is stopped. Default 2 s.
    #[serde(with = "value::duration")]
    pub stop_interrupt: Duration,
    /// Maximum time for a child to exit after its input is closed. Default 3 s.
    #[serde(with = "value::duration")]
    pub stop_eof: Duration,
    /// Maximum time for a child to exit after SIGTERM; then its tree is killed. Default 3 s.
    #[serde(with = "value::duration")]
    pub stop_term: Duration,
    /// Maximum time for a child to read a written message. Default 10 s.
    #[serde(with = "value::duration")]
    pub write_timeout: Duration,
}

impl Default for SessionConfig {
    fn default() -> Self {
        Self {
            idle_timeout: Duration::from_secs(300),
            spawn_timeout: Duration::from_secs(30),
            stall_timeout: Duration::from_secs(10),
            ping_timeout: Duration::from_secs(5),
            turn_timeout: Duration::from_secs(30 * 60),
            permission_timeout: Duration::from_secs(5 * 60),
            turn_queue: 8,
            event_buffer: 256,
            event_buffer_bytes: 1 << 20,
            line_limit: 32 << 20,
            prompt_limit: 10 << 20,
            history_limit: 32 << 20,
            system_prompt_limit: 1 << 20,
            stderr_tail: 16 << 10,
            stop_interrupt: Duration::from_secs(2),
            stop_eof: Duration::from_secs(3),
            stop_term: Duration::from_secs(3),
            write_timeout: Duration::from_secs(10),
        }
    }
}
