//! Processes: the server, shims, and the children and tools of others.

use crate::common::installed::left_out;
use crate::common::process::Process;
use crate::findings::{self, Findings};
use crate::observers::{descriptors, is_traced, link, queue_limit, status, was_stopped};
use crate::scene::Scene;

/// Reads all that `/proc` has about a process. Gives what was printed where something was gained.
async fn peek(scene: &Scene, process: Process, secret: &str) -> Vec<(bool, String)> {
    let pid = process.pid.to_string();
    let path = format!("/proc/{pid}/environ");
    let mut seen = Vec::new();
    let printed = scene.attempt(&["read", &path]).await;
    seen.push((printed.contains(secret), printed));
    let printed = scene.attempt(&["memory", &pid]).await;
    seen.push((printed.contains(secret), printed));
    let known = descriptors(process);
    if !known.is_empty() {
        let printed = scene.attempt(&["descriptors", &pid]).await;
        seen.push((known.iter().any(|target| printed.contains(target)), printed));
    }
    let directory = link(process, "cwd");
    let printed = scene.attempt(&["link", &pid, "cwd"]).await;
    seen.push((printed.trim() == directory, printed));
    seen
}

/// Leaves a process one processor; nothing where it has but one.
async fn slow(scene: &Scene, process: Process) -> Option<(bool, String)> {
    let before = status(process, "Cpus_allowed");
    let first = status(process, "Cpus_allowed_list").split([',', '-']).next()?.to_owned();
    let is_one = status(process, "Cpus_allowed_list") == first;
    let look = async || status(process, "Cpus_allowed") != before;
    if is_one { None } else { Some(scene.holding(&["slow", &process.pid.to_string(), &first], look).await) }
}

async fn attack(scene: &Scene, findings: &mut Findings) {
    let (victim, secrets) = (&scene.victim, &scene.secrets);
    let server = scene.program.process();
    let pid = |process: Process| process.pid.to_string();
    let mut judge = |name: &str, gained: bool, seen: &str| findings.judge(&scene.walls, name, gained, seen);

    for (gained, printed) in peek(scene, server, &secrets.server).await {
        judge("server-environ", gained, &printed);
    }
    let printed = scene.attempt(&["vm-read", &pid(server)]).await;
    judge("server-vm", printed.contains(&secrets.server), &printed);
    let (gained, printed) = scene.holding(&["ptrace", &pid(server)], async || is_traced(server)).await;
    judge("server-trace", gained, &printed);
    let own_shim = scene.child("mallory").await.parent().and_then(Process::of).expect("a shim");
    for target in [server, victim.shim, own_shim] {
        let (gained, printed) = scene.holding(&["stop", &pid(target)], async || was_stopped(target)).await;
        judge("server-stop", gained, &printed);
    }
    for target in [server, victim.shim] {
        let before = queue_limit(target);
        let look = async || queue_limit(target) != before;
        let (gained, printed) = scene.holding(&["limit", &pid(target)], look).await;
        judge("server-limit", gained, &printed);
    }

    for target in [victim.child, victim.tool] {
        for (gained, printed) in peek(scene, target, &secrets.child).await {
            judge("child-environ", gained, &printed);
        }
        let printed = scene.attempt(&["vm-read", &pid(target)]).await;
        judge("child-vm", printed.contains(&secrets.child), &printed);
        let (gained, printed) = scene.holding(&["ptrace", &pid(target)], async || is_traced(target)).await;
        judge("child-trace", gained, &printed);
        let (gained, printed) = scene.holding(&["stop", &pid(target)], async || was_stopped(target)).await;
        judge("child-stop", gained, &printed);
        match slow(scene, target).await {
            Some((gained, printed)) => judge("child-slow", gained, &printed),
            None => left_out("one processor for others: there is one only"),
        }
        let before = queue_limit(target);
        let look = async || queue_limit(target) != before;
        let (gained, printed) = scene.holding(&["limit", &pid(target)], look).await;
        judge("child-limit", gained, &printed);
    }
    let known = descriptors(victim.child);
    let printed = scene.attempt(&["steal", &pid(victim.child)]).await;
    judge("child-vm", known.iter().any(|target| printed.contains(target)), &printed);

    let printed = scene.attempt(&["processes"]).await;
    judge("others-visible", printed.contains(&victim.tool_marker), &printed);
    for process in [victim.child, victim.shim, victim.tool] {
        assert!(process.is_alive(), "{} of the victim is gone", process.describe());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn escape_processes_of_others_are_out_of_reach() {
    findings::simulated(attack).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn escape_processes_by_the_real_cli() {
    findings::real(attack).await;
}
