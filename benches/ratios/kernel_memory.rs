//! What each rung of isolation adds to the memory of an idle session.
//!
//! Counted is all that the kernel charges to a group of the memory controller (version 1) that has this process, and
//! with it its shims and their children: pages of processes, page tables, kernel stacks, the objects of namespaces and
//! mounts. Page cache and what this process needs for a session are on both sides, so their difference is nil.

use std::path::PathBuf;
use std::time::Duration;

use pilotlight::Pilotlight;

use crate::measure::Effort;
use crate::rows::{directory, end};
use crate::table::{Row, row};
use crate::{isolation, ours};

/// Sessions whose memory is not counted: what the first ones need for all.
const BEFORE: usize = 5;
/// Upper bound of the addition, and the aim, in KiB.
const MUST: f64 = 64.0;
const AIM: f64 = 32.0;
const HIERARCHY: &str = "/sys/fs/cgroup/memory";

/// Memory per idle session: difference to that without isolation, in KiB.
pub(crate) async fn idle_sessions(effort: Effort) -> Vec<Row> {
    let Some(group) = Group::enter() else {
        println!("left out: I3: needs root and a writable memory controller of version 1");
        return Vec::new();
    };
    let mut rows = Vec::new();
    let data = directory();
    let without = each(ours::start(data.path()).await, &group, effort).await;
    for (name, rungs) in isolation::CASES {
        let name = format!("I3 idle session with {name}, more than without, KiB");
        let data = directory();
        let Some(pilot) = isolation::start(&name, data.path(), rungs).await else { continue };
        let with = each(pilot, &group, effort).await;
        rows.push(row(name, with - without, MUST, AIM, format!("{with:.0} KiB / {without:.0} KiB")));
    }
    rows
}

async fn each(pilot: Pilotlight, group: &Group, effort: Effort) -> f64 {
    // The kernel charges in batches of some pages for each processor.
    let sessions = effort.of(100, 30);
    let warm = async |name: String| pilot.session(name).warm().await.unwrap();
    for number in 0..BEFORE {
        warm(format!("before {number}")).await;
    }
    let before = group.settled(effort).await;
    for number in 0..sessions {
        warm(format!("user {number}")).await;
    }
    let after = group.settled(effort).await;
    end(pilot).await;
    (after - before) / sessions as f64
}

/// A group of this process, left and removed when dropped.
struct Group(PathBuf);

impl Group {
    fn enter() -> Option<Self> {
        let own = std::fs::read_to_string("/proc/self/cgroup").ok()?;
        let own = own.lines().find_map(|line| line.split_once(":memory:/"))?.1.to_owned();
        let path =
            PathBuf::from(HIERARCHY).join(own).join(format!("pilotlight-bench-{}", std::process::id()));
        std::fs::create_dir(&path).ok()?;
        let group = Self(path);
        std::fs::write(group.0.join("cgroup.procs"), "0").ok()?;
        Some(group)
    }

    /// KiB charged, once they have come to rest.
    async fn settled(&self, effort: Effort) -> f64 {
        tokio::time::sleep(Duration::from_millis(effort.of(2000, 500))).await;
        let usage = std::fs::read_to_string(self.0.join("memory.usage_in_bytes")).unwrap();
        usage.trim().parse::<f64>().unwrap() / 1024.0
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(above) = self.0.parent() {
            std::fs::write(above.join("cgroup.procs"), "0").ok();
        }
        std::fs::remove_dir(&self.0).ok();
    }
}
