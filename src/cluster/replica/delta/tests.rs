use bytes::Bytes;
use proptest::prelude::*;
use sha2::{Digest as _, Sha256};

use super::super::limits;
use super::*;

fn session(byte: u8) -> SessionHash {
    SessionHash::parse(&format!("{byte:02x}").repeat(16)).unwrap()
}

fn whole(encoded: &Encoded) -> Bytes {
    encoded.pieces.iter().flatten().copied().collect::<Vec<_>>().into()
}

fn header(kind: Kind, parts: Vec<Digest>) -> Header {
    Header { kind, user: UserHash::from_bytes([7; 16]), id: ObjectId { fence: 3, seq: 9 }, parts }
}

fn object(entries: &[Entry<'_>]) -> Bytes {
    let mut writer = Writer::default();
    entries.iter().for_each(|entry| writer.push(entry));
    whole(&writer.finish(&header(Kind::Delta, Vec::new())))
}

/// A change with what it borrows.
#[derive(Debug, Clone)]
struct Owned {
    area: Area,
    path: Vec<u8>,
    kind: u8,
    number: u64,
    meta: Meta,
    content: Vec<u8>,
}

impl Owned {
    fn entry(&self) -> Entry<'_> {
        let (meta, content) = (self.meta, self.content.as_slice());
        let edge = [self.kind; 32];
        let change = match (self.kind % 7, &self.area) {
            (0, _) => Change::Whole { meta, content },
            (1, _) => Change::Append { base: self.number, edge, meta, content },
            (2, _) => Change::Patch { at: self.number, content },
            (3, Area::Work(_)) => Change::Directory { mode: meta.mode },
            (4, Area::Work(_)) => Change::Link { target: b"../else/where" },
            (5, Area::Work(_)) => Change::Mode(meta),
            _ => Change::Removed,
        };
        Entry { area: self.area.clone(), path: &self.path, change }
    }
}

prop_compose! {
    fn meta()(mode in 0..=0o777_u16, seconds: i64, nanos in 0..1_000_000_000_u32) -> Meta {
        Meta { mode, seconds, nanos }
    }
}

fn place() -> impl Strategy<Value = (Area, Vec<u8>)> {
    let name = proptest::collection::vec(prop_oneof![b'a'..=b'z', Just(0xff_u8)], 1..9);
    let path = proptest::collection::vec(name, 1..4).prop_map(|names| names.join(&b'/'));
    prop_oneof![
        (any::<u8>(), path).prop_map(|(id, path)| (Area::Work(session(id)), path)),
        any::<u8>().prop_map(|id| (Area::Record(session(id)), b"journal".to_vec())),
        any::<u8>().prop_map(|id| (Area::User, format!("list/{}", session(id)).into_bytes())),
        Just((Area::User, b"usage".to_vec())),
    ]
}

prop_compose! {
    fn owned()(
        (area, path) in place(), kind: u8, number: u64, meta in meta(),
        content in proptest::collection::vec(any::<u8>(), 0..64)
    ) -> Owned {
        Owned { area, path, kind, number, meta, content }
    }
}

proptest! {
    #[test]
    fn object_round_trips(
        changes in proptest::collection::vec(owned(), 0..8),
        parts in proptest::collection::vec(any::<Digest>(), 0..4),
        user: [u8; 16], fence: u64, seq: u64,
    ) {
        let mut writer = Writer::default();
        let entries: Vec<_> = changes.iter().map(Owned::entry).collect();
        entries.iter().for_each(|entry| writer.push(entry));
        let id = ObjectId { fence, seq };
        let header = Header { kind: Kind::Snapshot, user: UserHash::from_bytes(user), id, parts };
        let encoded = writer.finish(&header);
        let bytes = whole(&encoded);
        prop_assert_eq!(bytes.len(), encoded.len());
        let decoded = Decoded::parse(bytes).unwrap();
        prop_assert_eq!(&decoded.header, &header);
        prop_assert_eq!(decoded.digest, encoded.digest);
        prop_assert_eq!(decoded.entries().collect::<Vec<_>>(), entries);
    }

    #[test]
    fn any_bytes_decode_without_panic(bytes: Vec<u8>) {
        read_any(&bytes);
    }

    /// Whatever stands in the place of the content, under a checksum that fits.
    #[test]
    fn damage_under_a_checksum_is_refused_or_read(
        changes in proptest::collection::vec(owned(), 1..4), at: usize, byte: u8,
    ) {
        let entries: Vec<_> = changes.iter().map(Owned::entry).collect();
        let mut bytes = object(&entries).to_vec();
        bytes.truncate(bytes.len() - 32);
        let content = bytes.get_mut(MAGIC.len()..).unwrap();
        prop_assert_eq!(read_any(content), entries.len());
        let at = at % content.len();
        content[at] = byte;
        read_any(content);
    }
}

fn sample() -> Bytes {
    let meta = Meta { mode: 0o644, seconds: 1, nanos: 2 };
    object(&[
        Entry {
            area: Area::Work(session(1)),
            path: b"src/main.rs",
            change: Change::Whole { meta, content: b"fn main() {}" },
        },
        Entry {
            area: Area::Record(session(1)),
            path: b"journal",
            change: Change::Append { base: 3, edge: [1; 32], meta, content: b"x" },
        },
        Entry { area: Area::Record(session(2)), path: b"", change: Change::Removed },
    ])
}

#[test]
fn every_changed_byte_is_refused() {
    let good = sample();
    assert_eq!(Decoded::parse(good.clone()).unwrap().entries().count(), 3);
    for at in 0..good.len() {
        for change in [1, 0x80, 0xff] {
            let mut bytes = good.to_vec();
            bytes[at] ^= change;
            let refused = Decoded::parse(bytes.into()).unwrap_err();
            assert!(matches!(refused, Damage::Foreign | Damage::Checksum), "{at}: {refused}");
        }
    }
}

#[test]
fn every_other_length_is_refused() {
    let good = sample();
    for length in 0..good.len() {
        assert!(Decoded::parse(good.slice(..length)).is_err(), "{length}");
    }
    for more in [&[0][..], &good] {
        assert_eq!(Decoded::parse([&good, more].concat().into()).unwrap_err(), Damage::Checksum);
    }
}

/// Bytes with another content under a checksum that fits.
fn resealed(change: impl FnOnce(&mut Vec<u8>)) -> Result<Decoded, Damage> {
    let mut bytes = sample().to_vec();
    bytes.truncate(bytes.len() - 32);
    change(&mut bytes);
    bytes.extend(Sha256::digest(&bytes));
    Decoded::parse(bytes.into())
}

#[test]
fn claimed_lengths_allocate_nothing() {
    let content = |change: fn(&mut Vec<u8>)| assert_eq!(resealed(change).unwrap_err(), Damage::Content);
    // The number of parts.
    content(|bytes| bytes[40..44].fill(0xff));
    content(|bytes| bytes[40..44].copy_from_slice(&(limits::MAX_PARTS as u32).to_le_bytes()));
    // The length of the first path, then that of its content.
    content(|bytes| bytes[62..64].fill(0xff));
    content(|bytes| bytes[89..93].fill(0xff));
    // The number of entries, and a further byte.
    content(|bytes| *bytes.last_mut().unwrap() = 1);
    content(|bytes| bytes.push(0));
    assert_eq!(resealed(|bytes| bytes[4] = 2).unwrap_err(), Damage::Format(2));
    assert_eq!(resealed(|_| {}).unwrap().entries().count(), 3);
    let long = [&MAGIC[..], &vec![0; limits::MAX_OBJECT_BYTES]].concat();
    assert_eq!(Decoded::parse(long.into()).unwrap_err(), Damage::TooLong);
}

#[test]
fn path_that_leaves_its_area_is_refused() {
    let meta = Meta::default();
    let file = Change::Whole { meta, content: b"" };
    let (work, record) = (Area::Work(session(1)), Area::Record(session(1)));
    let [deepest, deep] = [0, 1].map(|more| vec!["d"; limits::MAX_DEPTH + more].join("/"));
    let [longest, long] = [0, 1].map(|more| "n".repeat(limits::MAX_NAME_BYTES + more));
    let list = format!("list/{}", session(1));
    let cases: [(&Area, &str, Change<'_>, bool); 33] = [
        (&work, "a", file, true),
        (&work, ".hidden/..x/a b", file, true),
        (&work, &deepest, file, true),
        (&work, &longest, file, true),
        (&work, "", file, false),
        (&work, "", Change::Removed, false),
        (&work, "/etc/passwd", file, false),
        (&work, "..", Change::Removed, false),
        (&work, "a/../b", file, false),
        (&work, "./a", file, false),
        (&work, "a//b", file, false),
        (&work, "a/", file, false),
        (&work, "a\0b", file, false),
        (&work, &deep, file, false),
        (&work, &long, file, false),
        (&record, "session.json", file, true),
        (&record, "", Change::Removed, true),
        (&record, "", file, false),
        (&record, "session.json.broken", file, false),
        (&record, "a/b", file, false),
        (&record, "journal", Change::Link { target: b"x" }, false),
        (&record, "journal", Change::Directory { mode: 0o700 }, false),
        (&Area::User, "usage", file, true),
        (&Area::User, &list, file, true),
        (&Area::User, "responses/resp_1", Change::Removed, true),
        (&Area::User, "responses/heads", file, true),
        (&Area::User, "responses", Change::Removed, false),
        (&Area::User, "responses/../usage", file, false),
        (&Area::User, "responses/..", file, false),
        (&Area::User, "list/x", file, false),
        (&Area::User, "uids", file, false),
        (&Area::User, "usage", Change::Mode(meta), false),
        (&Area::User, "", Change::Removed, false),
    ];
    for (area, path, change, expected) in cases {
        assert_eq!(is_valid_path(area, path.as_bytes(), &change), expected, "{area:?} {path:?}");
        let entry = Entry { area: area.clone(), path: path.as_bytes(), change };
        assert_eq!(Decoded::parse(object(&[entry])).is_ok(), expected, "{area:?} {path:?}");
    }
}
