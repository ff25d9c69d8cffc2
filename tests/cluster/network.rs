//! Machines of a cluster, as far as the network goes: a namespace for each, all of them on one bridge.

use std::path::Path;
use std::process::Command;

use tokio::sync::{Mutex, MutexGuard};

use crate::common::installed;

/// Where namespaces are seen.
const NAMESPACES: &str = "/run/netns";

/// Names are those of the process: one network at a time.
static ONE: Mutex<()> = Mutex::const_new(());

/// Ends with the test. What a killed run has left goes with the next one.
pub struct Network {
    _one: MutexGuard<'static, ()>,
    id: u32,
    machines: usize,
}

impl Network {
    /// `None` after a line about the test that is left out.
    pub async fn new(machines: usize) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            installed::left_out("only root makes network namespaces");
            return None;
        }
        sweep();
        let network = Self { _one: ONE.lock().await, id: std::process::id(), machines };
        let bridge = network.bridge();
        if !ip(&["link", "add", &bridge, "type", "bridge"]) {
            installed::missing("no bridge can be made (ip of iproute2)");
            return None;
        }
        must(&["addr", "add", &format!("{}/24", network.address_of(0)), "dev", &bridge]);
        must(&["link", "set", &bridge, "up"]);
        (0..machines).for_each(|machine| network.add(machine));
        Some(network)
    }

    fn add(&self, machine: usize) {
        let (space, outside) = (self.space(machine), self.outside(machine));
        must(&["netns", "add", &space]);
        must(&["link", "add", &outside, "type", "veth", "peer", "name", "eth0", "netns", &space]);
        must(&["link", "set", &outside, "master", &self.bridge(), "up"]);
        let within = |arguments: &[&str]| must(&[&["-n", &space], arguments].concat());
        within(&["addr", "add", &format!("{}/24", self.address(machine)), "dev", "eth0"]);
        within(&["link", "set", "eth0", "up"]);
        within(&["link", "set", "lo", "up"]);
    }

    pub fn address(&self, machine: usize) -> String {
        self.address_of(machine + 1)
    }

    /// A command that becomes this program on a machine.
    pub fn command(&self, machine: usize, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.space(machine)]).arg(program);
        command
    }

    /// Pulls the cable of a machine.
    pub fn cut(&self, machine: usize) {
        must(&["link", "set", &self.outside(machine), "down"]);
    }

    pub fn plug_in(&self, machine: usize) {
        must(&["link", "set", &self.outside(machine), "up"]);
    }

    fn address_of(&self, host: usize) -> String {
        format!("10.{}.{}.{}", 128 + self.id / 256 % 100, self.id % 256, 10 + host)
    }

    fn bridge(&self) -> String {
        format!("plb{}", self.id)
    }

    fn space(&self, machine: usize) -> String {
        format!("pln{}-{machine}", self.id)
    }

    fn outside(&self, machine: usize) -> String {
        format!("plv{}-{machine}", self.id)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for machine in 0..self.machines {
            // A namespace ends some time after its deletion, and with it the link, whose name the next network needs.
            ip(&["link", "del", &self.outside(machine)]);
            ip(&["netns", "del", &self.space(machine)]);
        }
        ip(&["link", "del", &self.bridge()]);
    }
}

/// Removes what test processes have left that live no more.
fn sweep() {
    let names = |directory: &str| {
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect::<Vec<_>>()
    };
    let is_left = |id: &str| id.parse::<u32>().is_ok_and(|id| !Path::new(&format!("/proc/{id}")).exists());
    for name in names(NAMESPACES) {
        let id = name.strip_prefix("pln").and_then(|rest| rest.split('-').next());
        if id.is_some_and(is_left) {
            ip(&["netns", "del", &name]);
        }
    }
    for name in names("/sys/class/net") {
        if name.strip_prefix("plb").is_some_and(is_left) {
            ip(&["link", "del", &name]);
        }
    }
}

fn ip(arguments: &[&str]) -> bool {
    Command::new("ip").args(arguments).output().is_ok_and(|output| output.status.success())
}

fn must(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().expect("ip runs");
    assert!(output.status.success(), "{arguments:?}: {output:?}");
}
