//! Chaos: fifty users of the simulated CLI talk to all nodes, while nodes, etcd and the object storage fail by a schedule that is a function of its
//! seed, which is always printed. The object storage is a bucket with an even seed, and a directory with an odd one. For root
//! each node has a disk of its own that may be full; a killed node loses it.
//!
//! ```sh
//! PILOTLIGHT_CHAOS_SEED=1234 cargo test --test cluster chaos        # this seed
//! PILOTLIGHT_CHAOS_MINUTES=20 cargo test --test cluster chaos       # for that time
//! PILOTLIGHT_CHAOS_REAL=1 cargo test --test cluster chaos           # with six users of the real CLI
//! ```

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::task::JoinSet;

use crate::asker::{End, now};
use crate::common::api::Api;
use crate::common::installed;
use crate::common::s3::{Fault as Answer, S3};
use crate::etcd::Etcd;
use crate::history;
use crate::nodes::{Around, Nodes, SIM};
use crate::observer::Observer;
use crate::real;
use crate::talk::{Talk, quantile, spread};

const USERS: usize = 50;
/// With the real CLI, of which each child has a hundred megabytes.
const REAL_USERS: usize = 6;
const NODES: usize = 3;
const MEMBERS: usize = 3;
/// Each node's disk; with the real CLI.
const DISK: &str = "64m";
const REAL_DISK: &str = "512m";
/// In an ordinary run.
const LASTS: Duration = Duration::from_secs(120);
/// How soon everybody is answered when nothing fails any more.
const CALM_WITHIN: Duration = Duration::from_secs(20);
/// What a turn may end with while something fails.
const EXPECTED: [&str; 11] = [
    "cut",
    "draining",
    "node_fenced",
    "node_lost",
    "no_node",
    "not_owner",
    "not_replicated",
    "overloaded",
    "session_lost",
    "storage",
    "unreached",
];

/// What befalls the cluster.
#[derive(Debug, Clone, Copy)]
enum Fault {
    Kill {
        node: usize,
        away: u64,
    },
    Stop {
        node: usize,
        away: u64,
    },
    Pause {
        node: usize,
        millis: u64,
    },
    /// Its shims are stopped, and then its way to etcd is cut.
    CutOff {
        node: usize,
        millis: u64,
    },
    FillDisk {
        node: usize,
        millis: u64,
    },
    FreezeEtcd {
        millis: u64,
    },
    FreezeMember {
        member: usize,
        millis: u64,
    },
    TakeStore {
        millis: u64,
    },
    /// Each request waits for that time.
    SlowStore {
        pause: u64,
        millis: u64,
    },
}

/// The endless schedule of a seed.
struct Plan(fastrand::Rng);

impl Plan {
    fn next(&mut self) -> (Fault, Duration) {
        let random = &mut self.0;
        let (node, away) = (random.usize(..NODES), random.u64(200..3000));
        let fault = match random.u32(..16) {
            0..3 => Fault::Kill { node, away },
            3..5 => Fault::Stop { node, away },
            5..7 => Fault::Pause { node, millis: random.u64(300..5000) },
            7..9 => Fault::CutOff { node, millis: random.u64(300..5000) },
            9 => Fault::FreezeEtcd { millis: random.u64(200..1000) },
            10 => Fault::FreezeEtcd { millis: random.u64(2500..5000) },
            11..13 => Fault::FreezeMember { member: random.usize(..MEMBERS), millis: random.u64(500..4000) },
            13 => Fault::FillDisk { node, millis: random.u64(500..4000) },
            14 => Fault::TakeStore { millis: random.u64(500..4000) },
            _ => Fault::SlowStore { pause: random.u64(100..3000), millis: random.u64(500..4000) },
        };
        (fault, Duration::from_millis(random.u64(2000..5000)))
    }
}

/// What faults act on.
struct Stage {
    cluster: Nodes,
    observer: Observer,
    bucket: Option<S3>,
    has_disks: bool,
}

async fn perform(stage: &mut Stage, fault: Fault, sites: &RwLock<Vec<String>>) {
    let Stage { cluster, observer, bucket, has_disks } = stage;
    let pause = |millis| tokio::time::sleep(Duration::from_millis(millis));
    let leave = |cluster: &Nodes, node: usize| {
        let site = cluster.client(node).http().to_owned();
        sites.write().unwrap().retain(|it| *it != site);
    };
    match fault {
        Fault::Kill { node, away } => {
            // Callers learn of it by themselves.
            cluster.nodes[node].kill().await;
            pause(away).await;
        }
        Fault::Stop { node, away } => {
            leave(cluster, node);
            cluster.nodes[node].stop().await;
            pause(away).await;
        }
        Fault::Pause { node, millis } => {
            leave(cluster, node);
            cluster.nodes[node].pause();
            pause(millis).await;
            cluster.nodes[node].resume();
        }
        Fault::CutOff { node, millis } => {
            let shims = observer.shims(&cluster.marks()[node]);
            shims.iter().for_each(|shim| shim.signal(Signal::STOP));
            cluster.nodes[node].cut();
            pause(millis).await;
            cluster.nodes[node].repair();
            shims.iter().for_each(|shim| shim.signal(Signal::CONT));
        }
        Fault::FillDisk { node, millis } if *has_disks => {
            let filler = cluster.nodes[node].fill_disk();
            pause(millis).await;
            std::fs::remove_file(filler).expect("removed");
        }
        // There is no disk that nothing else needs.
        Fault::FillDisk { .. } => {}
        Fault::FreezeMember { member, millis } => {
            cluster.etcd.freeze_member(member);
            pause(millis).await;
            cluster.etcd.thaw();
        }
        Fault::FreezeEtcd { millis } => {
            cluster.etcd.freeze();
            pause(millis).await;
            cluster.etcd.thaw();
        }
        Fault::TakeStore { millis } if bucket.is_none() => {
            cluster.take_store();
            pause(millis).await;
            cluster.give_store_back();
        }
        Fault::TakeStore { millis } | Fault::SlowStore { millis, .. } => {
            let what = match fault {
                Fault::SlowStore { pause, .. } => Answer::Slow(Duration::from_millis(pause)),
                _ => Answer::Status(503),
            };
            // A directory is as fast as it is.
            if let Some(bucket) = bucket {
                bucket.set(move |_, _, _| what);
                pause(millis).await;
                bucket.set(|_, _, _| Answer::None);
            }
        }
    }
    for node in &mut cluster.nodes {
        if !node.is_running() {
            node.start().await;
        }
    }
    *sites.write().unwrap() = cluster.sites();
}

/// What the model is asked for: a turn of half a second, and one of many pieces.
#[derive(Clone, Copy)]
struct Markers {
    slow: &'static str,
    pieces: &'static str,
    echoes: bool,
}

const SIMULATED: Markers =
    Markers { slow: "[[sleep:500]]", pieces: "[[deltas:20]][[delay:30]]", echoes: true };
const REAL: Markers = Markers { slow: "[[delay:500]][[say:done]]", pieces: "[[deltas:20]]", echoes: false };

/// A user's conversation until the end: turns, and from time to time the question what was said.
async fn talk(
    name: String,
    sites: Arc<RwLock<Vec<String>>>,
    end: Arc<AtomicBool>,
    seed: u64,
    markers: Markers,
) -> Talk {
    let (mut talk, mut random) = (Talk::new(&name, "default"), fastrand::Rng::with_seed(seed));
    talk.echoes = markers.echoes;
    let mut failing_since: Option<Instant> = None;
    while !end.load(Ordering::Acquire) {
        let site = random.choice(sites.read().unwrap().iter()).expect("a node").clone();
        let answer = match random.u32(..10) {
            0 => talk.recall(&site).await,
            1..3 => talk.say(&site, markers.slow).await,
            3 => talk.say(&site, markers.pieces).await,
            _ => talk.say(&site, "").await,
        };
        if let End::Good { .. } = answer {
            talk.outages.extend(failing_since.take().map(|since| since.elapsed()));
        } else {
            assert!(EXPECTED.contains(&answer.code()), "{answer:?}");
            failing_since.get_or_insert_with(now);
        }
        tokio::time::sleep(Duration::from_millis(random.u64(500..2500))).await;
    }
    talk
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chaos_loses_nothing() {
    let seed = number("PILOTLIGHT_CHAOS_SEED").unwrap_or_else(|| fastrand::u64(1..1_000_000_000));
    let lasts = number("PILOTLIGHT_CHAOS_MINUTES").map_or(LASTS, |minutes| Duration::from_secs(60 * minutes));
    installed::say(&format!("PILOTLIGHT_CHAOS_SEED={seed}"));
    let Some(etcd) = Etcd::start(MEMBERS).await else { return };
    let bucket = if seed.is_multiple_of(2) { Some(S3::start().await) } else { None };
    let has_disks = rustix::process::geteuid().is_root();
    let api =
        if std::env::var_os("PILOTLIGHT_CHAOS_REAL").is_some() { Some(Api::start().await) } else { None };
    let (users, disk, config) = match &api {
        Some(api) => match real::config(api) {
            Some(config) => (REAL_USERS, REAL_DISK, config),
            None => return,
        },
        None => (USERS, DISK, SIM.to_owned()),
    };
    let around = Around {
        is_linked: true,
        bucket: bucket.as_ref().map(S3::endpoint),
        disk: has_disks.then_some(disk),
        ..Around::default()
    };
    let cluster = Nodes::around(around, etcd, NODES, &config).await;
    let names: Vec<_> = (0..users).map(|number| format!("chaotic-{number}")).collect();
    let observer = Observer::start(&cluster, names.iter().map(|name| (name.as_str(), "default")));
    let (sites, end) = (Arc::new(RwLock::new(cluster.sites())), Arc::new(AtomicBool::new(false)));
    let markers = if api.is_some() { REAL } else { SIMULATED };
    let mut talks = JoinSet::new();
    for (number, name) in names.iter().enumerate() {
        talks.spawn(talk(name.clone(), sites.clone(), end.clone(), seed ^ number as u64, markers));
    }
    let mut stage = Stage { cluster, observer, bucket, has_disks };
    let (mut plan, began, mut faults) = (Plan(fastrand::Rng::with_seed(seed)), now(), BTreeMap::new());
    while began.elapsed() < lasts {
        let (fault, rest) = plan.next();
        installed::say(&format!("{:?}: {fault:?}", began.elapsed()));
        let kind = format!("{fault:?}").split(' ').next().unwrap_or_default().to_owned();
        *faults.entry(kind).or_insert(0) += 1;
        perform(&mut stage, fault, &sites).await;
        tokio::time::sleep(rest).await;
        // A user that has found a fault ends the run.
        if let Some(found) = talks.try_join_next() {
            found.unwrap();
            panic!("a user ended");
        }
    }
    end.store(true, Ordering::Release);
    let Stage { cluster, observer, bucket: _bucket, .. } = stage;
    let (mut good, mut codes, mut outages) = (0, BTreeMap::new(), Vec::new());
    let mut recalls = JoinSet::new();
    let calm = now();
    while let Some(talk) = talks.join_next().await {
        let mut talk = talk.unwrap();
        good += talk.acknowledged();
        for (code, took) in talk.errors.drain(..) {
            let (count, longest) = codes.entry(code).or_insert((0, Duration::ZERO));
            (*count, *longest) = (*count + 1, took.max(*longest));
        }
        outages.append(&mut talk.outages);
        let site = cluster.sites()[good % NODES].clone();
        recalls.spawn(async move {
            let mut end = talk.recall(&site).await;
            while !end.is_good() {
                assert!(EXPECTED.contains(&end.code()) && calm.elapsed() < CALM_WITHIN, "{end:?}");
                end = talk.recall(&site).await;
            }
        });
    }
    recalls.join_all().await;
    let heads = history::check(&cluster).await;
    observer.check();
    installed::say(&format!(
        "seed {seed}: {faults:?}; {good} turns acknowledged and recalled, {heads} heads, errors {codes:?}; outages of users: {}",
        spread(&mut outages)
    ));
    assert!(good > users && quantile(&mut outages, 0.5) < CALM_WITHIN);
}
