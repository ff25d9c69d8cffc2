//! A frozen tree stands still, is thawed by every order but a kill, and never outlives its server.

use super::*;

/// A CLI that repeats its input and has a family.
fn echo(token: &str) -> String {
    format!("{} while read line; do echo $line; done", escape_artists(token))
}

/// Whether a process is stopped, or in a cgroup that is frozen.
fn stands_still(shim: &Shim, pid: i32) -> bool {
    let state = status_field(Pid::from_raw(pid).unwrap(), "State").unwrap_or_default();
    let events = shim.cgroup.as_ref().and_then(|dir| fs::read_to_string(dir.join("cgroup.events")).ok());
    state.starts_with('T') || events.is_some_and(|events| events.contains("frozen 1"))
}

/// A frozen shim, its CLI and the token of its family of five.
fn frozen(options: &[&str], script: impl Fn(&str) -> String) -> (Shim, Pid, String) {
    let token = token();
    let mut shim = Shim::sh(options, &script(&token));
    let cli = shim.started();
    wait_for_sleepers(&token, 5);
    shim.order(b"f");
    let family = || sleepers(&token).into_iter().chain([cli.as_raw_pid()]);
    eventually("all of the tree stands still", LONG, || {
        family().all(|pid| stands_still(&shim, pid)).then_some(())
    });
    (shim, cli, token)
}

#[test]
fn frozen_tree_runs_again_after_a_thaw() {
    on_each_rung(|_, options| {
        let (mut shim, cli, token) = frozen(options, echo);
        shim.input.write_all(b"written while frozen\n").unwrap();
        assert!(stands_still(&shim, cli.as_raw_pid()));
        shim.order(b"c");
        assert_eq!(shim.output_line(), "written while frozen");
        // The CLI may write before the last of its tree was thawed.
        eventually("all of the tree runs again", LONG, || {
            sleepers(&token).into_iter().all(|pid| !stands_still(&shim, pid)).then_some(())
        });
        // A second thaw does nothing.
        shim.order(b"c");
        shim.input.write_all(b"again\n").unwrap();
        assert_eq!(shim.output_line(), "again");
        shim.order(b"k");
        assert_eq!(shim.line(), "exited signal 9");
        assert_eq!(shim.ended(LONG).code(), Some(0));
    });
}

#[test]
fn terminate_thaws_a_frozen_tree() {
    on_each_rung(|_, options| {
        let script =
            |token: &str| format!("trap 'echo flushed; exit 3' TERM; {} wait", escape_artists(token));
        let (mut shim, ..) = frozen(options, script);
        shim.order(b"t");
        assert_eq!(shim.output_line(), "flushed");
        assert_eq!(shim.line(), "exited code 3");
        assert_eq!(shim.ended(LONG).code(), Some(0));
    });
}

#[test]
fn frozen_tree_is_killed() {
    on_each_rung(|_, options| {
        let (mut shim, _, token) = frozen(options, echo);
        shim.order(b"k");
        assert_eq!(shim.line(), "exited signal 9");
        assert_eq!(shim.ended(PROMISE).code(), Some(0));
        assert_eq!(sleepers(&token), [0; 0]);
    });
}

#[test]
fn frozen_tree_ends_with_its_lifeline() {
    on_each_rung(|_, options| {
        let (mut shim, _, token) = frozen(options, echo);
        shim.break_lifeline();
        assert_eq!(shim.ended(PROMISE).code(), Some(0));
        assert_eq!(sleepers(&token), [0; 0]);
    });
}
