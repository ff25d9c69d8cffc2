//! One warm, supervised, resumable CLI process per user.
//!
//! A program that talks to a command-line agent such as `claude` either starts it anew for every message, which costs half
//! a second and half a CPU second each time, or keeps a process by hand. pilotlight keeps it: each user's process is
//! started with the first message, answers the next ones at once, is stopped when it has been idle for long, and is
//! started again, with the conversation, when there is something to say or when it has died. Nothing that it starts
//! outlives it.
//!
//! This crate is the library; the same package builds a server (`pilotlight serve`) on top of it, and `pilotlight demo`
//! shows all of it in some seconds, offline.
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
//! program runs offline on a simulated CLI, which is also what tests of an embedding program may use.
//!
//! # Words
//!
//! | word | meaning |
//! |---|---|
//! | user | who owns sessions: 1 to 256 bytes of any kind; never a path, never a label, never in a log |
//! | session | one conversation of one user; it survives crashes, evictions and restarts ([`Session`]) |
//! | child | the CLI process, with all that it has started, that serves a session now |
//! | turn | one message and everything up to its one [`Outcome`] ([`Turn`]) |
//! | event | one line of the CLI, passed on byte for byte ([`Event`]) |
//! | evict | stop the child and keep the session: its next message starts a child that resumes the conversation |
//! | restart | start a child again because it died unasked |
//! | shim | the small process between this one and each child; it kills the child's whole tree when either is gone |
//!
//! # What holds, and where it ends
//!
//! * **At most one child per session.** Also while an actor fails and is replaced.
//! * **Each accepted turn has exactly one outcome**, and its events reach the one who asked. An error of
//!   [`Session::send`] means that the child has seen nothing; later ones say by [`TurnError::reached_child`] whether
//!   asking again could do the work twice.
//! * **A child may die at any time.** The next message finds the conversation again. What the CLI has not written to its
//!   transcript is lost with it (`claude` writes some 100 ms after an answer); then the next turn begins with a notice
//!   (`"type":"pilotlight","subtype":"context_lost"`), [`Outcome::context_lost`] is set and a counter grows. A turn that
//!   is cut short ends with [`TurnError::SessionLost`]; one of which nothing had come yet is given to the next child,
//!   once (`restart.retry_turn`).
//! * **Eviction and memory pressure never end a running turn.**
//! * **Nothing is left** after a shutdown, a crash or SIGKILL of this process or of a child: the shim ends the whole
//!   tree, by its cgroup where one can be made (Linux 5.14, cgroup v2, write access), else by walking its descendants,
//!   which even daemons do not escape. If a shim is killed together with everything above it, the rest is found at the
//!   next start by a mark in its environment; a process that has cleared its environment by then is not.
//! * **Everything is bounded**: queues, lines, buffers, waits, restarts, starts in flight. A slow reader slows its own
//!   child and nobody else.
//! * **Dropping is safe.** A dropped [`Turn`] is interrupted and its child stays warm; after the last handle, or the
//!   runtime, has been dropped the children end.
//!
//! Not there yet: children run as the user of this process and are not isolated from each other by the system. A tool
//! that one user's CLI runs can read the files of another user's session. Tools are denied unless
//! [`config::Permissions`] says otherwise; allow them only where all users may see each other's data. Linux only.
//!
//! # Features
//!
//! | feature | default | what it adds |
//! |---|---|---|
//! | `server` | yes | `http` and the `pilotlight` program; implies `sim`. An embedding program turns it off and compiles no HTTP stack |
//! | `sim` | yes | the simulated CLI: `program = "sim"` and `sim::run_if_asked` |
//! | `otel` | no | the program exports its spans to an OpenTelemetry collector; implies `server` |
//! | `failpoints` | no | points where tests make actors panic; never in production |
//!
//! # Where to look next
//!
//! [`Pilotlight`] and [`Session`] are the two handles, both cheap to clone. [`Config`] is one tree with a default for
//! everything. [`error`] splits failures by who can do something about them. [`telemetry::metrics::catalogue`] lists every figure;
//! they go to the `metrics` recorder of the host, or with [`Pilotlight::start_with`] to one of its choice.
//! [`Pilotlight::events`] streams the events of all sessions. `examples/` has a minimal program, one inside an axum service and one with
//! a recorder of its own.

mod adapter;
mod admission;
mod child;
pub mod config;
pub mod error;
#[cfg(fuzzing)]
pub mod fuzzing;
mod installation;
pub mod model;
#[cfg(feature = "server")]
pub mod server;
mod session;
mod supervisor;
mod support;
pub mod system;
pub mod telemetry;
pub mod turn;
mod workspace;

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
pub use model::{OauthCredentials, PendingPermission, PermissionError, Prompt, SessionState};
pub use session::SessionStatus;
pub use system::{Pilotlight, Readiness, Session};
pub use turn::{Event, Outcome, Turn, TurnOptions};
