//! Background jobs: workers take them from a bounded queue, each job is a turn in the session of its owner, and what the
//! host has no room for is tried again.
//!
//! `cargo run --example job_runner` runs some jobs on the built-in simulation.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use pilotlight::{Config, Outcome, Pilotlight, TurnError};
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;

const WORKERS: usize = 3;
/// A producer waits while this many jobs wait.
const QUEUE: usize = 8;
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(200);

struct Job {
    owner: String,
    task: String,
}

fn main() -> Result<(), Box<dyn Error>> {
    pilotlight::shim::run_if_asked();
    pilotlight::sim::run_if_asked();
    tokio::runtime::Runtime::new()?.block_on(run())
}

async fn run() -> Result<(), Box<dyn Error>> {
    let data_dir = std::env::temp_dir().join(format!("pilotlight-jobs-{}", std::process::id()));
    let mut config = Config::new(&data_dir);
    config.cli.program = "sim".to_owned();
    // Fewer children than owners: an idle one makes room for the next.
    config.limits.max_children = 2;
    let pilot = Pilotlight::start(config).await?;

    let (jobs, queue) = mpsc::channel(QUEUE);
    let queue = Arc::new(Mutex::new(queue));
    let mut workers = JoinSet::new();
    for _ in 0..WORKERS {
        workers.spawn(work(pilot.clone(), queue.clone()));
    }
    for number in 1..=9 {
        let owner = format!("owner-{}", number % 3);
        jobs.send(Job { owner, task: format!("job {number}") }).await?;
    }
    // No more jobs: the workers end when the queue is empty.
    drop(jobs);
    while let Some(worker) = workers.join_next().await {
        worker?;
    }
    pilot.shutdown(Duration::from_secs(10)).await;
    std::fs::remove_dir_all(data_dir)?;
    Ok(())
}

async fn work(pilot: Pilotlight, queue: Arc<Mutex<mpsc::Receiver<Job>>>) {
    loop {
        let next = queue.lock().await.recv().await;
        let Some(job) = next else { return };
        match attempt(&pilot, &job).await {
            Ok(outcome) if outcome.is_ok() => println!("{}: {} -> {}", job.owner, job.task, outcome.text),
            Ok(outcome) => println!("{}: {} failed: {:?}", job.owner, job.task, outcome.status),
            Err(error) => println!("{}: {} refused: {error}", job.owner, job.task),
        }
    }
}

/// Tries again only while the child has not seen the job: anything else could run it twice.
async fn attempt(pilot: &Pilotlight, job: &Job) -> Result<Outcome, TurnError> {
    let mut attempts = 1;
    loop {
        let refused = match pilot.session(&job.owner).send(job.task.as_str()).await {
            Ok(turn) => return Ok(turn.finish().await),
            Err(error) => error,
        };
        if attempts == ATTEMPTS || refused.reached_child() {
            return Err(refused);
        }
        attempts += 1;
        tokio::time::sleep(refused.retry_after().unwrap_or(PAUSE)).await;
    }
}
