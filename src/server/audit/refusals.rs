//! Requests that were refused before anything was looked at, summed up: a stranger must not fill the disk. Pure.

use std::collections::HashMap;
use std::time::SystemTime;

use serde::Serialize;

/// Kinds of refusals that are distinguished at a time. Those beyond are counted without their key.
const MOST: usize = 256;

/// The code of a refusal, and the id of the key.
type Kind = (&'static str, Option<String>);

/// What was refused since the last lines.
#[derive(Debug, Default)]
pub(super) struct Refusals(HashMap<Kind, Sum>);

#[derive(Debug)]
struct Sum {
    role: &'static str,
    first: SystemTime,
    last: SystemTime,
    count: u64,
}

#[derive(Serialize)]
struct Shown<'a> {
    time: String,
    verb: &'a str,
    outcome: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    caller: Option<&'a str>,
    role: &'a str,
    took_ms: u128,
    count: u64,
}

impl Refusals {
    pub(super) fn count(
        &mut self,
        code: &'static str,
        caller: Option<&str>,
        role: &'static str,
        now: SystemTime,
    ) {
        let mut kind: Kind = (code, caller.map(str::to_owned));
        if self.0.len() >= MOST && !self.0.contains_key(&kind) {
            // Codes are few, so these are as well.
            kind.1 = None;
        }
        let sum = self.0.entry(kind).or_insert(Sum { role, first: now, last: now, count: 0 });
        (sum.last, sum.count) = (now, sum.count.saturating_add(1));
    }

    /// Appends a line for each kind, the earliest first; returns their number.
    pub(super) fn render(self, to: &mut Vec<u8>) -> u64 {
        let mut sums: Vec<_> = self.0.into_iter().collect();
        sums.sort_by_key(|(_, sum)| sum.first);
        let mut rendered = 0;
        for ((code, caller), sum) in &sums {
            let shown = Shown {
                time: humantime::format_rfc3339_millis(sum.first).to_string(),
                verb: "refused",
                outcome: code,
                caller: caller.as_deref(),
                role: sum.role,
                took_ms: sum.last.duration_since(sum.first).unwrap_or_default().as_millis(),
                count: sum.count,
            };
            // A vector takes every write, and no field is without a form in JSON.
            if let Ok(line) = serde_json::to_vec(&shown) {
                to.extend_from_slice(&line);
                to.push(b'\n');
                rendered += 1;
            }
        }
        rendered
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn rendered(refusals: Refusals) -> Vec<serde_json::Value> {
        let mut text = Vec::new();
        let count = refusals.render(&mut text);
        let lines: Vec<_> = text
            .split_inclusive(|byte| *byte == b'\n')
            .map(|line| serde_json::from_slice(line).unwrap())
            .collect();
        assert_eq!(lines.len() as u64, count);
        lines
    }

    #[test]
    fn refusals_of_a_kind_are_one_line() {
        let mut refusals = Refusals::default();
        let at = |second| SystemTime::UNIX_EPOCH + Duration::from_secs(second);
        (0..1000).for_each(|_| refusals.count("invalid_key", None, "stranger", at(1)));
        refusals.count("too_many_requests", Some("k1"), "user", at(2));
        refusals.count("invalid_key", None, "stranger", at(3));
        let lines = rendered(refusals);
        assert_eq!((lines.len(), &lines[0]["count"], &lines[0]["took_ms"]), (2, &1001.into(), &2000.into()));
        assert_eq!((&lines[0]["verb"], &lines[0]["outcome"]), (&"refused".into(), &"invalid_key".into()));
        assert_eq!(lines[0]["time"], "1970-01-01T00:00:01.000Z");
        assert_eq!((&lines[1]["caller"], &lines[1]["role"]), (&"k1".into(), &"user".into()));
    }

    #[test]
    fn refusals_are_bounded() {
        let mut refusals = Refusals::default();
        for number in 0..3 * MOST {
            refusals.count("too_many_requests", Some(&number.to_string()), "user", SystemTime::UNIX_EPOCH);
        }
        let lines = rendered(refusals);
        assert_eq!(lines.len(), MOST + 1);
        let all: u64 = lines.iter().map(|line| line["count"].as_u64().unwrap()).sum();
        assert_eq!(all, 3 * MOST as u64);
    }
}
