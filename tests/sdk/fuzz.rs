//! Requests made up from the service's own description of itself, by schemathesis: whatever they ask, no answer is a
//! failure of the server, and no child dies of them.

use std::time::Duration;

use crate::common::program::{Program, place};
use crate::python::{Age, finished, package_of, python};

/// Made up for each operation, in each of the phases that make up requests.
const EXAMPLES: &str = "30";
/// What all of them may take. Few of them reach a child, and each conversation of those starts one.
const SECONDS: &str = "60";
/// More than that: the last request is waited for.
const RUNS_WITHIN: Duration = Duration::from_secs(180);
/// The same requests every time: a failure can be looked into.
const SEED: &str = "1";

/// No failure of the server, and every answer is one that the description knows. What the description cannot say (which
/// of two names wins, what a proper name of a model is) is not held against the service.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,\
                      response_schema_conformance,unsupported_method,allow_header_conformance";

/// With more workers than one its own machinery fails now and then on Python 3.11.
const OPTIONS: &str = "--phases examples,coverage,fuzzing --workers 1 --request-timeout 20 --continue-on-failure \
                       --no-shrink --generation-database none --suppress-health-check all --no-color";

/// Requests made up from the description break nothing.
#[tokio::test(flavor = "multi_thread")]
async fn generated_requests_break_nothing() {
    let Some(package) = package_of("schemathesis", Age::Current) else { return };
    let place = place();
    // Nearly each turn that is made up starts a conversation; their children are not to pile up.
    let config = "[session]\nturn_timeout = \"5s\"\nidle_timeout = \"500ms\"\n\
                  [mcp.servers.files]\ncommand = \"true\"\n[mcp.servers.search]\ncommand = \"true\"\n";
    let (_program, site) = Program::ready(&place, config).await;
    assert_eq!(site.turn("alice", "hello").await.text(), "echo 1: hello");

    let mut command = python(&place, &package);
    command.arg(package.join("bin/schemathesis")).arg("run").arg(format!("{}/openapi.json", site.http));
    command.args(["--checks", CHECKS, "--header", "x-pilotlight-user: mallory", "--max-examples", EXAMPLES]);
    command.args(["--max-time", SECONDS, "--seed", SEED]);
    command.args(OPTIONS.split_whitespace());
    let (is_good, written) = finished(command, &place, RUNS_WITHIN).await;
    println!("{written}");
    assert!(is_good, "schemathesis has found something");

    let turns = site.metric("turns_total", &["outcome=\"ok\""]).await;
    assert!(turns > 20.0, "only {turns} turns reached a child");
    for reason in ["crash", "signal", "oom", "hang", "protocol"] {
        let deaths = site.metric("exits_total", &[&format!("reason=\"{reason}\"")]).await;
        assert!(deaths == 0.0, "{deaths} children have died: {reason}");
    }
    assert_eq!(site.metric("actor_panics_total", &[]).await, 0.0);
    // By another child, for the first had nothing to do.
    assert_eq!(site.turn("alice", "still").await.text(), "echo 2: still");
}
