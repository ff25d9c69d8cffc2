//! Where the CLI keeps its files, and what of a conversation is on disk.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::cli::Dirs;
use crate::config::CliConfig;

/// Moves the CLI's own files out of `HOME`.
const CONFIG_DIR: &str = "CLAUDE_CONFIG_DIR";

/// A working directory with a longer name is cut here, and a hash is appended.
const FOLDER_NAME_LIMIT: usize = 200;

/// How much of a transcript's end is searched. A line of an ordinary turn takes 2 KB; one with a large answer or an
/// image some megabytes.
const TAIL: u64 = 4 << 20;

/// Read at once: mostly the end of the end is enough.
const CHUNK: u64 = 128 << 10;

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

/// Searches backwards, for the line that is looked for is one of the last.
pub(super) fn holds(transcript: &Path, checkpoint: &str) -> io::Result<bool> {
    let mut file = match File::open(transcript) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    let entry = format!("\"uuid\":\"{checkpoint}\"");
    let overlap = entry.len() as u64;
    let length = file.seek(SeekFrom::End(0))?;
    let first = length.saturating_sub(TAIL);
    let mut end = length;
    let mut chunk = Vec::new();
    loop {
        let start = end.saturating_sub(CHUNK).max(first);
        chunk.clear();
        file.seek(SeekFrom::Start(start))?;
        // An entry that lies across the border is found with the chunk before it.
        (&mut file).take((end - start) + overlap).read_to_end(&mut chunk)?;
        if memchr::memmem::rfind(&chunk, entry.as_bytes()).is_some() {
            return Ok(true);
        }
        if start <= first {
            return Ok(false);
        }
        end = start;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

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
        assert!(!holds(&file, "u-1").unwrap());
        let entry = r#"{"uuid":"u-1"}"#;
        let chunk = usize::try_from(CHUNK).unwrap();
        let tail = usize::try_from(TAIL).unwrap();
        for behind in (0..40).chain(chunk - 40..chunk + 40).chain([tail - 14, tail - 13, tail * 2]) {
            let mut written = File::create(&file).unwrap();
            written.write_all(&vec![b'x'; 1000]).unwrap();
            written.write_all(entry.as_bytes()).unwrap();
            written.write_all(&vec![b'x'; behind]).unwrap();
            drop(written);
            assert_eq!(holds(&file, "u-1").unwrap(), behind <= tail - 13, "{behind}");
            assert!(!holds(&file, "u-2").unwrap());
        }
        assert!(holds(dir.path(), "u-1").is_err());
    }
}
