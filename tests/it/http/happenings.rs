//! What happens is reply as it does, and to nobody whom it does not concern.

use futures_util::StreamExt;
use reqwest::{RequestBuilder, StatusCode};
use rustix::process::Signal;
use serde_json::Value;
use tokio::time::timeout;

use crate::common::SOON;
use crate::common::keyring::Keyring;
use crate::common::program::{Answer, Program, Site, message, place};
use crate::common::sse::{Frame, Reader};

/// A stream of happenings.
struct Watching {
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

    async fn all(site: &Site) -> Self {
        Self::of(site.web().get(format!("{}/v1/happenings", site.http))).await
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
                Frame::Done => panic!("a stream of happenings has no [DONE]"),
            }
        }
        Some(())
    }

    /// The kinds up to the first of this kind, and that one itself.
    async fn until(&mut self, kind: &str) -> (Vec<String>, Value) {
        let mut kinds = Vec::new();
        loop {
            let happening = self.next().await.unwrap_or_else(|| panic!("no {kind} after {kinds:?}"));
            // A child that is killed at once may not have written all of its conversation yet.
            if happening["type"] != "context_lost" {
                kinds.push(happening["type"].as_str().unwrap().to_owned());
            }
            if happening["type"] == kind {
                return (kinds, happening);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sessions_life_is_told_as_it_happens() {
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

    // Whoever comes later hears the same again.
    let (kinds, _) = Watching::all(&site).await.until("evicted").await;
    let expected =
        ["hello", "started", "ready", "turn_ended", "crashed", "restarted", "started", "ready", "evicted"];
    assert_eq!(kinds, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_hears_of_others() {
    let place = place();
    let ring = Keyring::new(&place);
    let (alice, bob) = (ring.user("alice"), ring.user("bob"));
    let (service, admin) = (ring.key(&["--service"]).0, ring.key(&["--admin"]).0);
    let (_program, site) = Program::ready(&place, &ring.config()).await;
    let watch = |key: &str, query: &str| {
        site.web().get(format!("{}/v1/happenings{query}", site.http)).header("x-api-key", key.to_owned())
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
    // Neither who else there is, nor how much else happens.
    assert_eq!(own[2]["type"], "turn_ended");
    assert!(
        own.iter().all(|happening| happening["user"].is_null() && happening["session"] == "own"),
        "{own:?}"
    );
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
    // Windows that nobody closes take none of the connections of others.
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
async fn a_silent_stream_beats_and_ends_with_the_service() {
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
