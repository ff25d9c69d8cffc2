//! The smallest embedding: one user, three messages, one process.
//!
//! `cargo run --example minimal` talks to the built-in simulation; `cargo run --example minimal -- claude`, or the path
//! of a CLI, talks to that one.

use std::error::Error;
use std::io::Write;
use std::time::Duration;

use pilotlight::{Config, Pilotlight};

fn main() -> Result<(), Box<dyn Error>> {
    // This program may be started as the parent of a CLI, or as the simulated CLI. Must come first.
    pilotlight::shim::run_if_asked();
    pilotlight::sim::run_if_asked();
    tokio::runtime::Runtime::new()?.block_on(run())
}

async fn run() -> Result<(), Box<dyn Error>> {
    let data_dir = std::env::temp_dir().join(format!("pilotlight-minimal-{}", std::process::id()));
    let mut config = Config::new(&data_dir);
    config.cli.program = std::env::args().nth(1).unwrap_or_else(|| "sim".to_owned());

    let pilot = Pilotlight::start(config).await?;
    let talked = talk(&pilot).await;
    // In any case: when this returns, nothing that was started is left.
    pilot.shutdown(Duration::from_secs(10)).await;
    std::fs::remove_dir_all(data_dir)?;
    talked
}

async fn talk(pilot: &Pilotlight) -> Result<(), Box<dyn Error>> {
    let alice = pilot.session("alice");
    // The marker makes the simulation repeat the earlier messages; a model needs no marker.
    for message in ["Hello", "How are you?", "What did I say first? [[recall]]"] {
        println!("> {message}");
        let mut turn = alice.send(message).await?;
        while let Some(event) = turn.next().await {
            if let Some(text) = event?.text_delta() {
                print!("{text}");
                std::io::stdout().flush()?;
            }
        }
        let outcome = turn.outcome().ok_or("a turn that was read to its end has an outcome")?;
        let pid = alice.status().and_then(|status| status.pid).ok_or("the child is warm")?;
        println!("\n  [{} ms, process {pid}]", outcome.duration.as_millis());
    }
    Ok(())
}
