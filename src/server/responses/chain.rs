//! What came before a response: the items of its chain, and items that a request refers to. Blocking.

use std::collections::HashMap;
use std::io;

use serde_json::Value;

use super::file::Stored;
use super::id::ResponseId;
use super::user::UserResponses;

/// Responses in a chain, and the bytes of their files, that a request brings back: the largest history that a conversation
/// takes by default, and more responses than are kept.
const MOST: usize = 1000;
const MOST_BYTES: usize = 32 << 20;

/// The items of a chain of responses, oldest first: input and output of each.
pub(crate) struct Chain {
    pub(crate) items: Vec<Value>,
    /// Bytes of the files that were read.
    pub(crate) bytes: usize,
}

impl Chain {
    /// Reads the chain that ends with `last`. `None` if a response of it is not kept any more, or it is too long.
    pub(crate) fn read(user: &UserResponses, last: Stored) -> io::Result<Option<Self>> {
        let (mut all, mut bytes) = (Vec::new(), last.response.len());
        let mut next = Some(last);
        while let Some(stored) = next.take() {
            if let Some(previous) = &stored.head.previous {
                let Some((previous, length)) = user.read_now(previous)? else { return Ok(None) };
                bytes += length;
                next = Some(previous);
            }
            all.push(stored);
            if all.len() > MOST || bytes > MOST_BYTES {
                return Ok(None);
            }
        }
        let items = all.into_iter().rev().flat_map(|mut stored| {
            let input = std::mem::take(&mut stored.asked.input);
            input.into_iter().chain(stored.output())
        });
        Ok(Some(Self { items: items.collect(), bytes }))
    }
}

/// Replaces references to items of stored responses by the items. Returns the bytes of the files that were read, or the
/// place of the first reference to something that is not kept.
pub(crate) fn resolved(user: &UserResponses, items: &mut [Value]) -> io::Result<Result<usize, usize>> {
    let mut known: HashMap<ResponseId, Vec<Value>> = HashMap::new();
    let mut bytes = 0;
    for (index, item) in items.iter_mut().enumerate() {
        if item["type"] != "item_reference" {
            continue;
        }
        let id = item["id"].as_str().unwrap_or_default();
        let Some(response) = ResponseId::of_item(id) else { return Ok(Err(index)) };
        if !known.contains_key(&response) {
            let Some((stored, length)) = user.read_now(&response)? else { return Ok(Err(index)) };
            bytes += length;
            if known.len() >= MOST || bytes > MOST_BYTES {
                return Ok(Err(index));
            }
            let output = stored.output();
            known.insert(response.clone(), stored.asked.input.into_iter().chain(output).collect());
        }
        let found = known.get(&response).and_then(|items| items.iter().find(|it| it["id"] == id));
        let Some(found) = found.cloned() else { return Ok(Err(index)) };
        *item = found;
    }
    Ok(Ok(bytes))
}
