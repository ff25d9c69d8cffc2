//! The snippet of the README's section on embedding, as it stands there, in a whole program. A test compares the two.
//!
//! `cargo run --example readme` talks to the `claude` that is found in PATH.

use std::error::Error;
use std::path::Path;
use std::time::Duration;

use pilotlight::{Config, Pilotlight};

fn main() -> Result<(), Box<dyn Error>> {
    pilotlight::shim::run_if_asked();
    let data_dir = std::env::temp_dir().join(format!("pilotlight-readme-{}", std::process::id()));
    let talked = tokio::runtime::Runtime::new()?.block_on(talk(&data_dir));
    std::fs::remove_dir_all(data_dir)?;
    talked
}

#[rustfmt::skip]
async fn talk(data_dir: &Path) -> Result<(), Box<dyn Error>> {
    let pilot = Pilotlight::start(Config::new(data_dir)).await?;
    let mut turn = pilot.session("alice").send("Hello").await?;          // starts or reuses the warm child
    while let Some(event) = turn.next().await {
        if let Some(text) = event?.text_delta() { print!("{text}") }
    }
    let outcome = turn.outcome();                                         // usage, cost of this turn, context lost?
    pilot.shutdown(Duration::from_secs(10)).await;                        // nothing is left when this returns
    println!("\n[{}]", if outcome.is_some_and(pilotlight::Outcome::is_ok) { "answered" } else { "no answer" });
    Ok(())
}
