//! Test kit for programs that embed pilotlight: real processes on a simulated CLI, in an ordinary test.
//!
//! A [`Simulation`] is a temporary directory with rules for the answers of the simulated CLI. Its [`config`](Simulation::config)
//! starts a system as in production: one process per user, which crashes, resumes and is evicted. No key, network, `main`
//! or second program is needed.
//!
//! ```toml
//! [dev-dependencies]
//! pilotlight = { version = "0.1", features = ["testing"] }
//! ```
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use pilotlight::Pilotlight;
//! use pilotlight::testing::{Fault, Reply, Simulation};
//!
//! #[tokio::test]
//! async fn conversation_survives_a_crash() -> Result<(), Box<dyn std::error::Error>> {
//!     let simulation = Simulation::new()?;
//!     simulation.reply_once("weather", Reply::text("It is sunny.").failing(Fault::CrashAfterAnswer))?;
//!     simulation.reply("", "I do not know.")?;
//!
//!     let pilot = Pilotlight::start(simulation.config()).await?;
//!     let alice = pilot.session("alice");
//!     assert_eq!(alice.send("How is the weather?").await?.finish().await.into_text()?, "It is sunny.");
//!     assert_eq!(alice.send("And tomorrow?").await?.finish().await.into_text()?, "I do not know.");
//!
//!     let received = simulation.received()?;
//!     assert!(received[1].resumed && received[0].pid != received[1].pid);
//!     pilot.shutdown(Duration::from_secs(10)).await;
//!     Ok(())
//! }
//! ```
//!
//! A program that links this module runs as shim or simulated CLI if its first argument says so (`pilotlight-shim`,
//! `pilotlight-sim`), before its `main`: that is what an ordinary test lacks. Enable the feature `testing` among the
//! dev-dependencies only.
//!
//! Children run without isolation ([`config::Isolation::rungs`](crate::config::Isolation::rungs) is empty), because they read the
//! rules from the directory of the simulation.

mod received;
mod reply;
mod simulation;

pub use received::Received;
pub use reply::{Fault, RecordedTurnError, Reply};
pub use simulation::Simulation;
