//! The forms in which a cluster keeps what several versions read, as today's version writes them. Two versions run side by side
//! during an upgrade: a change that breaks one of these needs a higher number of the format, and a version between that reads
//! both.

use bytes::Bytes;

use super::ledger::{Fence, Head, NodeInfo, Owner, RecordError};
use super::replica::delta::{Area, Change, Damage, Decoded, Entry, Header, Kind, Meta, Writer};
use super::replica::key::{Key, ObjectId, UserHash};
use crate::model::ids::SessionHash;
use crate::support::hex;

const NODE: &str = r#"{"format":1,"address":"10.0.0.1:8482","room":10,"draining":false,"version":"0.1.0"}"#;
const OWNER: &str = r#"{"format":1,"node":"a"}"#;
const SNAPSHOT: &str = r#"{"format":1,"fence":7,"seq":1,"chain":[{"fence":7,"from":1,"to":1}],"snapshot_bytes":20,"delta_bytes":0,"early":false,"released":false}"#;
const DELTA: &str = r#"{"format":1,"fence":9,"seq":3,"chain":[{"fence":7,"from":1,"to":2},{"fence":9,"from":3,"to":3}],"snapshot_bytes":20,"delta_bytes":7,"early":true,"released":true}"#;

fn text<T: serde::Serialize>(record: &T) -> String {
    serde_json::to_string(record).unwrap()
}

#[test]
fn records_are_written_as_before() {
    assert_eq!(text(&NodeInfo::new("10.0.0.1:8482".into(), 10, "0.1.0".into())), NODE);
    assert_eq!(text(&Owner::new("a".parse().unwrap())), OWNER);
    let snapshot = Head::snapshot(None, Fence(7), 20);
    assert_eq!(text(&snapshot), SNAPSHOT);
    let mut delta = snapshot.delta(Fence(7), 3).and_then(|head| head.delta(Fence(9), 4)).unwrap();
    (delta.early, delta.released) = (true, true);
    assert_eq!(text(&delta), DELTA);
}

/// An older version may have written less, a newer one more.
#[test]
fn records_of_other_versions_are_read() {
    let more = |json: &str| json.replacen('{', r#"{"later":[{"x":1}],"#, 1);
    for json in
        [NODE.to_owned(), more(NODE), r#"{"address":"10.0.0.1:8482","room":10,"version":"0.1.0"}"#.into()]
    {
        assert_eq!(text(&NodeInfo::decode(json.as_bytes()).unwrap()), NODE);
    }
    for json in [OWNER.to_owned(), more(OWNER), r#"{"node":"a"}"#.into()] {
        assert_eq!(text(&Owner::decode(json.as_bytes()).unwrap()), OWNER);
    }
    let least = r#"{"fence":7,"seq":1,"chain":[{"fence":7,"from":1,"to":1}],"snapshot_bytes":20}"#;
    for json in [
        SNAPSHOT.to_owned(),
        more(SNAPSHOT),
        SNAPSHOT.replace(r#""to":1}"#, r#""to":1,"later":2}"#),
        least.into(),
    ] {
        assert_eq!(text(&Head::decode(json.as_bytes()).unwrap()), SNAPSHOT);
    }
    assert_eq!(text(&Head::decode(DELTA.as_bytes()).unwrap()), DELTA);
}

#[test]
fn record_of_a_newer_format_is_named() {
    let newer = |json: &str| json.replace(r#""format":1"#, r#""format":2"#);
    let refused = Some(RecordError::Newer(2));
    assert_eq!(NodeInfo::decode(newer(NODE).as_bytes()).err(), refused);
    assert_eq!(Owner::decode(newer(OWNER).as_bytes()).err(), refused);
    assert_eq!(Head::decode(newer(DELTA).as_bytes()).err(), refused);
    assert_eq!(RecordError::Newer(2).to_string(), "a newer version wrote the record in format 2");
}

/// An object with each kind of change, in hexadecimal digits.
const OBJECT: &str = concat!(
    "504c5231010002000505050505050505050505050505050507000000000000000200000000000000010000000606060606060606060606060606",
    "06060606060606060606060606060606060601000500757361676500000000000000000000000000000100000075020100010203040506070809",
    "0a0b0c0d0e0f07006a6f75726e616c03000000000000000909090909090909090909090909090909090909090909090909090909090909000000",
    "0000000000000000000000010000006a0102000102030405060708090a0b0c0d0e0f0600612f66696c65a00100f1536500000000050000000100",
    "0000770302000102030405060708090a0b0c0d0e0f0600612f66696c65040000000000000001000000700402000102030405060708090a0b0c0d",
    "0e0f010061e8010502000102030405060708090a0b0c0d0e0f04006c696e6b0600612f66696c650602000102030405060708090a0b0c0d0e0f04",
    "006d6f6465a00100f1536500000000050000000702000102030405060708090a0b0c0d0e0f0400676f6e650008000000bbab9561a02d52ec1fdf",
    "732d6f43e25fa40fc38f0b27bc7a9936b60079d2a68b",
);

fn session() -> SessionHash {
    SessionHash::parse("000102030405060708090a0b0c0d0e0f").unwrap()
}

fn header() -> Header {
    let id = ObjectId { fence: 7, seq: 2 };
    Header { kind: Kind::Delta, user: UserHash::from_bytes([5; 16]), id, parts: vec![[6; 32]] }
}

fn entries() -> Vec<Entry<'static>> {
    let meta = Meta { mode: 0o640, seconds: 1_700_000_000, nanos: 5 };
    let (user, record, work) = (Area::User, Area::Record(session()), Area::Work(session()));
    let entry =
        |area: &Area, path: &'static str, change| Entry { area: area.clone(), path: path.as_bytes(), change };
    vec![
        entry(&user, "usage", Change::Whole { meta: Meta::default(), content: b"u" }),
        entry(
            &record,
            "journal",
            Change::Append { base: 3, edge: [9; 32], meta: Meta::default(), content: b"j" },
        ),
        entry(&work, "a/file", Change::Whole { meta, content: b"w" }),
        entry(&work, "a/file", Change::Patch { at: 4, content: b"p" }),
        entry(&work, "a", Change::Directory { mode: 0o750 }),
        entry(&work, "link", Change::Link { target: b"a/file" }),
        entry(&work, "mode", Change::Mode(meta)),
        entry(&work, "gone", Change::Removed),
    ]
}

#[test]
fn object_is_written_and_read_as_before() {
    let mut writer = Writer::default();
    entries().iter().for_each(|entry| writer.push(entry));
    let written = writer.finish(&header()).pieces.concat();
    assert_eq!(hex::encode(&written), OBJECT);
    let read = Decoded::parse(Bytes::from(hex::decode(OBJECT).unwrap())).unwrap();
    assert_eq!((&read.header, read.entries().collect::<Vec<_>>()), (&header(), entries()));
    let key = Key { user: header().user, id: header().id, part: None };
    assert_eq!(
        key.to_string(),
        "s/05050505050505050505050505050505/00000000000000000007/00000000000000000002"
    );
}

/// Nothing in an object can be left out: a newer one is refused as a whole, before anything else of it is looked at.
#[test]
fn object_of_a_newer_format_is_named() {
    use sha2::{Digest as _, Sha256};
    let mut bytes = hex::decode(OBJECT).unwrap();
    bytes.truncate(bytes.len() - 32);
    bytes.splice(4.., [2, 0, 77, 78, 79]);
    let seal = Sha256::digest(&bytes);
    bytes.extend(seal);
    let refused = Decoded::parse(bytes.into()).unwrap_err();
    assert_eq!(refused, Damage::Format(2));
    assert_eq!(refused.to_string(), "it has format 2; this program reads 1");
}
