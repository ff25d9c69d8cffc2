//! Control requests and interrupts.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use super::harness::{Home, user, user_with_id};

#[test]
fn a_busy_child_answers_pings() {
    let home = Home::new();
    let mut sim = home.start(&[]);
    sim.user("[[sleep:60000]]");
    sim.until(|line| line["subtype"] == "init");
    sim.request("ping", json!({"subtype":"mcp_status"}));
    assert_eq!(
        sim.response("ping"),
        json!({"subtype":"success","request_id":"ping","response":{"mcpServers":[]}})
    );
    sim.request("no", json!({"subtype":"bogus"}));
    assert_eq!(sim.response("no")["error"], "Unsupported control request subtype: bogus");
}

/// An interrupt ends the turn at once and the next one works.
#[test]
fn interrupt_ends_turn_next_turn_works() {
    let home = Home::new();
    let mut sim = home.start(&[]);
    sim.user("[[sleep:60000]]");
    sim.until(|line| line["subtype"] == "init");
    sim.request("i", json!({"subtype":"interrupt"}));
    let lines = sim.until(|line| line["type"] == "result");
    assert_eq!(lines[0]["type"], "control_response", "the answer comes before the result");
    let result = lines.last().unwrap();
    assert_eq!(result["subtype"], "error_during_execution");
    assert_eq!(
        result["errors"],
        json!(["[ede_diagnostic] result_type=user last_content_type=n/a stop_reason=null"])
    );
    sim.request("idle", json!({"subtype":"interrupt"}));
    assert_eq!(sim.response("idle")["subtype"], "success");
    assert_eq!(sim.ask("and now"), "echo 2: and now");
}

/// An interrupt written together with its message hits it.
#[test]
fn interrupt_written_with_message_hits_it() {
    let home = Home::new();
    for _ in 0..20 {
        let mut sim = home.start(&[]);
        let interrupt = json!({"type":"control_request","request_id":"i","request":{"subtype":"interrupt"}});
        sim.raw(format!("{}\n{interrupt}\n", user("quick")).as_bytes());
        assert_eq!(sim.result()["subtype"], "error_during_execution");
    }
}

/// A waiting message survives an interrupt.
#[test]
fn waiting_message_survives_interrupt() {
    let home = Home::new();
    let mut sim = home.start(&[]);
    sim.user("[[sleep:60000]]");
    sim.send(&user_with_id("kept", "k"));
    sim.request("i", json!({"subtype":"interrupt"}));
    assert_eq!(sim.result()["subtype"], "error_during_execution");
    assert_eq!(sim.result()["result"], "echo 2: kept");
}

#[test]
fn models_and_modes_change() {
    let home = Home::new();
    let mut sim = home.start(&["--model", "first"]);
    sim.request("m", json!({"subtype":"set_model","model":"second"}));
    let note = sim.next().unwrap();
    assert_eq!(
        note["message"]["content"],
        "<local-command-stdout>Set model to second</local-command-stdout>"
    );
    sim.request("p", json!({"subtype":"set_permission_mode","mode":"zzz"}));
    assert_eq!(sim.response("p")["response"]["mode"], "zzz", "nothing is checked");
    sim.user("x");
    let lines = sim.until(|line| line["type"] == "result");
    let init = lines.iter().find(|line| line["subtype"] == "init").unwrap();
    assert_eq!((&init["model"], &init["permissionMode"]), (&json!("second"), &json!("zzz")));
    assert!(lines.last().unwrap()["modelUsage"].get("second").is_some());
    sim.request("m", json!({"subtype":"set_model"}));
    sim.user("x");
    assert_eq!(sim.until(|line| line["subtype"] == "init").pop().unwrap()["model"], "first");
}

#[test]
fn a_second_initialize_tells_what_is_pending() {
    let home = Home::new();
    let mut sim = home.start(&[]);
    assert!(sim.initialize().get("pending_permission_requests").is_none());
    assert_eq!(sim.initialize()["pending_permission_requests"], json!([]));
}

#[test]
fn end_session_ends_and_reads_no_more() {
    let home = Home::new();
    let mut sim = home.start(&[]);
    sim.user("[[sleep:60000]]");
    sim.user("waiting");
    sim.request("e", json!({"subtype":"end_session"}));
    sim.user("too late");
    assert_eq!(sim.result()["subtype"], "error_during_execution");
    assert_eq!(sim.result()["result"], "echo 2: waiting");
    assert_eq!(sim.code(), 0);
}

#[test]
fn states_bracket_all_that_waits() {
    let home = Home::new();
    let mut sim = home.start_with(&[], &[("CLAUDE_CODE_EMIT_SESSION_STATE_EVENTS", "1")]);
    sim.raw(format!("{}\n{}\n", user("[[sleep:50]]"), user("waits")).as_bytes());
    let lines = sim.until(|line| line["state"] == "idle");
    let states: Vec<&Value> =
        lines.iter().map(|line| &line["state"]).filter(|state| !state.is_null()).collect();
    assert_eq!(states, ["running", "idle"]);
    assert_eq!(lines.iter().filter(|line| line["type"] == "result").count(), 2);
}

#[test]
fn sigint_interrupts_and_ends() {
    let home = Home::new();
    let mut sim = home.start(&[]);
    sim.user("[[sleep:60000]]");
    sim.until(|line| line["subtype"] == "init");
    sim.signal(Signal::INT);
    assert_eq!(sim.result()["subtype"], "error_during_execution");
    assert_eq!(sim.code(), 1);
    let mut sim = home.start(&[]);
    sim.initialize();
    sim.signal(Signal::INT);
    assert_eq!(sim.code(), 0);
}

#[test]
fn sigterm_in_a_turn_gives_no_result() {
    let home = Home::new();
    let mut sim = home.start(&[]);
    sim.user("[[sleep:60000]]");
    sim.until(|line| line["subtype"] == "init");
    sim.signal(Signal::TERM);
    assert!(sim.next().is_none());
    assert_eq!(sim.code(), 143);
    let mut sim = home.start(&[]);
    sim.initialize();
    sim.signal(Signal::HUP);
    assert_eq!(sim.code(), 129);
}

#[test]
fn retries_are_shown_and_can_be_interrupted() {
    let home = Home::new();
    let mut sim = home.start(&[]);
    sim.user("[[api_retry:3,10]]fine");
    let lines = sim.until(|line| line["type"] == "result");
    assert_eq!(lines.iter().filter(|line| line["subtype"] == "api_retry").count(), 3);
    assert_eq!(lines.last().unwrap()["result"], "echo 1: fine");
    sim.user("[[api_retry:1,60000]]");
    sim.until(|line| line["subtype"] == "api_retry");
    assert!(sim.is_silent(Duration::from_millis(50)));
    sim.request("i", json!({"subtype":"interrupt"}));
    assert_eq!(sim.result()["terminal_reason"], "aborted_streaming");
}

/// The system prompt and the blocks of a message can be asked for.
#[test]
fn system_prompt_and_blocks_are_reported() {
    let home = Home::new();
    let mut sim = home.start(&["--system-prompt", "from the flag"]);
    assert_eq!(sim.ask("[[system]]"), "from the flag");
    sim.request("s", json!({"subtype":"initialize","systemPrompt":"be brief"}));
    sim.response("s");
    assert_eq!(sim.ask("[[system]]"), "be brief");
    let image = json!({"type":"image","source":{"type":"base64","media_type":"image/png","data":"iVBORw0="}});
    let content = json!([{"type":"text","text":"[[blocks]]"}, image]);
    sim.send(&json!({"type":"user","message":{"role":"user","content":content}}));
    assert_eq!(sim.result()["result"], "text image:image/png:8");
    assert_eq!(home.start(&[]).ask("[[system]] [[blocks]]"), "none text");
}
