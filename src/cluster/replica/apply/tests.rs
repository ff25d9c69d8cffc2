use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;

use bytes::Bytes;
use proptest::prelude::*;

use super::super::collect::Scope;
use super::super::delta::{Area, Change, Decoded, Entry, Header, Kind, Meta, Writer};
use super::super::key::ObjectId;
use super::super::places::UserPlaces;
use super::super::testing::{Node, Object, Session, apply, bytes, chmod, collect};
use super::*;
use crate::model::ids::SessionHash;
use crate::workspace::{records_dir, sessions_dir};

thread_local! {
    /// Steps until this process is killed.
    static LEFT: Cell<Option<u32>> = const { Cell::new(None) };
}

/// Counts steps, and kills this process at the wanted one.
pub(super) fn passed() {
    let Some(left) = LEFT.get() else { return };
    if left == 0 {
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).unwrap();
    }
    LEFT.set(Some(left - 1));
}

/// A user with two sessions as another node knows it, and an older state of the same user on this one.
fn two_nodes() -> (Node, Node) {
    let (from, to) = (Node::new(), Node::new());
    from.others();
    for conversation in ["a", "b"] {
        let session = from.session(conversation);
        fs::create_dir_all(session.work.join("src/empty")).unwrap();
        fs::write(session.work.join("src/run"), conversation).unwrap();
        chmod(&session.work.join("src/run"), 0o755);
        symlink("/etc/passwd", session.work.join("link")).unwrap();
    }
    for conversation in ["b", "old"] {
        let session = to.session(conversation);
        fs::write(session.work.join("stale"), "stale").unwrap();
    }
    fs::create_dir_all(to.places().responses()).unwrap();
    fs::write(to.places().responses().join("resp_stale"), "stale").unwrap();
    (from, to)
}

#[test]
fn files_arrive_and_stale_ones_go() {
    let (from, to) = two_nodes();
    let stale = to.known("old");
    let other = Node::of("bob");
    // Another user of the same node.
    let bob = super::super::places::UserPlaces::of(to.path(), &other.user);
    fs::create_dir_all(bob.list()).unwrap();
    fs::write(bob.usage().parent().unwrap().join("bob"), "bob").err();
    let mut state = UserState::default();
    let snapshot = collect(&from, Scope::Snapshot, &mut state);
    let mut taken = apply(&to, &[snapshot]).unwrap();
    assert_eq!(to.tree(), from.tree());
    assert!(!stale.record.exists() && !stale.work.exists() && bob.list().exists());
    let session = to.known("a");
    let record = fs::read_to_string(session.record.join("session.json")).unwrap();
    assert!(
        record.contains(session.work.to_str().unwrap()) && !record.contains(from.path().to_str().unwrap())
    );
    // Everything else of a record stays as it was written: settings are compared by their text.
    assert!(record.contains("\"a\": 0.1") && record.contains("\"system_prompt\": null"));
    assert!(fs::metadata(session.work.join("src/run")).unwrap().permissions().mode() & 0o111 != 0);
    assert_eq!(fs::metadata(session.record.join("journal")).unwrap().permissions().mode() & 0o777, 0o600);
    let left: Vec<_> =
        to.all().into_keys().filter(|path| path.contains(".taken") || path.contains(".removed")).collect();
    assert_eq!(left, Vec::<String>::new());
    // What was taken over is known: only the paths in the records differ.
    let next = collect(&to, Scope::Whole, &mut taken);
    assert_eq!((next.kind, next.entries()), (Kind::Delta, vec!["Whole session.json".to_owned(); 2]));
}

fn object(entries: &[Entry<'_>]) -> Decoded {
    let mut writer = Writer::default();
    entries.iter().for_each(|entry| writer.push(entry));
    let header = Header {
        kind: Kind::Snapshot,
        user: Node::new().places().hash(),
        id: ObjectId { fence: 1, seq: 1 },
        parts: Vec::new(),
    };
    Decoded::parse(bytes(&writer.finish(&header))).unwrap()
}

fn whole(content: &[u8]) -> Change<'_> {
    Change::Whole { meta: Meta { mode: 0o644, seconds: 0, nanos: 0 }, content }
}

/// An object whose checksum fits, made to lead out of its place.
#[test]
fn links_of_an_object_are_not_followed() {
    let (node, outside) = (Node::new(), tempfile::tempdir().unwrap());
    fs::write(outside.path().join("kept"), "kept").unwrap();
    let session = node.session("a");
    let out = outside.path().as_os_str().as_encoded_bytes();
    let kept = outside.path().join("kept");
    let kept = kept.as_os_str().as_encoded_bytes();
    let (area, name) = (Area::Work(session.hash.clone()), "f".repeat(32));
    let list = format!("list/{}", session.hash);
    let work = |path: &'static str, change| Entry { area: area.clone(), path: path.as_bytes(), change };
    let entries = [
        Entry {
            area: Area::Record(session.hash.clone()),
            path: b"directory",
            change: whole(name.as_bytes()),
        },
        Entry { area: Area::User, path: list.as_bytes(), change: whole(b"") },
        work("out", Change::Link { target: out }),
        work("file", Change::Link { target: kept }),
        work("file", whole(b"written")),
        work("gone", Change::Link { target: out }),
        work("gone", Change::Removed),
        work("moded", Change::Link { target: out }),
        work("moded", Change::Directory { mode: 0o777 }),
        work("out/new", whole(b"escaped")),
    ];
    let mut apply = Apply::begin(node.places()).unwrap();
    apply.object(&object(&entries)).unwrap();
    for (path, change) in [
        ("link", Change::Append { base: 4, edge: [0; 32], meta: Meta::default(), content: b"x" }),
        ("link", Change::Patch { at: 0, content: b"x" }),
        ("link", Change::Mode(Meta { mode: 0o777, seconds: 0, nanos: 0 })),
        ("outer/kept", Change::Patch { at: 0, content: b"x" }),
    ] {
        let link = work("link", Change::Link { target: kept });
        let outer = work("outer", Change::Link { target: out });
        let refused = apply.object(&object(&[link, outer, work(path, change)])).unwrap_err();
        assert!(matches!(refused, ApplyError::Unfit), "{path}: {refused}");
    }
    apply.object(&object(&[work("outer/kept", Change::Removed)])).unwrap();
    apply.finish().unwrap();
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
    assert_eq!(fs::read_to_string(outside.path().join("kept")).unwrap(), "kept");
    let work = sessions_dir(node.path()).join(name).join("work");
    assert_eq!(fs::read_to_string(work.join("file")).unwrap(), "written");
    assert_eq!(fs::read_to_string(work.join("out/new")).unwrap(), "escaped");
    assert!(fs::symlink_metadata(work.join("out")).unwrap().is_dir());
    assert!(fs::symlink_metadata(work.join("moded")).unwrap().is_dir());
}

#[test]
fn object_that_does_not_fit_changes_nothing() {
    let (from, to) = two_nodes();
    let before = to.all();
    let (session, mut state) = (from.known("a"), UserState::default());
    let journal = session.record.join("journal");
    let mut delta = |content: &str| {
        fs::write(&journal, content).unwrap();
        collect(&from, Scope::Turn(vec![session.hash.clone()]), &mut state)
    };
    let (first, _lost, third) = (delta("one"), delta("one two"), delta("one two three"));
    assert!(third.entries().contains(&"Append journal".to_owned()));
    assert!(matches!(apply(&to, &[first, third]), Err(ApplyError::Unfit)));
    assert_eq!(to.all(), before);
}

#[test]
fn session_without_a_name_or_a_mark_is_left_out() {
    let node = Node::new();
    let [unnamed, unlisted, bad, unborn] = ["1", "2", "3", "4"].map(|name| node.session(name).hash);
    let lists: Vec<_> = [&unnamed, &bad, &unborn].iter().map(|it| format!("list/{it}")).collect();
    let record = |session: &SessionHash, path: &'static str, content: &'static [u8]| Entry {
        area: Area::Record(session.clone()),
        path: path.as_bytes(),
        change: whole(content),
    };
    let name = b"00000000000000000000000000000001";
    let mut entries = vec![
        record(&unnamed, "journal", b"x"),
        record(&unlisted, "directory", name),
        record(&bad, "directory", b"../../../../etc/cron.d/x........"),
        Entry { area: Area::Work(unlisted.clone()), path: b"x", change: whole(b"x") },
        Entry { area: Area::Work(unborn.clone()), path: b"x", change: whole(b"x") },
    ];
    entries.extend(lists.iter().map(|list| Entry {
        area: Area::User,
        path: list.as_bytes(),
        change: whole(b""),
    }));
    let mut apply = Apply::begin(node.places()).unwrap();
    apply.object(&object(&entries)).unwrap();
    assert!(apply.finish().unwrap().len() <= 3);
    assert_eq!(node.places().sessions().unwrap(), Vec::<SessionHash>::new());
    assert_eq!(fs::read_dir(sessions_dir(node.path())).unwrap().count(), 0, "what they had here is gone too");
}

/// The store may be written by others than nodes, and other users of the node stay as they are.
#[test]
fn session_of_another_user_is_left_out() {
    let (alice, bob) = (Node::new(), Node::of("bob"));
    // Both are users of this node.
    let places = UserPlaces::of(bob.path(), &alice.user);
    let (own, victim) = (alice.session("a"), bob.session("b"));
    fs::write(victim.work.join("file"), "bob's").unwrap();
    let before = bob.tree();
    let read = |session: &Session, name: &str| fs::read(session.record.join(name)).unwrap();
    let name = read(&victim, "directory");
    let take = |session: &SessionHash, record: &[u8]| {
        let (area, list) = (Area::Record(session.clone()), format!("list/{session}"));
        let object = object(&[
            Entry { area: area.clone(), path: b"session.json", change: whole(record) },
            Entry { area, path: b"directory", change: whole(&name) },
            Entry { area: Area::Work(session.clone()), path: b"file", change: whole(b"alice's") },
            Entry { area: Area::User, path: list.as_bytes(), change: whole(b"") },
        ]);
        let mut apply = Apply::begin(places.clone()).unwrap();
        apply.object(&object).unwrap();
        apply.finish().unwrap();
        assert_eq!(bob.tree(), before);
    };
    // Under the victim's digest: the record of another session, that of the victim, one that cannot be read.
    for record in [read(&own, "session.json"), read(&victim, "session.json"), b"broken".to_vec()] {
        take(&victim.hash, &record);
        assert_eq!(places.sessions().unwrap(), []);
    }
    // A session of the user, with the victim's directory.
    let mut record: serde_json::Value = serde_json::from_slice(&read(&own, "session.json")).unwrap();
    record["directory"] = str::from_utf8(&name).unwrap().into();
    take(&own.hash, record.to_string().as_bytes());
    let root = places.session(&own.hash).unwrap();
    assert_ne!(root.join("work"), victim.work);
    assert_eq!(fs::read_to_string(root.join("work/file")).unwrap(), "alice's");
    let record = fs::read(places.record(&own.hash).join("session.json")).unwrap();
    let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
    assert_eq!(record["directory"], root.file_name().unwrap().to_str().unwrap());
    assert_eq!(record["work"], root.join("work").to_str().unwrap());
}

/// Kills a process at each of its steps. The node then has what it had, or all of the new; and the next start leaves
/// nothing beside it.
#[test]
fn killed_process_leaves_the_old_or_the_new() {
    const VARIABLE: &str = "PILOTLIGHT_TEST_REPLICA";
    if let Some(wanted) = std::env::var_os(VARIABLE) {
        return taken_over_up_to(wanted.to_str().unwrap());
    }
    let (from, _) = two_nodes();
    let mut state = UserState::default();
    let snapshot = collect(&from, Scope::Snapshot, &mut state);
    let file = from.path().join("object");
    let content: Vec<u8> = snapshot.pieces.iter().flat_map(|piece| piece.as_bytes().to_vec()).collect();
    assert_eq!(snapshot.pieces.len(), 1);
    fs::write(&file, content).unwrap();
    let (mut old, mut new) = (0, 0);
    for step in 0.. {
        let (_, to) = two_nodes();
        let before = to.tree();
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "--nocapture", &test_name()]);
        child.env(VARIABLE, format!("{step}:{}:{}", file.display(), to.path().display()));
        let output = child.output().unwrap();
        let is_killed = output.status.signal() == Some(9);
        assert!(is_killed || output.status.success(), "{output:?}");
        recover(to.path()).unwrap();
        let after = to.tree();
        assert!(after == before || after == from.tree(), "step {step}: {after:#?}");
        *(if after == before { &mut old } else { &mut new }) += 1;
        let left = |path: &Path| {
            fs::read_dir(path)
                .unwrap()
                .flatten()
                .any(|it| it.file_name().to_string_lossy().starts_with(".taken"))
        };
        assert!(!left(&records_dir(to.path())) && !left(&sessions_dir(to.path())), "step {step}");
        assert_eq!(fs::read_dir(records_dir(to.path()).join(".taking")).map_or(0, Iterator::count), 0);
        if !is_killed {
            break;
        }
    }
    assert!(old >= 2 && new >= 10, "{old} {new}");
}

fn test_name() -> String {
    std::thread::current().name().unwrap().to_owned()
}

fn taken_over_up_to(wanted: &str) {
    let mut parts = wanted.splitn(3, ':');
    let mut next = || parts.next().unwrap().to_owned();
    let (step, file, data) = (next(), next(), next());
    let object = Decoded::parse(Bytes::from(fs::read(file).unwrap())).unwrap();
    let user = crate::model::ids::UserId::new("alice").unwrap();
    LEFT.set(Some(step.parse().unwrap()));
    let places = super::super::places::UserPlaces::of(Path::new(&data), &user);
    let mut apply = Apply::begin(places).unwrap();
    apply.object(&object).unwrap();
    apply.finish().unwrap();
}

/// What a turn, or a child, does to the files of a user.
#[derive(Debug, Clone)]
enum Step {
    Write(u8, u8, Vec<u8>),
    Large(u8, u8),
    Append(u8, u8, Vec<u8>),
    Remove(u8, u8),
    Directory(u8, u8),
    Link(u8, u8),
    Mode(u8, u8, u16),
    Journal(u8, Vec<u8>),
    Mark(u8),
    NewJournal(u8, Vec<u8>),
    Delete(u8),
    Response(u8, bool),
    Turn(u8),
    Whole,
    Snapshot,
    /// The other node takes the user over.
    Move,
}

fn step() -> impl Strategy<Value = Step> {
    let content = || proptest::collection::vec(any::<u8>(), 0..40);
    let (session, path) = (0..3_u8, 0..12_u8);
    let at = (session.clone(), path);
    prop_oneof![
        6 => (at.clone(), content()).prop_map(|((s, p), content)| Step::Write(s, p, content)),
        1 => at.clone().prop_map(|(s, p)| Step::Large(s, p)),
        3 => (at.clone(), content()).prop_map(|((s, p), content)| Step::Append(s, p, content)),
        3 => at.clone().prop_map(|(s, p)| Step::Remove(s, p)),
        2 => at.clone().prop_map(|(s, p)| Step::Directory(s, p)),
        2 => at.clone().prop_map(|(s, p)| Step::Link(s, p)),
        2 => (at, 0..=0o777_u16).prop_map(|((s, p), mode)| Step::Mode(s, p, mode)),
        6 => (session.clone(), content()).prop_map(|(s, content)| Step::Journal(s, content)),
        2 => session.clone().prop_map(Step::Mark),
        1 => (session.clone(), content()).prop_map(|(s, content)| Step::NewJournal(s, content)),
        1 => session.clone().prop_map(Step::Delete),
        2 => (any::<u8>(), any::<bool>()).prop_map(|(n, is_new)| Step::Response(n, is_new)),
        6 => session.prop_map(Step::Turn),
        2 => Just(Step::Whole),
        1 => Just(Step::Snapshot),
        2 => Just(Step::Move),
    ]
}

/// Paths that are now a file, now a directory of others.
const PATHS: [&str; 12] =
    ["a", "b", "a/c", "a/d", "b/c/e", "b/c", "b/c/f", "g", "a/h/i", "a/h", "k k", "b/\u{fc}"];

fn act(node: &Node, step: &Step) {
    let session = |number: u8| {
        let name = number.to_string();
        if node.places().session(&node.hash(&name)).is_some() {
            node.known(&name)
        } else {
            node.session(&name)
        }
    };
    let at = |s: u8, p: u8| session(s).work.join(PATHS[usize::from(p)]);
    // Steps that the file system refuses do nothing.
    match step {
        Step::Write(s, p, content) => {
            let path = at(*s, *p);
            fs::create_dir_all(path.parent().unwrap()).ok();
            fs::write(path, content).ok();
        }
        Step::Large(s, p) => drop(fs::write(at(*s, *p), vec![*p; 3 * super::super::limits::CHUNK_BYTES / 2])),
        Step::Append(s, p, content) => {
            let file = fs::OpenOptions::new().append(true).open(at(*s, *p));
            file.and_then(|mut file| std::io::Write::write_all(&mut file, content)).ok();
        }
        Step::Remove(s, p) => drop(crate::workspace::remove_any(&at(*s, *p))),
        Step::Directory(s, p) => drop(fs::create_dir_all(at(*s, *p))),
        // To nowhere, or to itself: writes through a link stay in the directory.
        Step::Link(s, p) => drop(symlink(format!("none-{p}"), at(*s, *p))),
        Step::Mode(s, p, mode) => {
            let path = at(*s, *p);
            if fs::symlink_metadata(&path).is_ok_and(|it| !it.is_symlink()) {
                chmod(&path, u32::from(*mode) | 0o700);
            }
        }
        Step::Journal(s, content) => {
            let journal = session(*s).record.join("journal");
            let file = fs::OpenOptions::new().create(true).append(true).open(journal);
            std::io::Write::write_all(&mut file.unwrap(), &content.repeat(300)).unwrap();
        }
        Step::Mark(s) => {
            let file = fs::OpenOptions::new().write(true).open(session(*s).record.join("journal"));
            file.and_then(|file| std::os::unix::fs::FileExt::write_all_at(&file, &[*s; 3], 1)).ok();
        }
        Step::NewJournal(s, content) => fs::write(session(*s).record.join("journal"), content).unwrap(),
        Step::Delete(s) => {
            session(*s);
            node.delete(&s.to_string());
        }
        Step::Response(number, is_new) => {
            let file = node.places().responses().join(format!("resp_{}", number % 4));
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            if *is_new { fs::write(file, [*number]).unwrap() } else { drop(fs::remove_file(file)) }
        }
        Step::Turn(_) | Step::Whole | Step::Snapshot | Step::Move => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 200, ..ProptestConfig::default() })]

    /// Whatever happens to files, and whenever objects are made: another node has the same after each taking over.
    #[test]
    fn every_chain_makes_the_same_files(steps in proptest::collection::vec(step(), 1..60)) {
        let mut nodes = [Node::new(), Node::new()];
        let (mut state, mut chain) = (UserState::default(), Vec::<Object>::new());
        let steps = steps.iter().chain([&Step::Move, &Step::Turn(0), &Step::Move]);
        for step in steps {
            act(&nodes[0], step);
            let scope = match step {
                Step::Turn(session) => Scope::Turn(vec![nodes[0].hash(&session.to_string())]),
                // All of a working directory leaves before its user does.
                Step::Whole | Step::Move => Scope::Whole,
                Step::Snapshot => Scope::Snapshot,
                _ => continue,
            };
            let object = collect(&nodes[0], scope, &mut state);
            if object.kind == Kind::Snapshot {
                chain.clear();
            }
            chain.push(object);
            if matches!(step, Step::Move) {
                state = apply(&nodes[1], &chain).unwrap();
                let trees: [BTreeMap<_, _>; 2] = [nodes[0].tree(), nodes[1].tree()];
                prop_assert_eq!(&trees[1], &trees[0]);
                nodes.swap(0, 1);
            }
        }
    }
}

/// A child that changes everything while it is read, and a journal that grows: each object fits the ones before it, nothing
/// of another file gets into it, and no pipe holds it up.
#[test]
fn files_that_change_meanwhile_break_no_chain() {
    use std::os::unix::fs::FileExt;
    use std::sync::atomic::{AtomicBool, Ordering};

    let (from, to) = (Node::new(), Node::new());
    let session = from.session("a");
    let secret = from.path().join("secret");
    fs::write(&secret, "secret").unwrap();
    fs::write(session.record.join("journal"), vec![b'j'; 40_000]).unwrap();
    let is_over = AtomicBool::new(false);
    let (file, journal) = (session.work.join("file"), session.record.join("journal"));
    let (mut chain, mut state) = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut number = 0_u32;
            while !is_over.load(Ordering::Relaxed) {
                number = number.wrapping_add(1);
                crate::workspace::remove_any(&file).unwrap();
                match number % 6 {
                    0 => drop(symlink(&secret, &file)),
                    1 => drop(fs::create_dir(&file)),
                    2 => {
                        let kind = rustix::fs::FileType::Fifo;
                        rustix::fs::mknodat(rustix::fs::CWD, &file, kind, rustix::fs::Mode::RWXU, 0).unwrap();
                    }
                    _ => {
                        let length = 100_000 + number as usize % 7 * 30_000;
                        fs::write(&file, vec![number as u8; length]).unwrap();
                        let open = fs::OpenOptions::new().write(true).open(&file).unwrap();
                        open.write_all_at(b"changed", u64::from(number) % 90_000).unwrap();
                        open.set_len(length as u64 / 2).unwrap();
                    }
                }
                let journal = fs::OpenOptions::new().write(true).open(&journal).unwrap();
                let end = journal.metadata().unwrap().len();
                journal.write_all_at(&[number as u8; 700], end).unwrap();
                journal.write_all_at(&number.to_le_bytes(), 0).unwrap();
            }
        });
        let mut state = UserState::default();
        let scope = Scope::Turn(vec![session.hash.clone()]);
        let chain: Vec<_> = (0..60).map(|_| collect(&from, scope.clone(), &mut state)).collect();
        is_over.store(true, Ordering::Relaxed);
        (chain, state)
    });
    // Nothing that changed while it was read is missed.
    chain.push(collect(&from, Scope::Whole, &mut state));
    let has_secret = |entry: Entry<'_>| match entry.change {
        Change::Whole { content, .. } | Change::Append { content, .. } => content.starts_with(b"secret"),
        _ => false,
    };
    assert!(!chain.iter().any(|it| it.pieces.iter().any(|piece| piece.entries().any(has_secret))));
    apply(&to, &chain).unwrap();
    assert_eq!(to.tree(), from.tree());
}

#[test]
fn more_than_a_chain_may_have_is_refused() {
    let (from, to) = two_nodes();
    let large = fs::File::create(from.known("a").work.join("large")).unwrap();
    large.set_len(super::super::limits::CHAIN_BYTES / 2).unwrap();
    let object = collect(&from, Scope::Snapshot, &mut UserState::default());
    let before = to.all();
    let once = |apply: &mut Apply| object.pieces.iter().try_for_each(|piece| apply.object(piece));
    let mut apply = Apply::begin(to.places()).unwrap();
    once(&mut apply).unwrap();
    assert!(matches!(once(&mut apply), Err(ApplyError::TooMuch)));
    apply.discard().unwrap();
    assert_eq!(to.all(), before);
    // A snapshot begins a chain of its own.
    let mut apply = Apply::begin(to.places()).unwrap();
    once(&mut apply).unwrap();
    apply.reset().unwrap();
    once(&mut apply).unwrap();
}
