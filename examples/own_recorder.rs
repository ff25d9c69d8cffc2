//! With a metrics recorder of the embedding program: pilotlight records through the `metrics` crate, and the program chooses
//! the destination.
//!
//! `cargo run --example own_recorder` uses the in-memory recorder of `metrics-util` and prints all values other than zero.
//! `metrics-exporter-prometheus` works the same, except for the buckets: give it
//! [`pilotlight::telemetry::metrics::buckets`], or histograms come out as summaries.

use std::error::Error;
use std::time::Duration;

use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use pilotlight::{Config, Pilotlight};

fn main() -> Result<(), Box<dyn Error>> {
    pilotlight::shim::run_if_asked();
    pilotlight::sim::run_if_asked();
    tokio::runtime::Runtime::new()?.block_on(run())
}

async fn run() -> Result<(), Box<dyn Error>> {
    let data_dir = std::env::temp_dir().join(format!("pilotlight-recorder-{}", std::process::id()));
    let mut config = Config::new(&data_dir);
    config.cli.program = "sim".to_owned();

    let recorder = DebuggingRecorder::new();
    let metrics = recorder.snapshotter();
    // For this instance alone. A recorder that is installed for the whole program (`recorder.install()`) is used by
    // `Pilotlight::start` by itself.
    let pilot = Pilotlight::start_with(config, &recorder).await?;
    let talked = talk(&pilot).await;
    pilot.shutdown(Duration::from_secs(10)).await;
    std::fs::remove_dir_all(data_dir)?;
    talked?;
    print(&metrics);
    Ok(())
}

async fn talk(pilot: &Pilotlight) -> Result<(), Box<dyn Error>> {
    for user in ["alice", "bob", "alice"] {
        let text = pilot.session(user).send("Hello").await?.finish().await.into_text()?;
        println!("{user}: {text}");
    }
    Ok(())
}

fn print(metrics: &Snapshotter) {
    let mut lines: Vec<String> = metrics
        .snapshot()
        .into_vec()
        .into_iter()
        .filter_map(|(key, _, _, value)| {
            let labels: Vec<_> =
                key.key().labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
            let value = match value {
                DebugValue::Counter(0) => return None,
                DebugValue::Counter(count) => count.to_string(),
                DebugValue::Gauge(value) if value.into_inner() == 0.0 => return None,
                DebugValue::Gauge(value) => value.to_string(),
                DebugValue::Histogram(values) if values.is_empty() => return None,
                DebugValue::Histogram(values) => {
                    let sum: f64 = values.iter().map(|value| value.into_inner()).sum();
                    format!("{} values, mean {:.4}", values.len(), sum / values.len() as f64)
                }
            };
            Some(format!("{:<44} {:<32} {value}", key.key().name(), labels.join(",")))
        })
        .collect();
    lines.sort_unstable();
    println!("{}", lines.join("\n"));
}
