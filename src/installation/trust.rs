//! Whether others could put another program in the place of the CLI.
//!
//! Looked at: every file on the way to it (links, what they lead to, the interpreter of a script) and every directory on
//! the way to each of those. A user who may write one of them decides what runs with the users' conversations and keys.
//! Blocking. It only reports; nothing is refused.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

/// Links and interpreters that are followed; more are a circle.
const MOST_STEPS: usize = 40;
/// Longest `#!` line that the kernel reads.
const HEADLINE: u64 = 256;
/// Writing by the group or by others.
const WRITABLE: u32 = 0o022;
/// In such a directory only the owner of a file may replace it.
const STICKY: u32 = 0o1000;

/// What is wrong on the way to `program`, one sentence for each place, the first place first.
pub(crate) fn doubts(program: &Path) -> Vec<String> {
    let mut looked = Looked { own: rustix::process::geteuid().as_raw(), ..Looked::default() };
    looked.file(program);
    looked.doubts
}

#[derive(Default)]
struct Looked {
    own: u32,
    seen: Vec<PathBuf>,
    steps: usize,
    doubts: Vec<String>,
}

impl Looked {
    /// Looks at a file and at what it leads to.
    fn file(&mut self, path: &Path) {
        let Some(real) = self.resolve(path) else { return };
        for interpreter in interpreters(&real) {
            self.steps += 1;
            if self.steps < MOST_STEPS {
                self.file(&interpreter);
            }
        }
    }

    /// Follows the path, one component after the other as the kernel does, and looks at each.
    fn resolve(&mut self, path: &Path) -> Option<PathBuf> {
        let mut at = PathBuf::from("/");
        let mut left: Vec<PathBuf> = parts(path);
        self.place(&at);
        while let Some(part) = left.pop() {
            if part == Path::new("..") {
                at.pop();
                continue;
            }
            let next = at.join(part);
            self.place(&next);
            match fs::read_link(&next) {
                Ok(target) => {
                    self.steps += 1;
                    if self.steps > MOST_STEPS {
                        return None;
                    }
                    if target.is_absolute() {
                        at = PathBuf::from("/");
                    }
                    left.extend(parts(&target));
                }
                Err(_) => at = next,
            }
        }
        Some(at)
    }

    fn place(&mut self, path: &Path) {
        if self.seen.iter().any(|seen| seen == path) {
            return;
        }
        self.seen.push(path.to_owned());
        // One that is not there is found out by the start.
        let Ok(metadata) = path.symlink_metadata() else { return };
        let (owner, mode) = (metadata.uid(), metadata.mode());
        if owner != 0 && owner != self.own {
            self.doubts.push(format!("{} belongs to another user (uid {owner})", path.display()));
        }
        let is_guarded = metadata.is_symlink() || (metadata.is_dir() && mode & STICKY != 0);
        if mode & WRITABLE != 0 && !is_guarded {
            let mode = mode & 0o7777;
            self.doubts.push(format!("{} can be written by others (mode {mode:04o})", path.display()));
        }
    }
}

/// The components of a path, the last first; without its root.
fn parts(path: &Path) -> Vec<PathBuf> {
    let parts = path.components().filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir));
    let mut parts: Vec<PathBuf> = parts.map(|part| PathBuf::from(part.as_os_str())).collect();
    parts.reverse();
    parts
}

/// What runs a script: the program of its `#!` line, and what `env` finds in PATH for its argument.
fn interpreters(script: &Path) -> Vec<PathBuf> {
    let mut headline = Vec::new();
    let read = File::open(script).and_then(|file| file.take(HEADLINE).read_to_end(&mut headline));
    let text = String::from_utf8_lossy(&headline);
    let Some(line) = read.ok().and(text.lines().next()).and_then(|line| line.strip_prefix("#!")) else {
        return Vec::new();
    };
    let mut words = line.split_whitespace();
    let Some(program) = words.next().map(PathBuf::from) else { return Vec::new() };
    let is_env = program.file_name().is_some_and(|name| name == "env");
    let named = words.find(|word| is_env && !word.starts_with('-') && !word.contains('='));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = named.and_then(|name| {
        std::env::split_paths(&path).map(|directory| directory.join(name)).find(|path| path.is_file())
    });
    [program].into_iter().chain(found).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn make(path: &Path, text: &str) {
        fs::write(path, text).unwrap();
        mode(path, 0o755);
    }

    fn mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    /// The doubts about places in `dir`: where it lies is not the test's.
    fn found(dir: &Path, program: &Path) -> Vec<String> {
        let prefix = dir.display().to_string();
        doubts(program).into_iter().filter(|doubt| doubt.starts_with(&prefix)).collect()
    }

    #[test]
    fn trust_every_place_on_the_way_is_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        let (bin, lib) = (dir.join("bin"), dir.join("lib"));
        fs::create_dir(&bin).unwrap();
        fs::create_dir(&lib).unwrap();
        let (runner, cli) = (lib.join("runner"), lib.join("cli.js"));
        make(&runner, "");
        make(&cli, &format!("#!{}\n", runner.display()));
        symlink("../lib/cli.js", bin.join("claude")).unwrap();
        let program = bin.join("claude");
        assert_eq!(found(&dir, &program), [] as [String; 0]);
        for place in [&bin, &lib, &runner, &cli] {
            for open in [0o775, 0o757] {
                mode(place, open);
                let doubts = found(&dir, &program);
                assert_eq!(doubts.len(), 1, "{doubts:?}");
                assert!(doubts[0].starts_with(&place.display().to_string()) && doubts[0].contains("written"));
            }
            mode(place, 0o755);
            if rustix::process::geteuid().is_root() {
                std::os::unix::fs::chown(place, Some(65534), None).unwrap();
                let doubts = found(&dir, &program);
                assert!(doubts.len() == 1 && doubts[0].contains("65534"), "{doubts:?}");
                std::os::unix::fs::chown(place, Some(0), None).unwrap();
            }
        }
        // Where only owners replace their files, others cannot.
        mode(&bin, 0o1777);
        assert_eq!(found(&dir, &program), [] as [String; 0]);
    }

    #[test]
    fn trust_circles_and_missing_files_end() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        symlink("b", dir.join("a")).unwrap();
        symlink("a", dir.join("b")).unwrap();
        let own = dir.join("own");
        make(&own, &format!("#!{}\n", own.display()));
        for program in [dir.join("a"), dir.join("missing"), own] {
            assert_eq!(found(&dir, &program), [] as [String; 0]);
        }
    }
}
