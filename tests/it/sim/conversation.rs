//! Conversations: context, transcripts, resume, refusals, exit codes.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::harness::{DEADLINE, FLAGS, Home, eventually, user, user_with_id};

const ID: &str = "11111111-1111-4111-8111-111111111111";

#[test]
fn a_non_blocking_socket_serves_as_input_and_output() {
    let home = Home::new();
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    let output = OwnedFd::from(theirs.try_clone().unwrap());
    let mut command = home.command(FLAGS);
    command.stdin(OwnedFd::from(theirs)).stdout(output);
    let mut child = command.spawn().unwrap();
    // The command holds the other end, too: without it the output would never end.
    drop(command);
    ours.set_read_timeout(Some(DEADLINE)).unwrap();
    (&ours).write_all(format!("{}\n", user("[[bytes:2000000]]")).as_bytes()).unwrap();
    ours.shutdown(Shutdown::Write).unwrap();
    let lines: Vec<String> = BufReader::new(&ours).lines().map(|line| line.unwrap()).collect();
    assert_eq!(lines.len(), 3);
    assert!(lines[2].len() > 2_000_000);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn nothing_comes_before_the_first_line() {
    let home = Home::new();
    let mut sim = home.start(&[]);
    assert!(sim.is_silent(Duration::from_millis(200)));
    assert_eq!(sim.initialize()["subtype"], "success");
    let (rest, code) = sim.finish();
    assert_eq!((rest.len(), code), (0, 0));
}

#[test]
fn lines_are_compact_and_begin_with_their_type() {
    let home = Home::new();
    let mut sim = home.start(&[]);
    sim.user("hello");
    let line = sim.next_bytes().unwrap();
    assert!(line.starts_with(br#"{"type":"system","subtype":"init","cwd":""#));
}

#[test]
fn the_conversation_is_kept_also_over_a_resume() {
    let home = Home::new();
    let mut sim = home.start(&["--session-id", ID]);
    assert_eq!(sim.ask("one"), "echo 1: one");
    sim.request("m", json!({"subtype":"set_model","model":"other-model"}));
    assert_eq!(sim.ask("two"), "echo 2: two");
    assert_eq!(sim.finish().1, 0);

    let mut sim = home.start(&["--resume", ID]);
    sim.user("three");
    let lines = sim.until(|line| line["type"] == "result");
    assert_eq!(lines[0]["model"], "other-model");
    let result = lines.last().unwrap();
    assert_eq!(result["result"], "echo 3: three");
    assert_eq!(result["session_id"], ID);
    assert!(result["total_cost_usd"].as_f64().unwrap() < 0.001, "the cost starts over");
    assert_eq!(sim.ask("[[recall]]"), "one | two | three");
}

#[test]
fn the_cost_is_that_of_the_process() {
    let home = Home::new();
    let mut sim = home.start(&[]);
    let mut costs = Vec::new();
    for _ in 0..2 {
        sim.user("[[usage:1000,1000]]");
        let result = sim.result();
        assert_eq!(result["usage"]["output_tokens"], 1000);
        costs.push(result["total_cost_usd"].as_f64().unwrap());
    }
    assert!((costs[0] - 0.03).abs() < 1e-9 && (costs[1] - 0.06).abs() < 1e-9, "{costs:?}");
}

#[test]
fn the_transcript_is_where_the_real_one_puts_it() {
    let home = Home::new();
    let mut sim = home.start(&["--session-id", ID]);
    sim.user("hello");
    let lines = sim.until(|line| line["type"] == "result");
    let answer = lines.iter().find(|line| line["type"] == "assistant").unwrap();
    assert_eq!(sim.finish().1, 0);
    let file = home.transcript(ID);
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let text = std::fs::read_to_string(file).unwrap();
    let entries: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let entry = entries.iter().find(|entry| entry["type"] == "assistant").unwrap();
    assert_eq!(entry["uuid"], answer["uuid"]);
    assert_eq!(entry["sessionId"], ID);
    assert_eq!(entry["message"]["content"], answer["message"]["content"]);
}

#[test]
fn the_config_dir_may_be_elsewhere() {
    let home = Home::new();
    let config = home.path("config");
    let mut sim = home.start_with(&["--session-id", ID], &[("CLAUDE_CONFIG_DIR", config.to_str().unwrap())]);
    sim.ask("hello");
    sim.finish();
    assert!(config.join("projects").is_dir() && !home.projects().exists());
}

#[test]
fn the_transcript_is_written_late() {
    let home = Home::new();
    let mut sim = home.start(&["--session-id", ID]);
    sim.initialize();
    let before = Instant::now();
    sim.ask("hello");
    eventually("the transcript appears", || home.transcript(ID).exists().then_some(()));
    assert!(before.elapsed() >= Duration::from_millis(95), "{:?}", before.elapsed());
}

#[test]
fn sigkill_right_after_the_result_loses_the_turn() {
    // The lateness is a tenth of a second: on a busy machine this test may come too late for it, but not always.
    let lost = (0..20).any(|_| {
        let home = Home::new();
        let mut sim = home.start(&["--session-id", ID]);
        sim.ask("lost");
        sim.signal(Signal::KILL);
        sim.status();
        let lost = !home.transcript(ID).exists();
        if lost {
            // Thus the id is still free.
            assert_eq!(home.start(&["--session-id", ID]).ask("again"), "echo 1: again");
        }
        lost
    });
    assert!(lost, "written too early");
}

#[test]
fn after_sigterm_nothing_is_lost() {
    let home = Home::new();
    let mut sim = home.start(&["--session-id", ID]);
    sim.ask("kept");
    sim.signal(Signal::TERM);
    assert_eq!(sim.code(), 143);
    let mut sim = home.start(&["--resume", ID]);
    assert_eq!(sim.ask("[[recall]]"), "kept");
}

#[test]
fn the_prompt_of_a_killed_turn_is_kept() {
    let home = Home::new();
    let mut sim = home.start(&["--session-id", ID]);
    sim.user("unanswered [[sleep:60000]]");
    let has_prompt =
        || std::fs::read_to_string(home.transcript(ID)).is_ok_and(|text| text.contains("unanswered"));
    eventually("the transcript has the prompt in mid-turn", || has_prompt().then_some(()));
    sim.signal(Signal::KILL);
    sim.status();
    let mut file = std::fs::OpenOptions::new().append(true).open(home.transcript(ID)).unwrap();
    file.write_all(br#"{"type":"user","uuid":"cut","mess"#).unwrap();

    let mut sim = home.start(&["--resume", ID]);
    assert_eq!(sim.ask("[[recall]]"), "unanswered [[sleep:60000]]");
}

#[test]
fn a_repeated_uuid_is_dropped_also_after_a_resume() {
    let home = Home::new();
    let mut sim = home.start(&["--session-id", ID]);
    sim.send(&user_with_id("first", "u-1"));
    sim.result();
    sim.send(&user_with_id("again", "u-1"));
    assert_eq!(sim.ask("next"), "echo 2: next");
    sim.finish();
    let mut sim = home.start(&["--resume", ID]);
    sim.send(&user_with_id("again", "u-1"));
    assert_eq!(sim.ask("[[recall]]"), "first | next");
}

/// Only what exists is resumed and only what does not is new.
#[test]
fn resume_needs_existing_new_needs_unused_id() {
    let home = Home::new();
    let mut sim = home.start(&["--resume", ID]);
    sim.request("r", json!({"subtype":"initialize"}));
    let line = sim.next().unwrap();
    assert_eq!((&line["type"], &line["subtype"]), (&json!("result"), &json!("error_during_execution")));
    let text = format!("No conversation found with session ID: {ID}");
    assert_eq!(line["errors"], json!([text]));
    assert!(sim.next().is_none(), "no control response");
    assert_eq!(sim.code(), 1);
    assert_eq!(sim.stderr(), format!("{text}\n"));

    let mut sim = home.start(&["--session-id", ID]);
    sim.ask("now it exists");
    sim.finish();
    let (code, out, error) = home.run(&[FLAGS, &["--session-id", ID]].concat());
    assert_eq!((code, out.as_str()), (1, ""));
    assert_eq!(error, format!("Error: Session ID {ID} is already in use.\n"));

    std::fs::write(home.transcript(ID), "garbage\n").unwrap();
    assert_eq!(home.run(&[FLAGS, &["--resume", ID]].concat()).0, 1, "garbage is no conversation");
}

#[test]
fn bad_command_lines_are_refused() {
    let home = Home::new();
    let cases: &[(&[&str], &str)] = &[
        (&["--bogus"], "error: unknown option '--bogus'"),
        (&["--session-id", "abc"], "Error: Invalid session ID. Must be a valid UUID."),
        (&["--session-id"], "error: option '--session-id <uuid>' argument missing"),
        (
            &["--resume", ID, "--session-id", ID],
            "Error: --session-id can only be used with --continue or --resume if --fork-session is also specified.",
        ),
        (&["--fault", "nonsense"], "error: unknown fault 'nonsense'"),
    ];
    for (flags, text) in cases {
        let (code, out, error) = home.run(&[FLAGS, flags].concat());
        assert_eq!((code, out.as_str(), error.as_str()), (1, "", format!("{text}\n").as_str()), "{flags:?}");
    }
    let without_verbose = &["-p", "--input-format=stream-json", "--output-format=stream-json"];
    let (code, _, error) = home.run(without_verbose);
    assert_eq!(code, 1);
    assert_eq!(error, "Error: When using --print, --output-format=stream-json requires --verbose\n");
}

#[test]
fn all_the_usual_flags_are_accepted() {
    let home = Home::new();
    let flags = [
        "--model=m",
        "--fallback-model",
        "f",
        "--system-prompt",
        "-",
        "--append-system-prompt=x",
        "--tools",
        "",
        "--setting-sources",
        "",
        "--strict-mcp-config",
        "--disable-slash-commands",
        "--allowedTools",
        "Read",
        "Bash",
        "--disallowedTools",
        "Write",
        "--settings",
        "{}",
        "--add-dir",
        "/tmp",
        "--permission-mode",
        "plan",
        "--mcp-config",
        r#"{"mcpServers":{"s":{"command":"x"}}}"#,
    ];
    let mut sim = home.start(&flags);
    sim.user("x");
    let init = sim.next().unwrap();
    assert_eq!(
        (&init["model"], &init["permissionMode"], &init["tools"]),
        (&json!("m"), &json!("plan"), &json!([]))
    );
    assert_eq!(init["mcp_servers"][0]["name"], "s");
}

#[test]
fn version_and_help_are_printed() {
    let home = Home::new();
    assert_eq!(home.run(&["--version"]), (0, "2.1.197 (pilotlight sim)\n".into(), String::new()));
    let (code, help, _) = home.run(&["--help"]);
    assert_eq!(code, 0);
    for word in
        ["[[recall]]", "[[tool:", "[[background:", "crash-mid", "outlive", "crash-starts", "--latency"]
    {
        assert!(help.contains(word), "{word}");
    }
}

#[test]
fn a_bad_line_is_deadly() {
    let home = Home::new();
    for line in ["{bad", "   ", "null", r#"{"type":"user"}"#, r#"{"type":"control_request"}"#] {
        let mut sim = home.start(&[]);
        sim.raw(format!("{line}\n").as_bytes());
        assert_eq!(sim.code(), 1, "{line}");
        assert!(sim.stderr().starts_with(&format!("Error parsing streaming input line: {line}: ")));
    }
    let mut sim = home.start(&[]);
    sim.send(&json!({"type":"user","message":{"role":"assistant","content":"x"}}));
    assert_eq!(
        (sim.code(), sim.stderr()),
        (1, "Error: Expected message role 'user', got 'assistant'\n".into())
    );
    let mut sim = home.start(&[]);
    sim.send(&json!({"type":"user","message":{"role":"user","content":5}}));
    assert_eq!((sim.code(), sim.stderr()), (1, String::new()));
}

#[test]
fn other_nonsense_is_ignored() {
    let home = Home::new();
    let mut sim = home.start(&[]);
    sim.raw(
        b"\n\r\n[1]\n3\n{}\n{\"type\":\"keep_alive\"}\n{\"type\":\"control_response\",\"response\":{}}\n",
    );
    sim.raw(b"{\"type\":\"user\",\"message\":{\"role\":\"user\",\"content\":\"x\"}}\r\n");
    assert_eq!(sim.result()["result"], "echo 1: x");
}

#[test]
fn the_exit_code_is_that_of_the_last_turn() {
    let home = Home::new();
    let mut sim = home.start(&[]);
    sim.user("[[api_error:529]]");
    let result = sim.result();
    assert_eq!((&result["is_error"], &result["api_error_status"]), (&json!(true), &Value::Null));
    assert_eq!(sim.finish().1, 1);
    let mut sim = home.start(&[]);
    sim.user("[[api_error:500]]");
    assert_eq!(sim.result()["api_error_status"], 500);
    assert_eq!(sim.ask("still here"), "echo 2: still here");
    assert_eq!(sim.finish().1, 0);
}

#[test]
fn the_end_of_input_waits_for_the_turn() {
    let home = Home::new();
    let mut sim = home.start(&[]);
    sim.user("[[sleep:150]][[say:late]]");
    let (lines, code) = sim.finish();
    assert_eq!((&lines.last().unwrap()["result"], code), (&json!("late"), 0));
}

#[test]
fn messages_of_a_busy_time_make_one_turn() {
    let home = Home::new();
    let mut sim = home.start(&[]);
    sim.raw(format!("{}\n{}\n{}\n", user("[[sleep:50]]"), user("a"), user("b")).as_bytes());
    sim.result();
    assert_eq!(sim.result()["result"], "echo 2: a\nb");
    let (rest, _) = sim.finish();
    assert!(rest.is_empty(), "{rest:?}");
}

#[test]
fn slash_commands_live_unless_switched_off() {
    let home = Home::new();
    let mut sim = home.start(&["--session-id", ID]);
    sim.ask("before");
    sim.user("/clear");
    let result = sim.result();
    let new = result["session_id"].as_str().unwrap().to_owned();
    assert_ne!(new, ID);
    assert_eq!(result["num_turns"], 0);
    assert_eq!(sim.ask("after"), "echo 1: after");
    assert_eq!(sim.ask("/nosuch"), "Unknown command: /nosuch");
    assert_eq!(sim.ask(" /clear"), "echo 2: /clear", "a leading blank makes it plain text");
    sim.finish();
    let mut sim = home.start(&["--resume", ID, "--disable-slash-commands"]);
    assert_eq!(sim.ask("[[recall]]"), "before");
    assert_eq!(sim.ask("/clear"), "/clear isn't available in this environment.");
    assert_eq!(sim.ask("[[recall]]"), "before | [[recall]]");
}

#[test]
fn a_message_may_only_be_remembered() {
    let home = Home::new();
    let mut sim = home.start(&[]);
    let mut quiet = user("remember me");
    quiet["shouldQuery"] = json!(false);
    sim.send(&quiet);
    assert_eq!(sim.result()["num_turns"], 0);
    assert_eq!(sim.ask("[[recall]]"), "remember me");
}

#[test]
fn markers_answer_what_is_asked() {
    let home = Home::new();
    let mut sim = home.start_with(&["--include-partial-messages"], &[("SIM_TEST", "value")]);
    assert_eq!(sim.ask("[[env:SIM_TEST]]"), "value");
    assert_eq!(sim.ask("[[pid]]"), sim.child.id().to_string());
    assert_eq!(sim.ask("[[bytes:3000000]]").len(), 3_000_000);
    sim.user("[[deltas:250]]");
    let lines = sim.until(|line| line["type"] == "result");
    let texts: Vec<&str> = lines.iter().filter_map(|line| line["event"]["delta"]["text"].as_str()).collect();
    assert_eq!(texts.len(), 250);
    assert_eq!(texts.concat(), lines.last().unwrap()["result"].as_str().unwrap());
}

#[test]
fn a_fallback_cuts_the_deltas() {
    let home = Home::new();
    let mut sim = home.start(&["--include-partial-messages"]);
    sim.user("[[fallback]][[say:one two three four five]]");
    let lines = sim.until(|line| line["type"] == "result");
    let texts: String = lines.iter().filter_map(|line| line["event"]["delta"]["text"].as_str()).collect();
    assert!("one two three four five".starts_with(&texts) && texts.len() < 20, "{texts}");
    assert_eq!(lines.last().unwrap()["result"], "one two three four five");
    assert_eq!(lines.last().unwrap()["usage"]["output_tokens"], 0);
}
