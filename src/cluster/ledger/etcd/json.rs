//! Requests and answers of the JSON gateway: numbers of 64 bits are strings, keys and values are base64, and fields with
//! zero values are left out.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, de};
use serde_json::json;

use super::status::{ErrorBody, Kind};
use crate::cluster::ledger::error::LedgerError;
use crate::cluster::ledger::kv::{
    Change, Compare, KeyValue, LeaseId, Operation, Page, Reply, Revision, Txn, TxnReply,
};

/// Maximum length of a token: JSON web tokens have some hundred bytes.
const MAX_TOKEN: usize = 8 << 10;

/// Bytes as base64.
#[derive(Default)]
struct Base64(Vec<u8>);

impl Serialize for Base64 {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        STANDARD.decode(text.as_bytes()).map(Self).map_err(|_| de::Error::custom("no base64"))
    }
}

fn encode(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// A number of 64 bits: a string, or a number from a gateway that writes such.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Int(i64);

impl<'de> Deserialize<'de> for Int {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Int;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an integer of 64 bits")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Int, E> {
                text.parse().map(Int).map_err(|_| E::custom("no integer"))
            }
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Int, E> {
                Ok(Int(number))
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Int, E> {
                i64::try_from(number).map(Int).map_err(|_| E::custom("no integer of 64 bits"))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl Int {
    fn revision(self) -> Result<Revision, LedgerError> {
        u64::try_from(self.0).map_err(|_| LedgerError::BadAnswer("a revision"))
    }
}

#[derive(Deserialize, Default)]
struct Header {
    #[serde(default)]
    revision: Int,
}

#[derive(Deserialize)]
struct Kv {
    key: Base64,
    #[serde(default)]
    value: Base64,
    #[serde(default)]
    create_revision: Int,
    #[serde(default)]
    mod_revision: Int,
    #[serde(default)]
    lease: Int,
}

impl Kv {
    fn value(self) -> Result<KeyValue, LedgerError> {
        Ok(KeyValue {
            key: self.key.0,
            value: self.value.0,
            created: self.create_revision.revision()?,
            modified: self.mod_revision.revision()?,
            lease: LeaseId(self.lease.0),
        })
    }
}

fn parse<'de, T: Deserialize<'de>>(body: &'de [u8], what: &'static str) -> Result<T, LedgerError> {
    serde_json::from_slice(body).map_err(|_| LedgerError::BadAnswer(what))
}

pub(super) fn range(start: &[u8], end: &[u8], at: Revision, limit: u64) -> Vec<u8> {
    let body = json!({
        "key": encode(start),
        "range_end": encode(end),
        "limit": limit.to_string(),
        "revision": at.to_string(),
    });
    body.to_string().into_bytes()
}

pub(super) fn page(body: &[u8]) -> Result<Page, LedgerError> {
    #[derive(Deserialize)]
    struct Range {
        header: Header,
        #[serde(default)]
        kvs: Vec<Kv>,
        #[serde(default)]
        more: bool,
    }
    let range: Range = parse(body, "a range")?;
    let keys = range.kvs.into_iter().map(Kv::value).collect::<Result<_, _>>()?;
    Ok(Page { revision: range.header.revision.revision()?, keys, more: range.more })
}

pub(super) fn txn(txn: &Txn) -> Vec<u8> {
    let compare = |compare: &Compare| match compare {
        Compare::Created(key, revision) => json!({
            "key": encode(key), "target": "CREATE", "result": "EQUAL", "create_revision": revision.to_string(),
        }),
        Compare::Modified(key, revision) => json!({
            "key": encode(key), "target": "MOD", "result": "EQUAL", "mod_revision": revision.to_string(),
        }),
        Compare::Lease(key, lease) => json!({
            "key": encode(key), "target": "LEASE", "result": "EQUAL", "lease": lease.0.to_string(),
        }),
    };
    let operation = |operation: &Operation| match operation {
        Operation::Put { key, value, lease } => json!({
            "request_put": {"key": encode(key), "value": encode(value), "lease": lease.0.to_string()},
        }),
        Operation::Delete { key } => json!({"request_delete_range": {"key": encode(key)}}),
        Operation::Get { key } => json!({"request_range": {"key": encode(key)}}),
    };
    let body = json!({
        "compare": txn.compare.iter().map(compare).collect::<Vec<_>>(),
        "success": txn.success.iter().map(operation).collect::<Vec<_>>(),
        "failure": txn.failure.iter().map(operation).collect::<Vec<_>>(),
    });
    body.to_string().into_bytes()
}

pub(super) fn txn_reply(body: &[u8]) -> Result<TxnReply, LedgerError> {
    #[derive(Deserialize)]
    struct Answer {
        header: Header,
        #[serde(default)]
        succeeded: bool,
        #[serde(default)]
        responses: Vec<Step>,
    }
    #[derive(Deserialize)]
    struct Step {
        response_put: Option<de::IgnoredAny>,
        response_delete_range: Option<de::IgnoredAny>,
        response_range: Option<Got>,
    }
    #[derive(Deserialize)]
    struct Got {
        #[serde(default)]
        kvs: Vec<Kv>,
    }
    let step = |step: Step| match step {
        Step { response_range: Some(mut got), .. } => {
            Ok(Reply::Got(got.kvs.pop().map(Kv::value).transpose()?))
        }
        Step { response_put: Some(_), .. } => Ok(Reply::Put),
        Step { response_delete_range: Some(_), .. } => Ok(Reply::Deleted),
        _ => Err(LedgerError::BadAnswer("a step of a transaction")),
    };
    let answer: Answer = parse(body, "a transaction")?;
    let replies = answer.responses.into_iter().map(step).collect::<Result<_, _>>()?;
    let revision = answer.header.revision.revision()?;
    Ok(TxnReply { succeeded: answer.succeeded, revision, replies })
}

pub(super) fn grant(seconds: u64) -> Vec<u8> {
    json!({"TTL": seconds.to_string()}).to_string().into_bytes()
}

pub(super) fn lease(lease: LeaseId) -> Vec<u8> {
    json!({"ID": lease.0.to_string()}).to_string().into_bytes()
}

#[derive(Deserialize)]
struct Lease {
    #[serde(default, rename = "ID")]
    id: Int,
    #[serde(default, rename = "TTL")]
    ttl: Int,
}

pub(super) fn granted(body: &[u8]) -> Result<(LeaseId, u64), LedgerError> {
    let lease: Lease = parse(body, "a lease")?;
    match u64::try_from(lease.ttl.0) {
        Ok(seconds) if seconds > 0 && lease.id.0 != 0 => Ok((LeaseId(lease.id.0), seconds)),
        _ => Err(LedgerError::BadAnswer("a lease")),
    }
}

/// The seconds of a renewed lease. The stream of answers ends after one, as the stream of requests has.
pub(super) fn renewed(body: &[u8]) -> Result<u64, LedgerError> {
    #[derive(Deserialize)]
    struct Line {
        result: Option<Lease>,
        error: Option<ErrorBody>,
    }
    let line: Line = parse(body, "a renewal")?;
    match line {
        Line { result: Some(lease), .. } => match u64::try_from(lease.ttl.0) {
            Ok(seconds) if seconds > 0 => Ok(seconds),
            _ => Err(LedgerError::LeaseGone),
        },
        Line { error: Some(error), .. } => Err(match error.kind() {
            Kind::Elsewhere(why) => LedgerError::Unavailable(why),
            Kind::Token => LedgerError::Denied("token"),
            Kind::Final(error) => error,
        }),
        _ => Err(LedgerError::BadAnswer("a renewal")),
    }
}

pub(super) fn remaining(body: &[u8]) -> Result<Option<u64>, LedgerError> {
    // Gone: -1. Less than a second: left out.
    let lease: Lease = parse(body, "a lease")?;
    Ok(u64::try_from(lease.ttl.0).ok())
}

pub(super) fn authenticate(user: &str, password: &str) -> Vec<u8> {
    json!({"name": user, "password": password}).to_string().into_bytes()
}

pub(super) fn token(body: &[u8]) -> Result<Arc<str>, LedgerError> {
    #[derive(Deserialize)]
    struct Answer {
        token: Arc<str>,
    }
    let answer: Answer = parse(body, "a token")?;
    let fits = !answer.token.is_empty() && answer.token.len() <= MAX_TOKEN;
    if fits { Ok(answer.token) } else { Err(LedgerError::BadAnswer("a token")) }
}

pub(super) fn watch(start: &[u8], end: &[u8], from: Revision) -> Vec<u8> {
    let request = json!({"key": encode(start), "range_end": encode(end), "start_revision": from.to_string()});
    json!({"create_request": request}).to_string().into_bytes()
}

/// A line of a watch.
#[derive(Debug)]
pub(super) enum Message {
    /// None in the first line, which confirms the watch, and in reports of progress.
    Changes(Vec<Change>),
    Compacted,
    Ended,
    Error(Kind),
}

pub(super) fn message(line: &[u8]) -> Result<Message, LedgerError> {
    #[derive(Deserialize)]
    struct Line {
        result: Option<Changes>,
        error: Option<ErrorBody>,
    }
    #[derive(Deserialize)]
    struct Changes {
        #[serde(default)]
        canceled: bool,
        #[serde(default)]
        compact_revision: Int,
        #[serde(default)]
        cancel_reason: String,
        #[serde(default)]
        events: Vec<Event>,
    }
    #[derive(Deserialize)]
    struct Event {
        #[serde(default, rename = "type")]
        kind: Option<String>,
        kv: Kv,
    }
    let change = |event: Event| {
        let kv = event.kv.value()?;
        match event.kind.as_deref() {
            None | Some("PUT") => Ok(Change::Put(kv)),
            Some("DELETE") => Ok(Change::Deleted { key: kv.key, revision: kv.modified }),
            Some(_) => Err(LedgerError::BadAnswer("a change")),
        }
    };
    let line: Line = parse(line, "a watch")?;
    match line {
        Line { error: Some(error), .. } => Ok(Message::Error(error.kind())),
        Line { result: Some(result), .. } if result.canceled => Ok(if result.compact_revision.0 != 0 {
            Message::Compacted
        } else if result.cancel_reason.contains("permission denied") {
            Message::Error(Kind::Final(LedgerError::Denied("permission")))
        } else {
            Message::Ended
        }),
        Line { result: Some(result), .. } => {
            Ok(Message::Changes(result.events.into_iter().map(change).collect::<Result<_, _>>()?))
        }
        _ => Err(LedgerError::BadAnswer("a watch")),
    }
}

#[cfg(test)]
mod tests;
