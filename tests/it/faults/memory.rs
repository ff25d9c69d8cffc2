//! Trees that take more memory than a session may.

use super::*;

/// A tool that holds this number of MiB and then waits, in the words of the simulation.
fn hog(mebibytes: u32) -> String {
    let command = format!("head -c {mebibytes}m /dev/zero | tail -c {mebibytes}m | sleep 60");
    format!("[[tool:Bash {}]]", json!({ "command": command }))
}

fn config(limits: &str) -> String {
    format!(
        "permissions = {{ policy = \"allow\" }}\nmetrics = {{ sample_interval = \"500ms\" }}\n\
         session = {{ idle_timeout = \"10s\" }}\nlimits = {{ {limits} }}"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_24_memory_hog_ends_alone_and_goes_on() {
    // The default limit of a session, 768 MiB; with the hog, the budget is as good as used up.
    let attack = Attack::with(&config("memory_budget = \"1600MiB\"")).await;
    attack.say("hello").await;
    let site = attack.site.clone();
    let hogging = tokio::spawn(async move { Reply::of(&site.turn(MALLORY, &hog(1500)).await) });
    attack.note_turn();
    let mut newcomers = 0;
    while !hogging.is_finished() {
        newcomers += 1;
        let answer = attack.turn_of(&format!("newcomer {newcomers}"), "hello").await;
        assert_eq!(answer.text(), "echo 1: hello", "after {newcomers}");
    }
    let reply = hogging.await.unwrap();
    assert_eq!(reply.code(), "memory_limit", "{reply:?}");
    assert!(reply.message().contains("limits.memory_per_session"), "{}", reply.message());
    assert!(newcomers > 0);
    // Before it leaves memory.
    let entry = Answer::of(attack.site.session("GET", "default", MALLORY)).await.json();
    assert_eq!(entry["last_exit"]["reason"], "memory_limit", "{entry}");
    assert_eq!(attack.site.metric("exits_total", &["reason=\"memory_limit\""]).await, 1.0);
    assert_eq!(attack.site.metric("turns_total", &["outcome=\"memory_limit\""]).await, 1.0);
    let next = attack.turn("again").await;
    assert!(next.text().ends_with(": again"), "{next:?}");
    assert!(next.events.iter().all(|event| event["subtype"] != "context_lost"), "{next:?}");
    attack.over().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_repeated_hogs_open_no_circuit() {
    let attack = Attack::with(&config("memory_per_session = \"200MiB\"")).await;
    for round in 0..7 {
        assert_eq!(attack.turn(&hog(300)).await.code(), "memory_limit", "{round}");
    }
    attack.say("again").await;
    assert_eq!(attack.site.metric("restarts_total", &[]).await, 0.0);
    assert_eq!(attack.site.metric("crash_loops_total", &[]).await, 0.0);

    // The same in the documents of the SDKs.
    let body = json!({ "model": "sonnet", "max_tokens": 100, "messages": [{ "role": "user", "content": hog(300) }] });
    for path in ["/v1/messages", "/v1/chat/completions"] {
        attack.note_turn();
        let answer = Answer::of(attack.site.of("POST", path, MALLORY).json(&body)).await;
        assert_eq!(answer.status, 422, "{path}: {answer:?}");
        assert_eq!(answer.json()["error"]["code"], "memory_limit", "{path}");
        assert_eq!(answer.header("x-should-retry"), "false");
    }
    attack.over().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_hog_between_turns_ends_the_idle_child() {
    let attack = Attack::with(&config("memory_per_session = \"200MiB\"")).await;
    let command = "(sleep 0.5; head -c 300m /dev/zero | tail -c 300m | sleep 60) >/dev/null 2>&1 &";
    attack.say(&format!("[[tool:Bash {}]]", json!({ "command": command }))).await;
    let count = async || attack.site.metric("exits_total", &["reason=\"memory_limit\""]).await;
    let ended = async || (count().await == 1.0).then_some(());
    eventually_some("the child is ended", SOON, ended).await;
    assert_eq!(attack.site.metric("restarts_total", &[]).await, 0.0);
    attack.say("again").await;
    attack.over().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_pages_shared_by_forks_count_once() {
    if !std::path::Path::new("/usr/bin/perl").exists() {
        return crate::common::installed::left_out("no perl to fork with");
    }
    let attack = Attack::with(&config("memory_per_session = \"400MiB\"")).await;
    // Five processes that each show 150 MiB, which are the same ones.
    let script = "my $x = 'x' x (75 << 20); my $y = $x; for (1..4) { last unless fork } sleep 4";
    let command = format!("perl -e \"{script}\"").replace('$', "\\$");
    assert!(attack.turn(&format!("[[tool:Bash {}]]", json!({ "command": command }))).await.error.is_none());
    assert_eq!(attack.site.metric("exits_total", &["reason=\"memory_limit\""]).await, 0.0);
    attack.over().await;
}
