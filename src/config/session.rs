//! Section `session`: limits of one session.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::value;

/// When the journal of a conversation has a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum JournalMode {
    /// The kernel has it before the end of the turn is shown: it survives the death of every process.
    Written,
    /// The disk has it before the end of the turn is shown: it survives a loss of power.
    Synced,
    /// Never: what the CLI has not written to its transcript when it dies is lost.
    Off,
}

section! {
    /// Limits of one session.
    #[derive(Debug)]
    pub struct SessionConfig {
        /// Idle time after which a child is stopped; the next message resumes the conversation. Default 300 s.
        #[serde(with = "value::duration")]
        pub idle_timeout: Duration = Duration::from_secs(300),
        /// Idle time after which a child is frozen: it uses no processor time, and the next message thaws it. Its memory stays. 0:
        /// never. Default 0.
        #[serde(with = "value::duration")]
        pub hibernate_after: Duration = Duration::ZERO,
        /// Maximum time from the start of a child until it is ready. Default 30 s.
        #[serde(with = "value::duration")]
        pub spawn_timeout: Duration = Duration::from_secs(30),
        /// Silence in a turn after which a liveness check is sent. Default 10 s, so that a hung child is found within 25 s.
        #[serde(with = "value::duration")]
        pub stall_timeout: Duration = Duration::from_secs(10),
        /// Maximum time for the reply to a liveness check. Two checks are sent, a third if the child uses the processor.
        /// Default 5 s.
        #[serde(with = "value::duration")]
        pub ping_timeout: Duration = Duration::from_secs(5),
        /// Maximum duration of a turn. Default 30 min.
        #[serde(with = "value::duration")]
        pub turn_timeout: Duration = Duration::from_secs(30 * 60),
        /// Time after which an unanswered permission request is denied. Default 5 min.
        #[serde(with = "value::duration")]
        pub permission_timeout: Duration = Duration::from_secs(5 * 60),
        /// Maximum time that a turn waits for the results of the caller's tools. Default 5 min.
        #[serde(with = "value::duration")]
        pub tool_timeout: Duration = Duration::from_secs(5 * 60),
        /// Maximum size of the caller's tools, or of the schema of the answer, in bytes of JSON. Default 256 KiB: they stay in
        /// memory and in the record of the session.
        pub tools_limit: usize = 256 << 10,
        /// Maximum number of turns that wait behind the running one. Default 8.
        pub turn_queue: usize = 8,
        /// Maximum number of buffered reads of output; then a slow reader slows the child. Default 256.
        pub event_buffer: usize = 256,
        /// Maximum size of buffered output, in bytes. Default 1 MiB.
        pub event_buffer_bytes: usize = 1 << 20,
        /// Maximum length of a line of the CLI, in bytes. Default 32 MiB.
        pub line_limit: usize = 32 << 20,
        /// Maximum length of a prompt on the wire, in bytes. Default 10 MiB.
        pub prompt_limit: usize = 10 << 20,
        /// Maximum size of the history of earlier messages that a turn brings, in bytes of its content. Default 32 MiB, the
        /// largest request of the model's API.
        pub history_limit: usize = 32 << 20,
        /// What survives of answered turns besides the CLI's transcript: `written` any kill, `synced` a loss of power, `off`
        /// nothing. Default `written`.
        pub journal: JournalMode = JournalMode::Written,
        /// Maximum size of the journal of one session, in bytes. Default 64 MiB.
        pub journal_bytes: u64 = 64 << 20,
        /// Maximum length of a system prompt, in bytes. Default 1 MiB: some copies stay in memory with the session.
        pub system_prompt_limit: usize = 1 << 20,
        /// Bytes kept of the end of the child's standard error. Default 16 KiB.
        pub stderr_tail: usize = 16 << 10,
        /// Maximum time for an interrupted turn to end; then its child is stopped. Default 2 s.
        #[serde(with = "value::duration")]
        pub stop_interrupt: Duration = Duration::from_secs(2),
        /// Maximum time for a child to exit after its input is closed. Default 3 s.
        #[serde(with = "value::duration")]
        pub stop_eof: Duration = Duration::from_secs(3),
        /// Maximum time for a child to exit after SIGTERM; then its tree is killed. Default 3 s.
        #[serde(with = "value::duration")]
        pub stop_term: Duration = Duration::from_secs(3),
        /// Maximum time for a child to read a written message. Default 10 s.
        #[serde(with = "value::duration")]
        pub write_timeout: Duration = Duration::from_secs(10),
    }
}
