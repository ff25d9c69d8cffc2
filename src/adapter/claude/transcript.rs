//! Paths of the CLI's files, and gaps in a transcript.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::PathBuf;

use crate::config::CliConfig;
use crate::model::Dirs;

mod cut;
mod end;
pub(super) mod entry;
mod gap;
mod index;
mod messages;
mod restore;

pub(crate) use cut::cut;
pub(crate) use end::transcript_end;
pub(crate) use messages::{last_usage, messages};
pub(crate) use restore::{entries_after, restore, snapshot};

/// Variable with the directory of the CLI's files; the default is below `HOME`.
pub(super) const CONFIG_DIR: &str = "CLAUDE_CONFIG_DIR";

/// Variables that must be the same for all users: they locate the CLI's files.
pub(crate) const FIXED_VARIABLES: &[&str] = &[CONFIG_DIR];

/// Longest folder name; a longer one is cut, and a hash is appended.
const FOLDER_NAME_LIMIT: usize = 200;

/// Bytes of a transcript that are read, from its end. An ordinary line has 2 KB; one with an image has some megabytes.
const TAIL: u64 = 8 << 20;

/// Directory of the CLI's own files, transcripts and credentials among them: below `HOME`, or as `[cli.env]` sets it.
pub(crate) fn config_dir(dirs: &Dirs, cli: &CliConfig) -> PathBuf {
    match cli.env.get(CONFIG_DIR).filter(|dir| !dir.is_empty()) {
        Some(dir) => dirs.work.join(dir),
        None => dirs.home.join(".claude"),
    }
}

/// Path of a transcript. The working directory must exist: the CLI resolves its symbolic links.
pub(crate) fn transcript_path(dirs: &Dirs, cli: &CliConfig, session_id: &str) -> PathBuf {
    // The CLI resolves all symbolic links of its working directory.
    let work = std::fs::canonicalize(&dirs.work).unwrap_or_else(|_| dirs.work.clone());
    let mut path = config_dir(dirs, cli).join("projects").join(folder_name(&work.to_string_lossy()));
    path.push(format!("{session_id}.jsonl"));
    path
}

/// Folder name of a working directory: each UTF-16 unit other than a letter or a digit becomes a dash.
fn folder_name(work: &str) -> String {
    let dashed = |unit: u16| match u8::try_from(unit) {
        Ok(byte) if byte.is_ascii_alphanumeric() => char::from(byte),
        _ => '-',
    };
    let mut name: String = work.encode_utf16().map(dashed).collect();
    if name.len() > FOLDER_NAME_LIMIT {
        name.truncate(FOLDER_NAME_LIMIT);
        name.push('-');
        name.push_str(&base36(hash(work)));
    }
    name
}

/// The CLI's hash of a path: the absolute value of a wrapping 31-polynomial over its UTF-16 units.
fn hash(text: &str) -> u32 {
    text.encode_utf16()
        .fold(0_i32, |hash, unit| hash.wrapping_mul(31).wrapping_add(i32::from(unit)))
        .unsigned_abs()
}

fn base36(mut number: u32) -> String {
    let mut digits = Vec::new();
    loop {
        digits.extend(char::from_digit(number % 36, 36));
        number /= 36;
        if number == 0 {
            return digits.into_iter().rev().collect();
        }
    }
}

/// First missing entry on the way from `checkpoint` back to the first entry.
pub(crate) fn transcript_gap(mut file: &File, checkpoint: &str) -> io::Result<Option<String>> {
    let length = file.seek(SeekFrom::End(0))?;
    let first = length.saturating_sub(TAIL);
    file.seek(SeekFrom::Start(first))?;
    gap::gap(file.take(TAIL), first > 0, checkpoint)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    fn dirs(work: &Path) -> Dirs {
        Dirs { work: work.into(), home: "/s/home".into(), tmp: "/s/tmp".into() }
    }

    #[test]
    fn folder_names_match_the_cli() {
        // Observed with the CLI.
        let seen = "/tmp/adapter-probe/ad-d0nuyvyj/c/w_x.y ü😀z";
        assert_eq!(folder_name(seen), "-tmp-adapter-probe-ad-d0nuyvyj-c-w-x-y----z");
        let long = |length: usize| {
            let start = format!("/tmp/adapter-probe/ad-d0nuyvyj/b{length}/");
            format!("{start}{}", "w".repeat(length - start.len()))
        };
        assert_eq!(folder_name(&long(200)).len(), 200);
        assert!(folder_name(&long(201)).ends_with("www-li9o8v"));
        assert!(folder_name(&long(260)).ends_with("www-9ysaw3"));
        assert_eq!(folder_name(&long(260)).len(), 207);
    }

    #[test]
    fn path_follows_links_and_config_dir() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap().join("real");
        std::fs::create_dir(&real).unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let mut cli = CliConfig::default();
        assert_eq!(transcript_path(&dirs(&link), &cli, "id"), transcript_path(&dirs(&real), &cli, "id"));
        let missing = Path::new("/no/such.dir");
        let expected = "/s/home/.claude/projects/-no-such-dir/id.jsonl";
        assert_eq!(transcript_path(&dirs(missing), &cli, "id"), Path::new(expected));
        cli.env.insert(CONFIG_DIR.to_owned(), "/conf".to_owned());
        assert_eq!(
            transcript_path(&dirs(missing), &cli, "id"),
            Path::new("/conf/projects/-no-such-dir/id.jsonl")
        );
        cli.env.insert(CONFIG_DIR.to_owned(), "conf".to_owned());
        assert_eq!(config_dir(&dirs(missing), &cli), Path::new("/no/such.dir/conf"));
    }

    #[test]
    fn entry_is_found_anywhere_in_the_tail() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("t.jsonl");
        let holds = |id: &str| transcript_gap(&File::open(&file).unwrap(), id).map(|gap| gap.is_none());
        let entry = r#"{"uuid":"u-1"}"#;
        let tail = usize::try_from(TAIL).unwrap();
        for behind in [0, 1, 2, 1000, tail - 14, tail - 13, tail * 2] {
            let mut written = File::create(&file).unwrap();
            writeln!(written, "{}", "x".repeat(1000)).unwrap();
            written.write_all(entry.as_bytes()).unwrap();
            let mut rest = vec![b'x'; behind];
            rest.iter_mut().take(1).for_each(|first| *first = b'\n');
            written.write_all(&rest).unwrap();
            drop(written);
            assert_eq!(holds("u-1").unwrap(), behind <= tail - entry.len(), "{behind}");
            assert!(!holds("u-2").unwrap());
        }
        assert!(transcript_gap(&File::open(dir.path()).unwrap(), "u-1").is_err());
    }

    fn entry(id: &str, parent: Option<&str>) -> String {
        serde_json::json!({ "parentUuid": parent, "x": "u-9", "type": "user", "uuid": id }).to_string() + "\n"
    }

    fn leads_back(text: &str, is_cut: bool, id: &str) -> bool {
        gap::gap(text.as_bytes(), is_cut, id).unwrap().is_none()
    }

    #[test]
    fn entry_without_its_parents_is_a_gap() {
        let (root, one, two) = (entry("u-0", None), entry("u-1", Some("u-0")), entry("u-2", Some("u-1")));
        let whole = [root.as_str(), &one, "{\"type\":\"summary\"}\n", &two, "{\"cut off"].concat();
        assert!(leads_back(&whole, false, "u-2") && leads_back(&whole, false, "u-0"));
        assert!(!leads_back(&whole, false, "u-9") && !leads_back(&whole, true, "u-9"));
        let gap = [root.as_str(), &two].concat();
        assert!(!leads_back(&gap, false, "u-2") && leads_back(&gap, true, "u-2"));
        let out_of_order = [two.as_str(), &root, &one].concat();
        assert!(leads_back(&out_of_order, false, "u-2"));
        // Later entries do not change the text of a gap.
        let behind = [gap.as_str(), &entry("u-3", Some("u-2"))].concat();
        let found = |text: &str, id: &str| gap::gap(text.as_bytes(), false, id).unwrap();
        assert!(found(&gap, "u-2").is_some());
        assert_eq!(found(&gap, "u-2"), found(&behind, "u-3"));
        assert_ne!(found(&gap, "u-2"), found(&behind, "u-4"));
        let circle = [entry("u-1", Some("u-2")), two.clone()].concat();
        assert!(!leads_back(&circle, false, "u-2") && leads_back(&circle, true, "u-2"));
    }

    #[test]
    fn cut_line_loses_the_next_one_too() {
        let (root, one, two) = (entry("u-0", None), entry("u-1", Some("u-0")), entry("u-2", Some("u-1")));
        for cut in 1..one.len() {
            let glued = [root.as_str(), one.get(..cut).unwrap(), &two, &entry("u-3", Some("u-2"))].concat();
            assert!(!leads_back(&glued, false, "u-3"), "cut at {cut}");
            assert!(!leads_back(&glued, false, "u-2"), "cut at {cut}");
            assert!(leads_back(&glued, false, "u-0"));
        }
    }

    /// Damage of a line on disk.
    #[derive(Debug, Clone)]
    enum Damage {
        None,
        /// Only its beginning is there, without a line end.
        Cut(prop::sample::Index),
        /// The line is missing.
        Gone,
        Doubled,
        /// A hole in the file reads as zeros.
        Zeros(prop::sample::Index),
    }

    fn damage() -> impl Strategy<Value = Damage> {
        prop_oneof![
            6 => Just(Damage::None),
            2 => any::<prop::sample::Index>().prop_map(Damage::Cut),
            1 => Just(Damage::Gone),
            1 => Just(Damage::Doubled),
            1 => any::<prop::sample::Index>().prop_map(Damage::Zeros),
        ]
    }

    /// Reference implementation.
    fn plainly(text: &[u8], checkpoint: &str) -> bool {
        let entries = text.split(|byte| *byte == b'\n').filter_map(|line| {
            let entry: serde_json::Value = serde_json::from_slice(line).ok()?;
            Some((
                entry.get("uuid")?.as_str()?.to_owned(),
                entry.get("parentUuid")?.as_str().map(str::to_owned),
            ))
        });
        let mut entries: std::collections::HashMap<_, _> = entries.collect();
        let mut wanted = Some(checkpoint.to_owned());
        while let Some(id) = wanted {
            let Some(parent) = entries.remove(&id) else { return false };
            wanted = parent;
        }
        true
    }

    proptest! {
        #[test]
        fn damaged_lines_are_gaps(
            damages in prop::collection::vec((damage(), 0_usize..600), 1..12),
        ) {
            let mut text = Vec::new();
            let mut intact = true;
            for (number, (damage, size)) in damages.iter().enumerate() {
                let parent = number.checked_sub(1).map(|it| format!("u-{it}"));
                let line = serde_json::json!({
                    "parentUuid": parent, "message": "m".repeat(*size), "uuid": format!("u-{number}"),
                }).to_string() + "\n";
                let mut line = line.into_bytes();
                match damage {
                    Damage::None => {}
                    Damage::Cut(at) => line.truncate(at.index(line.len())),
                    Damage::Gone => line.clear(),
                    Damage::Doubled => line = line.repeat(2),
                    Damage::Zeros(at) => {
                        let at = at.index(line.len() - 1);
                        line[at] = 0;
                    }
                }
                text.extend(line);
                let id = format!("u-{number}");
                let held = gap::gap(text.as_slice(), false, &id).unwrap().is_none();
                prop_assert_eq!(held, plainly(&text, &id));
                prop_assert!(intact || !held, "an ancestor is damaged");
                intact &= matches!(damage, Damage::None | Damage::Doubled);
            }
        }
    }
}
