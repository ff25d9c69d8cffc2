//! Whatever stands in a transcript, cut, glued or doubled: what the reader says is what the plainest reading says, and
//! nothing panics.
//!
//! `cargo +nightly fuzz run transcript`, or with a stable compiler `RUSTC_BOOTSTRAP=1 cargo fuzz run transcript`;
//! `-- -max_total_time=300` ends it after five minutes.

#![no_main]

use std::collections::HashMap;

use libfuzzer_sys::fuzz_target;
use serde_json::Value;

/// The reader is private to the crate; it needs nothing of it.
#[path = "../../src/adapter/claude/transcript/gap.rs"]
mod gap;

/// Ids that the input may use, so that chance finds chains.
const IDS: [&str; 4] = ["u-0", "u-1", "u-2", "u-3"];

fuzz_target!(|input: &[u8]| {
    // The first bytes choose what happens to a conversation of some entries; the rest is put behind it as it is.
    let Some((script, rest)) = input.split_at_checked(8) else { return };
    let mut text = Vec::new();
    for (number, step) in script.iter().enumerate() {
        let id = IDS[number % IDS.len()];
        let parent = (number > 0).then(|| IDS[(number - 1) % IDS.len()]);
        let mut line = serde_json::json!({ "parentUuid": parent, "uuid": id, "m": "x" }).to_string() + "\n";
        match step % 4 {
            0 => line.truncate(usize::from(*step) % line.len()),
            1 => line = line.repeat(2),
            2 => line.insert(usize::from(*step) % line.len(), char::from(*step)),
            _ => {}
        }
        text.extend(line.into_bytes());
    }
    text.extend(rest);
    for id in IDS {
        let held = gap::gap(text.as_slice(), false, id).expect("a slice is read").is_none();
        assert_eq!(held, plainly(&text, id), "{}", String::from_utf8_lossy(&text));
        // A transcript that begins earlier can only hold more.
        assert!(!held || gap::gap(text.as_slice(), true, id).expect("a slice is read").is_none());
    }
});

fn plainly(text: &[u8], checkpoint: &str) -> bool {
    let mut entries: HashMap<String, Option<String>> = text.split(|byte| *byte == b'\n').filter_map(entry).collect();
    let mut wanted = Some(checkpoint.to_owned());
    while let Some(id) = wanted {
        let Some(parent) = entries.remove(&id) else { return false };
        wanted = parent;
    }
    true
}

/// Only objects in which each field stands once, with a text or nothing: the CLI writes no others.
fn entry(line: &[u8]) -> Option<(String, Option<String>)> {
    // Names of fields are written without escapes.
    line.windows(6).find(|it| it == b"\"uuid\"")?;
    let fields: Value = serde_json::from_slice::<Unique>(line).ok()?.0;
    let text = |name: &str| match fields.get(name) {
        None | Some(Value::Null) => Some(None),
        Some(Value::String(text)) => Some(Some(text.clone())),
        Some(_) => None,
    };
    Some((text("uuid")??, text("parentUuid")?))
}

/// A JSON object, refused if one of the two fields stands in it twice.
struct Unique(Value);

impl<'de> serde::Deserialize<'de> for Unique {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> serde::de::Visitor<'de> for Fields {
            type Value = Unique;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Unique, A::Error> {
                let mut fields = serde_json::Map::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name != "uuid" && name != "parentUuid" {
                        map.next_value::<serde::de::IgnoredAny>()?;
                    } else if fields.insert(name, map.next_value()?).is_some() {
                        return Err(serde::de::Error::custom("twice"));
                    }
                }
                Ok(Unique(Value::Object(fields)))
            }
        }
        deserializer.deserialize_map(Fields)
    }
}
