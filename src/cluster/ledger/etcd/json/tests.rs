use proptest::prelude::*;

use super::*;

fn text(body: Vec<u8>) -> String {
    String::from_utf8(body).unwrap()
}

/// Answers as etcd 3.5.1 gave them.
#[test]
fn answers_of_etcd_are_read() {
    let reply = txn_reply(
        br#"{"header":{"cluster_id":"3249","member_id":"3319","revision":"2","raft_term":"2"},"responses":[
            {"response_range":{"header":{"revision":"2"},"kvs":[{"key":"Zm9v","create_revision":"2","mod_revision":"2",
            "version":"1","value":"YmFy"}],"count":"1"}},{"response_range":{"header":{"revision":"2"}}}]}"#,
    );
    let kv =
        KeyValue { key: b"foo".into(), value: b"bar".into(), created: 2, modified: 2, lease: LeaseId(0) };
    let replies = vec![Reply::Got(Some(kv)), Reply::Got(None)];
    assert_eq!(reply, Ok(TxnReply { succeeded: false, revision: 2, replies }));
    let reply = txn_reply(
        br#"{"header":{"revision":"9223372036854775807"},"succeeded":true,"responses":[{"response_put":{"header":{}}},
            {"response_delete_range":{"header":{},"deleted":"1"}}]}"#,
    );
    let replies = vec![Reply::Put, Reply::Deleted];
    assert_eq!(reply, Ok(TxnReply { succeeded: true, revision: i64::MAX as u64, replies }));
    assert_eq!(
        granted(br#"{"header":{},"ID":"2324035699441135365","TTL":"2"}"#),
        Ok((LeaseId(2324035699441135365), 2))
    );
    assert_eq!(renewed(br#"{"result":{"header":{},"ID":"12345","TTL":"2"}}"#), Ok(2));
    assert_eq!(renewed(br#"{"result":{"header":{},"ID":"12345"}}"#), Err(LedgerError::LeaseGone));
    assert_eq!(
        renewed(br#"{"error":{"grpc_code":14,"http_code":503,"message":"etcdserver: no leader"}}"#),
        Err(LedgerError::Unavailable("no leader"))
    );
    assert_eq!(remaining(br#"{"ID":"12345","TTL":"-1"}"#), Ok(None));
    assert_eq!(remaining(br#"{"ID":"12345","grantedTTL":"2"}"#), Ok(Some(0)));
}

#[test]
fn watch_lines_of_etcd_are_read() {
    let created = message(br#"{"result":{"header":{"revision":"6"},"created":true}}"#).unwrap();
    assert!(matches!(created, Message::Changes(changes) if changes.is_empty()));
    let compacted = message(br#"{"result":{"header":{},"canceled":true,"compact_revision":"5"}}"#).unwrap();
    assert!(matches!(compacted, Message::Compacted));
    let changed = message(
        br#"{"result":{"header":{"revision":"9"},"events":[{"kv":{"key":"Zm9v","create_revision":"4","mod_revision":"6",
            "version":"3","value":"YmFy"}},{"type":"DELETE","kv":{"key":"Zm9v","mod_revision":"7"}}]}}"#,
    );
    let Message::Changes(changes) = changed.unwrap() else { panic!("no changes") };
    assert_eq!(changes.iter().map(Change::revision).collect::<Vec<_>>(), [6, 7]);
    assert!(matches!(&changes[1], Change::Deleted { key, .. } if key == b"foo"));
    let lost =
        message(br#"{"error":{"grpc_code":14,"http_code":503,"message":"etcdserver: no leader"}}"#).unwrap();
    assert!(matches!(lost, Message::Error(Kind::Elsewhere("no leader"))));
    assert!(message(br#"{"result":{"events":[{"type":"LATER","kv":{"key":"Zm9v"}}]}}"#).is_err());
}

#[test]
fn requests_have_strings_for_numbers() {
    let key = b"foo".to_vec();
    let txn = text(txn(&Txn {
        compare: vec![Compare::Created(key.clone(), 7), Compare::Lease(key.clone(), LeaseId(8))],
        success: vec![Operation::Put { key: key.clone(), value: b"bar".into(), lease: LeaseId(9) }],
        failure: vec![Operation::Get { key }],
    }));
    for part in [
        r#""create_revision":"7""#,
        r#""lease":"8""#,
        r#""lease":"9""#,
        r#""key":"Zm9v""#,
        r#""value":"YmFy""#,
        r#""target":"CREATE""#,
        r#""request_range":{"key":"Zm9v"}"#,
    ] {
        assert!(txn.contains(part), "{part}: {txn}");
    }
    assert!(text(range(b"a", b"b", 3, 9)).contains(r#""revision":"3""#));
    assert!(!text(range(b"a", b"b", 3, 9)).contains("serializable"));
    assert!(text(authenticate("a\"b", "c")).contains(r#""name":"a\"b""#));
}

#[test]
fn token_is_bounded() {
    assert_eq!(token(br#"{"token":"abc.1"}"#).as_deref(), Ok("abc.1"));
    assert!(token(br#"{"token":""}"#).is_err());
    assert!(token(format!(r#"{{"token":"{}"}}"#, "x".repeat(MAX_TOKEN + 1)).as_bytes()).is_err());
}

proptest! {
    /// No answer makes the reader panic, and errors repeat nothing of it.
    #[test]
    fn any_answer_is_read_or_refused(body in r#"\{("result"|"error"|"header"|"kvs"|"ID"|"TTL"):.{0,60}"#) {
        let body = body.as_bytes();
        let _ = (page(body).is_ok(), txn_reply(body).is_ok(), granted(body).is_ok(), renewed(body).is_ok());
        let _ = (remaining(body).is_ok(), token(body).is_ok(), message(body).is_ok());
    }
}
