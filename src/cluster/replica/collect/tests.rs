use std::cell::Cell;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, mknodat};

use super::super::delta::Kind;
use super::super::limits::{
    EDGE_BYTES, MAX_DEPTH, OWN_ENTRIES, WORK_BYTES_PER_TURN, WORK_ENTRIES, WORK_FILES_KNOWN,
    WORK_FILES_PER_TURN,
};
use super::super::places::TooManyEntries;
use super::super::testing::{Node, Object, apply, chmod, collect, collect_with, try_collect};
use super::*;

thread_local! {
    /// The access that fails, and with which error.
    static FAULT: Cell<Option<(usize, i32)>> = const { Cell::new(None) };
    static ACCESSES: Cell<usize> = const { Cell::new(0) };
}

pub(super) fn accessed() -> io::Result<()> {
    let number = ACCESSES.replace(ACCESSES.get() + 1);
    match FAULT.get() {
        Some((at, errno)) if at == number => Err(io::Error::from_raw_os_error(errno)),
        _ => Ok(()),
    }
}

/// An object whose collection fails at one access. `None`: it has fewer.
fn collect_failing(
    node: &Node,
    scope: &Scope,
    state: &mut UserState,
    at: usize,
    errno: i32,
) -> Option<io::Result<Object>> {
    ACCESSES.set(0);
    FAULT.set(Some((at, errno)));
    let result = try_collect(node, scope.clone(), Options::default(), state);
    FAULT.set(None);
    (ACCESSES.get() > at).then_some(result)
}

/// A user with something of each kind that has changed since the state.
fn changed(node: &Node) -> (UserState, Object) {
    let (session, mut state) = (node.session("a"), UserState::default());
    node.others();
    fs::create_dir(session.work.join("src")).unwrap();
    for name in ["src/main.rs", "same", "gone"] {
        fs::write(session.work.join(name), name).unwrap();
    }
    symlink("same", session.work.join("link")).unwrap();
    let before = collect(node, Scope::Snapshot, &mut state);
    append(&session.record.join("journal"), b" and a turn");
    fs::write(node.places().usage(), "more").unwrap();
    fs::write(session.work.join("src/main.rs"), "MAIN").unwrap();
    fs::write(session.work.join("new"), "new").unwrap();
    fs::remove_file(session.work.join("gone")).unwrap();
    node.session("b");
    (state, before)
}

#[test]
fn failure_of_the_host_ends_the_object() {
    for scope in [Scope::Snapshot, Scope::Whole] {
        for errno in [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::EIO] {
            let node = Node::new();
            let (mut state, _) = changed(&node);
            let known = state.len();
            let mut count = 0;
            while let Some(result) = collect_failing(&node, &scope, &mut state, count, errno) {
                let error = result.err().unwrap_or_else(|| panic!("{scope:?}: access {count} is ignored"));
                assert_eq!(error.raw_os_error(), Some(errno));
                assert_eq!(state.len(), known, "nothing of it is known");
                count += 1;
            }
            assert!(count > 30, "{count}");
        }
    }
}

#[test]
fn own_file_is_never_missing_in_an_object() {
    for scope in [Scope::Snapshot, Scope::Whole] {
        // What a child can do to its own files.
        for errno in [libc::EACCES, libc::ELOOP, libc::EAGAIN] {
            let (mut count, mut refused, mut left_out) = (0, 0, 0);
            loop {
                let (node, other) = (Node::new(), Node::new());
                let (mut state, before) = changed(&node);
                let Some(result) = collect_failing(&node, &scope, &mut state, count, errno) else { break };
                count += 1;
                let Ok(object) = result else {
                    refused += 1;
                    continue;
                };
                left_out += u64::from(object.summary.unreadable > 0);
                assert_eq!(object.summary.unreadable, 1, "{scope:?} {errno}: access {count} is not counted");
                let is_gone = |entry: &&String| entry.starts_with("Removed") && *entry != "Removed gone";
                assert_eq!(object.entries().iter().find(is_gone), None);
                let objects = if scope == Scope::Snapshot { vec![object] } else { vec![before, object] };
                apply(&other, &objects).unwrap();
                let own = |node: &Node| {
                    let mut tree = node.tree();
                    tree.retain(|path, _| !path.starts_with("work "));
                    tree
                };
                assert_eq!(own(&other), own(&node), "{scope:?} {errno}: access {count}");
            }
            assert!(refused > 10 && left_out > 10, "{refused} {left_out}");
        }
    }
}

#[test]
fn what_a_child_deletes_meanwhile_is_no_error() {
    let node = Node::new();
    node.session("a");
    let work = node.known("a").work;
    fs::create_dir(work.join("src")).unwrap();
    fs::write(work.join("src/main.rs"), "x").unwrap();
    symlink("src", work.join("link")).unwrap();
    let (mut at, mut count) = (0, 0);
    let mut state = UserState::default();
    while let Some(result) = collect_failing(&node, &Scope::Snapshot, &mut state, at, libc::ENOENT) {
        at += 1;
        // The server's own directories and files are there.
        let Ok(object) = result else { continue };
        assert_eq!(object.summary.unreadable, 0);
        count += 1;
    }
    assert!(count > 10);
}

#[test]
fn directory_with_too_many_entries_is_refused() {
    let (node, mut state) = (Node::new(), UserState::default());
    node.session("a");
    let place = |number: usize| node.places().list().join(format!("{number:032x}"));
    for number in 1..OWN_ENTRIES {
        fs::File::create(place(number)).unwrap();
    }
    assert_eq!(node.places().sessions().unwrap().len(), OWN_ENTRIES);
    fs::File::create(place(0)).unwrap();
    let result = try_collect(&node, Scope::Snapshot, Options::default(), &mut state);
    let error = result.err().unwrap().into_inner().unwrap();
    assert!(error.is::<TooManyEntries>(), "{error}");
    let list = node.places().list().to_owned();
    fs::remove_dir_all(&list).unwrap();
    fs::write(&list, "").unwrap();
    assert!(try_collect(&node, Scope::Snapshot, Options::default(), &mut state).is_err(), "no list at all");
}

fn append(path: &Path, content: &[u8]) {
    OpenOptions::new().append(true).open(path).unwrap().write_all(content).unwrap();
}

/// Entries of the next delta that are not about files whose stamp is recent.
fn turn(node: &Node, state: &mut UserState) -> Vec<String> {
    let touched = node.places().sessions().unwrap();
    collect(node, Scope::Turn(touched), state).entries()
}

#[test]
fn delta_has_what_differs_and_nothing_else() {
    let node = Node::new();
    let (session, mut state) = (node.session("a"), UserState::default());
    node.others();
    fs::create_dir(session.work.join("src")).unwrap();
    fs::write(session.work.join("src/main.rs"), "1").unwrap();
    fs::write(session.record.join("session.json.broken"), "x").unwrap();
    fs::write(session.record.join("credentials.json"), "secret").unwrap();
    let first = collect(&node, Scope::Turn(Vec::new()), &mut state);
    assert_eq!(first.kind, Kind::Snapshot, "nothing is known at first");
    let entries = first.entries();
    for wanted in [
        "Whole directory",
        "Whole session.json",
        "Whole journal",
        "Directory src",
        "Whole src/main.rs",
        "Whole usage",
        "Whole conversations",
        "Whole responses/resp_1",
        &format!("Whole list/{}", session.hash),
    ] {
        assert!(entries.iter().any(|it| it == wanted), "{wanted}: {entries:?}");
    }
    assert_eq!(entries.len(), 9, "{entries:?}");
    // Recent files are read again, and found to be the same.
    assert_eq!(turn(&node, &mut state), Vec::<String>::new());

    append(&session.record.join("journal"), b" and a turn");
    fs::write(session.record.join("session.json"), "{}").unwrap();
    fs::write(session.work.join("src/main.rs"), "2").unwrap();
    assert_eq!(turn(&node, &mut state), ["Whole session.json", "Append journal", "Whole src/main.rs"]);
    chmod(&session.work.join("src/main.rs"), 0o755);
    fs::remove_file(node.places().usage()).unwrap();
    assert_eq!(turn(&node, &mut state), ["Mode src/main.rs", "Removed usage"]);
    fs::remove_dir_all(session.work.join("src")).unwrap();
    assert_eq!(turn(&node, &mut state), ["Removed src"], "what is below goes with it");
    assert_eq!(turn(&node, &mut state), Vec::<String>::new());
}

#[test]
fn other_sessions_wait_for_their_turn() {
    let node = Node::new();
    let (one, two, mut state) = (node.session("a"), node.session("b"), UserState::default());
    collect(&node, Scope::Snapshot, &mut state);
    for session in [&one, &two] {
        append(&session.record.join("journal"), b"x");
        fs::write(session.work.join("file"), "x").unwrap();
    }
    let delta = collect(&node, Scope::Turn(vec![two.hash.clone()]), &mut state);
    assert_eq!(delta.entries(), ["Append journal", "Whole file"]);
    assert!(delta.pieces[0].entries().all(|entry| entry.area != Area::Record(one.hash.clone())));
    // A new one goes at once, and one that was deleted.
    node.session("c");
    node.delete("b");
    let delta = collect(&node, Scope::Turn(Vec::new()), &mut state).entries();
    assert_eq!(delta.iter().filter(|it| it.ends_with(' ')).count(), 1, "{delta:?}");
    assert!(delta.contains(&"Whole session.json".to_owned()) && !delta.contains(&"Whole file".to_owned()));
    assert_eq!(collect(&node, Scope::Whole, &mut state).entries(), ["Append journal", "Whole file"]);
}

#[test]
fn credentials_go_only_if_wanted() {
    let node = Node::new();
    let (session, mut state) = (node.session("a"), UserState::default());
    fs::write(session.record.join("credentials.json"), "secret").unwrap();
    let without = collect(&node, Scope::Snapshot, &mut state);
    assert!(!without.entries().iter().any(|it| it.contains("credentials")));
    let with =
        collect_with(&node, Scope::Whole, Options { credentials: true, ..Options::default() }, &mut state);
    assert_eq!(with.entries(), ["Whole credentials.json"]);
}

#[test]
fn journal_sends_its_end_or_all_of_it() {
    let node = Node::new();
    let (session, mut state) = (node.session("a"), UserState::default());
    let journal = session.record.join("journal");
    let long = vec![b'l'; 20 * EDGE_BYTES];
    fs::write(&journal, &long).unwrap();
    collect(&node, Scope::Snapshot, &mut state);
    let patch =
        |at| OpenOptions::new().write(true).open(&journal).unwrap().write_all_at(b"patch", at).unwrap();
    let mut next = |change: &dyn Fn()| {
        change();
        turn(&node, &mut state)
    };
    assert_eq!(next(&|| append(&journal, b"turn")), ["Append journal"]);
    // A mark that is kept up to date in its place, alone and before a turn.
    assert_eq!(next(&|| patch(0)), ["Patch journal"]);
    assert_eq!(
        next(&|| {
            patch(7);
            append(&journal, b"turn")
        }),
        ["Patch journal", "Append journal"]
    );
    // It was begun again: shorter, as long, and longer than before.
    let long = |byte, edges: usize| vec![byte; edges * EDGE_BYTES];
    for content in [b"short".to_vec(), b"other".to_vec(), long(b'n', 40), long(b'm', 50), long(b'm', 30)] {
        let sent = next(&|| fs::write(&journal, &content).unwrap());
        let rest = sent.get(1..).unwrap();
        assert!(sent[0] == "Whole journal" && rest.iter().all(|it| it == "Append journal"), "{sent:?}");
    }
    assert_eq!(next(&|| fs::remove_file(&journal).unwrap()), ["Removed journal"]);
    assert_eq!(next(&|| ()), Vec::<String>::new());
}

fn fifo(path: &Path) {
    mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
}

#[test]
fn hostile_files_neither_block_nor_leak() {
    let node = Node::new();
    let (session, mut state) = (node.session("a"), UserState::default());
    let at = |name: &str| session.work.join(name);
    let secret = node.path().join("secret");
    fs::write(&secret, "secret").unwrap();
    fs::write(at("plain"), "x").unwrap();
    fs::hard_link(&secret, at("hard")).unwrap();
    symlink(&secret, at("link")).unwrap();
    symlink("/dev/zero", at("zero")).unwrap();
    symlink(node.path(), at("up")).unwrap();
    fifo(&at("fifo"));
    let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
    File::create(at("sparse")).unwrap().set_len(1 << 40).unwrap();
    File::create(at("closed")).unwrap();
    chmod(&at("closed"), 0o000);
    fs::create_dir_all(at("deep").join(["d"; MAX_DEPTH + 3].join("/"))).unwrap();
    fs::write(at(&format!(".{}.new", uuid::Uuid::new_v4().simple())), "torn").unwrap();
    let object = collect(&node, Scope::Snapshot, &mut state);
    let entries = object.entries();
    for wanted in ["Link link", "Link zero", "Link up", "Whole plain", "Directory deep"] {
        assert!(entries.iter().any(|it| it == wanted), "{wanted}");
    }
    let names = ["hard", "fifo", "socket", "sparse"];
    assert!(!entries.iter().any(|it| names.iter().any(|name| it.ends_with(name))), "{entries:?}");
    assert!(!entries.iter().any(|it| it.contains(".new") || it.contains("secret")));
    // Second name, pipe, socket, the file beyond all limits, what lies too deep.
    assert_eq!(object.summary.left_out, 5, "{:?}", object.summary);
    let has_secret =
        |entry: Entry<'_>| matches!(entry.change, Change::Whole { content, .. } if content == b"secret");
    assert!(!object.pieces.iter().any(|piece| piece.entries().any(has_secret)));

    // Another file in the place of each, and the working directory itself.
    fs::remove_file(at("plain")).unwrap();
    fifo(&at("plain"));
    assert!(turn(&node, &mut state).contains(&"Removed plain".to_owned()));
    fs::rename(&session.work, session.work.with_file_name("aside")).unwrap();
    symlink(node.path(), &session.work).unwrap();
    let object = collect(&node, Scope::Turn(vec![session.hash.clone()]), &mut state);
    assert_eq!((object.entries().len(), object.summary.unreadable), (0, 1), "what was sent stays");
}

#[test]
fn planted_files_of_the_server_are_not_read() {
    for trap in crate::workspace::TRAPS {
        let node = Node::new();
        let (session, mut state) = (node.session("a"), UserState::default());
        node.others();
        collect(&node, Scope::Snapshot, &mut state);
        for file in
            [session.record.join("journal"), session.record.join("session.json"), node.places().usage()]
        {
            fs::remove_file(&file).unwrap();
            trap(&file);
        }
        for scope in [Scope::Whole, Scope::Snapshot] {
            let result = try_collect(&node, scope, Options::default(), &mut state);
            assert!(result.is_err(), "an object would replace what the replica has");
        }
    }
}

#[test]
fn turn_is_limited_and_the_rest_goes_later() {
    let node = Node::new();
    let (session, mut state) = (node.session("a"), UserState::default());
    collect(&node, Scope::Snapshot, &mut state);
    let large = File::create(session.work.join("large")).unwrap();
    large.set_len(WORK_BYTES_PER_TURN - 2).unwrap();
    for name in ["1", "2", "3"] {
        fs::write(session.work.join(name), name).unwrap();
    }
    let object = collect(&node, Scope::Turn(vec![session.hash.clone()]), &mut state);
    assert_eq!(object.entries(), ["Whole 1", "Whole 2", "Whole 3"], "small files go first");
    assert_eq!((object.summary.later_files, object.summary.later_bytes), (1, WORK_BYTES_PER_TURN - 2));
    large.set_len(WORK_BYTES_PER_TURN + 1).unwrap();
    fs::write(session.work.join("4"), "4").unwrap();
    let object = collect(&node, Scope::Changes, &mut state);
    assert_eq!((object.entries(), object.summary.later_files), (vec!["Whole 4".to_owned()], 1));
    fs::remove_file(session.work.join("4")).unwrap();
    fs::remove_file(session.work.join("3")).unwrap();
    large.set_len(WORK_BYTES_PER_TURN / 8).unwrap();
    let object = collect(&node, Scope::Whole, &mut state);
    assert_eq!(object.summary.later_files, 0);
    let entries = object.entries();
    assert_eq!(&entries[..3], ["Removed 3", "Removed 4", "Whole large"]);
    assert!(entries.len() > 4 && entries[3..].iter().all(|it| it == "Append large"));
    assert!(object.pieces.len() > 1, "in parts");
}

#[test]
fn first_object_has_the_limits_of_a_turn() {
    let (node, mut state) = (Node::new(), UserState::default());
    let session = node.session("a");
    fs::write(session.work.join("small"), "small").unwrap();
    // It takes nothing on the disk, and as long as its length says to be sent.
    File::create(session.work.join("large")).unwrap().set_len(WORK_BYTES_PER_TURN + 1).unwrap();
    let first = collect(&node, Scope::First, &mut state);
    assert_eq!((first.kind, first.summary.later_files, first.summary.left_out), (Kind::Snapshot, 1, 0));
    assert_eq!(first.summary.later_bytes, WORK_BYTES_PER_TURN + 1);
    let rest = collect(&node, Scope::Whole, &mut state);
    assert_eq!(
        (rest.kind, rest.summary.files, rest.summary.bytes),
        (Kind::Delta, 1, WORK_BYTES_PER_TURN + 1)
    );
    let next = Node::new();
    apply(&next, &[first, rest]).unwrap();
    assert_eq!(next.tree(), node.tree());
}

/// Its bytes are counted where they are sent: a limit of what files take does not count them.
#[test]
fn files_with_holes_are_limited_by_their_length() {
    let (node, options) = (Node::new(), Options { workspace_bytes: Some(1 << 20), ..Options::default() });
    let session = node.session("a");
    for (name, bytes) in [("large", 4 << 20), ("small", 1 << 20)] {
        File::create(session.work.join(name)).unwrap().set_len(bytes).unwrap();
    }
    for scope in [Scope::Snapshot, Scope::Whole] {
        let mut state = UserState::default();
        let sent = collect_with(&node, scope, options, &mut state);
        let entries = sent.entries();
        assert!(entries.contains(&"Whole small".to_owned()), "{entries:?}");
        assert!(!entries.iter().any(|entry| entry.ends_with("large")), "{entries:?}");
        assert_eq!(sent.summary.left_out, 1);
    }
    let all = collect(&node, Scope::Snapshot, &mut UserState::default());
    assert_eq!(all.summary.left_out, 0);
}

#[test]
fn many_files_go_in_several_turns() {
    let node = Node::new();
    let (session, mut state) = (node.session("a"), UserState::default());
    collect(&node, Scope::Snapshot, &mut state);
    let files = WORK_FILES_PER_TURN + 3;
    for number in 0..files {
        fs::write(session.work.join(number.to_string()), "x").unwrap();
    }
    let mut next = || collect(&node, Scope::Turn(vec![session.hash.clone()]), &mut state);
    let (first, second, third) = (next(), next(), next());
    let sent = [&first, &second, &third].map(|it| (it.summary.files, it.summary.later_files));
    assert_eq!(sent, [(WORK_FILES_PER_TURN, 3), (3, 0), (0, 0)]);
    // Beyond what is known of a session they are left out, also of the whole.
    for number in 0..WORK_FILES_KNOWN {
        fs::write(session.work.join(format!("more {number}")), "x").unwrap();
    }
    let whole = collect(&node, Scope::Snapshot, &mut state);
    assert_eq!(whole.summary.left_out, files);
    assert!(state.len() as u64 <= WORK_FILES_KNOWN + 10);
}

#[test]
fn endless_directory_is_cut_and_nothing_forgotten() {
    let node = Node::new();
    let (session, mut state) = (node.session("a"), UserState::default());
    fs::write(session.work.join("kept"), "x").unwrap();
    collect(&node, Scope::Snapshot, &mut state);
    fs::remove_file(session.work.join("kept")).unwrap();
    let many = session.work.join("many");
    fs::create_dir(&many).unwrap();
    // Names of one file: quick to make, and counted all the same.
    File::create(many.join("0")).unwrap();
    let (mut of, mut made) = (many.join("0"), 1);
    for number in 1..=WORK_ENTRIES {
        let name = many.join(number.to_string());
        if fs::hard_link(&of, &name).is_err() {
            File::create(&name).unwrap();
            of = name;
        }
        made += 1;
    }
    assert!(made > WORK_ENTRIES);
    let object = collect(&node, Scope::Turn(vec![session.hash.clone()]), &mut state);
    assert!(object.summary.is_cut && object.summary.left_out > 0, "{:?}", object.summary);
    assert!(!object.entries().contains(&"Removed kept".to_owned()), "what was not seen may be there");
    fs::remove_dir_all(&many).unwrap();
    assert!(turn(&node, &mut state).contains(&"Removed kept".to_owned()));
}

#[test]
fn change_with_an_old_time_is_sent() {
    let node = Node::new();
    let (session, mut state) = (node.session("a"), UserState::default());
    let file = session.work.join("file");
    fs::write(&file, "one").unwrap();
    let modified = fs::metadata(&file).unwrap().modified().unwrap();
    collect(&node, Scope::Snapshot, &mut state);
    fs::write(&file, "two").unwrap();
    File::options().write(true).open(&file).unwrap().set_modified(modified).unwrap();
    assert_eq!(turn(&node, &mut state), ["Whole file"]);
}
