//! Any bytes are a journal, and damage costs what follows it alone.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use proptest::prelude::*;

use super::file::{load, write};
use super::unwritten::{MOST, MOST_OF_ALL, Unwritten};
use super::*;
use crate::adapter::Kept;
use crate::support::atomic_file::Durability;

fn begin(path: &std::path::Path, limit: u64) -> Journal {
    let mark = Mark { conversation: "c".into(), is_whole: true, ..Mark::default() };
    write(path, &mark, &[], Durability::Kernel).unwrap();
    let file = File::options().write(true).open(path).unwrap();
    Journal::open(file, mark, true, limit, &Arc::default()).unwrap()
}

fn turn(number: u64) -> Vec<u8> {
    let mut lines = Lines::new(true);
    lines.prompt(format!("prompt {number}").as_bytes());
    lines.own(&format!("u-{number}"), format!("line {number}").as_bytes());
    lines.take()
}

fn add(journal: &Journal, number: u64) -> Noted {
    journal.end_turn(number, (Some(&format!("u-{number}")), true), Some("c"), &turn(number))
}

fn mark_of(path: &std::path::Path) -> Option<(Mark, bool)> {
    load(&File::open(path).unwrap()).unwrap()
}

#[test]
fn turns_are_read_as_they_were_kept() {
    let data = tempfile::tempdir().unwrap();
    let path = data.path().join("journal");
    let journal = begin(&path, 1 << 20);
    for number in 1..=3 {
        assert_eq!(add(&journal, number), Noted::Written);
    }
    let (mark, is_at_end) = mark_of(&path).unwrap();
    assert_eq!((mark.turns, mark.checkpoint.as_deref(), is_at_end), (3, Some("u-3"), true));
    assert!(journal.goes_on(&mark) && mark.is_whole);
    let content = std::fs::read(&path).unwrap();
    let found = records(&content);
    assert_eq!(found.len(), 10);
    assert_eq!(found[0], Kept::Checkpoint(None));
    assert_eq!(
        found[1..4],
        [Kept::Prompt(b"prompt 1"), Kept::Line(b"line 1"), Kept::Checkpoint(Some("u-1"))]
    );
}

#[test]
fn mirrored_lines_replace_the_turns_own() {
    let mut lines = Lines::new(true);
    lines.prompt(b"p");
    lines.own("u-1", b"own 1");
    lines.mirrored(br#"{"entries":[{"parentUuid":null,"uuid":"u-1"}]}"#);
    lines.own("u-2", b"own 2");
    assert!(memchr::memmem::find(&lines.take(), b"own 1").is_some(), "the second is not mirrored");
    lines.own("u-3", b"own 3");
    lines.mirrored(br#"{"entries":[{"parentUuid":null,"uuid":"u-3"}]}"#);
    let taken = lines.take();
    assert!(memchr::memmem::find(&taken, b"own 3").is_none() && !taken.is_empty());
    assert!(lines.take().is_empty());
    let mut off = Lines::new(false);
    off.own("u-1", b"own");
    assert!(off.take().is_empty());
}

#[test]
fn full_journal_keeps_the_number_of_turns() {
    let data = tempfile::tempdir().unwrap();
    let path = data.path().join("journal");
    let journal = begin(&path, 3000);
    let noted: Vec<_> = (1..=8).map(|number| add(&journal, number)).collect();
    assert_eq!(noted.iter().filter(|noted| **noted == Noted::GivenUp).count(), 1, "{noted:?}");
    let (mark, _) = mark_of(&path).unwrap();
    assert_eq!((mark.turns, mark.is_whole), (8, false));
    assert!(std::fs::metadata(&path).unwrap().len() <= 3000);
}

#[test]
fn another_conversation_begins_the_journal_again() {
    let data = tempfile::tempdir().unwrap();
    let path = data.path().join("journal");
    let journal = begin(&path, 1 << 20);
    add(&journal, 1);
    journal.end_turn(2, (Some(&"u-2".to_owned()), true), Some("other"), &turn(2));
    let (mark, _) = mark_of(&path).unwrap();
    assert_eq!((mark.turns, mark.conversation.as_str()), (2, "other"));
    assert_eq!((mark.checkpoint.as_deref(), mark.is_whole), (Some("u-2"), false));
    let kept = [Kept::Prompt(b"prompt 2"), Kept::Line(b"line 2"), Kept::Checkpoint(Some("u-2"))];
    assert_eq!(records(&std::fs::read(&path).unwrap()), kept, "what follows hangs on its first turn");
}

/// A turn that was not answered does not change what must be there; a later answer follows it.
#[test]
fn unanswered_turn_is_marked_as_one() {
    let data = tempfile::tempdir().unwrap();
    let path = data.path().join("journal");
    let journal = begin(&path, 1 << 20);
    add(&journal, 1);
    journal.end_turn(2, (Some(&"u-2".to_owned()), false), Some("c"), &turn(2));
    journal.end_turn(3, (None, false), Some("c"), &[]);
    let (mark, _) = mark_of(&path).unwrap();
    assert_eq!((mark.checkpoint.as_deref(), mark.unanswered.as_deref()), (Some("u-1"), Some("u-2")));
    assert_eq!(records(&std::fs::read(&path).unwrap()).last(), Some(&Kept::Checkpoint(Some("u-2"))));
    add(&journal, 4);
    let (mark, _) = mark_of(&path).unwrap();
    assert_eq!((mark.checkpoint.as_deref(), mark.unanswered), (Some("u-4"), None));
}

#[test]
fn longest_mark_fits() {
    let id = || "i".repeat(128);
    let mark = Mark {
        turns: u64::MAX,
        checkpoint: Some(id()),
        unanswered: Some(id()),
        conversation: id(),
        is_whole: false,
    };
    let data = tempfile::tempdir().unwrap();
    let path = data.path().join("journal");
    write(&path, &mark, &[], Durability::Kernel).unwrap();
    assert_eq!(mark_of(&path), Some((mark, true)));
}

/// What cannot be written waits, and the number of turns is on disk all the same.
#[test]
fn turns_wait_in_memory_for_room() {
    let data = tempfile::tempdir().unwrap();
    let path = data.path().join("journal");
    let mark = begin(&path, 1 << 20).goes_on(&Mark::default());
    assert!(!mark);
    // Opened for reading: no write succeeds.
    let mark = mark_of(&path).unwrap().0;
    let journal = Journal::open(File::open(&path).unwrap(), mark, true, 1 << 20, &Arc::default()).unwrap();
    assert_eq!(add(&journal, 1), Noted::Failed { is_first: true });
    assert_eq!(add(&journal, 2), Noted::Failed { is_first: false });
    assert!(!journal.is_written());
    let waiting = journal.unwritten();
    let is_mark: Vec<_> = records(&waiting).iter().map(|kept| matches!(kept, Kept::Checkpoint(_))).collect();
    // The mark after each turn parts it from the next one: what a reader knows of one turn is not true of another.
    assert_eq!(is_mark, [false, false, true, false, false, true]);
}

/// The first mark, kept up to date while nothing can be appended, is no beginning of the records that follow it.
#[test]
fn mark_kept_in_place_begins_no_records() {
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
    let file = File::from(memfd_create("journal", MemfdFlags::ALLOW_SEALING).unwrap());
    let mark = Mark { conversation: "c".into(), is_whole: true, ..Mark::default() };
    file.write_all_at(&mark.frame().unwrap(), 0).unwrap();
    let opened = file.try_clone().unwrap();
    let journal = Journal::open(opened, mark, true, 1 << 20, &Arc::default()).unwrap();
    assert_eq!(add(&journal, 1), Noted::Written);
    // As a full disk: what is there can be replaced.
    fcntl_add_seals(&file, SealFlags::GROW).unwrap();
    assert_eq!(add(&journal, 2), Noted::Failed { is_first: true });
    assert_eq!(load(&file).unwrap().map(|(mark, _)| mark.turns), Some(2));
    let mut content = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
    file.read_exact_at(&mut content, 0).unwrap();
    content.extend(journal.unwritten());
    let marks: Vec<_> = records(&content)
        .into_iter()
        .filter_map(|kept| match kept {
            Kept::Checkpoint(last) => Some(last.map(str::to_owned)),
            _ => None,
        })
        .collect();
    assert_eq!(marks, [None, Some("u-1".to_owned()), Some("u-2".to_owned())]);
}

/// It goes on where the disk refused its beginning.
#[test]
fn journal_begun_later_has_its_first_records() {
    let data = tempfile::tempdir().unwrap();
    let path = data.path().join("journal");
    let mark = Mark { turns: 1, conversation: "c".into(), is_whole: true, ..Mark::default() };
    for before in [0, 100, 512, 5000] {
        std::fs::write(&path, vec![7; before]).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        let journal = Journal::open_later(file, mark.clone(), &turn(1), 1 << 20, &Arc::default()).unwrap();
        let (first, _) = mark_of(&path).unwrap();
        assert_eq!((first.turns, first.is_whole), (1, false), "no records yet");
        assert_eq!(add(&journal, 2), Noted::Written);
        let (last, is_at_end) = mark_of(&path).unwrap();
        assert_eq!((last.turns, last.is_whole, is_at_end), (2, true, true));
        let kept: Vec<_> = records(&std::fs::read(&path).unwrap())
            .into_iter()
            .filter_map(|kept| match kept {
                Kept::Line(line) => Some(String::from_utf8_lossy(line).into_owned()),
                _ => None,
            })
            .collect();
        assert_eq!(kept, ["line 1", "line 2"]);
        assert!(is_intact(&File::open(&path).unwrap()).unwrap());
    }
}

#[test]
fn what_waits_for_all_files_is_bounded() {
    let waiting = Arc::<Waiting>::default();
    let mut files: Vec<_> = (0..=MOST_OF_ALL / MOST).map(|_| Unwritten::new(waiting.clone())).collect();
    let mut last = files.pop().unwrap();
    assert!(files.iter_mut().all(|file| file.keep(vec![0; MOST])));
    assert!(!last.keep(vec![0]), "all together");
    assert!(!files[0].keep(vec![0; MOST + 1]), "one alone");
    assert!(last.keep(vec![0; MOST]), "in the place of the one before");
    drop(files.pop());
    assert!(files[0].keep(vec![0; MOST]) && !files[0].take().is_empty());
    drop((files, last));
    assert!(Unwritten::new(waiting).keep(vec![0; MOST]));
}

/// A journal that finds no room in memory keeps its mark alone.
#[test]
fn crowded_journal_keeps_the_number_of_turns() {
    let data = tempfile::tempdir().unwrap();
    let path = data.path().join("journal");
    begin(&path, 1 << 20);
    let mark = mark_of(&path).unwrap().0;
    let waiting = Arc::<Waiting>::default();
    let mut others: Vec<_> = (0..MOST_OF_ALL / MOST).map(|_| Unwritten::new(waiting.clone())).collect();
    assert!(others.iter_mut().all(|file| file.keep(vec![0; MOST])));
    let journal = Journal::open(File::open(&path).unwrap(), mark, true, 1 << 20, &waiting).unwrap();
    assert_eq!(add(&journal, 1), Noted::Crowded);
    assert!(journal.is_written() && matches!(add(&journal, 2), Noted::Failed { .. }));
}

proptest! {
    #[test]
    fn any_bytes_are_a_journal(bytes: Vec<u8>, cut: prop::sample::Index, flip: prop::sample::Index) {
        records(&bytes);
        let data = tempfile::tempdir().unwrap();
        let path = data.path().join("journal");
        std::fs::write(&path, &bytes).unwrap();
        mark_of(&path);
        std::fs::remove_file(&path).unwrap();
        let journal = begin(&path, 1 << 20);
        for number in 1..=4 {
            add(&journal, number);
        }
        let whole = std::fs::read(&path).unwrap();
        prop_assert!(is_intact(&File::open(&path).unwrap()).unwrap());
        let all = records(&whole);
        // A cut journal holds a beginning of what it held.
        let cut = &whole[..cut.index(whole.len())];
        prop_assert!(all.starts_with(&records(cut)));
        std::fs::write(&path, cut).unwrap();
        prop_assert!(mark_of(&path).is_none_or(|(mark, _)| mark.turns <= 4));
        // A flipped bit costs what follows it, at most.
        let mut flipped = whole.clone();
        let bit = flip.index(whole.len() * 8);
        flipped[bit / 8] ^= 1 << (bit % 8);
        let before = records(&whole[..bit / 8]).len();
        let left = records(&flipped);
        prop_assert!(left.len() >= before && all.starts_with(&left));
        std::fs::write(&path, &flipped).unwrap();
        prop_assert!(!is_intact(&File::open(&path).unwrap()).unwrap());
        prop_assert!(mark_of(&path).is_some_and(|(mark, _)| mark.turns <= 4));
    }
}
