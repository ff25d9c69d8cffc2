//! The word list: words of the field instead of a private language.

use super::text::{files_below, read};

/// Words to avoid, each with what to write instead. A word of several parts is separated by blanks.
const AVOID: &[(&str, &str)] = &[
    ("told", "reported, notified, logged"),
    ("whoever", "name the role: the caller, the reader"),
    ("somebody", "name the role: the caller, a process"),
    ("anew", "again"),
    ("mend", "recover, restart, repair"),
    ("mends", "recovers, restarts, repairs"),
    ("mended", "recovered, restarted, repaired"),
    ("mending", "recovery, repair"),
    ("leavings", "leftovers"),
    ("happening", "event"),
    ("happenings", "events"),
    ("figures", "metrics"),
    ("so long", "the duration, by its name"),
    ("so many", "the number, by its name"),
];

/// How often the words may still occur in each place: these numbers go down only.
const STILL: &[(&str, usize)] = &[
    ("src", 0),
    ("crates", 0),
    ("tests", 0),
    ("docs", 0),
    ("dashboards", 0),
    ("examples", 0),
    ("benches", 0),
    ("fuzz", 0),
    ("README.md", 0),
    ("ARCHITECTURE.md", 0),
    ("CONTRIBUTING.md", 0),
    ("SECURITY.md", 0),
];

/// The deprecated path of the event stream and the id of its operation are part of the interface.
const DEPRECATED: [&str; 2] = ["/v1/happenings", "followHappenings"];

/// The words of a text in lower case; identifiers fall into their parts.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut before = ' ';
    for c in line.chars() {
        let begins = c.is_uppercase() && before.is_lowercase();
        if begins || !c.is_alphabetic() {
            words.push(String::new());
        }
        if c.is_alphabetic() {
            words.last_mut().unwrap().extend(c.to_lowercase());
        }
        before = c;
    }
    words.retain(|word| !word.is_empty());
    words
}

/// The words to avoid that a line has.
fn avoided(line: &str) -> Vec<&'static str> {
    let line = DEPRECATED.iter().fold(line.to_owned(), |line, name| line.replace(name, ""));
    let text = format!(" {} ", words(&line).join(" "));
    let found = AVOID.iter().filter(|(word, _)| text.contains(&format!(" {word} ")));
    found.map(|(word, _)| *word).collect()
}

/// Every occurrence at or below a path, as `file:line: word`.
fn occurrences(place: &str) -> Vec<String> {
    const TEXT: [&str; 14] = [
        "rs", "md", "py", "js", "cjs", "mjs", "html", "css", "json", "toml", "yml", "yaml", "service", "run",
    ];
    let is_text =
        |file: &String| TEXT.iter().any(|end| file.ends_with(&format!(".{end}")) || file.ends_with("/run"));
    // Recorded streams and old data directories are as they are; this file has the list.
    let own = [
        "tests/it/sources/words.rs",
        "tests/samples/",
        "tests/fixtures/",
        "tests/inventory/",
        "fuzz/target/",
    ];
    let files = files_below(place).into_iter().filter(is_text);
    let mut found = Vec::new();
    for file in files.filter(|file| !own.iter().any(|own| file.starts_with(own))) {
        for (number, line) in read(&file).lines().enumerate() {
            found.extend(avoided(line).iter().map(|word| format!("{file}:{}: {word}", number + 1)));
        }
    }
    found
}

#[test]
fn words_to_avoid_become_fewer() {
    let mut faults = Vec::new();
    for (place, most) in STILL {
        let found = occurrences(place);
        println!("{place}: {} of {most}", found.len());
        if found.len() > *most {
            faults.push(format!("{place} has {}, {most} at most:\n  {}", found.len(), found.join("\n  ")));
        }
    }
    let instead: Vec<_> = AVOID.iter().map(|(word, instead)| format!("{word}: {instead}")).collect();
    assert!(faults.is_empty(), "words to avoid: {}\nwrite instead: {instead:#?}", faults.join("\n"));
}

#[test]
fn words_are_found_in_identifiers() {
    assert_eq!(avoided("fn child_was_told(x: SoMany)"), ["told", "so many"]);
    assert_eq!(avoided("A stream of `SessionHappenings`."), ["happenings"]);
    assert_eq!(avoided("GET /v1/happenings, recommended, untold"), [""; 0]);
}
