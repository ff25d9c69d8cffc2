//! The template of new workspaces (`workspace.template`): checked at the start, copied for each new session.
//!
//! The copy is made beside the working directory and renamed: after a crash a session has all of it, or begins it again.
//! No link is followed; relative links that stay in the template are copied as links. Blocking.

use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, openat, readlinkat, renameat, statat, symlinkat, syncfs};

use super::Workspace;
use super::beneath::Beneath;
use super::remove::remove_tree;

/// Maximum size of all files: other new sessions of the user wait for the copy.
const MAX_BYTES: u64 = 256 << 20;
/// Maximum number of entries, for the same reason.
const MAX_FILES: u64 = 20_000;
/// Maximum depth of directories: each level holds descriptors of both trees.
const MAX_DEPTH: usize = 64;

/// Name of an unfinished copy in the session directory.
const UNFINISHED: &str = ".template";

/// Checks that the directory can be a template.
///
/// # Errors
/// With a sentence about the first entry that cannot be copied.
pub(crate) fn check(template: &Path) -> io::Result<()> {
    Copy::default().directory(&Beneath::open(template, Path::new(""))?, None, Path::new(""))
}

impl Workspace {
    /// Creates the working directory as a copy of `template`. One that exists stays as it is.
    pub(crate) fn fill(&self, template: &Path) -> io::Result<()> {
        let session =
            Beneath::open(&self.sessions, Path::new(""))?.make_dir(Path::new(self.name.as_str()))?;
        if statat(&session, "work", AtFlags::SYMLINK_NOFOLLOW).is_ok() {
            return Ok(());
        }
        remove_tree(&self.sessions.join(self.name.as_str()), OsStr::new(UNFINISHED))?;
        let copy = session.make_dir(Path::new(UNFINISHED))?;
        Copy::default().directory(&Beneath::open(template, Path::new(""))?, Some(&copy), Path::new(""))?;
        // The name must not reach the disk before the content.
        syncfs(&copy)?;
        Ok(renameat(&session, UNFINISHED, &session, "work")?)
    }
}

/// What is copied so far.
#[derive(Default)]
struct Copy {
    bytes: u64,
    files: u64,
}

impl Copy {
    /// Copies the entries of a directory; only checks them without a target.
    fn directory(&mut self, from: &Beneath, to: Option<&Beneath>, path: &Path) -> io::Result<()> {
        if path.components().count() > MAX_DEPTH {
            return Err(unfit(path, &format!("lies deeper than {MAX_DEPTH} directories")));
        }
        for entry in from.entries()? {
            let entry = entry?;
            let name = entry.file_name();
            if [&b"."[..], b".."].contains(&name.to_bytes()) {
                continue;
            }
            let path = path.join(OsStr::from_bytes(name.to_bytes()));
            self.files += 1;
            if self.files > MAX_FILES {
                return Err(unfit(&path, &format!("is one of more than {MAX_FILES} files")));
            }
            let stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
            let inner = Path::new(OsStr::from_bytes(name.to_bytes()));
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => {
                    let to = to.map(|to| to.make_dir(inner)).transpose()?;
                    self.directory(&from.dir(inner)?, to.as_ref(), &path)?;
                }
                FileType::RegularFile => self.file(from, to, name, &path)?,
                FileType::Symlink => link(from, to, name, &path)?,
                _ => return Err(unfit(&path, "is neither a file nor a directory nor a link")),
            }
        }
        Ok(())
    }

    fn file(&mut self, from: &Beneath, to: Option<&Beneath>, name: &CStr, path: &Path) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let source = File::from(openat(from, name, flags, Mode::empty())?);
        let metadata = source.metadata()?;
        let left = MAX_BYTES - self.bytes;
        let copied = match to {
            None => metadata.len(),
            Some(to) => {
                let is_program =
                    std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o100 != 0;
                let mode = if is_program { Mode::RWXU } else { Mode::RUSR | Mode::WUSR };
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let mut target = File::from(openat(to, name, flags, mode)?);
                // One byte more shows a file that is too long; it may grow meanwhile.
                io::copy(&mut source.take(left + 1), &mut target)?
            }
        };
        self.bytes = self.bytes.saturating_add(copied);
        if copied > left {
            return Err(unfit(path, &format!("ends a template of more than {MAX_BYTES} bytes")));
        }
        Ok(())
    }
}

fn link(from: &Beneath, to: Option<&Beneath>, name: &CStr, path: &Path) -> io::Result<()> {
    let target = readlinkat(from, name, Vec::new())?;
    let mut depth = path.components().count() - 1;
    for part in Path::new(OsStr::from_bytes(target.to_bytes())).components() {
        let next = match part {
            Component::Normal(_) => Some(depth + 1),
            Component::CurDir => Some(depth),
            Component::ParentDir => depth.checked_sub(1),
            Component::RootDir | Component::Prefix(_) => None,
        };
        depth = next.ok_or_else(|| unfit(path, "is a link that leads out of the template"))?;
    }
    if let Some(to) = to {
        symlinkat(&*target, to, name)?;
    }
    Ok(())
}

fn unfit(path: &Path, problem: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("`{}` {problem}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::super::tests::workspace;
    use super::*;

    type Spoil = fn(&Path);

    fn template() -> tempfile::TempDir {
        let template = tempfile::tempdir().unwrap();
        fs::create_dir_all(template.path().join("src/.hidden")).unwrap();
        fs::write(template.path().join("src/main.c"), "int main;").unwrap();
        fs::write(template.path().join("run"), "#!/bin/sh").unwrap();
        fs::set_permissions(template.path().join("run"), fs::Permissions::from_mode(0o4755)).unwrap();
        symlink("../run", template.path().join("src/link")).unwrap();
        template
    }

    #[test]
    fn template_is_copied_once_with_private_modes() {
        let (data, template) = (tempfile::tempdir().unwrap(), template());
        let workspace = workspace(data.path());
        let work = &workspace.dirs.work;
        fs::remove_dir(work).unwrap();
        check(template.path()).unwrap();
        workspace.fill(template.path()).unwrap();
        assert_eq!(fs::read_to_string(work.join("src/main.c")).unwrap(), "int main;");
        assert_eq!(fs::read_link(work.join("src/link")).unwrap(), Path::new("../run"));
        let mode = |name: &str| fs::metadata(work.join(name)).unwrap().permissions().mode() & 0o7777;
        assert_eq!([mode(""), mode("src"), mode("src/main.c"), mode("run")], [0o700, 0o700, 0o600, 0o700]);
        fs::write(work.join("run"), "changed").unwrap();
        workspace.fill(template.path()).unwrap();
        assert_eq!(fs::read_to_string(work.join("run")).unwrap(), "changed");
    }

    #[test]
    fn unfinished_copy_is_begun_again() {
        let (data, template) = (tempfile::tempdir().unwrap(), template());
        let workspace = workspace(data.path());
        fs::remove_dir(&workspace.dirs.work).unwrap();
        let unfinished = workspace.dirs.work.with_file_name(UNFINISHED);
        fs::create_dir_all(unfinished.join("src")).unwrap();
        fs::write(unfinished.join("src/half"), "").unwrap();
        workspace.fill(template.path()).unwrap();
        assert!(workspace.dirs.work.join("src/main.c").exists());
        assert!(!workspace.dirs.work.join("src/half").exists() && !unfinished.exists());
    }

    #[test]
    fn template_that_cannot_be_copied_leaves_no_workspace() {
        let data = tempfile::tempdir().unwrap();
        let workspace = workspace(data.path());
        fs::remove_dir(&workspace.dirs.work).unwrap();
        let cases: [(&str, Spoil); 5] = [
            ("leads out", |root| symlink("/etc/passwd", root.join("src/out")).unwrap()),
            ("leads out", |root| symlink("../../run", root.join("src/out")).unwrap()),
            ("neither", |root| drop(std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap())),
            ("deeper", |root| {
                fs::create_dir_all(
                    root.join(std::iter::repeat_n("d", MAX_DEPTH + 1).collect::<std::path::PathBuf>()),
                )
                .unwrap();
            }),
            ("bytes", |root| fs::File::create(root.join("large")).unwrap().set_len(MAX_BYTES + 1).unwrap()),
        ];
        for (problem, spoil) in cases {
            let template = template();
            spoil(template.path());
            let error = check(template.path()).unwrap_err().to_string();
            assert!(error.contains(problem), "{problem}: {error}");
            if problem != "bytes" {
                assert!(workspace.fill(template.path()).unwrap_err().to_string().contains(problem));
                assert!(!workspace.dirs.work.exists());
            }
        }
        assert!(check(Path::new("/nowhere")).is_err());
    }
}
