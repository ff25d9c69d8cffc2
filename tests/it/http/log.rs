//! What is written to the log: one object to a line if asked for, and every line of a turn says whose request it was.

use serde_json::Value;

use crate::common::SOON;
use crate::common::eventually_some;
use crate::common::program::{Answer, Program, Site, message, place};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

async fn serve(variables: &[(&str, &str)]) -> (Program, Site) {
    let place = place();
    let data = place.data_dir().display().to_string();
    let listen = ["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"];
    let arguments = [&["serve", "--cli", "sim", "--data-dir", &data], listen.as_slice()].concat();
    let mut program = Program::start(&place, &arguments, variables);
    let site = program.listening().await;
    site.ready().await;
    (program, site)
}

/// A turn can be followed through the log and nothing of its user is in it.
#[tokio::test(flavor = "multi_thread")]
async fn log_follows_turn_without_user_data() {
    let (program, site) =
        serve(&[("PILOTLIGHT_LOG", "pilotlight=debug"), ("PILOTLIGHT_LOG_FORMAT", "json")]).await;
    let asked = site
        .asking("alice@example.org", &message("my secret words"))
        .header("x-request-id", "the-request")
        .header("traceparent", format!("00-{TRACE}-00f067aa0ba902b7-01"));
    Answer::of(asked).await.text();
    let said = |line: &Value, what: &str| line["message"] == what;
    let lines = eventually_some("the end of the turn is logged", SOON, async || {
        let lines: Vec<Value> = program
            .err()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}")))
            .collect();
        lines.iter().any(|line| said(line, "the turn has ended")).then_some(lines)
    })
    .await;
    for what in ["the turn is given to its child", "first output", "the turn has ended"] {
        let line = lines.iter().find(|line| said(line, what)).unwrap_or_else(|| panic!("{what}: {lines:#?}"));
        let [request, turn] = ["request", "turn"].map(|name| {
            let spans = line["spans"].as_array().expect("its spans");
            spans.iter().find(|span| span["name"] == name).unwrap_or_else(|| panic!("no {name}: {line}"))
        });
        assert_eq!(
            (&request["request_id"], &request["trace_id"]),
            (&"the-request".into(), &TRACE.into()),
            "{line}"
        );
        assert_eq!((&turn["turn"], &turn["generation"]), (&1.into(), &1.into()), "{line}");
        assert_eq!(turn["session"].as_str().map(str::len), Some(32), "{line}");
    }
    let text = program.err();
    for private in ["alice", "my secret words"] {
        assert!(!text.contains(private), "{private} in {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_form_of_log_is_refused() {
    let place = place();
    let data = place.data_dir().display().to_string();
    let arguments = ["serve", "--cli", "sim", "--data-dir", &data];
    let mut program = Program::start(&place, &arguments, &[("PILOTLIGHT_LOG_FORMAT", "xml")]);
    assert_eq!(program.code().await, Some(2));
    let is_logged = async || program.err().contains("PILOTLIGHT_LOG_FORMAT").then_some(());
    eventually_some("the variable is named", SOON, is_logged).await;
}
