//! Clients that name no session and send the whole history each time: theirs is found, and nothing else.

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::common::program::{Answer, Program, Site, place};
use crate::common::{SOON, eventually};

/// A client that keeps its history itself, in one of the two public dialects.
#[derive(Clone)]
struct Client {
    user: &'static str,
    path: &'static str,
    history: Vec<Value>,
}

/// What came back: the text, and which conversation it was.
struct Said {
    text: String,
    conversation: String,
}

impl Client {
    fn messages(user: &'static str) -> Self {
        Self { user, path: "/v1/messages", history: Vec::new() }
    }

    fn chat(user: &'static str) -> Self {
        Self { path: "/v1/chat/completions", ..Self::messages(user) }
    }

    /// A client that believes that this was said.
    fn knowing(mut self, said: &[(&str, &str)]) -> Self {
        for (asked, answer) in said {
            self.history.push(json!({ "role": "user", "content": asked }));
            self.history.push(json!({ "role": "assistant", "content": answer }));
        }
        self
    }

    fn request(&self, site: &Site, text: &str) -> reqwest::RequestBuilder {
        let mut messages = self.history.clone();
        messages.push(json!({ "role": "user", "content": text }));
        let body = json!({ "model": "sonnet", "max_tokens": 100, "messages": messages });
        let request = site.web().post(format!("{}{}", site.http, self.path));
        request.header("x-pilotlight-user", self.user).json(&body)
    }

    async fn try_say(&self, site: &Site, text: &str) -> Answer {
        Answer::of(self.request(site, text)).await
    }

    async fn say(&mut self, site: &Site, text: &str) -> Said {
        let answer = self.try_say(site, text).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let body = answer.json();
        let content = match self.path {
            "/v1/messages" => body["content"].clone(),
            _ => body["choices"][0]["message"]["content"].clone(),
        };
        let text_of = |content: &Value| match content {
            Value::String(text) => text.clone(),
            blocks => blocks.as_array().unwrap().iter().filter_map(|it| it["text"].as_str()).collect(),
        };
        let said = text_of(&content);
        self.history.push(json!({ "role": "user", "content": [{ "type": "text", "text": text }] }));
        self.history.push(json!({ "role": "assistant", "content": content }));
        Said { text: said, conversation: answer.header("x-pilotlight-session").to_owned() }
    }
}

/// A client that sends its history has a warm conversation without knowing.
#[tokio::test(flavor = "multi_thread")]
async fn history_client_continues_warm_conversation() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    for mut client in [Client::messages("alice"), Client::chat("alice")] {
        let first = client.say(&site, "one").await;
        assert_eq!(first.text, "echo 1: one");
        let second = client.say(&site, "[[pid]]").await;
        let third = client.say(&site, "[[pid]]").await;
        assert_eq!(second.text, third.text, "one process");
        let fourth = client.say(&site, "four").await;
        assert_eq!(fourth.text, "echo 4: four", "the child hears the last message alone");
        assert_eq!(first.conversation, fourth.conversation);
        assert_ne!(first.conversation, "default");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_streamed_answer_is_known_as_well_as_a_whole_one() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let mut client = Client::messages("alice");
    let mut body = json!({ "model": "sonnet", "max_tokens": 9, "stream": true });
    body["messages"] = json!([{ "role": "user", "content": "[[think:hm]][[say:a]][[say: b ]]" }]);
    let request = site.web().post(format!("{}/v1/messages", site.http)).header("x-pilotlight-user", "alice");
    let answer = Answer::of(request.json(&body)).await;
    let events = answer.body.lines().filter_map(|line| line.strip_prefix("data: "));
    let events = events.map(|data| serde_json::from_str::<Value>(data).unwrap());
    let text: String =
        events.filter_map(|event| event["delta"]["text"].as_str().map(str::to_owned)).collect();
    client.history =
        vec![body["messages"][0].clone(), json!({ "role": "assistant", "content": text.trim_end() })];
    let next = client.say(&site, "next").await;
    assert_eq!(
        (next.text.as_str(), next.conversation.as_str()),
        ("echo 2: next", answer.header("x-pilotlight-session"))
    );
}

/// An edited history starts a new conversation, which receives the history once.
#[tokio::test(flavor = "multi_thread")]
async fn edited_history_starts_new_conversation() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let mut client = Client::messages("alice");
    let first = client.say(&site, "my cat is Mo").await;
    let mut edited = client.clone();
    edited.history[0] = json!({ "role": "user", "content": "my cat is Jo" });
    let other = edited.say(&site, "[[recall]]").await;
    assert_ne!(first.conversation, other.conversation);
    assert_eq!(other.text, "my cat is Jo");
    let next = edited.say(&site, "and now?").await;
    assert_eq!((next.text.as_str(), &next.conversation), ("echo 3: and now?", &other.conversation));
    // The one that was left goes on.
    let next = client.say(&site, "still there?").await;
    assert_eq!((next.text.as_str(), &next.conversation), ("echo 2: still there?", &first.conversation));
    // Another user with the same history.
    let mut stranger = Client { user: "bob", ..client.clone() };
    let theirs = stranger.say(&site, "[[recall]]").await;
    assert_eq!(theirs.text, "my cat is Mo | still there?");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_at_the_same_time_do_not_meet() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let mut one = Client::messages("alice");
    let first = one.say(&site, "same").await;
    let (mut two, mut three) = (one.clone(), one.clone());
    let (a, b, c) = tokio::join!(
        one.say(&site, "[[sleep:300]] a"),
        two.say(&site, "[[sleep:300]] b"),
        three.say(&site, "[[sleep:300]] c")
    );
    let mut names = [&a.conversation, &b.conversation, &c.conversation];
    names.sort();
    assert!(names[0] != names[1] && names[1] != names[2], "{names:?}");
    let here = names.iter().filter(|name| **name == &first.conversation).count();
    assert_eq!(here, 1, "one has the conversation, the others one that was brought the history");
    assert!([&a, &b, &c].iter().all(|said| said.text.starts_with("echo 2:")));
    for (client, said) in [(&mut one, a), (&mut two, b), (&mut three, c)] {
        let next = client.say(&site, "go on").await;
        assert_eq!(next.conversation, said.conversation);
    }
}

/// A conversation whose end is unknown is not continued.
#[tokio::test(flavor = "multi_thread")]
async fn conversation_with_unknown_end_is_not_continued() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let mut client = Client::messages("alice");
    let first = client.say(&site, "one").await;
    let failed = client.try_say(&site, "[[deltas:20]] [[fault:crash-mid]]").await;
    assert!(failed.status >= 500, "{failed:?}");
    let again = client.say(&site, "[[recall]]").await;
    assert_ne!(again.conversation, first.conversation);
    assert_eq!(again.text, "one");
    // A client that leaves in mid-turn.
    site.until_quiet().await;
    let mut left = Box::pin(client.request(&site, "[[deltas:10000]] [[delay:100]]").send());
    tokio::select! {
        ended = &mut left => panic!("{ended:?}"),
        () = site.until_busy() => {}
    }
    drop(left);
    let third = client.say(&site, "three").await;
    assert_ne!(third.conversation, again.conversation);
}

/// A conversation that is used by its name is its user's own.
#[tokio::test(flavor = "multi_thread")]
async fn named_conversation_is_not_taken_for_history() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let mut client = Client::messages("alice");
    let first = client.say(&site, "one").await;
    let named = Client::messages("alice").request(&site, "between");
    let named = Answer::of(named.header("x-pilotlight-session", &first.conversation)).await;
    assert_eq!(named.json()["content"][0]["text"], "echo 2: between");
    assert_ne!(client.say(&site, "two").await.conversation, first.conversation);
}

/// The least recently used is deleted when there are too many.
#[tokio::test(flavor = "multi_thread")]
async fn excess_conversation_deletes_least_recent() {
    let place = place();
    let (_program, site) = Program::ready(&place, "[http]\nconversations_per_user = 2").await;
    let mut clients = [Client::messages("alice"), Client::messages("alice"), Client::messages("alice")];
    for (client, text) in clients.iter_mut().zip(["a", "b", "c"]) {
        client.say(&site, text).await;
    }
    let on_disk = || crate::common::layout::session_dirs(&place.data_dir()).len();
    eventually("the first conversation is deleted", SOON, || on_disk() == 2).await;
    let [first, second, third] = &mut clients;
    assert_eq!(third.say(&site, "on").await.text, "echo 2: on");
    assert_eq!(second.say(&site, "on").await.text, "echo 2: on");
    assert_eq!(first.say(&site, "[[recall]]").await.text, "a");
    eventually("another one had to go", SOON, || on_disk() == 2).await;
    assert_eq!(second.say(&site, "still").await.text, "echo 3: still", "it was used after the third");
}

/// Histories are known after a restart and what was running is not.
#[tokio::test(flavor = "multi_thread")]
async fn histories_survive_restart_running_turn_does_not() {
    let place = place();
    let (mut program, site) = Program::ready(&place, "").await;
    let (mut rests, mut runs) = (Client::messages("alice"), Client::messages("alice"));
    let rested = rests.say(&site, "quiet").await;
    let ran = runs.say(&site, "busy").await;
    let written = || {
        ["echo 1: quiet", "echo 1: busy"].iter().all(|text| {
            let holders = crate::common::program::holding(&place.data_dir(), text);
            holders.iter().any(|name| name.ends_with(".jsonl"))
        })
    };
    eventually("both answers are written down", SOON, written).await;
    let mut running = Box::pin(runs.request(&site, "[[deltas:10000]] [[delay:100]]").send());
    tokio::select! {
        ended = &mut running => panic!("{ended:?}"),
        () = site.until_busy() => {}
    }
    program.signal(Signal::KILL);
    program.code().await;
    drop(running);

    let (_program, site) = Program::ready(&place, "").await;
    let next = rests.say(&site, "again").await;
    assert_eq!((next.text.as_str(), &next.conversation), ("echo 2: again", &rested.conversation));
    let next = runs.say(&site, "[[recall]]").await;
    assert_ne!(next.conversation, ran.conversation, "the child may have heard more than the client sends");
    assert_eq!(next.text, "busy");
}

#[tokio::test(flavor = "multi_thread")]
async fn history_of_a_client_alone_is_brought_in() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let mut client = Client::chat("alice").knowing(&[("my cat is Mo", "hello Mo"), ("and a dog", "nice")]);
    let said = client.say(&site, "[[recall]]").await;
    assert_eq!(said.text, "my cat is Mo | and a dog");
    assert_eq!(client.say(&site, "next").await.text, "echo 4: next");
}
