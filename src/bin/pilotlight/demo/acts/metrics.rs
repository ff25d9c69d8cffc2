//! The server's own account of it all, from its `/metrics`, and whether it agrees with what the demo did.

use super::super::metrics::{Figures, Spread};
use super::super::page::{Columns, size, took};
use super::super::show::{Problem, Show};
use super::super::stage::{Stage, until};
use super::Plot;

const COUNTS: Columns = Columns(&[40, 8]);
const TIMES: Columns = Columns(&[40, 8, 10, 12]);
/// Measurements come at intervals.
const MEASURED_WITHIN: std::time::Duration = std::time::Duration::from_secs(5);

/// What is shown: words, name, labels.
type Line = (&'static str, &'static str, &'static [&'static str]);

const COUNTED: [Line; 8] = [
    ("turns answered", "turns_total", &["outcome=\"ok\""]),
    ("turns lost, and said to be", "turns_total", &["outcome=\"session_lost\""]),
    ("children started", "spawns_total", &["outcome=\"ok\""]),
    ("children started again after a crash", "restarts_total", &["cause=\"crash\""]),
    ("children stopped because they were idle", "evictions_total", &["reason=\"idle\""]),
    ("conversations that lost something", "contexts_lost_total", &[]),
    ("children that could not be started", "spawns_total", &["outcome=\"failed\""]),
    ("panics", "actor_panics_total", &[]),
];

const TIMED: [Line; 6] = [
    ("first output of a warm child", "first_output_seconds", &["start=\"warm\""]),
    ("first output of a cold child", "first_output_seconds", &["start=\"cold\""]),
    ("a whole turn that was answered", "turn_duration_seconds", &["outcome=\"ok\""]),
    ("start of a child until it is ready", "spawn_duration_seconds", &["phase=\"ready\""]),
    ("a crash until the next child is ready", "recovery_duration_seconds", &[]),
    ("stop of a child", "stop_duration_seconds", &[]),
];

pub(in crate::demo) async fn figures(stage: &Stage, show: &mut Show, plot: &mut Plot) -> Result<(), Problem> {
    // A fresh measurement, with children in it.
    let figures = until("memory is measured", MEASURED_WITHIN, async || {
        let figures = stage.client.figures().await?;
        Ok(figures
            .sum("memory_bytes", &["kind=\"anon\""])
            .is_some_and(|bytes| bytes > 0.0)
            .then_some(figures))
    })
    .await?;
    show.header(&COUNTS, &["", "count"])?;
    for (words, name, labels) in COUNTED {
        show.row(&COUNTS, &[words.to_owned(), sum(&figures, name, labels)?.to_string()])?;
    }
    show.gap()?;
    show.header(&TIMES, &["", "count", "mean", "all within"])?;
    for (words, name, labels) in TIMED {
        let spread = figures.spread(name, labels).ok_or_else(|| missing(name))?;
        show.row(&TIMES, &time_cells(words, spread))?;
    }
    show.gap()?;
    show.header(&COUNTS, &["", "now"])?;
    for (words, value) in memory(&figures)? {
        show.row(&COUNTS, &[words.to_owned(), value])?;
    }
    show.gap()?;
    agreements(show, plot, &figures)
}

/// The server's counts against the demo's own.
fn agreements(show: &mut Show, plot: &Plot, figures: &Figures) -> Result<(), Problem> {
    let of = |line: usize| COUNTED.get(line).map_or(Ok(-1.0), |(_, name, labels)| sum(figures, name, labels));
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

fn memory(figures: &Figures) -> Result<Vec<(&'static str, String)>, Problem> {
    let kinds = ["kind=\"anon\"", "kind=\"shmem\"", "kind=\"swap\""];
    let mut own = 0.0;
    for kind in kinds {
        own += sum(figures, "memory_bytes", &[kind])?;
    }
    let count = |kind| sum(figures, "processes", &[kind]);
    Ok(vec![
        ("memory of all their processes", size(own)),
        ("memory that they may use together", size(sum(figures, "memory_budget_bytes", &[])?)),
        ("children", count("kind=\"cli\"")?.to_string()),
        ("their shims", count("kind=\"shim\"")?.to_string()),
    ])
}

fn time_cells(words: &str, spread: Spread) -> [String; 4] {
    let mean = spread.mean().map_or_else(|| "-".to_owned(), took);
    let below = match spread.below {
        _ if spread.count == 0.0 => "-".to_owned(),
        bound if bound.is_finite() => took(std::time::Duration::from_secs_f64(bound)),
        _ => "more".to_owned(),
    };
    [words.to_owned(), spread.count.to_string(), mean, below]
}

fn sum(figures: &Figures, name: &str, labels: &[&str]) -> Result<f64, Problem> {
    figures.sum(name, labels).ok_or_else(|| missing(name))
}

fn missing(name: &str) -> Problem {
    Problem::seen(format!("/metrics has no {name}"))
}
