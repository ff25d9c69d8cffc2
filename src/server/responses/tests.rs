//! Stored responses on a real directory.

use std::os::unix::fs::PermissionsExt;

use serde_json::json;

use super::*;

fn store(data: &Path) -> (Responses, Arc<UserResponses>) {
    let responses = Responses::new(data, None);
    let alice = responses.of(&UserId::new("alice").unwrap());
    (responses, alice)
}

fn stored(conversation: &str, previous: Option<&ResponseId>, text: &str) -> Stored {
    Stored {
        head: Head {
            conversation: conversation.to_owned(),
            named: false,
            whole: true,
            previous: previous.cloned(),
            digest: String::new(),
        },
        asked: Asked { system: String::new(), input: vec![json!({ "type": "message", "content": text })] },
        response: json!({ "output": [{ "id": "x", "text": text }] }).to_string(),
    }
}

#[tokio::test]
async fn response_is_stored_private_and_deleted() {
    let data = tempfile::tempdir().unwrap();
    let (responses, alice) = store(data.path());
    let id = ResponseId::new();
    assert_eq!(alice.read(&id).await.unwrap(), None);
    assert!(!alice.delete(&id).await.unwrap());
    alice.save(&id, stored("a", None, "hello")).await.unwrap();
    assert_eq!(alice.read(&id).await.unwrap(), Some(stored("a", None, "hello")));
    let bob = responses.of(&UserId::new("bob").unwrap());
    assert_eq!(bob.read(&id).await.unwrap(), None);
    assert!(!bob.delete(&id).await.unwrap());
    let path = alice.directory().join(id.to_string());
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(alice.delete(&id).await.unwrap());
    assert_eq!(alice.read(&id).await.unwrap(), None);
}

#[tokio::test]
async fn conversation_takes_its_responses_with_it() {
    let data = tempfile::tempdir().unwrap();
    let (_, alice) = store(data.path());
    alice.delete_of("a").await.unwrap();
    let ids: Vec<_> = (0..3).map(|_| ResponseId::new()).collect();
    for (id, conversation) in ids.iter().zip(["a", "b", "a"]) {
        alice.save(id, stored(conversation, None, "x")).await.unwrap();
    }
    alice.delete_of("a").await.unwrap();
    let mut left = Vec::new();
    for id in &ids {
        left.push(alice.read(id).await.unwrap().is_some());
    }
    assert_eq!(left, [false, true, false]);
}

#[tokio::test]
async fn old_responses_make_room_for_new_ones() {
    let data = tempfile::tempdir().unwrap();
    let (_, alice) = store(data.path());
    let first = ResponseId::new();
    alice.save(&first, stored("a", None, "x")).await.unwrap();
    // As if they had been written by an earlier server.
    let content = std::fs::read(alice.directory().join(first.to_string())).unwrap();
    for number in 0..1000 {
        let id = format!("resp_{number:012x}{:020x}", 7);
        std::fs::write(alice.directory().join(id), &content).unwrap();
    }
    let (_, again) = store(data.path());
    let last = ResponseId::new();
    again.save(&last, stored("a", None, "y")).await.unwrap();
    let left = std::fs::read_dir(again.directory()).unwrap().count();
    assert_eq!(left, 2, "those from 1970 are too old as well");
    assert!(again.read(&first).await.unwrap().is_some() && again.read(&last).await.unwrap().is_some());
}

#[tokio::test]
async fn response_is_not_read_when_it_is_too_old() {
    let data = tempfile::tempdir().unwrap();
    let responses = Responses::new(data.path(), Some(Duration::from_secs(3600)));
    let alice = responses.of(&UserId::new("alice").unwrap());
    let old = ResponseId::parse(&format!("resp_{:012x}{:020x}", 1, 2)).unwrap();
    alice.save(&old, stored("a", None, "x")).await.unwrap();
    assert_eq!(alice.read(&old).await.unwrap(), None);
}

#[tokio::test]
async fn one_of_two_requests_continues_a_response() {
    let data = tempfile::tempdir().unwrap();
    let (_, alice) = store(data.path());
    let ids: Vec<_> = (0..4).map(|_| ResponseId::new()).collect();
    let mut first = alice.advance("a", None, &ids[0]).await.unwrap().unwrap();
    assert!(first.is_first());
    first.mark_sent();
    assert!(alice.advance("a", Some(&ids[3]), &ids[1]).await.unwrap().is_none());
    let mut second = alice.advance("a", Some(&ids[0]), &ids[1]).await.unwrap().unwrap();
    assert!(!second.is_first());
    second.mark_sent();
    assert!(alice.advance("a", Some(&ids[0]), &ids[2]).await.unwrap().is_none());
    // A request that names the conversation and nothing else.
    let mut third = alice.advance("a", None, &ids[2]).await.unwrap().unwrap();
    third.mark_sent();
    assert!(alice.advance("a", Some(&ids[1]), &ids[3]).await.unwrap().is_none());
    drop((first, second, third));
    assert!(alice.advance("a", Some(&ids[2]), &ids[3]).await.unwrap().is_some());
}

#[tokio::test]
async fn chain_is_read_and_a_gap_is_noticed() {
    let data = tempfile::tempdir().unwrap();
    let (_, alice) = store(data.path());
    let ids: Vec<_> = (0..3).map(|_| ResponseId::new()).collect();
    let mut previous = None;
    for (id, text) in ids.iter().zip(["one", "two", "three"]) {
        alice.save(id, stored("a", previous, text)).await.unwrap();
        previous = Some(id);
    }
    let last = alice.read(&ids[2]).await.unwrap().unwrap();
    let chain = Chain::read(&alice, last.clone()).unwrap().unwrap();
    let texts: Vec<_> = chain.items.iter().map(|it| it["content"].as_str().or(it["text"].as_str())).collect();
    let expected = ["one", "one", "two", "two", "three", "three"].map(Some);
    assert_eq!(texts, expected);
    alice.delete(&ids[0]).await.unwrap();
    assert!(Chain::read(&alice, last).unwrap().is_none());
}

#[tokio::test]
async fn references_are_replaced_by_their_items() {
    let data = tempfile::tempdir().unwrap();
    let (_, alice) = store(data.path());
    let id = ResponseId::new();
    let item = json!({ "id": id.output_item("msg", 0), "type": "message" });
    let response = json!({ "output": [item] }).to_string();
    alice.save(&id, Stored { response, ..stored("a", None, "x") }).await.unwrap();
    let reference = |id: String| json!({ "type": "item_reference", "id": id });
    let mut items = vec![json!({ "role": "user" }), reference(id.output_item("msg", 0))];
    resolved(&alice, &mut items).unwrap().unwrap();
    assert_eq!(items[1], item);
    for unknown in [id.output_item("msg", 1), "msg_1".to_owned(), ResponseId::new().output_item("msg", 0)] {
        let mut items = vec![json!({ "role": "user" }), reference(unknown)];
        assert_eq!(resolved(&alice, &mut items).unwrap(), Err(1));
    }
}

#[tokio::test]
async fn forgotten_user_gets_no_file() {
    let data = tempfile::tempdir().unwrap();
    let (responses, alice) = store(data.path());
    responses.forget(&UserId::new("alice").unwrap()).await;
    alice.save(&ResponseId::new(), stored("a", None, "x")).await.unwrap();
    alice.advance("a", None, &ResponseId::new()).await.unwrap();
    assert!(!alice.directory().exists());
    let again = responses.of(&UserId::new("alice").unwrap());
    again.save(&ResponseId::new(), stored("a", None, "x")).await.unwrap();
    assert!(again.directory().exists());
}
