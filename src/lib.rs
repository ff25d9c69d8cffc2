//! One warm, supervised, resumable CLI process per user.
//!
//! Starting a command-line agent such as `claude` for every message costs half a second and half a CPU second each
//! time. pilotlight keeps one process per user warm: the first message starts it, later messages reuse it, and an idle
//! timeout stops it. After a stop or a crash, the next message starts a process that resumes the conversation. No
//! process outlives the system.
//!
//! This crate is the library. The same package builds a server (`pilotlight serve`); `pilotlight demo` shows both
//! offline.
//!
//! # Embedding
//!
//! ```no_run
//! use std::error::Error;
//! use std::time::Duration;
//!
//! use pilotlight::{Config, Pilotlight};
//!
//! fn main() -> Result<(), Box<dyn Error>> {
//!     // This program also serves as the parent of each CLI process. Must come before any thread is started.
//!     pilotlight::shim::run_if_asked();
//!     tokio::runtime::Runtime::new()?.block_on(run())
//! }
//!
//! async fn run() -> Result<(), Box<dyn Error>> {
//!     let mut config = Config::new("/var/lib/my-service");
//!     config.cli.program = "claude".to_owned();
//!     config.cli.env.insert("ANTHROPIC_API_KEY".to_owned(), std::env::var("ANTHROPIC_API_KEY")?);
//!     let pilot = Pilotlight::start(config).await?;
//!
//!     // Starts the process, or uses the one that is there.
//!     let mut turn = pilot.session("alice").send("Hello").await?;
//!     while let Some(event) = turn.next().await {
//!         if let Some(text) = event?.text_delta() {
//!             print!("{text}");
//!         }
//!     }
//!     if let Some(outcome) = turn.outcome() {
//!         println!("\n{} tokens, {} US dollars", outcome.usage.output_tokens, outcome.cost_usd);
//!     }
//!
//!     // When this returns, no process is left.
//!     pilot.shutdown(Duration::from_secs(10)).await;
//!     Ok(())
//! }
//! ```
//!
//! With the feature `sim`, `config.cli.program = "sim"` and `sim::run_if_asked` beside the other call in `main`, the same
//! program runs offline on a simulated CLI. Tests of an embedding program use it through the module `testing`, without a
//! `main` of their own.
//!
//! # Terms
//!
//! | word | meaning |
//! |---|---|
//! | user | owner of sessions: 1 to 256 bytes of any kind; never part of a path, a label or a log line |
//! | session | conversation of a user ([`Session`]); survives crashes, evictions and restarts |
//! | child | CLI process of a session, with its descendants |
//! | turn | one message and its answer, up to the [`Outcome`] ([`Turn`]) |
//! | event | line of the CLI, passed on byte for byte ([`Event`]) |
//! | evict | stop the child and keep the session; the next message resumes the conversation |
//! | restart | start a child again after a failure |
//! | shim | parent process of a child; kills the child's whole tree when the child or this process ends |
//!
//! # Guarantees and limits
//!
//! * **At most one child per session**, also while a failed actor is replaced.
//! * **Exactly one outcome per accepted turn.** An error of [`Session::send`] means that the child has not seen the
//!   message. For a later error, [`TurnError::reached_child`] returns whether a retry may repeat the work.
//! * **A child may die at any time.** The next message resumes the conversation. Output that the CLI had not written to
//!   its transcript is lost. The next turn then begins with a notice (`"subtype":"context_lost"`) and sets
//!   [`Outcome::context_lost`]. An interrupted turn ends with [`TurnError::SessionLost`]; a turn without any output is
//!   retried once with the next child (`restart.retry_turn`).
//! * **Eviction and memory pressure never end a running turn.**
//! * **No process is left** after a shutdown, a crash or SIGKILL of this process or of a child. The shim kills the whole
//!   tree: by its PID namespace or its cgroup if possible ([`Pilotlight::containment`]), otherwise by a walk over its
//!   descendants, daemons included. With a PID namespace the tree ends with its shim. Without one, if a shim is killed
//!   together with this process, the next start finds the rest by its cgroups and by a marker in their environment.
//! * **Everything is bounded**: queues, lines, buffers, waits, restarts, starts in flight. A slow reader slows only its
//!   own child.
//! * **Dropping is safe.** Dropping a [`Turn`] interrupts it and keeps its child warm. Dropping the last handle or the
//!   runtime ends the children.
//!
//! Children are isolated by every rung that the host offers ([`config::Isolation`], [`Pilotlight::isolation`]). Where
//! [`Pilotlight::separates_users`] is false, a tool of one user's CLI can read the files of another user's session. Tools are
//! denied by default ([`config::Permissions`]); without separation, allow them only if all users may see each other's data.
//! Linux only.
//!
//! # Features
//!
//! | feature | default | adds |
//! |---|---|---|
//! | `server` | yes | the HTTP server, its configuration and the `pilotlight` program; implies `sim`. Without it no HTTP stack is compiled |
//! | `broker` | yes | the credential broker ([`config::Broker`]), with a TLS client; `server` implies it |
//! | `sim` | yes | the simulated CLI: `program = "sim"` and `sim::run_if_asked` |
//! | `testing` | no | the test kit for programs that embed this crate; implies `sim`. Among dev-dependencies only |
//! | `otel` | no | export of spans to an OpenTelemetry collector; implies `server` |
//! | `failpoints` | no | points where tests make actors panic; never in production |
//!
//! # Overview of the API
//!
//! The names at the root suffice for most programs. [`Pilotlight`] and [`Session`] are handles that are cheap to clone.
//!
//! | module | content |
//! |---|---|
//! | [`config`] | the sections of [`Config`], with a default for every key |
//! | [`error`] | failures of the operator ([`StartError`]) and of a caller ([`TurnError`]), with their causes |
//! | [`model`] | ids, histories, messages of a conversation, permissions, credentials, the states of a session |
//! | [`turn`] | the rest of a turn: [`turn::Status`], [`turn::McpServers`], [`turn::Restrictions`] |
//! | [`telemetry`] | session events ([`Pilotlight::events`]) and the catalogue of metrics |
//! | [`probe`] | a trial start of the CLI |
//! | `server` | the HTTP server, behind its feature |
//! | `testing` | the test kit, behind its feature |
//! | `at_rest` | backup, restore, export and deletion of a user without a running server, behind the feature `server` |
//!
//! Metrics go to the installed `metrics` recorder, or to the one given to [`Pilotlight::start_with`]. Types that may
//! grow are `#[non_exhaustive]`. `examples/` has a minimal program, one inside an axum service and one with a recorder
//! of its own.

mod adapter;
mod admission;
#[cfg(feature = "broker")]
mod broker;
mod child;
#[cfg(feature = "cluster")]
mod cluster;
pub mod config;
pub mod error;
#[cfg(fuzzing)]
pub mod fuzzing;
mod installation;
mod isolation;
mod journal;
pub mod model;
#[cfg(feature = "server")]
pub mod server;
mod session;
mod spares;
mod spend;
mod supervisor;
mod support;
mod system;
pub mod telemetry;
#[cfg(feature = "testing")]
pub mod testing;
pub mod turn;
mod workspace;

/// An endpoint of the broker by itself.
#[cfg(all(feature = "broker", feature = "failpoints"))]
#[doc(hidden)]
pub use broker::probe as broker_probe;

/// The parent process of each CLI process, see [`pilotlight_shim`].
pub mod shim {
    pub use pilotlight_shim::run_if_asked;
}

/// The simulated CLI (`program = "sim"`), see [`pilotlight_sim`].
#[cfg(feature = "sim")]
pub mod sim {
    pub use pilotlight_sim::run_if_asked;
}

pub use config::Config;
pub use error::{StartError, TurnError};
pub use isolation::RungState;
pub use model::{CallerTool, Prompt, ToolCall, ToolResult};
pub use session::SessionStatus;
#[doc(hidden)]
pub use support::hidden::is_hidden;
#[cfg(feature = "server")]
pub use system::at_rest;
pub use system::{Compacted, Pilotlight, Readiness, Session, probe};
pub use turn::{Event, NoAnswer, Outcome, Turn, TurnOptions};
