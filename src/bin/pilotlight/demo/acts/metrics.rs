//! The server's `/metrics`, and whether they agree with the demo's own counts.

use super::super::layout::Columns;
use super::super::metrics::{Histogram, Metrics};
use super::super::show::{Problem, Show};
use super::super::stage::{Stage, until};
use super::super::text::{size, took};
use super::Plot;

const COUNTS: Columns = Columns(&[40, 8]);
const TIMES: Columns = Columns(&[40, 8, 10, 12]);
/// Maximum wait for a memory sample.
const MEASURED_WITHIN: std::time::Duration = std::time::Duration::from_secs(5);

/// A shown metric: description, name, labels.
type Row = (&'static str, &'static str, &'static [&'static str]);

const COUNTED: [Row; 8] = [
    ("turns answered", "turns_total", &["outcome=\"ok\""]),
    ("turns lost, and reported as lost", "turns_total", &["outcome=\"session_lost\""]),
    ("children started", "spawns_total", &["outcome=\"ok\""]),
    ("children restarted after a crash", "restarts_total", &["cause=\"crash\""]),
    ("children stopped because they were idle", "evictions_total", &["reason=\"idle\""]),
    ("conversations that lost something", "contexts_lost_total", &[]),
    ("children that could not be started", "spawns_total", &["outcome=\"failed\""]),
    ("panics", "actor_panics_total", &[]),
];

const TIMED: [Row; 6] = [
    ("first output of a warm child", "first_output_seconds", &["start=\"warm\""]),
    ("first output of a cold child", "first_output_seconds", &["start=\"cold\""]),
    ("a whole turn that was answered", "turn_duration_seconds", &["outcome=\"ok\""]),
    ("start of a child until it is ready", "spawn_duration_seconds", &["phase=\"ready\""]),
    ("a crash until the next child is ready", "recovery_duration_seconds", &[]),
    ("stop of a child", "stop_duration_seconds", &[]),
];

pub(in crate::demo) async fn metrics(stage: &Stage, show: &mut Show, plot: &mut Plot) -> Result<(), Problem> {
    // Waits for a sample that includes children.
    let metrics = until("memory is measured", MEASURED_WITHIN, async || {
        let metrics = stage.client.metrics().await?;
        Ok(metrics
            .sum("memory_bytes", &["kind=\"anon\""])
            .is_some_and(|bytes| bytes > 0.0)
            .then_some(metrics))
    })
    .await?;
    show.header(&COUNTS, &["", "count"])?;
    for (words, name, labels) in COUNTED {
        show.row(&COUNTS, &[words.to_owned(), sum(&metrics, name, labels)?.to_string()])?;
    }
    show.gap()?;
    show.header(&TIMES, &["", "count", "mean", "all within"])?;
    for (words, name, labels) in TIMED {
        let histogram = metrics.histogram(name, labels).ok_or_else(|| missing(name))?;
        show.row(&TIMES, &time_cells(words, histogram))?;
    }
    show.gap()?;
    show.header(&COUNTS, &["", "now"])?;
    for (words, value) in memory(&metrics)? {
        show.row(&COUNTS, &[words.to_owned(), value])?;
    }
    show.gap()?;
    agreements(show, plot, &metrics)
}

/// The server's counts against the demo's own.
fn agreements(show: &mut Show, plot: &Plot, metrics: &Metrics) -> Result<(), Problem> {
    let of = |line: usize| COUNTED.get(line).map_or(Ok(-1.0), |(_, name, labels)| sum(metrics, name, labels));
    let agreed = [
        ("turns answered", of(0)?, plot.answered),
        ("turns lost", of(1)?, plot.lost),
        ("restarts", of(3)?, plot.kills),
    ];
    let differ: Vec<String> = agreed
        .iter()
        .filter(|(_, server, demo)| (server - f64::from(*demo)).abs() > 0.5)
        .map(|(what, server, demo)| format!("{what}: {server} by the server, {demo} by the demo"))
        .collect();
    let text = format!(
        "the server's counts are the demo's: {} turns answered, {} lost, {} restarts for {} kills",
        plot.answered, plot.lost, plot.kills, plot.kills
    );
    show.claim(differ.is_empty(), &text, differ.join("; "))?;
    let bad = [of(5)?, of(6)?, of(7)?];
    let none = bad.iter().all(|count| *count == 0.0);
    show.claim(none, "no conversation lost anything, no start failed, nothing panicked", format!("{bad:?}"))
}

fn memory(metrics: &Metrics) -> Result<Vec<(&'static str, String)>, Problem> {
    let kinds = ["kind=\"anon\"", "kind=\"shmem\"", "kind=\"swap\""];
    let mut own = 0.0;
    for kind in kinds {
        own += sum(metrics, "memory_bytes", &[kind])?;
    }
    let count = |kind| sum(metrics, "processes", &[kind]);
    Ok(vec![
        ("memory of all their processes", size(own)),
        ("memory that they may use together", size(sum(metrics, "memory_budget_bytes", &[])?)),
        ("children", count("kind=\"cli\"")?.to_string()),
        ("their shims", count("kind=\"shim\"")?.to_string()),
    ])
}

fn time_cells(words: &str, histogram: Histogram) -> [String; 4] {
    let mean = histogram.mean().map_or_else(|| "-".to_owned(), took);
    let below = match histogram.below {
        _ if histogram.count == 0.0 => "-".to_owned(),
        bound if bound.is_finite() => took(std::time::Duration::from_secs_f64(bound)),
        _ => "more".to_owned(),
    };
    [words.to_owned(), histogram.count.to_string(), mean, below]
}

fn sum(metrics: &Metrics, name: &str, labels: &[&str]) -> Result<f64, Problem> {
    metrics.sum(name, labels).ok_or_else(|| missing(name))
}

fn missing(name: &str) -> Problem {
    Problem::seen(format!("/metrics has no {name}"))
}
