//! Starts of many users at the same time.

use futures_util::future::join_all;
use tokio::time::{Duration, Instant};

use super::bare::Bare;
use super::bench::Bench;
use crate::common::process::Process;
use crate::common::{SOON, eventually};

/// Rounds with as many busy processes each.
const ROUNDS: usize = 5;
/// Starts at the same time.
const AT_ONCE: usize = 8;

/// Processes that want a processor, until this is dropped.
struct Spinners(Vec<std::process::Child>);

impl Spinners {
    fn start(count: usize) -> Self {
        let spin = || std::process::Command::new("sh").args(["-c", "while :; do :; done"]).spawn();
        Self((0..count).map(|_| spin().expect("a shell")).collect())
    }
}

impl Drop for Spinners {
    fn drop(&mut self) {
        for child in &mut self.0 {
            child.kill().and_then(|()| child.wait()).ok();
        }
    }
}

/// The last of eight against as many that are started directly and together. Reported, not judged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_starts_at_once_are_timed() {
    let Some(bench) = Bench::to_measure().await else { return };
    let system = bench.embed(|_| {}).await;
    for spinners in [0, 2] {
        let _spinners = Spinners::start(spinners);
        let (mut own, mut direct) = (Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            let began = Instant::now();
            let started = join_all((0..AT_ONCE).map(|_| Bare::start(&bench))).await;
            direct.push(began.elapsed());
            drop(started);
            eventually("the CLIs are gone", SOON, || bench.clis().is_empty()).await;

            let users = (0..AT_ONCE).map(|user| system.pilot.session(format!("user {round} {user}")));
            let users: Vec<_> = users.collect();
            let began = Instant::now();
            let warmed = join_all(users.iter().map(|user| user.warm())).await;
            own.push(began.elapsed());
            for status in warmed {
                let pid = status.expect("it is started").pid.expect("a child");
                assert!(Process::of(pid.cast_signed()).is_some());
            }
            for evicted in join_all(users.iter().map(|user| user.evict())).await {
                evicted.expect("it is stopped");
            }
        }
        let (own, direct) = (median(own), median(direct));
        println!(
            "{}: the last of {AT_ONCE} starts at once, {spinners} spinners: {own:?}, directly {direct:?}: {:.2}",
            super::version(),
            own.as_secs_f64() / direct.as_secs_f64(),
        );
    }
    system.end().await;
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}
