//! The smallest embedding: one user, three messages, one process.
//!
//! `cargo run --example minimal` talks to the built-in simulation; give the path of a CLI, or `claude`, to talk to it.

use std::error::Error;
use std::io::Write;
use std::time::Duration;

use pilotlight::{Config, Pilotlight};

fn main() -> Result<(), Box<dyn Error>> {
    // This program may be started as the parent of a CLI, or as the simulated CLI. Must come first.
    pilotlight::shim::run_if_asked();
    pilotlight::sim::run_if_asked();
    tokio::runtime::Runtime::new()?.block_on(talk())
}

async fn talk() -> Result<(), Box<dyn Error>> {
    let data_dir = std::env::temp_dir().join(format!("pilotlight-minimal-{}", std::process::id()));
    let mut config = Config::new(&data_dir);
    config.cli.program = std::env::args().nth(1).unwrap_or_else(|| "sim".to_owned());

    let pilot = Pilotlight::start(config).await?;
    let alice = pilot.session("alice");
    for message in ["Hello", "How are you?", "What did I say first?"] {
        println!("> {message}");
        let mut turn = alice.send(message).await?;
        while let Some(event) = turn.next().await {
            if let Some(text) = event?.text_delta() {
                print!("{text}");
                std::io::stdout().flush()?;
            }
        }
        let pid = alice.status().and_then(|status| status.pid);
        println!("\n  [process {pid:?}, {:?}]", turn.outcome().map(|outcome| outcome.usage));
    }
    pilot.shutdown(Duration::from_secs(10)).await;
    std::fs::remove_dir_all(data_dir)?;
    Ok(())
}
