//! Where the CLI keeps its files, and what of a conversation is on disk.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::PathBuf;

use serde::Deserialize;

use crate::cli::Dirs;
use crate::config::CliConfig;

/// Moves the CLI's own files out of `HOME`.
pub(super) const CONFIG_DIR: &str = "CLAUDE_CONFIG_DIR";

/// A working directory with a longer name is cut here, and a hash is appended.
const FOLDER_NAME_LIMIT: usize = 200;

/// How much of a transcript's end is searched. A line of an ordinary turn takes 2 KB; one with a large answer or an
/// image some megabytes.
const TAIL: u64 = 4 << 20;

/// The directory of the CLI's own files: below `HOME`, unless `[cli.env]` says otherwise.
pub(super) fn config_dir(dirs: &Dirs, cli: &CliConfig) -> PathBuf {
    match cli.env.get(CONFIG_DIR).filter(|dir| !dir.is_empty()) {
        Some(dir) => dirs.work.join(dir),
        None => dirs.home.join(".claude"),
    }
}

pub(super) fn path(dirs: &Dirs, cli: &CliConfig, session_id: &str) -> PathBuf {
    // The CLI sees its working directory with all symbolic links resolved.
    let work = std::fs::canonicalize(&dirs.work).unwrap_or_else(|_| dirs.work.clone());
    let mut path = config_dir(dirs, cli).join("projects").join(folder_name(&work.to_string_lossy()));
    path.push(format!("{session_id}.jsonl"));
    path
}

/// Everything but letters and digits becomes a dash; the CLI counts in UTF-16.
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

/// The CLI's hash of a path: a signed sum of its UTF-16 units, each step times 31, without its sign.
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

/// Whether the line is there, and with it what it follows from.
pub(super) fn holds(mut file: &File, checkpoint: &str) -> io::Result<bool> {
    let length = file.seek(SeekFrom::End(0))?;
    let first = length.saturating_sub(TAIL);
    file.seek(SeekFrom::Start(first))?;
    let mut tail = Vec::new();
    file.take(TAIL).read_to_end(&mut tail)?;
    Ok(leads_back(&tail, first > 0, checkpoint))
}

/// An entry of the transcript, as far as it tells its place.
#[derive(Deserialize)]
struct Entry<'a> {
    #[serde(borrow)]
    uuid: Option<Cow<'a, str>>,
    #[serde(borrow, rename = "parentUuid")]
    parent: Option<Cow<'a, str>>,
}

/// Whether the entry is there and every one before it that it goes back to. Each names the one that it follows, and the
/// CLI remembers no further back than to the first that is missing: on a full disk a long one may be, and the short one
/// behind it be there. `is_cut`: the transcript is longer than this.
fn leads_back(tail: &[u8], is_cut: bool, checkpoint: &str) -> bool {
    let mut wanted = checkpoint.to_owned();
    for line in tail.rsplit(|&byte| byte == b'\n') {
        // Nearly all that need not be read are told apart by this.
        if memchr::memmem::find(line, wanted.as_bytes()).is_none() {
            continue;
        }
        let Ok(entry) = serde_json::from_slice::<Entry<'_>>(line) else { continue };
        if entry.uuid.as_deref() != Some(wanted.as_str()) {
            continue;
        }
        match entry.parent {
            Some(parent) => wanted = parent.into_owned(),
            None => return true,
        }
    }
    let out_of_order = format!("\"uuid\":\"{wanted}\"");
    wanted != checkpoint && (is_cut || memchr::memmem::find(tail, out_of_order.as_bytes()).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::path::Path;

    fn dirs(work: &Path) -> Dirs {
        Dirs { work: work.into(), home: "/s/home".into(), tmp: "/s/tmp".into() }
    }

    #[test]
    fn folders_are_named_as_the_cli_names_them() {
        // As seen with the CLI itself.
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
    fn links_are_resolved_and_the_config_dir_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap().join("real");
        std::fs::create_dir(&real).unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let mut cli = CliConfig::default();
        assert_eq!(path(&dirs(&link), &cli, "id"), path(&dirs(&real), &cli, "id"));
        let missing = Path::new("/no/such.dir");
        let expected = "/s/home/.claude/projects/-no-such-dir/id.jsonl";
        assert_eq!(path(&dirs(missing), &cli, "id"), Path::new(expected));
        cli.env.insert(CONFIG_DIR.to_owned(), "/conf".to_owned());
        assert_eq!(path(&dirs(missing), &cli, "id"), Path::new("/conf/projects/-no-such-dir/id.jsonl"));
        cli.env.insert(CONFIG_DIR.to_owned(), "conf".to_owned());
        assert_eq!(config_dir(&dirs(missing), &cli), Path::new("/no/such.dir/conf"));
    }

    #[test]
    fn an_entry_is_found_wherever_it_lies_in_the_tail() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("t.jsonl");
        let holds = |id: &str| holds(&File::open(&file).unwrap(), id);
        let entry = r#"{"uuid":"u-1"}"#;
        let tail = usize::try_from(TAIL).unwrap();
        for behind in [0, 1, 2, 1000, tail - 14, tail - 13, tail * 2] {
            let mut written = File::create(&file).unwrap();
            writeln!(written, "{}", "x".repeat(1000)).unwrap();
            written.write_all(entry.as_bytes()).unwrap();
            written.write_all(&vec![b'\n'; behind]).unwrap();
            drop(written);
            assert_eq!(holds("u-1").unwrap(), behind <= tail - entry.len(), "{behind}");
            assert!(!holds("u-2").unwrap());
        }
        assert!(super::holds(&File::open(dir.path()).unwrap(), "u-1").is_err());
    }

    #[test]
    fn what_follows_from_nothing_is_not_held() {
        let line =
            |id: &str, parent: &str| format!("{{\"parentUuid\":{parent},\"x\":\"u-9\",\"uuid\":\"{id}\"}}\n");
        let (root, one, two) = (line("u-0", "null"), line("u-1", "\"u-0\""), line("u-2", "\"u-1\""));
        let whole = [root.as_str(), &one, "{\"type\":\"summary\"}\n", &two, "{\"cut off"].concat();
        assert!(leads_back(whole.as_bytes(), false, "u-2"));
        assert!(leads_back(whole.as_bytes(), false, "u-0"));
        assert!(!leads_back(whole.as_bytes(), false, "u-9") && !leads_back(whole.as_bytes(), true, "u-9"));
        let gap = [root.as_str(), &two].concat();
        assert!(!leads_back(gap.as_bytes(), false, "u-2"));
        assert!(leads_back(gap.as_bytes(), true, "u-2"), "it may be further back than we look");
        let odd = [two.as_str(), &one, &root].concat();
        assert!(leads_back(odd.as_bytes(), false, "u-2"), "what is there is not lost, whatever its place");
        assert!(leads_back(b"{\"uuid\":\"u-5\"}", false, "u-5"), "one that names nothing needs nothing");
    }
}
