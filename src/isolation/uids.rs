//! The user id of each user's children (rung `uid`): given once, never to a second user.
//!
//! A file of the server's own has a line per user: the id, and the digest of the user. A line is on the disk before its
//! id is used, so that a crash never leads to a second owner. Ids are not reused: files that a deleted user left
//! anywhere would belong to the next one. Blocking.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::config::UidRange;
use crate::support::atomic_file::{self, Durability};
use crate::support::lock::MutexExt;
use crate::workspace::{Owner, open_own, read_own};

/// Stands for a user that was deleted.
const RETIRED: &str = "0";
/// A line has an id, a blank and a digest; a million users have half of this.
const MAX_BYTES: u64 = 128 << 20;

/// Why a user has no id.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UidError {
    /// Each id of the range has its user.
    #[error("all user ids of isolation.uids ({0}) have a user: make the range larger")]
    Exhausted(UidRange),
    /// The last ones are those of children without a user, which can go.
    #[error("the last user ids of isolation.uids ({0}) are those of spares")]
    Held(UidRange),
    /// The last ones are those of children that have ended, of which a process may be left.
    #[error("processes of ended spares may have the last user ids of isolation.uids ({0})")]
    Doubted(UidRange),
    /// The file contradicts itself.
    #[error("line {0} of the list of user ids is damaged: restore it from a backup")]
    Damaged(usize),
    /// The file cannot be read or written.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<UidError> for io::Error {
    fn from(error: UidError) -> Self {
        match error {
            UidError::Io(error) => error,
            other => Self::other(other.to_string()),
        }
    }
}

/// The allocations, and the file that has them.
#[derive(Debug)]
pub(crate) struct Uids {
    path: PathBuf,
    range: UidRange,
    given: Mutex<Given>,
}

impl Uids {
    /// Reads the file, if there is one.
    pub(crate) fn open(path: &Path, range: UidRange) -> Result<Self, UidError> {
        let text = match read_own(path, MAX_BYTES) {
            Err(error) if error.is_absent() => Vec::new(),
            read => read.map_err(io::Error::from)?,
        };
        let (given, whole) = Given::parse(&text)?;
        if whole < text.len() {
            // A crash cut the last line short: its id was not used yet.
            let file = open_own(path)?;
            file.set_len(whole as u64)?;
            file.sync_all()?;
        }
        Ok(Self { path: path.to_owned(), range, given: Mutex::new(given) })
    }

    /// The owner of the files and children of the user with this digest.
    pub(crate) fn of(&self, user: &str) -> Result<Owner, UidError> {
        let mut given = self.given.lock_unpoisoned();
        let uid = match given.of(user, self.range) {
            Some(uid) => uid,
            None => {
                let none = if given.reserved.is_empty() { UidError::Exhausted } else { UidError::Held };
                let uid = given.free(self.range).ok_or(none(self.range))?;
                // With the lock: each line is whole before the next one begins.
                self.append(uid, user)?;
                given.note(uid, user.to_owned());
                uid
            }
        };
        Ok(Owner { uid, gid: uid })
    }

    /// An id for a child whose user is not known yet. Kept in memory alone: nothing of a user is ever its, so that another
    /// run of the server may give it to any user. The last free one is left to a user.
    pub(crate) fn reserve(&self) -> Result<Owner, UidError> {
        let mut given = self.given.lock_unpoisoned();
        let free = given.free(self.range);
        let has_more = |uid: &u32| (uid + 1..self.range.last()).any(|next| !given.used.contains(&next));
        let uid = free.filter(has_more).ok_or(UidError::Exhausted(self.range))?;
        given.used.insert(uid);
        given.reserved.insert(uid);
        Ok(Owner { uid, gid: uid })
    }

    /// Gives a reserved id to the user with this digest; false if the user has one already, or the id is not reserved.
    pub(crate) fn adopt(&self, user: &str, reserved: Owner) -> Result<bool, UidError> {
        let mut given = self.given.lock_unpoisoned();
        if given.of(user, self.range).is_some() || !given.reserved.contains(&reserved.uid) {
            return Ok(false);
        }
        self.append(reserved.uid, user)?;
        given.reserved.remove(&reserved.uid);
        given.note(reserved.uid, user.to_owned());
        Ok(true)
    }

    /// Gives back a reserved id of which no process is left. One that a user ever got stays used.
    pub(crate) fn release(&self, reserved: Owner) {
        let mut given = self.given.lock_unpoisoned();
        if given.reserved.remove(&reserved.uid) {
            given.used.remove(&reserved.uid);
            given.next = given.next.min(reserved.uid);
        }
    }

    /// Reserves an id no more that may have processes for good: it stays used, and nobody waits for it.
    pub(crate) fn give_up(&self, reserved: Owner) {
        self.given.lock_unpoisoned().reserved.remove(&reserved.uid);
    }

    /// Number of reserved ids.
    pub(crate) fn reserved(&self) -> usize {
        self.given.lock_unpoisoned().reserved.len()
    }

    /// Whether the user with this digest has an id.
    pub(crate) fn knows(&self, user: &str) -> bool {
        self.given.lock_unpoisoned().of(user, self.range).is_some()
    }

    /// Removes the user with this digest. The id stays used.
    pub(crate) fn retire(&self, user: &str) -> Result<(), UidError> {
        let mut given = self.given.lock_unpoisoned();
        retire(&self.path, user)?;
        given.by_user.remove(user);
        Ok(())
    }

    fn append(&self, uid: u32, user: &str) -> io::Result<()> {
        let is_new = !self.path.exists();
        let mut file: File = open_own(&self.path)?;
        let begin = io::Seek::seek(&mut file, io::SeekFrom::End(0))?;
        let line = format!("{uid} {user}\n");
        if let Err(error) = file.write_all(line.as_bytes()).and_then(|()| file.sync_all()) {
            // Without its rest a part of a line would spoil the next one.
            file.set_len(begin).ok();
            return Err(error);
        }
        match self.path.parent().filter(|_| is_new) {
            Some(directory) => File::open(directory)?.sync_all(),
            None => Ok(()),
        }
    }
}

/// Removes a user from the file: the digit 0 takes the place of the digest.
pub(crate) fn retire(path: &Path, user: &str) -> Result<(), UidError> {
    let text = match read_own(path, MAX_BYTES) {
        Err(error) if error.is_absent() => return Ok(()),
        read => read.map_err(io::Error::from)?,
    };
    let text = String::from_utf8_lossy(&text);
    let is_theirs = |line: &str| line.trim_end().rsplit_once(' ').is_some_and(|(_, digest)| digest == user);
    if !text.lines().any(is_theirs) {
        return Ok(());
    }
    let retired = |line: &str| match line.split_once(' ') {
        Some((uid, _)) if is_theirs(line) => format!("{uid} {RETIRED}\n"),
        _ => line.to_owned(),
    };
    let kept: String = text.split_inclusive('\n').map(retired).collect();
    Ok(atomic_file::replace(path, kept.as_bytes(), Durability::Disk)?)
}

/// The id of a probe, which no user gets: the last of the range.
pub(crate) fn of_probe(range: UidRange) -> Owner {
    Owner { uid: range.last(), gid: range.last() }
}

/// Users with their ids. Pure.
#[derive(Debug, Default, PartialEq, Eq)]
struct Given {
    by_user: HashMap<String, u32>,
    /// All ids that ever had a user.
    used: HashSet<u32>,
    /// Those of them that no user has got yet.
    reserved: HashSet<u32>,
    /// No id below is free, in the range that it was found for.
    next: u32,
}

impl Given {
    /// Reads whole lines; returns their length too.
    fn parse(text: &[u8]) -> Result<(Self, usize), UidError> {
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let lines = String::from_utf8_lossy(text.get(..whole).unwrap_or_default());
        let mut given = Self::default();
        for (number, line) in lines.lines().enumerate() {
            let damaged = || UidError::Damaged(number + 1);
            let (uid, user) = line.split_once(' ').ok_or_else(damaged)?;
            let uid: u32 = uid.parse().map_err(|_| damaged())?;
            let is_digest = !user.is_empty() && user.bytes().all(|byte| byte.is_ascii_hexdigit());
            // Root is no child's, and an id with two users would be the worst damage.
            if uid == 0 || !is_digest || !given.used.insert(uid) {
                return Err(damaged());
            }
            // A user has a second id after a change of the range.
            given.by_user.insert(user.to_owned(), uid);
        }
        Ok((given, whole))
    }

    fn of(&self, user: &str, range: UidRange) -> Option<u32> {
        self.by_user.get(user).copied().filter(|uid| range.contains(*uid) && *uid != of_probe(range).uid)
    }

    fn free(&mut self, range: UidRange) -> Option<u32> {
        let first = self.next.max(range.first());
        let free = (first..range.last()).find(|uid| !self.used.contains(uid))?;
        self.next = free;
        Some(free)
    }

    fn note(&mut self, uid: u32, user: String) {
        self.used.insert(uid);
        self.by_user.insert(user, uid);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn range(first: u32, last: u32) -> UidRange {
        UidRange::new(first, last).unwrap()
    }

    #[test]
    fn ids_are_stable_and_never_shared() {
        let data = tempfile::tempdir().unwrap();
        let file = data.path().join("uids");
        let uids = Uids::open(&file, range(200, 210)).unwrap();
        let of = |uids: &Uids, user: &str| uids.of(user).unwrap().uid;
        assert_eq!([of(&uids, "aa"), of(&uids, "bb"), of(&uids, "aa")], [200, 201, 200]);
        let again = Uids::open(&file, range(200, 210)).unwrap();
        assert_eq!([of(&again, "cc"), of(&again, "bb")], [202, 201]);
        // Another range gives other ids; those of before have had their users.
        let moved = Uids::open(&file, range(202, 300)).unwrap();
        assert_eq!([of(&moved, "aa"), of(&moved, "cc"), of(&moved, "dd")], [203, 202, 204]);
        let back = Uids::open(&file, range(200, 210)).unwrap();
        assert_eq!([of(&back, "aa"), of(&back, "ee")], [203, 205]);
    }

    #[test]
    fn retired_user_gets_a_new_id_and_others_keep_theirs() {
        let data = tempfile::tempdir().unwrap();
        let file = data.path().join("uids");
        retire(&file, "aa").unwrap();
        let uids = Uids::open(&file, range(200, 210)).unwrap();
        let of = |uids: &Uids, user: &str| uids.of(user).unwrap().uid;
        assert_eq!([of(&uids, "aa"), of(&uids, "bb"), of(&uids, "cc")], [200, 201, 202]);
        uids.retire("aa").unwrap();
        uids.retire("cc").unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "200 0\n201 bb\n202 0\n");
        assert_eq!([of(&uids, "bb"), of(&uids, "aa")], [201, 203]);
        let again = Uids::open(&file, range(200, 210)).unwrap();
        assert_eq!([of(&again, "cc"), of(&again, "aa"), of(&again, "bb")], [204, 203, 201]);
    }

    #[test]
    fn reserved_id_serves_one_user_without_an_id() {
        let data = tempfile::tempdir().unwrap();
        let file = data.path().join("uids");
        let uids = Uids::open(&file, range(200, 210)).unwrap();
        let of = |uids: &Uids, user: &str| uids.of(user).unwrap().uid;
        let (first, second) = (uids.reserve().unwrap(), uids.reserve().unwrap());
        assert_eq!([first.uid, second.uid, of(&uids, "aa")], [200, 201, 202]);
        assert!(!uids.adopt("aa", first).unwrap() && uids.knows("aa") && !uids.knows("bb"));
        assert!(uids.adopt("bb", first).unwrap());
        uids.release(second);
        assert_eq!([of(&uids, "bb"), of(&uids, "cc"), of(&uids, "dd")], [200, 201, 203]);
        assert_eq!(fs::read_to_string(&file).unwrap(), "202 aa\n200 bb\n201 cc\n203 dd\n");
    }

    #[test]
    fn id_of_a_user_is_neither_released_nor_given_again() {
        let data = tempfile::tempdir().unwrap();
        let uids = Uids::open(&data.path().join("uids"), range(200, 210)).unwrap();
        let of = |user: &str| uids.of(user).unwrap().uid;
        let adopted = uids.reserve().unwrap();
        assert!(uids.adopt("aa", adopted).unwrap());
        uids.release(adopted);
        assert_eq!([of("aa"), of("bb")], [200, 201]);
        assert!(!uids.adopt("cc", adopted).unwrap(), "it has its user");
        uids.retire("aa").unwrap();
        uids.release(adopted);
        assert_eq!(of("cc"), 202, "files of the deleted user may be left");
        let released = uids.reserve().unwrap();
        uids.release(released);
        assert!(!uids.adopt("dd", released).unwrap(), "another spare may have it by now");
        assert_eq!(of("dd"), released.uid);
    }

    #[test]
    fn last_id_is_left_and_a_held_one_comes_back() {
        let data = tempfile::tempdir().unwrap();
        let uids = Uids::open(&data.path().join("uids"), range(200, 203)).unwrap();
        let (first, second) = (uids.reserve().unwrap(), uids.reserve().unwrap());
        assert!(matches!(uids.reserve(), Err(UidError::Exhausted(_))), "one is left to a user");
        assert_eq!((uids.reserved(), uids.of("aa").unwrap().uid), (2, 202));
        assert!(matches!(uids.of("bb"), Err(UidError::Held(_))));
        uids.release(first);
        assert_eq!(uids.of("bb").unwrap().uid, 200);
        assert!(uids.adopt("cc", second).unwrap());
        assert!(matches!(uids.of("dd"), Err(UidError::Exhausted(_))));
    }

    #[test]
    fn id_that_is_given_up_is_waited_for_no_more() {
        let data = tempfile::tempdir().unwrap();
        let uids = Uids::open(&data.path().join("uids"), range(200, 202)).unwrap();
        let given_up = uids.reserve().unwrap();
        assert_eq!(uids.of("aa").unwrap().uid, 201);
        assert!(matches!(uids.of("bb"), Err(UidError::Held(_))));
        uids.give_up(given_up);
        assert!(matches!(uids.of("bb"), Err(UidError::Exhausted(_))));
        uids.release(given_up);
        assert!(uids.of("bb").is_err() && !uids.adopt("bb", given_up).unwrap(), "it stays used");
    }

    #[test]
    fn exhausted_range_is_a_clear_error() {
        let data = tempfile::tempdir().unwrap();
        let uids = Uids::open(&data.path().join("uids"), range(200, 202)).unwrap();
        uids.of("aa").unwrap();
        uids.of("bb").unwrap();
        let error = uids.of("cc").unwrap_err();
        assert!(matches!(error, UidError::Exhausted(_)), "the last id is the probe's");
        assert!(error.to_string().contains("isolation.uids (200-202)"), "{error}");
        assert_eq!(uids.of("aa").unwrap().uid, 200);
    }

    #[test]
    fn damaged_list_is_refused_and_a_torn_line_dropped() {
        let data = tempfile::tempdir().unwrap();
        let file = data.path().join("uids");
        for damage in ["200\n", "0 aa\n", "x aa\n", "200 \n", "200 xyz\n", "200 aa\n200 bb\n"] {
            fs::write(&file, damage).unwrap();
            assert!(matches!(Uids::open(&file, range(200, 210)), Err(UidError::Damaged(_))), "{damage:?}");
        }
        fs::write(&file, "200 aa\n201 b").unwrap();
        let uids = Uids::open(&file, range(200, 210)).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "200 aa\n");
        assert_eq!(uids.of("cc").unwrap().uid, 201);
        assert_eq!(fs::read_to_string(&file).unwrap(), "200 aa\n201 cc\n");
    }
}
