//! What a child sees of its own program: the directories on the way to it, its interpreter and its modules.
//!
//! Package managers install a CLI as a link to a script, far away from the interpreter that its first line names.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use pilotlight_shim::isolation::Mount;

/// Longest chain of links that is followed, as in the kernel.
const MOST_LINKS: usize = 40;
/// Longest first line of a script that the kernel reads.
const MAX_FIRST_LINE: u64 = 256;
/// Directory of the modules of a JavaScript program.
const MODULES: &str = "node_modules";

/// Files by which a home directory is recognised: keys and settings lie there.
const OF_A_HOME: [&str; 12] = [
    ".ssh",
    ".gnupg",
    ".aws",
    ".azure",
    ".kube",
    ".docker",
    ".config",
    ".netrc",
    ".npmrc",
    ".profile",
    ".bashrc",
    ".claude.json",
];

/// The mounts of a program. `path` is the `PATH` of the child, `guarded` what no directory among them may contain: the
/// file alone is mounted then.
pub(crate) fn mounts(program: &Path, path: Option<&OsStr>, guarded: &[PathBuf]) -> Vec<Mount> {
    let mut found = Vec::new();
    let Some(file) = on_the_way(program, guarded, &mut found) else { return found };
    let Some(interpreter) = interpreter(&file, path) else { return found };
    if let Some(real) = on_the_way(&interpreter, guarded, &mut found)
        // Beside the interpreter's `bin`: the modules that come with it.
        && let Some(modules) = real.parent().and_then(Path::parent).map(|it| it.join("lib").join(MODULES))
        && modules.is_dir()
    {
        push(&mut found, Mount::read(modules));
    }
    found
}

/// Adds the directory of each link on the way to a file, and of the file itself, which is returned.
///
/// A directory may have a second name, by a link above it. It is shown under the name that leads on and under its own.
fn on_the_way(program: &Path, guarded: &[PathBuf], found: &mut Vec<Mount>) -> Option<PathBuf> {
    let real = program.canonicalize().ok();
    let mut names = vec![without_dots(program)];
    let mut next = 0;
    while let Some(at) = names.get(next).filter(|_| next < MOST_LINKS).cloned() {
        next += 1;
        let (Some(parent), Some(name)) = (at.parent(), at.file_name()) else { continue };
        let Ok(directory) = parent.canonicalize() else { continue };
        if guarded.iter().any(|inner| inner.starts_with(&directory)) || is_private(&directory) {
            // The file alone.
            let file = real.clone()?;
            push(found, Mount { path: file, to: at.clone(), write: false });
        } else {
            push(found, Mount { path: directory.clone(), to: parent.to_owned(), write: false });
            push(found, Mount::read(&directory));
        }
        match fs::read_link(directory.join(name)) {
            Ok(target) => {
                for from in [parent, &directory] {
                    let name = without_dots(&from.join(&target));
                    if !names.contains(&name) {
                        names.push(name);
                    }
                }
            }
            Err(_) => found.extend(modules(&at)),
        }
    }
    real
}

/// The outermost directory of modules that a file lies in.
fn modules(file: &Path) -> Option<Mount> {
    let is_modules = |it: &&Path| it.file_name() == Some(OsStr::new(MODULES));
    let named = file.ancestors().filter(is_modules).last()?;
    Some(Mount { path: named.canonicalize().ok()?, to: named.to_owned(), write: false })
}

/// The path without `.` and `..`.
fn without_dots(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(plain.pop()),
            Component::CurDir => {}
            other => plain.push(other),
        }
    }
    plain
}

/// Whether the directory is one that each child has of its own.
fn is_private(directory: &Path) -> bool {
    let is_taken = ["/", "/tmp", "/dev", "/home", "/root"].iter().any(|taken| directory == Path::new(taken));
    is_taken || OF_A_HOME.iter().any(|name| directory.join(name).symlink_metadata().is_ok())
}

fn push(found: &mut Vec<Mount>, mount: Mount) {
    if !found.contains(&mount) {
        found.push(mount);
    }
}

/// The program that a script is run by, if it is one.
fn interpreter(script: &Path, path: Option<&OsStr>) -> Option<PathBuf> {
    let mut line = Vec::new();
    File::open(script).ok()?.take(MAX_FIRST_LINE).read_to_end(&mut line).ok()?;
    let named = named(&line)?;
    if named.is_absolute() {
        return Some(named);
    }
    let search = path.map_or_else(|| OsString::from("/usr/local/bin:/usr/bin:/bin"), OsStr::to_owned);
    std::env::split_paths(&search).map(|directory| directory.join(&named)).find(|file| file.is_file())
}

/// The interpreter that the first line of a script names: a path, or for `env` a name to be looked up.
fn named(content: &[u8]) -> Option<PathBuf> {
    let line = content.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    let mut words = line.split(|byte| byte.is_ascii_whitespace()).filter(|word| !word.is_empty());
    let program = Path::new(OsStr::from_bytes(words.next()?));
    if program.file_name() != Some(OsStr::new("env")) {
        return Some(program.to_owned());
    }
    // `env -S node --flag`, `env NAME=value node`.
    let name = words.find(|word| !word.starts_with(b"-") && !word.contains(&b'='))?;
    Some(PathBuf::from(OsStr::from_bytes(name)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A global installation as package managers make it, and a link to it elsewhere.
    fn installation() -> (tempfile::TempDir, PathBuf) {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().canonicalize().unwrap();
        for directory in ["node/bin", "node/lib/node_modules/@x/cli/bin", "local/bin", "second"] {
            fs::create_dir_all(path.join(directory)).unwrap();
        }
        fs::write(path.join("node/bin/node"), "\x7fELF").unwrap();
        let script = path.join("node/lib/node_modules/@x/cli/bin/cli.js");
        fs::write(&script, "#!/usr/bin/env node\n").unwrap();
        symlink("../lib/node_modules/@x/cli/bin/cli.js", path.join("node/bin/cli")).unwrap();
        symlink(path.join("node/bin/cli"), path.join("local/bin/cli")).unwrap();
        (root, path)
    }

    fn shown(mounts: &[Mount], root: &Path) -> Vec<String> {
        let relative = |path: &Path| path.strip_prefix(root).unwrap_or(path).display().to_string();
        mounts
            .iter()
            .map(|mount| match mount.to == mount.path {
                true => relative(&mount.path),
                false => format!("{} at {}", relative(&mount.path), relative(&mount.to)),
            })
            .collect()
    }

    #[test]
    fn links_modules_and_interpreter_are_shown() {
        let (_root, path) = installation();
        let search = path.join("node/bin");
        let found = mounts(&path.join("local/bin/cli"), Some(search.as_os_str()), &[]);
        assert_eq!(
            shown(&found, &path),
            ["local/bin", "node/bin", "node/lib/node_modules/@x/cli/bin", "node/lib/node_modules"]
        );
        assert!(found.iter().all(|mount| !mount.write));
    }

    #[test]
    fn directory_with_a_second_name_is_shown_under_both() {
        let (_root, path) = installation();
        symlink("node", path.join("alias")).unwrap();
        let search = path.join("node/bin");
        let found = mounts(&path.join("alias/bin/cli"), Some(search.as_os_str()), &[]);
        let shown = shown(&found, &path);
        for expected in [
            "node/bin at alias/bin",
            "node/bin",
            "node/lib/node_modules at alias/lib/node_modules",
            "node/lib/node_modules",
        ] {
            assert!(shown.contains(&expected.to_owned()), "{expected}: {shown:?}");
        }
    }

    #[test]
    fn directory_with_the_servers_files_is_not_shown() {
        let (_root, path) = installation();
        let found = mounts(&path.join("node/bin/node"), None, &[path.join("node/bin/data")]);
        assert_eq!(shown(&found, &path), ["node/bin/node"]);
        let found = mounts(&path.join("local/bin/cli"), None, &[path.join("local")]);
        assert_eq!(shown(&found, &path)[0], "local/bin");
        let found = mounts(&path.join("local/bin/cli"), None, &[path.join("local/bin")]);
        assert_eq!(shown(&found, &path)[0], "node/lib/node_modules/@x/cli/bin/cli.js at local/bin/cli");
    }

    #[test]
    fn first_lines_name_their_interpreter() {
        for (line, expected) in [
            ("#!/usr/bin/env node\n", Some("node")),
            ("#!/usr/bin/env -S node --experimental x\nrest", Some("node")),
            ("#!/usr/bin/env A=b bun", Some("bun")),
            ("#! /bin/sh -e\n", Some("/bin/sh")),
            ("\x7fELF", None),
            ("#!", None),
            ("", None),
        ] {
            assert_eq!(named(line.as_bytes()).as_deref(), expected.map(Path::new), "{line:?}");
        }
    }

    #[test]
    fn missing_program_and_endless_links_end() {
        let root = tempfile::tempdir().unwrap();
        assert!(mounts(&root.path().join("no/such"), None, &[]).is_empty());
        symlink("b", root.path().join("a")).unwrap();
        symlink("a", root.path().join("b")).unwrap();
        assert_eq!(mounts(&root.path().join("a"), None, &[]).len(), 1);
    }
}
