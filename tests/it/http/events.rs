//! Session events reach the callers that may see the session, and no others.

use futures_util::StreamExt;
use reqwest::{RequestBuilder, StatusCode};
use rustix::process::Signal;
use serde_json::Value;
use tokio::time::timeout;

use crate::common::SOON;
use crate::common::keyring::Keyring;
use crate::common::program::{Answer, Program, Site, message, place};
use crate::common::sse::{Frame, Reader};

/// An event stream.
pub(super) struct Watching {
    answer: futures_util::stream::BoxStream<'static, Vec<u8>>,
    reader: Reader,
    ready: Vec<Value>,
    comments: usize,
}

impl Watching {
    async fn of(request: RequestBuilder) -> Self {
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(answer.headers()["content-type"], "text/event-stream");
        assert_eq!(answer.headers()["cache-control"], "no-store");
        let answer = answer.bytes_stream().map(|piece| piece.unwrap().to_vec()).boxed();
        Self { answer, reader: Reader::default(), ready: Vec::new(), comments: 0 }
    }

    pub(super) async fn all(site: &Site) -> Self {
        Self::of(site.web().get(format!("{}/v1/events/stream", site.http))).await
    }

    /// The next; nothing at the end.
    async fn next(&mut self) -> Option<Value> {
        while self.ready.is_empty() {
            self.read().await?;
        }
        Some(self.ready.remove(0))
    }

    /// Waits for a sign of life.
    async fn beat(&mut self) {
        self.comments = 0;
        while self.comments == 0 {
            self.read().await.expect("the stream goes on");
        }
    }

    async fn read(&mut self) -> Option<()> {
        let piece = timeout(SOON, self.answer.next()).await.expect("the stream is not silent")?;
        for frame in self.reader.push(&piece) {
            match frame {
                Frame::Event(event) => self.ready.push(event),
                Frame::Comment(_) => self.comments += 1,
                Frame::Done => panic!("an event stream has no [DONE]"),
            }
        }
        Some(())
    }

    /// The kinds up to the first of this kind, and that one itself.
    pub(super) async fn until(&mut self, kind: &str) -> (Vec<String>, Value) {
        let mut kinds = Vec::new();
        loop {
            let event = self.next().await.unwrap_or_else(|| panic!("no {kind} after {kinds:?}"));
            // A child that is killed at once may not have written all of its conversation yet.
            if event["type"] != "recovered" {
                kinds.push(event["type"].as_str().unwrap().to_owned());
            }
            if event["type"] == kind {
                return (kinds, event);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_follow_a_sessions_life() {
    let place = place();
    let (_program, site) = Program::ready(&place, "[restart]\nretry_turn = false").await;
    let mut watching = Watching::all(&site).await;
    let hello = watching.next().await.unwrap();
    assert_eq!((&hello["type"], &hello["sees"]), (&"hello".into(), &"all".into()));
    assert_eq!(hello["speaks_for"], "anybody");
    site.turn("al ice", "hello").await.text();
    let (kinds, ended) = watching.until("turn_ended").await;
    assert_eq!(kinds, ["started", "ready", "turn_ended"]);
    assert_eq!(
        (&ended["outcome"], &ended["session"], &ended["user"]),
        (&"ok".into(), &"default".into(), &"al%20ice".into())
    );
    assert!(ended["took_seconds"].as_f64().unwrap() > 0.0 && ended["at"].as_f64().unwrap() > 1.6e9);

    let pid = site.session("GET", "default", "al ice");
    let pid = Answer::of(pid).await.json()["pid"].as_i64().unwrap();
    let pid = rustix::process::Pid::from_raw(pid.try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, Signal::KILL).unwrap();
    let (kinds, crashed) = watching.until("crashed").await;
    assert_eq!(
        (kinds.len(), &crashed["reason"], &crashed["detail"]),
        (1, &"signal".into(), &"signal 9".into())
    );
    let (kinds, restarted) = watching.until("ready").await;
    assert_eq!(kinds, ["restarted", "started", "ready"]);
    assert!(restarted["took_seconds"].is_number());
    let entry = Answer::of(site.session("GET", "default", "al ice")).await.json();
    assert_eq!(
        (&entry["last_exit"]["reason"], &entry["last_exit"]["detail"]),
        (&"signal".into(), &"signal 9".into())
    );

    assert_eq!(Answer::of(site.session("DELETE", "default", "al ice")).await.status, 200);
    let (kinds, evicted) = watching.until("evicted").await;
    assert_eq!((kinds.len(), &evicted["reason"]), (1, &"admin".into()));
    let entry = Answer::of(site.session("GET", "default", "al ice")).await.json();
    assert_eq!(entry["last_exit"]["reason"], "evicted");

    // A later stream repeats the same events.
    let (kinds, _) = Watching::all(&site).await.until("evicted").await;
    let expected =
        ["hello", "started", "ready", "turn_ended", "crashed", "restarted", "started", "ready", "evicted"];
    assert_eq!(kinds, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_other_users_are_hidden() {
    let place = place();
    let ring = Keyring::new(&place);
    let (alice, bob) = (ring.user("alice"), ring.user("bob"));
    let (service, admin) = (ring.key(&["--service"]).0, ring.key(&["--admin"]).0);
    let (_program, site) = Program::ready(&place, &ring.config()).await;
    let watch = |key: &str, query: &str| {
        site.web().get(format!("{}/v1/events/stream{query}", site.http)).header("x-api-key", key.to_owned())
    };
    let turn = |key: &str, session: &str| {
        let mut body = message("hello");
        body["session_id"] = session.into();
        site.post().header("x-api-key", key.to_owned()).json(&body)
    };
    let mut alices = Watching::of(watch(&alice, "")).await;
    for (key, session) in [(&bob, "secret"), (&alice, "own")] {
        Answer::of(turn(key, session)).await.text();
    }
    let hello = alices.next().await.unwrap();
    assert_eq!((&hello["sees"], &hello["speaks_for"]), (&"own".into(), &"itself".into()));
    let mut own = Vec::new();
    while own.len() < 3 {
        own.push(alices.next().await.unwrap());
    }
    // Neither other users nor their activity are visible.
    assert_eq!(own[2]["type"], "turn_ended");
    assert!(own.iter().all(|event| event["user"].is_null() && event["session"] == "own"), "{own:?}");
    for (request, expected) in [
        (watch(&alice, "?user=bob"), (403, "other_user")),
        (watch(&service, ""), (400, "missing_user")),
        (watch("plk_wrong", ""), (401, "invalid_key")),
    ] {
        let error = Answer::of(request).await.error();
        assert_eq!((error.0, error.1.as_str()), expected);
    }
    let mut all = Watching::of(watch(&admin, "")).await;
    assert_eq!(all.next().await.unwrap()["speaks_for"], "nobody");
    let (_, first) = all.until("turn_ended").await;
    let (_, second) = all.until("turn_ended").await;
    assert_eq!((&first["user"], &second["user"]), (&"bob".into(), &"alice".into()));
    // Streams that stay open take no connections of other users.
    let mut open = Vec::new();
    let refused = loop {
        let answer = watch(&alice, "").send().await.unwrap();
        if answer.status() != StatusCode::OK {
            break answer;
        }
        open.push(answer);
        assert!(open.len() < 100, "there is a limit");
    };
    assert_eq!((refused.status().as_u16(), &refused.headers()["retry-after"]), (429, &"10".parse().unwrap()));
    let mut bobs = Watching::of(watch(&service, "").header("x-pilotlight-user", "bob")).await;
    let (kinds, _) = bobs.until("turn_ended").await;
    assert_eq!(kinds, ["hello", "started", "ready", "turn_ended"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn old_path_is_a_deprecated_alias() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    site.turn("alice", "hello").await.text();
    let alias = || site.web().get(format!("{}/v1/happenings", site.http));
    let answer = alias().send().await.unwrap();
    assert_eq!(answer.headers()["deprecation"], "@1795824000");
    assert_eq!(answer.headers()["link"], "</v1/events/stream>; rel=\"successor-version\"");
    drop(answer);
    let (old, _) = Watching::of(alias()).await.until("turn_ended").await;
    let (new, _) = Watching::all(&site).await.until("turn_ended").await;
    assert_eq!((old.first().map(String::as_str), &old), (Some("hello"), &new));
    let current = site.web().get(format!("{}/v1/events/stream", site.http)).send().await.unwrap();
    assert!(!current.headers().contains_key("deprecation"));
    let paths = &site.get("/openapi.json").await.json()["paths"];
    assert_eq!(paths["/v1/happenings"]["get"]["deprecated"], true);
    assert!(paths["/v1/events/stream"]["get"]["deprecated"].is_null());
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_stream_has_heartbeats_and_ends_with_service() {
    let place = place();
    let config = "[http]\nheartbeat = \"50ms\"\n[session]\nturn_queue = 0";
    let (mut program, site) = Program::ready(&place, config).await;
    let mut watching = Watching::all(&site).await;
    assert_eq!(watching.next().await.unwrap()["type"], "hello");
    // Its child starts while the stream beats; then one turn too many is refused.
    let running = site.asking("alice", &message("[[sleep:10000]]")).send().await.unwrap();
    watching.until("ready").await;
    assert_eq!(site.turn("alice", "too many").await.status, 429);
    let (_, refused) = watching.until("refused").await;
    assert_eq!(refused["reason"], "queue_full");
    watching.beat().await;
    drop(running);
    watching.until("turn_ended").await;
    program.signal(Signal::TERM);
    while watching.next().await.is_some() {}
    assert_eq!(program.code().await, Some(0));
    assert!(!program.err().contains("connections were cut"), "{}", program.err());
}

/// A user who has opened every stream is still in sight of the operator.
#[tokio::test(flavor = "multi_thread")]
async fn streams_of_a_user_are_apart_from_the_operators() {
    let place = place();
    let ring = Keyring::new(&place);
    let (alice, admin) = (ring.user("alice"), ring.key(&["--admin"]).0);
    let (_program, site) = Program::ready(&place, &ring.config()).await;
    Answer::of(site.asking("alice", &message("hello")).bearer_auth(&alice)).await.text();
    let live = async |key: &str| {
        let request = site.session("GET", "default/live", "alice").bearer_auth(key);
        request.send().await.unwrap()
    };
    let mut open = Vec::new();
    while open.last().is_none_or(|last: &reqwest::Response| last.status() == 200) {
        open.push(live(&alice).await);
    }
    assert_eq!((open.len(), open.last().unwrap().status().as_u16()), (33, 429));
    assert_eq!(live(&admin).await.status(), 200);
    let events = site.of("GET", "/v1/events/stream", "alice").bearer_auth(&admin).send().await.unwrap();
    assert_eq!(events.status(), 200);
}
