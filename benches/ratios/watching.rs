//! What it costs to be watched: metrics on against off, a look at them with a thousand sessions, measuring those.

use std::time::Duration;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusRecorder};
use pilotlight::Pilotlight;
use pilotlight::server::Server;

use crate::measure::{Effort, Stopwatch};
use crate::ours;
use crate::rows::{directory, end};
use crate::table::{Row, median, row};

/// One warm session, turns of 50 deltas, without a recorder and with one.
pub(crate) async fn metrics(effort: Effort) -> Vec<Row> {
    const TEXT: &str = "[[deltas:50]]";
    let turns = effort.of(1000, 200);
    let (bare, watched) = (directory(), directory());
    let recorder = recorder();
    let off = ours::start(bare.path()).await;
    let on = Pilotlight::start_with(ours::config(watched.path()), &recorder).await.unwrap();
    let sessions = [off.session("one"), on.session("one")];
    let (mut latency, mut per_event) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    for session in &sessions {
        ours::turn(session, TEXT).await;
    }
    for round in 0..2 * effort.rounds() {
        for place in 0..2 {
            // Neither always comes first.
            let at = (round + place) % 2;
            let session = &sessions[at];
            let watch = Stopwatch::start();
            let mut events = 0;
            for _ in 0..turns {
                events += ours::turn(session, TEXT).await;
            }
            let cost = watch.stop();
            latency[at].push(cost.wall.as_secs_f64() / turns as f64);
            per_event[at].push(cost.cpu.as_secs_f64() / events as f64);
            recorder.handle().run_upkeep();
        }
    }
    end(off).await;
    end(on).await;
    let [off_latency, on_latency] = latency.map(|values| median(values) * 1e6);
    let [off_cpu, on_cpu] = per_event.map(|values| median(values) * 1e6);
    vec![
        row(
            "M1 metrics on / off: latency of a turn",
            on_latency / off_latency,
            1.03,
            1.01,
            format!("{on_latency:.0} µs / {off_latency:.0} µs a turn"),
        ),
        row(
            "M1 metrics on / off: CPU per event",
            on_cpu / off_cpu,
            1.05,
            1.02,
            format!("{on_cpu:.2} µs / {off_cpu:.2} µs"),
        ),
    ]
}

/// As the server makes its own.
fn recorder() -> PrometheusRecorder {
    let mut builder = PrometheusBuilder::new();
    for (name, buckets) in pilotlight::telemetry::metrics::buckets("pilotlight_") {
        builder = builder.set_buckets_for_metric(Matcher::Full(name), buckets).unwrap();
    }
    builder.build_recorder()
}

/// Many sessions that do nothing, at the default interval of measuring.
pub(crate) async fn idle_sessions(effort: Effort) -> Vec<Row> {
    const LOOKS: usize = 50;
    let sessions = effort.of(1000, 200);
    // Whole rounds of measuring.
    let watched = Duration::from_secs(effort.of(20, 5));
    let data = directory();
    let mut config = ours::config(data.path());
    config.http.listen = "127.0.0.1:0".parse().unwrap();
    config.admin.listen = "127.0.0.1:0".parse().unwrap();
    let server = Server::start(config).await.unwrap();
    let pilot = server.pilot().clone();
    let starts = (0..sessions).map(|number| {
        let session = pilot.session(format!("user-{number}"));
        tokio::spawn(async move { session.warm().await.unwrap() })
    });
    for start in starts.collect::<Vec<_>>() {
        start.await.unwrap();
    }
    // The children's own starts come to rest.
    tokio::time::sleep(Duration::from_secs(effort.of(5, 1))).await;
    let watch = Stopwatch::start();
    tokio::time::sleep(watched).await;
    let idle = watch.stop();

    let web = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = format!("http://{}/metrics", server.admin());
    let (mut took, mut text) = (Vec::new(), String::new());
    for _ in 0..LOOKS {
        let watch = Stopwatch::start();
        text = web.get(&url).send().await.unwrap().text().await.unwrap();
        took.push(watch.stop().wall.as_secs_f64() * 1e3);
    }
    let slowest = took.iter().copied().fold(0.0, f64::max);
    let metric = |name: &str| -> f64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap().parse().unwrap()
    };
    let rounds = metric("pilotlight_sample_duration_seconds_count");
    let round = metric("pilotlight_sample_duration_seconds_sum") / rounds * 1e3;
    let series = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).count();
    server.shutdown(Duration::from_secs(30)).await;
    vec![
        row(
            format!("M2 {sessions} idle sessions: % of a core, measuring included"),
            idle.cpu.as_secs_f64() / idle.wall.as_secs_f64() * 100.0,
            1.0,
            0.7,
            format!("a round of measuring takes {round:.1} ms"),
        ),
        row(
            format!("M2 {sessions} sessions: ms to fetch /metrics"),
            median(took),
            5.0,
            2.0,
            format!("slowest {slowest:.1} ms, {series} series, {} kB", text.len() / 1000),
        ),
    ]
}
