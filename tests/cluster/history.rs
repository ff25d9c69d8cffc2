//! What etcd has recorded: every owner and every head of each user, from the first to the last.

use std::collections::HashMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::time::timeout;

use crate::nodes::Nodes;

/// Longest time between two pieces of the history.
const SILENCE: Duration = Duration::from_secs(2);

/// The digits by which etcd knows a user.
pub fn digest(user: &str) -> String {
    let digest = Sha256::new().chain_update("user\0").chain_update(user).finalize();
    digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// The head of a user, as it is now.
pub async fn head(cluster: &Nodes, user: &str) -> Option<Value> {
    let key = BASE64.encode(format!("/pilotlight/head/{}", digest(user)));
    let answer = cluster.etcd.ask("kv/range", &json!({ "key": key })).await;
    let value = answer["kvs"][0]["value"].as_str()?;
    serde_json::from_slice(&BASE64.decode(value).unwrap()).ok()
}

/// Goes through all that was ever written: `seq` counts up by one, and only the owner of that moment has written it. Returns the
/// number of heads.
pub async fn check(cluster: &Nodes) -> usize {
    let (start, end) = (BASE64.encode("/pilotlight/"), BASE64.encode("/pilotlight0"));
    let request = json!({ "create_request": { "key": start, "range_end": end, "start_revision": "1" } });
    let last = cluster.etcd.ask("kv/range", &json!({ "key": start })).await;
    let last = number(&last["header"]["revision"]);
    let mut pieces = cluster.etcd.stream("watch", &request).await.bytes_stream();
    let (mut unread, mut heads, mut owners, mut count) = (Vec::new(), HashMap::new(), HashMap::new(), 0);
    let mut reached = 0;
    while reached < last {
        // The last revision may be of a key elsewhere.
        let Ok(piece) = timeout(SILENCE, pieces.next()).await else { break };
        unread.extend_from_slice(&piece.expect("the history does not end").expect("the history comes"));
        while let Some(at) = unread.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = unread.drain(..=at).collect();
            let line: Value = serde_json::from_slice(&line).expect("JSON");
            for event in line["result"]["events"].as_array().into_iter().flatten() {
                reached = reached.max(number(&event["kv"]["mod_revision"]));
                count += usize::from(replay(event, &mut heads, &mut owners));
            }
        }
    }
    count
}

/// One change. Whether it was a head.
fn replay(event: &Value, heads: &mut HashMap<String, u64>, owners: &mut HashMap<String, u64>) -> bool {
    let kv = &event["kv"];
    let key = String::from_utf8(BASE64.decode(kv["key"].as_str().unwrap()).unwrap()).unwrap();
    let is_deleted = event["type"] == "DELETE";
    if let Some(user) = key.strip_prefix("/pilotlight/owner/") {
        if is_deleted {
            owners.remove(user);
        } else {
            let created = number(&kv["create_revision"]);
            assert_eq!(created, number(&kv["mod_revision"]), "an owner was replaced: {key}");
            owners.insert(user.to_owned(), created);
        }
        return false;
    }
    let Some(user) = key.strip_prefix("/pilotlight/head/").filter(|_| !is_deleted) else { return false };
    let head: Value = serde_json::from_slice(&BASE64.decode(kv["value"].as_str().unwrap()).unwrap()).unwrap();
    let (seq, fence) = (number(&head["seq"]), number(&head["fence"]));
    let before = heads.insert(user.to_owned(), seq).unwrap_or(0);
    assert_eq!(seq, before + 1, "a gap in the heads of {user}: {head}");
    assert_eq!(owners.get(user), Some(&fence), "the head of {user} was not written by its owner: {head}");
    let chain = head["chain"].as_array().expect("a chain");
    let joins = chain.windows(2).all(|pair| number(&pair[0]["to"]) + 1 == number(&pair[1]["from"]));
    assert!(joins && number(&chain.last().unwrap()["to"]) == seq, "a gap in the chain of {user}: {head}");
    true
}

/// etcd writes its numbers as text.
fn number(value: &Value) -> u64 {
    value.as_u64().or_else(|| value.as_str()?.parse().ok()).unwrap_or_else(|| panic!("no number: {value}"))
}
