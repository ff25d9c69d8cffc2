//! Texts for a turn that runs, over HTTP.

use serde_json::{Value, json};

use crate::common::program::{Answer, Program, Site, message, place};
use crate::common::{SOON, UNTIL_GO, eventually_some};

const CONFIG: &str = "[permissions]\npolicy = \"allow\"\n";

async fn steer(site: &Site, user: &str, body: &Value) -> Answer {
    Answer::of(site.session("POST", "default/steer", user).json(body)).await
}

async fn file(site: &Site, method: &str, name: &str) -> u16 {
    let path = format!("/v1/workspace/files/{name}?session=default");
    Answer::of(site.of(method, &path, "alice").body("")).await.status
}

async fn began(site: &Site) {
    eventually_some("the tool runs", SOON, async || (file(site, "GET", "began").await == 200).then_some(()))
        .await;
}

/// It belongs to the turn that runs, and the next one is its caller's own.
#[tokio::test(flavor = "multi_thread")]
async fn trap_25_text_goes_into_the_running_turn() {
    let place = place();
    let (_program, site) = Program::ready(&place, CONFIG).await;
    let turn = site.turn("alice", UNTIL_GO);
    let steering = async {
        began(&site).await;
        let writing = async { steer(&site, "alice", &json!({ "text": "hurry up" })).await };
        let ending = async {
            // The tool is asked to end only after the text was sent into its turn.
            tokio::task::yield_now().await;
            file(&site, "PUT", "go").await
        };
        tokio::join!(writing, ending)
    };
    let (turn, (steered, status)) = tokio::join!(turn, steering);
    assert!((200..300).contains(&status), "{status}");
    assert_eq!(steered.status, 200, "{steered:?}");
    let steered = steered.json();
    assert_eq!(steered["id"], "default");
    assert!(steered["taken"].is_boolean(), "{steered}");
    assert_eq!(turn.events().iter().filter(|event| event["type"] == "result").count(), 1);
    let next = site.turn("alice", "[[say:mine]]").await;
    assert!(next.body.contains("mine") && !next.body.contains("hurry"), "{next:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn text_for_nothing_is_refused() {
    let place = place();
    let (_program, site) = Program::ready(&place, CONFIG).await;
    let text = json!({ "text": "hurry up" });
    let error = steer(&site, "alice", &text).await.error();
    assert_eq!((error.0, error.1.as_str()), (404, "session_not_found"));
    site.turn("alice", "[[say:one]]").await;
    let error = steer(&site, "alice", &text).await.error();
    assert_eq!((error.0, error.1.as_str()), (409, "no_running_turn"));
    for body in [
        json!({}),
        json!([]),
        json!({ "text": 7 }),
        json!({ "text": " " }),
        json!({ "text": "x".repeat(65_537) }),
    ] {
        let error = steer(&site, "alice", &body).await.error();
        assert_eq!((error.0, error.1.as_str()), (400, "invalid_body"));
    }
}

/// A flood is refused, and what was not read is said so when the turn ends.
#[tokio::test(flavor = "multi_thread")]
async fn flood_of_texts_is_refused() {
    let place = place();
    let (_program, site) = Program::ready(&place, CONFIG).await;
    let turn = async {
        Answer::of(site.asking("alice", &message(r#"[[tool:Bash {"command":"sleep 8232"}]]"#))).await
    };
    let flood = async {
        let busy = async || {
            let sessions = Answer::of(site.of("GET", "/v1/sessions/default", "alice")).await;
            (sessions.status == 200 && sessions.json()["state"] == "busy").then_some(())
        };
        eventually_some("the turn runs", SOON, busy).await;
        let texts: Vec<Value> = (0..12).map(|number| json!({ "text": format!("text {number}") })).collect();
        let steering = futures_util::future::join_all(texts.iter().map(|text| steer(&site, "alice", text)));
        let other = async {
            let error = steer(&site, "bob", &json!({ "text": "mine" })).await.error();
            assert_eq!((error.0, error.1.as_str()), (404, "session_not_found"), "another user's");
            Answer::of(site.session("POST", "default/interrupt", "alice")).await
        };
        tokio::join!(steering, other).0
    };
    let (_, steered) = tokio::join!(turn, flood);
    for answer in steered {
        match answer.status {
            200 => assert_eq!(answer.json()["taken"], false),
            409 => assert_eq!(answer.error().1, "no_running_turn", "the turn had ended"),
            _ => assert_eq!((answer.status, answer.error().1.as_str()), (429, "too_many_steers")),
        }
    }
}
