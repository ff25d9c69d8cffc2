//! A key that is revoked ends what it runs, at once and in the words of each dialect.

use futures_util::StreamExt;
use reqwest::Response;
use serde_json::Value;

use crate::common::keyring::Keyring;
use crate::common::program::{Answer, Program, Site, message, place};
use crate::common::{SOON, eventually, eventually_some};

const PATHS: [&str; 4] = ["/v1/messages/keepalive", "/v1/messages", "/v1/chat/completions", "/v1/responses"];

async fn streaming(site: &Site, key: &str, path: &str, headers: &[(&'static str, &str)]) -> Response {
    let mut body = message("[[deltas:2000]] [[delay:50]]");
    (body["model"], body["max_tokens"], body["stream"]) = ("sonnet".into(), 9.into(), true.into());
    body["input"] = body["messages"].clone();
    let request = site.web().post(format!("{}{path}", site.http)).bearer_auth(key).json(&body);
    let request = headers.iter().fold(request, |it, (name, value)| it.header(*name, *value));
    let stream = request.header("x-pilotlight-session", path.replace('/', "_")).send().await.unwrap();
    assert_eq!(stream.status(), 200);
    stream
}

/// The last event of a stream that must end by itself, and whether `[DONE]` came after it.
async fn end_of(stream: Response) -> (Value, bool, String) {
    let mut stream = stream.bytes_stream();
    let mut text = Vec::new();
    let read = async {
        while let Some(piece) = stream.next().await {
            text.extend_from_slice(&piece.expect("it ends and is not cut"));
        }
    };
    tokio::time::timeout(SOON, read).await.expect("the stream ends");
    let text = String::from_utf8(text).unwrap();
    let is_done = text.ends_with("data: [DONE]\n\n");
    let body = text.strip_suffix("data: [DONE]\n\n").unwrap_or(&text);
    let last = body.trim_end().rsplit("\n\n").next().unwrap().to_owned();
    let data = last.lines().find_map(|line| line.strip_prefix("data: ")).unwrap();
    (serde_json::from_str(data).unwrap(), is_done, last)
}

#[tokio::test(flavor = "multi_thread")]
async fn running_streams_end_with_an_error_of_their_dialect() {
    let place = place();
    let ring = Keyring::new(&place);
    let (key, id) = ring.key(&["--user", "alice"]);
    let (other, admin) = (ring.user("bob"), ring.key(&["--admin"]).0);
    let (_program, site) = Program::ready(&place, &ring.config()).await;
    let mut streams = Vec::new();
    for path in PATHS {
        streams.push(streaming(&site, &key, path, &[]).await);
    }
    let page = site.web().get(format!("{}/v1/events/stream", site.http)).bearer_auth(&key);
    let page = page.send().await.unwrap();
    let of_bob = streaming(&site, &other, PATHS[0], &[]).await;
    let mut waiting = tokio::task::JoinSet::new();
    {
        let mut body = message("[[sleep:60000]]");
        body["session_id"] = "a document".into();
        let request = site.web().post(format!("{}/v1/messages", site.http)).bearer_auth(&key);
        body["oauth_credentials"] = serde_json::json!({ "access_token": "a", "refresh_token": "r", "expires_at": 4_102_444_800_000_i64 });
        waiting.spawn(Answer::of(request.json(&body)));
    }
    let all_run = async || (site.metric("sessions", &["state=\"busy\""]).await >= 6.0).then_some(());
    eventually_some("all turns run", SOON, all_run).await;

    assert!(ring.run("revoke", &[&id]).status.success());
    for (stream, path) in streams.into_iter().zip(PATHS) {
        let (event, is_done, frame) = end_of(stream).await;
        assert_eq!(event["error"]["code"], "key_revoked", "{path}: {event}");
        assert_eq!(event["error"]["type"], "authentication_error", "{path}: {event}");
        let has_names = ["/v1/messages", "/v1/responses"].contains(&path);
        assert_eq!(
            (is_done, frame.starts_with("event: error\n")),
            (!has_names, has_names),
            "{path}: {frame}"
        );
    }
    let (event, ..) = end_of(page).await;
    assert_eq!(event["error"]["code"], "key_revoked", "{event}");
    let document = waiting.join_next().await.unwrap().unwrap();
    assert_eq!((document.status, document.error().1.as_str()), (401, "key_revoked"));
    // Their turns were interrupted, those of others go on.
    let only_bobs = async || (site.metric("sessions", &["state=\"busy\""]).await == 1.0).then_some(());
    eventually_some("one turn runs", SOON, only_bobs).await;
    let bobs = site.web().get(format!("{}/v1/pool/stats", site.http)).bearer_auth(&admin);
    assert_eq!(Answer::of(bobs).await.status, 200);
    drop(of_bob);
}

#[tokio::test(flavor = "multi_thread")]
async fn detached_readers_end_and_their_turn_goes_on() {
    let place = place();
    let ring = Keyring::new(&place);
    let (key, id) = ring.key(&["--user", "alice"]);
    let second = ring.user("alice");
    let (_program, site) = Program::ready(&place, &ring.config()).await;
    let detached = streaming(&site, &key, "/v1/messages", &[("x-pilotlight-on-disconnect", "detach")]).await;
    let attach = async |key: &str| {
        let url = format!("{}/v1/sessions/_v1_messages/events", site.http);
        site.web().get(url).bearer_auth(key).send().await.unwrap()
    };
    // The last one to attach has it.
    drop(detached);
    let attached = attach(&key).await;
    assert_eq!(attached.status(), 200);
    assert!(ring.run("revoke", &[&id]).status.success());
    let (event, is_done, frame) = end_of(attached).await;
    assert_eq!((&event["error"]["code"], is_done), (&"key_revoked".into(), false), "{frame}");
    assert!(frame.starts_with("event: error\n"), "{frame}");
    let again = attach(&second).await;
    assert_eq!(again.status(), 200, "the user's other key finds the turn");
    assert!(again.bytes_stream().next().await.unwrap().is_ok());
    let runs = async || (site.metric("sessions", &["state=\"busy\""]).await == 1.0).then_some(());
    eventually_some("the turn runs on", SOON, runs).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_stays_in_the_file_ends_nothing() {
    let place = place();
    let ring = Keyring::new(&place);
    let (key, _) = ring.key(&["--user", "alice"]);
    let (program, site) = Program::ready(&place, &ring.config()).await;
    let mut body = message("[[say:to the end]] [[slow:150]]");
    body["stream"] = true.into();
    let stream = site.post().bearer_auth(&key).json(&body).send().await.unwrap();
    ring.user("bob");
    eventually("the file is read again", SOON, || program.err().contains("was read again")).await;
    let whole = stream.text().await.unwrap();
    assert!(whole.contains("to the end") && !whole.contains("key_revoked"), "{whole}");
}
