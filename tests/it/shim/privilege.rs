//! What the CLI and its tools may do: nothing that needs a capability, whatever user starts the shim.

use std::{fs, os::unix::fs::PermissionsExt as _, process::Command};

use rustix::process::{Pid, geteuid};

use super::harness::*;
use crate::common::installed::left_out;

const NONE: &str = "0000000000000000";
/// CAP_KILL alone.
const KILL: u64 = 1 << 5;

/// The shim, started by a command that becomes it.
fn shim_by(words: &[&str], program: &str, args: &[&str]) -> Shim {
    let shim = env!("CARGO_BIN_EXE_pilotlight-shim");
    let mut command = match words {
        [] => Command::new(shim),
        [first, rest @ ..] => {
            let mut command = Command::new(first);
            command.args(rest).arg(shim);
            command
        }
    };
    command.env_clear().env("PATH", "/usr/bin:/bin");
    Shim::start_by(command, &[], program.as_ref(), args)
}

fn capabilities(pid: Pid, set: &str) -> u64 {
    u64::from_str_radix(&status_field(pid, set).unwrap(), 16).unwrap()
}

fn has_setpcap() -> bool {
    const SETPCAP: u64 = 1 << 8;
    capabilities(rustix::process::getpid(), "CapEff") & SETPCAP != 0
}

/// How a shim may come to be, and whether it may give up the bounding set.
fn origins() -> Vec<(&'static [&'static str], bool)> {
    let mut all: Vec<(&[&str], bool)> = vec![(&[], has_setpcap())];
    if !geteuid().is_root() || Command::new("setpriv").arg("--version").output().is_err() {
        left_out("only root with setpriv can start a shim as another user");
        return all;
    }
    all.extend([
        (&["setpriv", "--inh-caps=+kill,+setuid", "--ambient-caps=+kill,+setuid"][..], true),
        (&["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"], false),
        (
            &[
                "setpriv",
                "--reuid=65534",
                "--regid=65534",
                "--clear-groups",
                "--inh-caps=+net_raw",
                "--ambient-caps=+net_raw",
            ],
            false,
        ),
        (
            &[
                "setpriv",
                "--reuid=65534",
                "--regid=65534",
                "--clear-groups",
                "--inh-caps=+setpcap,+sys_admin",
                "--ambient-caps=+setpcap,+sys_admin",
            ],
            true,
        ),
        (&["setpriv", "--bounding-set=-setpcap", "--inh-caps=-setpcap"], false),
    ]);
    all
}

#[test]
fn privilege_cli_and_tools_have_no_capability() {
    for (origin, gives_up_bound) in origins() {
        let token = token();
        let script = format!("sleep {token} & (env -i setsid sleep {token} &); echo ready; cat");
        let mut shim = shim_by(origin, "/bin/sh", &["-c", &script]);
        let cli = shim.started();
        assert_eq!(shim.output_line(), "ready");
        wait_for_sleepers(&token, 2);
        let tools = sleepers(&token).into_iter().filter_map(Pid::from_raw);
        for pid in tools.chain([cli]) {
            for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
                assert_eq!(status_field(pid, set).unwrap(), NONE, "{set} by {origin:?}");
            }
            assert_eq!(status_field(pid, "NoNewPrivs").unwrap(), "1", "{origin:?}");
            if gives_up_bound {
                assert_eq!(status_field(pid, "CapBnd").unwrap(), NONE, "{origin:?}");
            }
        }
        // What the shim needs to the end and no more.
        let kept = || ["CapPrm", "CapEff"].map(|set| capabilities(shim.pid(), set) & !KILL);
        eventually("the shim gives up the rest", LONG, || (kept() == [0, 0]).then_some(()));
        assert_eq!(capabilities(shim.pid(), "CapInh") | capabilities(shim.pid(), "CapAmb"), 0, "{origin:?}");
        shim.order(b"k");
        assert_eq!(shim.line(), "exited signal 9");
        assert_eq!(shim.swept().2, 0, "{origin:?}");
        assert_eq!(sleepers(&token), [0; 0]);
    }
}

#[test]
fn privilege_set_uid_program_gains_nothing() {
    if !geteuid().is_root() {
        left_out("only root can make a set-uid program of another user");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = dir.path().join("cat");
    crate::common::built::copy_program("/bin/cat", &program);
    fs::set_permissions(&program, fs::Permissions::from_mode(0o6755)).unwrap();
    let program = program.to_str().unwrap();
    for (origin, _) in origins() {
        let mut shim = shim_by(origin, program, &["/proc/self/status"]);
        shim.started();
        let status = shim.output();
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim();
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
            assert_eq!(field(set), NONE, "{set} by {origin:?}");
        }
        let ids: Vec<_> = field("Uid:").split_whitespace().collect();
        assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?} by {origin:?}");
    }
}

#[test]
fn privilege_root_cli_cannot_pass_modes_of_files() {
    if !geteuid().is_root() {
        left_out("only root has something to lose");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("another-users");
    fs::write(&file, "secret").unwrap();
    std::os::unix::fs::chown(&file, Some(65534), Some(65534)).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let file = file.to_str().unwrap();
    let script = format!("cat {file} || echo refused; chown 0 {file} || echo refused; echo end");
    let mut shim = Shim::sh(&[], &script);
    shim.started();
    assert_eq!(shim.output(), "refused\nrefused\nend\n");
}
