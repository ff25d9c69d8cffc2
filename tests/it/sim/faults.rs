//! Each way to break, seen from the host.

use std::os::unix::process::ExitStatusExt as _;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use super::harness::{FLAGS, Home, Leftover, Sim, eventually};

const ID: &str = "33333333-3333-4333-8333-333333333333";
const SHORT: Duration = Duration::from_millis(200);

/// All lines until the output ends.
fn rest(sim: &mut Sim) -> Vec<Value> {
    let mut lines = Vec::new();
    while let Some(line) = sim.next_bytes() {
        lines.push(serde_json::from_slice(&line).unwrap_or(Value::Null));
    }
    lines
}

fn kinds(lines: &[Value]) -> Vec<&str> {
    lines.iter().map(|line| line["subtype"].as_str().or(line["type"].as_str()).unwrap_or("?")).collect()
}

#[test]
fn crashes_strike_at_the_configured_point() {
    let home = Home::new();
    let mut sim = home.start(&[]);
    sim.user("[[fault:crash-before]]");
    assert_eq!((rest(&mut sim).len(), sim.code()), (0, 1));

    let mut sim = home.start(&[]);
    sim.user("[[fault:crash-init=3]]");
    assert_eq!((kinds(&rest(&mut sim)), sim.code()), (vec!["init"], 3));

    for (fault, code) in [("crash-mid", 1), ("exit0-mid", 0)] {
        let mut sim = home.start(&["--include-partial-messages"]);
        sim.user(&format!("[[fault:{fault}]][[say:a long enough answer]]"));
        let lines = rest(&mut sim);
        assert!(lines.iter().any(|line| line["event"]["delta"].is_object()), "{fault}");
        assert!(!lines.iter().any(|line| line["type"] == "assistant"), "{fault}");
        assert_eq!(sim.code(), code);
    }
    let mut sim = home.start(&[]);
    sim.user("[[fault:crash-before=kill]]");
    assert_eq!(sim.status().signal(), Some(9));
    let mut sim = home.start(&[]);
    sim.user("[[fault:crash-before=abort]]");
    assert_eq!(sim.status().signal(), Some(6));
}

#[test]
fn a_crash_after_the_result_loses_the_turn() {
    let home = Home::new();
    let mut sim = home.start(&["--session-id", ID]);
    sim.user("[[fault:crash-after]]");
    assert_eq!(sim.result()["subtype"], "success");
    assert_eq!(sim.code(), 1);
    assert!(!home.transcript(ID).exists());
}

/// A fault of the command line or environment strikes every turn.
#[test]
fn fault_by_argument_or_variable_hits_each_turn() {
    let home = Home::new();
    let mut sim = home.start(&["--fault", "crash-init"]);
    sim.user("x");
    assert_eq!(kinds(&rest(&mut sim)), ["init"]);
    let mut sim = home.start_with(&[], &[("PILOTLIGHT_SIM_FAULT", "garbage-line,crash-mid")]);
    sim.user("x");
    assert_eq!(kinds(&rest(&mut sim)), ["init", "?"]);
}

#[test]
fn die_once_lets_the_retry_through() {
    let home = Home::new();
    let text = format!("[[fault:die-once={}]]hello", home.path("died").display());
    let mut sim = home.start(&[]);
    sim.user(&text);
    assert_eq!((rest(&mut sim).len(), sim.code()), (0, 1));
    assert_eq!(home.start(&[]).ask(&text), "echo 1: hello");
}

#[test]
fn starts_fail_as_often_as_asked() {
    let home = Home::new();
    let fault = format!("crash-starts=2:{}", home.path("starts").display());
    for code in [1, 1, 0, 0] {
        assert_eq!(home.run(&[FLAGS, &["--fault", &fault]].concat()).0, code);
    }
    assert_eq!(home.run(&[FLAGS, &["--fault", "exit-at-start=7"]].concat()).0, 7);
}

#[test]
fn a_hung_child_answers_nothing_and_needs_sigkill() {
    let home = Home::new();
    for fault in ["hang", "spin"] {
        let mut sim = home.start(&[]);
        sim.user(&format!("[[fault:{fault}]]"));
        sim.until(|line| line["subtype"] == "init");
        sim.request("ping", json!({"subtype":"mcp_status"}));
        sim.signal(Signal::TERM);
        sim.eof();
        assert!(sim.is_silent(SHORT), "{fault}");
        assert!(sim.child.try_wait().unwrap().is_none(), "{fault}");
        sim.signal(Signal::KILL);
        assert_eq!(sim.status().signal(), Some(9));
    }
}

#[test]
fn a_stopped_child_goes_on_when_continued() {
    let home = Home::new();
    let mut sim = home.start(&[]);
    sim.user("[[fault:stop-self]][[say:back]]");
    let stat = format!("/proc/{}/stat", sim.child.id());
    eventually("the process is stopped", || {
        std::fs::read_to_string(&stat).ok()?.contains(") T ").then_some(())
    });
    sim.signal(Signal::CONT);
    assert_eq!(sim.result()["result"], "back");
}

#[test]
fn a_mute_turn_answers_pings() {
    let home = Home::new();
    let mut sim = home.start(&[]);
    sim.user("[[fault:mute=1500]][[say:late]]");
    sim.request("ping", json!({"subtype":"mcp_status"}));
    let lines = sim.until(|line| line["type"] == "result");
    assert_eq!(kinds(&lines), ["control_response", "init", "assistant", "success"]);
}

#[test]
fn orders_to_end_can_be_ignored() {
    let home = Home::new();
    let mut sim = home.start(&["--fault", "ignore-term", "--fault=ignore-eof"]);
    sim.initialize();
    sim.signal(Signal::TERM);
    sim.signal(Signal::INT);
    assert_eq!(sim.ask("alive?"), "echo 1: alive?");
    sim.eof();
    assert!(sim.is_silent(SHORT));
    assert!(sim.child.try_wait().unwrap().is_none());

    let mut sim = home.start(&[]);
    sim.ask("[[fault:ignore-term]]");
    sim.signal(Signal::TERM);
    assert_eq!(sim.ask("alive?"), "echo 2: alive?");
}

#[test]
fn bad_output_comes_between_good_lines() {
    let home = Home::new();
    for fault in ["garbage-line", "invalid-utf8"] {
        let mut sim = home.start(&[]);
        sim.user(&format!("[[fault:{fault}]]"));
        assert!(sim.next_bytes().unwrap().starts_with(b"{\"type\":\"system\",\"subtype\":\"init\""));
        let bad = sim.next_bytes().unwrap();
        assert!(serde_json::from_slice::<Value>(&bad).is_err(), "{fault}");
        assert_eq!(std::str::from_utf8(&bad).is_err(), fault == "invalid-utf8");
        assert_eq!(sim.result()["subtype"], "success");
    }
    let mut sim = home.start(&[]);
    sim.user("[[fault:long-line=3000000]]");
    sim.next();
    assert_eq!(sim.next_bytes().unwrap().len(), 3_000_000);
    assert_eq!(sim.result()["subtype"], "success");

    let mut sim = home.start(&[]);
    sim.user("[[fault:half-line]]");
    sim.next();
    let half = sim.next_bytes().unwrap();
    assert!(!half.ends_with(b"\n") && half.starts_with(b"{\"type\":\"assistant\""));
    assert_eq!((sim.next_bytes(), sim.code()), (None, 1));
}

#[test]
fn standard_error_is_flooded_by_the_byte() {
    let home = Home::new();
    let mut sim = home.start(&[]);
    assert_eq!(sim.ask("[[fault:stderr-flood=300000]]go on"), "echo 1: go on");
    sim.eof();
    assert_eq!(sim.stderr().len(), 300_000);
}

#[test]
fn a_child_without_output_lives_until_its_input_ends() {
    let home = Home::new();
    let mut sim = home.start(&["--session-id", ID]);
    sim.user("[[fault:close-stdout]]");
    assert_eq!(kinds(&rest(&mut sim)), ["init"]);
    assert!(sim.child.try_wait().unwrap().is_none());
    sim.user("heard all the same");
    eventually("the message is taken", || {
        let text = std::fs::read_to_string(home.transcript(ID)).ok()?;
        text.contains("echo 2: heard all the same").then_some(())
    });
    sim.eof();
    assert_eq!(sim.code(), 0);
}

#[test]
fn a_child_may_stop_reading() {
    let home = Home::new();
    let mut later = home.start(&[]);
    later.ask("[[fault:no-read]]");
    let never = home.start(&["--fault", "no-read"]);
    for mut sim in [later, never] {
        sim.user("hello");
        sim.eof();
        assert!(sim.is_silent(SHORT));
        assert!(sim.child.try_wait().unwrap().is_none());
        sim.signal(Signal::TERM);
        assert_eq!(sim.code(), 143);
    }
}

#[test]
fn process_at_start_is_small() {
    let home = Home::new();
    let mut sim = home.start(&[]);
    let resident = |sim: &Sim| {
        let status = std::fs::read_to_string(format!("/proc/{}/status", sim.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap().to_owned();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
    };
    sim.initialize();
    let before = resident(&sim);
    assert!(before < 24, "{before} MB");
}

#[test]
fn some_processes_outlive_it() {
    let home = Home::new();
    for fault in ["outlive", "outlive-holding-pipes"] {
        let mut sim = home.start(&[]);
        let text = sim.ask(&format!("[[fault:{fault}=300]]"));
        let pids = text.strip_prefix("left behind: ").unwrap().split(' ').map(|pid| pid.parse().unwrap());
        let left: Vec<Leftover> = pids.map(Leftover).collect();
        assert_eq!(left.len(), 3);
        sim.eof();
        assert_eq!(sim.code(), 0);
        if fault == "outlive-holding-pipes" {
            assert!(sim.is_silent(SHORT), "the output stays open");
        } else {
            assert!(sim.next().is_none());
        }
        for process in &left {
            assert!(process.lives(), "{fault}");
            assert_ne!(session_of(&process.0.to_string()), session_of("self"), "{fault}");
        }
        let without_environment = left
            .iter()
            .filter(|p| std::fs::read(format!("/proc/{}/environ", p.0)).unwrap().len() < 100)
            .count();
        assert_eq!(without_environment, 1);
    }
}

/// Read from /proc: inside a PID namespace the leader of our own session may be outside, where getsid(2) says 0.
fn session_of(process: &str) -> String {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    stat.rsplit(") ").next().unwrap().split(' ').nth(3).unwrap().to_owned()
}

#[test]
fn slow_start_delays_the_first_answer() {
    let home = Home::new();
    let mut sim = home.start(&["--fault", "slow-start=1500"]);
    sim.request("r", json!({"subtype":"initialize"}));
    assert!(sim.is_silent(SHORT));
    assert_eq!(sim.response("r")["subtype"], "success");
}

/// A resume can be refused although the conversation exists.
#[test]
fn resume_of_existing_conversation_can_be_refused() {
    let home = Home::new();
    let mut sim = home.start(&["--session-id", ID]);
    sim.ask("hello");
    sim.finish();
    let mut sim = home.start(&["--resume", ID, "--fault", "refuse-resume"]);
    assert_eq!(sim.result()["errors"], json!([format!("No conversation found with session ID: {ID}")]));
    assert_eq!(sim.code(), 1);
    assert_eq!(home.start(&["--resume", ID]).ask("[[recall]]"), "hello");
}
