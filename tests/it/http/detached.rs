//! Turns that go on without their caller: coming back for the rest, what is gone, who has it.

use reqwest::{RequestBuilder, Response};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::common::program::{Answer, Program, Site, message, place};
use crate::common::{SOON, eventually_some};

const DETACH: &str = "[http]\non_disconnect = \"detach\"\nheartbeat = \"200ms\"";

fn back(site: &Site, session: &str, last: Option<&str>) -> RequestBuilder {
    let request = site.session("GET", &format!("{session}/events"), "alice");
    match last {
        Some(last) => request.header("last-event-id", last),
        None => request,
    }
}

/// Sends the request, and hangs up while its turn runs and nothing has come.
async fn hang_up(site: &Site, request: RequestBuilder) {
    let mut cut = JoinSet::new();
    cut.spawn(request.send());
    site.until_busy().await;
    assert!(cut.try_join_next().is_none(), "there was to be nothing yet");
    cut.shutdown().await;
}

/// Reads until what has come contains `text`, and whole events.
async fn read_until(response: &mut Response, text: &str) -> String {
    let mut read = String::new();
    while !read.contains(text) || !read.ends_with("\n\n") {
        let chunk = tokio::time::timeout(SOON, response.chunk()).await.expect("in time").expect("no error");
        read.push_str(std::str::from_utf8(&chunk.expect("not the end")).expect("text"));
    }
    read
}

/// The id and the data of each event.
fn events(body: &str) -> Vec<(String, String)> {
    let frames = body.split_terminator("\n\n").filter(|frame| !frame.starts_with(':'));
    let events = frames.map(|frame| {
        let id = frame.lines().find_map(|line| line.strip_prefix("id: ")).expect("an id").to_owned();
        let data = frame.lines().find_map(|line| line.strip_prefix("data: ")).unwrap_or_default().to_owned();
        (id, data)
    });
    events.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_or_sent_twice_at_the_seam() {
    let place = place();
    let (_program, site) = Program::ready(&place, DETACH).await;
    let body = message("[[deltas:60]][[delay:20]]");
    for (path, body) in [
        ("/v1/messages/keepalive", body.clone()),
        (
            "/v1/messages",
            json!({ "model": "sonnet", "max_tokens": 9, "stream": true, "messages": body["messages"] }),
        ),
        ("/v1/chat/completions", json!({ "model": "sonnet", "stream": true, "messages": body["messages"] })),
    ] {
        let request = site.of("POST", path, "alice").json(&body);
        let mut first = request.send().await.unwrap();
        let session = first.headers()["x-pilotlight-session"].to_str().unwrap().to_owned();
        let mut all = events(&read_until(&mut first, "delta").await);
        drop(first);
        // Twice: the second connection breaks as well.
        let mut second = back(&site, &session, Some(&all.last().unwrap().0)).send().await.unwrap();
        assert_eq!(second.headers()["content-type"], "text/event-stream");
        all.extend(events(&read_until(&mut second, "delta").await));
        drop(second);
        let rest = Answer::of(back(&site, &session, Some(&all.last().unwrap().0))).await;
        all.extend(events(&rest.body));
        let numbers: Vec<u64> =
            all.iter().map(|(id, _)| id.rsplit_once('-').unwrap().1.parse().unwrap()).collect();
        assert_eq!(numbers, (0..numbers.len() as u64).collect::<Vec<_>>(), "{path}");
        // The whole of it, once more, for it has only just ended.
        let again = events(&Answer::of(back(&site, &session, None)).await.body);
        assert_eq!(again, all, "{path}");
        let deltas = all
            .iter()
            .filter(|(_, data)| data.contains("text_delta") || data.contains("\"content\":\""))
            .count();
        assert!(deltas >= 60, "{path}: {deltas}");
        let last = &all.last().unwrap().1;
        assert!(last == "[DONE]" || last.contains("message_stop"), "{last}");
    }
}

/// A caller that waited for the whole answer comes back for it.
#[tokio::test(flavor = "multi_thread")]
async fn detached_document_is_fetched_on_return() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let body = json!({ "model": "sonnet", "max_tokens": 9,
        "messages": [{ "role": "user", "content": "[[sleep:3000]]late" }] });
    let request = site.of("POST", "/v1/messages", "alice").json(&body);
    let request =
        request.header("x-pilotlight-on-disconnect", "detach").header("x-pilotlight-session", "mine");
    hang_up(&site, request).await;
    let whole = Answer::of(back(&site, "mine", None)).await;
    let reply = events(&whole.body);
    let message: Value = serde_json::from_str(&reply[0].1).unwrap();
    assert_eq!(message["content"][0]["text"], "echo 1: late", "{message}");
    assert_eq!(site.metric("turns_total", &["outcome=\"ok\""]).await, 1.0);
}

/// A caller that leaves before the first event comes back for all of it.
#[tokio::test(flavor = "multi_thread")]
async fn detached_stream_is_replayed_on_return() {
    let place = place();
    let (_program, site) = Program::ready(&place, DETACH.split_once("\nheartbeat").unwrap().0).await;
    let messages = json!([{ "role": "user", "content": "[[sleep:3000]]late" }]);
    let body = json!({ "model": "sonnet", "max_tokens": 9, "stream": true, "messages": messages });
    let request = site.of("POST", "/v1/messages", "alice").header("x-pilotlight-session", "mine").json(&body);
    hang_up(&site, request).await;
    let whole = Answer::of(back(&site, "mine", None)).await;
    assert!(whole.body.contains("late") && whole.body.contains("message_stop"), "{whole:?}");
    assert_eq!(site.metric("turns_total", &["outcome=\"ok\""]).await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_takes_the_kept_turn_with_it() {
    let place = place();
    let (_program, site) = Program::ready(&place, DETACH).await;
    assert_eq!(site.turn("alice", "heliotrope").await.status, 200);
    assert!(Answer::of(back(&site, "default", None)).await.body.contains("heliotrope"));
    assert_eq!(Answer::of(site.session("DELETE", "default?purge=true", "alice")).await.status, 200);
    assert_eq!(Answer::of(back(&site, "default", None)).await.error().0, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn unkept_turn_is_reported_as_such() {
    let place = place();
    let (_program, site) =
        Program::ready(&place, "[http]\non_disconnect = \"detach\"\nreplay_bytes = 4096").await;
    let error =
        async |session: &str, last: Option<&str>| Answer::of(back(&site, session, last)).await.error();
    let (status, code, _) = error("default", None).await;
    assert_eq!((status, code.as_str()), (404, "no_kept_turn"));
    let mut running = site.asking("alice", &message("[[deltas:200]][[delay:5]]")).send().await.unwrap();
    let seen = events(&read_until(&mut running, "data").await);
    let first = seen[0].0.clone();
    assert_eq!(error("default", Some("nonsense")).await.0, 400);
    assert_eq!(error("default", Some("0123-4")).await.1, "events_gone");
    drop(running);
    // Without a reader the ring runs over.
    eventually_some("the turn ends", SOON, async || {
        (site.metric("turns_total", &["outcome=\"ok\""]).await == 1.0).then_some(())
    })
    .await;
    let (status, code, text) = error("default", Some(&first)).await;
    assert_eq!((status, code.as_str()), (410, "events_gone"), "{text}");
    assert!(Answer::of(back(&site, "default", None)).await.body.ends_with("[DONE]\n\n"));
    // Another user's turn is nobody's business.
    let other = Answer::of(site.session("GET", "default/events", "bob")).await.error();
    assert_eq!((other.0, other.1.as_str()), (404, "no_kept_turn"));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_detaching_hanging_up_interrupts() {
    let place = place();
    let (_program, site) = Program::ready(&place, DETACH).await;
    let request = site.asking("alice", &message("[[deltas:1000]][[delay:10]]"));
    let mut running = request.header("x-pilotlight-on-disconnect", "interrupt").send().await.unwrap();
    read_until(&mut running, "data").await;
    drop(running);
    eventually_some("the turn is cancelled", SOON, async || {
        (site.metric("turns_total", &["outcome=\"cancelled\""]).await == 1.0).then_some(())
    })
    .await;
    let wrong = site.asking("alice", &message("a")).header("x-pilotlight-on-disconnect", "maybe");
    assert_eq!(Answer::of(wrong).await.error().1, "invalid_header");
}
