//! A scenario: rules of a test that decide how the simulated CLI answers, and the record of what it was sent.
//!
//! Both are files of one directory. All processes of a test read the rules before each turn and append to the record, so
//! that a rule is used as often as it says, also across a crash. A lock on the record orders the processes.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::script::{self, Part, Script};

/// The rules: a list of objects.
const RULES: &str = "rules.json";
/// The record: a line for each turn.
const RECORD: &str = "received.jsonl";
/// How many starts must fail, in its first line; then the text that they write.
const FAILING_STARTS: &str = "failing-starts";
/// More than this of either file is no test's scenario.
const LIMIT: u64 = 256 << 20;

#[derive(Debug, Clone)]
pub(crate) struct Scenario(PathBuf);

/// What a turn was sent, for the record.
pub(crate) struct Received<'a> {
    pub(crate) text: &'a str,
    pub(crate) content: &'a Value,
    pub(crate) session_id: &'a str,
    pub(crate) model: &'a str,
    pub(crate) system_prompt: Option<&'a str>,
    pub(crate) resumed: bool,
}

impl Scenario {
    pub(crate) fn new(directory: &str) -> Self {
        Self(directory.into())
    }

    /// The text with which this start must fail, if one must.
    pub(crate) fn start(&self) -> Result<Option<String>, String> {
        let file = self.0.join(FAILING_STARTS);
        take_failing_start(&file).map_err(|error| format!("error: scenario {}: {error}", file.display()))
    }

    /// Records a message and returns the script of its turn: that of the first rule that matches and is not used up, else
    /// that of the markers in the text.
    pub(crate) fn script(&self, received: &Received<'_>) -> Result<Script, String> {
        let failed = |file: &str, error: &dyn std::fmt::Display| {
            format!("error: scenario {}: {error}", self.0.join(file).display())
        };
        let rules = rules(&self.0.join(RULES)).map_err(|error| failed(RULES, &error))?;
        let mut record = open_locked(&self.0.join(RECORD)).map_err(|error| failed(RECORD, &error))?;
        let used = uses(&mut record, rules.len()).map_err(|error| failed(RECORD, &error))?;
        let chosen = choose(&rules, &used, received.text);
        let line = json!({
            "text": received.text,
            "content": received.content,
            "session_id": received.session_id,
            "model": received.model,
            "system_prompt": received.system_prompt,
            "resumed": received.resumed,
            "pid": std::process::id(),
            "rule": chosen.map(|(index, _)| index),
        });
        record.write_all(format!("{line}\n").as_bytes()).map_err(|error| failed(RECORD, &error))?;
        match chosen {
            Some((_, rule)) => script_of(rule, received.text),
            None => script::parse(received.text),
        }
    }
}

fn take_failing_start(file: &Path) -> std::io::Result<Option<String>> {
    let mut counter = match OpenOptions::new().read(true).write(true).open(file) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    counter.lock()?;
    let content = read_bounded(counter.try_clone()?)?;
    let (count, text) = content.split_once('\n').unwrap_or((&content, ""));
    let count: u32 = count.parse().unwrap_or(0);
    if count == 0 {
        return Ok(None);
    }
    let next = format!("{}\n{text}", count - 1);
    counter.set_len(0)?;
    counter.seek(SeekFrom::Start(0))?;
    counter.write_all(next.as_bytes())?;
    Ok(Some(text.to_owned()))
}

fn rules(file: &Path) -> Result<Vec<Map<String, Value>>, String> {
    let text = match File::open(file) {
        Ok(file) => read_bounded(file),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => Err(error),
    };
    let text = text.map_err(|error| error.to_string())?;
    serde_json::from_str(&text).map_err(|error| error.to_string())
}

fn read_bounded(file: File) -> std::io::Result<String> {
    let mut text = String::new();
    file.take(LIMIT).read_to_string(&mut text)?;
    Ok(text)
}

/// The record, locked until it is closed.
fn open_locked(file: &Path) -> std::io::Result<File> {
    let record = OpenOptions::new().read(true).append(true).create(true).open(file)?;
    record.lock()?;
    Ok(record)
}

/// How often each rule was used.
fn uses(record: &mut File, rules: usize) -> std::io::Result<Vec<u64>> {
    record.seek(SeekFrom::Start(0))?;
    let text = read_bounded(record.try_clone()?)?;
    let mut used = vec![0; rules];
    for line in text.lines() {
        let line: Value = serde_json::from_str(line).unwrap_or_default();
        let rule = line.get("rule").and_then(Value::as_u64).and_then(|rule| usize::try_from(rule).ok());
        if let Some(uses) = rule.and_then(|rule| used.get_mut(rule)) {
            *uses += 1;
        }
    }
    Ok(used)
}

fn choose<'r>(
    rules: &'r [Map<String, Value>],
    used: &[u64],
    text: &str,
) -> Option<(usize, &'r Map<String, Value>)> {
    rules.iter().enumerate().find(|(index, rule)| {
        let word = |key: &str| rule.get(key).and_then(Value::as_str);
        let matches = word("equals").is_none_or(|whole| text == whole)
            && word("contains").is_none_or(|part| text.contains(part));
        let times = rule.get("times").and_then(Value::as_u64).unwrap_or(u64::MAX);
        matches && used.get(*index).is_none_or(|used| *used < times)
    })
}

/// `markers` are those of a message's text, `think` and `say` are the thoughts and the answer as they are, `recorded` are lines of a recorded turn.
fn script_of(rule: &Map<String, Value>, text: &str) -> Result<Script, String> {
    let word = |key: &str| rule.get(key).and_then(Value::as_str);
    let mut script = script::parse(word("markers").unwrap_or_default())?;
    if script.plain.is_empty() {
        script.plain = text.to_owned();
    }
    script.think = word("think").map(str::to_owned).or(script.think);
    if let Some(say) = word("say") {
        script.parts.push(Part::Say(say.to_owned()));
    }
    script.recorded = rule.get("recorded").and_then(Value::as_array).cloned().unwrap_or_default();
    Ok(script)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(value: Value) -> Map<String, Value> {
        value.as_object().cloned().unwrap()
    }

    #[test]
    fn first_unused_rule_that_matches_is_chosen() {
        let rules = [
            rule(json!({"contains": "weather", "times": 1})),
            rule(json!({"equals": "the weather?"})),
            rule(json!({"contains": "else", "times": 0})),
        ];
        let chosen = |used: &[u64], text| choose(&rules, used, text).map(|(index, _)| index);
        assert_eq!(chosen(&[0, 0, 0], "the weather?"), Some(0));
        assert_eq!(chosen(&[1, 0, 0], "the weather?"), Some(1));
        assert_eq!(chosen(&[1, 9, 0], "weather"), None);
        assert_eq!(chosen(&[0, 0, 0], "something else"), None);
    }

    #[test]
    fn answer_may_contain_brackets() {
        let script = script_of(&rule(json!({"say": "a ]] b", "markers": "[[sleep:5]]"})), "text").unwrap();
        assert_eq!(script.parts, [Part::Say("a ]] b".into())]);
        assert_eq!(script.sleep.as_millis(), 5);
        assert!(script_of(&rule(json!({"markers": "[[fault:nonsense]]"})), "text").is_err());
    }
}
