//! Stores for tests: a directory, and an S3 server over loopback.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use hyper::Method;
use object_store::aws::AmazonS3ConfigKey;
use pilotlight_test_support::s3::{ACCESS_KEY_ID, REGION, SECRET_ACCESS_KEY};
pub(in crate::cluster) use pilotlight_test_support::s3::{Fault, S3};
use tokio::time::Instant;

use super::super::delta::{Area, Change, Entry, Header, Kind, Meta, Writer};
use super::super::key::ObjectId;
use super::tries::TRIES;
use super::*;

/// A store on the server.
pub(in crate::cluster) trait Bucket {
    fn config(&self) -> StoreConfig;
}

impl Bucket for S3 {
    fn config(&self) -> StoreConfig {
        let variables = vec![
            (AmazonS3ConfigKey::Endpoint, self.endpoint()),
            (AmazonS3ConfigKey::Region, REGION.to_owned()),
            (AmazonS3ConfigKey::AccessKeyId, ACCESS_KEY_ID.to_owned()),
            (AmazonS3ConfigKey::SecretAccessKey, SECRET_ACCESS_KEY.to_owned()),
        ];
        StoreConfig { variables, ..StoreConfig::new("s3://bucket/pre/fix") }
    }
}

pub(in crate::cluster::replica) fn directory(path: &std::path::Path) -> StoreConfig {
    StoreConfig::new(format!("file://{}", path.display()))
}

pub(in crate::cluster::replica) fn open(config: &StoreConfig) -> Store {
    Store::open(config, TaskTracker::new()).unwrap()
}

fn user(number: u8) -> UserHash {
    UserHash::from_bytes([number; 16])
}

fn key(number: u8, seq: u64) -> Key {
    Key { user: user(number), id: ObjectId { fence: 1, seq }, part: None }
}

fn object(content: &[u8]) -> Encoded {
    let mut writer = Writer::default();
    let change = Change::Whole { meta: Meta::default(), content };
    writer.push(&Entry { area: Area::User, path: b"usage", change });
    writer.finish(&Header {
        kind: Kind::Snapshot,
        user: user(1),
        id: ObjectId { fence: 1, seq: 1 },
        parts: Vec::new(),
    })
}

fn content(object: &Encoded) -> Bytes {
    super::super::testing::bytes(object)
}

/// What every store does.
async fn does_what_it_should(config: &StoreConfig) {
    let store = open(config);
    let (one, two) = (object(b"one"), object(b"two"));
    assert_eq!(store.get(&key(1, 1)).await.unwrap_err(), StoreError::Missing);
    assert_eq!(store.list(user(1)).await.unwrap(), (Vec::new(), true));
    assert_eq!(store.create(&key(1, 1), &one).await.unwrap(), Created::Written);
    assert_eq!(store.create(&key(1, 1), &one).await.unwrap(), Created::Written, "the same once more");
    assert_eq!(store.create(&key(1, 1), &two).await.unwrap(), Created::Exists(content(&one)));
    assert_eq!(store.get(&key(1, 1)).await.unwrap(), content(&one));
    let part = Key { part: Some(two.digest), ..key(1, 2) };
    for key in [key(1, 2), part, key(1, 3), key(2, 1)] {
        assert_eq!(store.create(&key, &two).await.unwrap(), Created::Written);
    }
    let (mut listed, is_all) = store.list(user(1)).await.unwrap();
    listed.sort_by_key(|it| (it.key.id.seq, it.key.part));
    assert!(is_all);
    let bytes = one.len() as u64;
    assert_eq!(listed, [key(1, 1), key(1, 2), part, key(1, 3)].map(|key| Listed { key, bytes }));
    store.delete(&[key(1, 1), part, key(1, 9)]).await.unwrap();
    store.delete(&[]).await.unwrap();
    assert_eq!(store.list(user(1)).await.unwrap().0.len(), 2);
    assert_eq!(store.get(&key(1, 1)).await.unwrap_err(), StoreError::Missing);
    assert_eq!(store.list(user(2)).await.unwrap().0.len(), 1);
}

#[tokio::test]
async fn directory_is_a_store() {
    let directory_of = tempfile::tempdir().unwrap();
    does_what_it_should(&directory(&directory_of.path().join("new/one"))).await;
    let mode = directory_of.path().join("new/one").metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[tokio::test]
async fn bucket_is_a_store() {
    let server = S3::start().await;
    does_what_it_should(&server.config()).await;
    assert!(server.objects().keys().all(|key| key.starts_with("pre/fix/s/")), "below its prefix");
}

#[tokio::test]
async fn lost_answer_is_found_again() {
    let server = S3::start().await;
    let store = open(&server.config());
    let is_first = |_: &Method, _: &str, number| if number == 0 { Fault::LostAnswer } else { Fault::None };
    server.set(is_first);
    assert_eq!(store.create(&key(1, 1), &object(b"one")).await.unwrap(), Created::Written);
    server.set(is_first);
    assert_eq!(store.get(&key(1, 1)).await.unwrap(), content(&object(b"one")));
    server.set(|_, _, number| if number < 2 { Fault::HalfAnswer } else { Fault::None });
    assert_eq!(store.get(&key(1, 1)).await.unwrap(), content(&object(b"one")));
    server.set(|_, _, number| if number < 3 { Fault::Status(503) } else { Fault::None });
    assert_eq!(store.create(&key(1, 2), &object(b"two")).await.unwrap(), Created::Written);
    assert_eq!(server.requests(), 4);
}

#[tokio::test]
async fn answers_have_their_error() {
    let server = S3::start().await;
    let store = open(&server.config());
    for status in [403, 401, 404, 507, 500, 429, 301] {
        server.set(move |_, _, _| Fault::Status(status));
        let get = store.get(&key(1, 1)).await.unwrap_err();
        let tries = server.requests();
        let put = store.create(&key(1, 1), &object(b"x")).await.unwrap_err();
        let expected = match status {
            401 | 403 => StoreError::Denied,
            404 => StoreError::Missing,
            301 => StoreError::Unavailable("an unexpected answer".to_owned()),
            507 => StoreError::Full,
            _ => StoreError::Unavailable(format!("status {status}")),
        };
        assert_eq!((&get, &put), (&expected, &expected.clone().of_put()));
        assert_eq!(tries, if expected.is_temporary() { TRIES as usize } else { 1 }, "{status}");
        assert_eq!(
            server.requests() - tries,
            if put.is_temporary() { TRIES as usize } else { 1 },
            "{status}"
        );
        for shown in [get.to_string(), format!("{put:?}")] {
            assert!(
                !shown.contains("AKIA") && !shown.contains("pre/fix") && !shown.contains("01010101"),
                "{shown}"
            );
        }
    }
}

#[tokio::test]
async fn endless_object_ends() {
    let server = S3::start().await;
    let store = open(&server.config());
    server.set(|_, _, _| Fault::Endless);
    let refused = store.get(&key(1, 1)).await.unwrap_err();
    assert!(matches!(refused, StoreError::TooLarge | StoreError::Unavailable(_)), "{refused}");
    let huge = vec![0; MAX_OBJECT_BYTES + 1];
    server.set(|_, _, _| Fault::None);
    server.objects().insert(format!("pre/fix/{}", key(1, 1)), huge.into());
    assert_eq!(store.get(&key(1, 1)).await.unwrap_err(), StoreError::TooLarge);
}

#[tokio::test]
async fn store_that_does_not_answer_is_given_up() {
    let server = S3::start().await;
    let limit = Duration::from_millis(100);
    let config = StoreConfig { try_for: limit, give_up_after: 3 * limit, ..server.config() };
    let store = open(&config);
    server.set(|_, _, _| Fault::Silent);
    let began = Instant::now();
    let refused = store.create(&key(1, 1), &object(b"x")).await.unwrap_err();
    assert!(refused.is_temporary() && began.elapsed() >= limit, "{refused}");
    assert!(began.elapsed() < pilotlight_test_support::SOON);
    assert!(store.list(user(1)).await.unwrap_err().is_temporary());
    let count = server.stop().await;
    assert!(store.get(&key(1, 1)).await.unwrap_err().is_temporary());
    assert!(count() >= 3);
}

#[tokio::test]
async fn killed_writers_leave_nothing_in_a_directory() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path().join("store");
    let store = open(&directory(&root));
    store.create(&key(1, 1), &object(b"x")).await.unwrap();
    let place = root.join(key(1, 1).to_string());
    let left = place.with_file_name(format!("{:020}#1", 2));
    fs::write(&left, "torn").unwrap();
    assert_eq!(store.list(user(1)).await.unwrap().0.len(), 1, "it is in no list");
    store.sweep(user(1), Duration::from_secs(3600)).await.unwrap();
    assert!(left.exists(), "it may be in use");
    store.sweep(user(1), Duration::ZERO).await.unwrap();
    assert!(!left.exists() && place.exists());
    store.sweep(user(9), Duration::ZERO).await.unwrap();
    // A deleted user leaves no directory.
    store.delete(&[key(1, 1)]).await.unwrap();
    assert!(!root.join("s").join(user(1).to_string()).exists());
}

#[tokio::test]
async fn damaged_directory_has_its_error() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path().join("store");
    let store = open(&directory(&root));
    store.create(&key(1, 1), &object(b"x")).await.unwrap();
    fs::remove_dir_all(root.join("s")).unwrap();
    fs::write(root.join("s"), "a file").unwrap();
    assert!(store.create(&key(1, 2), &object(b"x")).await.is_err());
    assert!(store.get(&key(1, 1)).await.is_err());
    fs::remove_dir_all(&root).unwrap();
    // What is not there because its file system is not mounted is not lost.
    assert!(matches!(store.get(&key(1, 1)).await.unwrap_err(), StoreError::Unavailable(_)));
}

/// As when a file system is unmounted between two objects.
#[tokio::test]
async fn object_in_another_directory_is_not_created() {
    let place = tempfile::tempdir().unwrap();
    let (root, away) = (place.path().join("store"), place.path().join("away"));
    let store = open(&directory(&root));
    assert_eq!(store.create(&key(1, 1), &object(b"one")).await.unwrap(), Created::Written);
    fs::rename(&root, &away).unwrap();
    for is_there in [false, true] {
        if is_there {
            fs::create_dir_all(&root).unwrap();
        }
        let created = store.create(&key(1, 2), &object(b"two")).await;
        assert!(matches!(created, Err(StoreError::Unavailable(_))), "{created:?}");
    }
    // Nothing was left in it either.
    fs::remove_dir(&root).unwrap();
    fs::rename(&away, &root).unwrap();
    assert_eq!(store.create(&key(1, 2), &object(b"two")).await.unwrap(), Created::Written);
    assert_eq!(*store.get(&key(1, 2)).await.unwrap(), object(b"two").pieces.concat());
}

#[tokio::test]
async fn full_directory_says_so() {
    use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
    let root = tempfile::tempdir().unwrap();
    let mounted = mount("none", root.path(), "tmpfs", MountFlags::empty(), Some(c"size=256k,mode=0700"));
    if mounted.is_err() {
        return pilotlight_test_support::installed::left_out("no file system can be mounted here");
    }
    let store = open(&directory(root.path()));
    assert_eq!(store.create(&key(1, 1), &object(b"fits")).await.unwrap(), Created::Written);
    let large = store.create(&key(1, 2), &object(&vec![0; 1 << 19])).await.unwrap_err();
    let after = store.create(&key(1, 2), &object(b"fits")).await;
    let listed = store.list(user(1)).await.map(|(listed, _)| listed.len());
    drop(store);
    unmount(root.path(), UnmountFlags::DETACH).unwrap();
    assert_eq!((large, after, listed), (StoreError::Full, Ok(Created::Written), Ok(2)));
}

#[test]
fn wrong_configuration_is_refused_without_secrets() {
    let root = tempfile::tempdir().unwrap();
    let refused = |config: StoreConfig| {
        let refused = Store::open(&config, TaskTracker::new()).unwrap_err();
        let shown = format!("{refused} {refused:?}");
        assert!(!shown.contains("hunter2"), "{shown}");
        shown
    };
    for url in [
        "",
        "bucket",
        "s3://",
        "ftp://x/y",
        "s3://AKIA:hunter2@bucket/x",
        "s3://bucket/x?key=hunter2",
        "s3://bucket/x#hunter2",
        "file://host/x",
        "file:///x?hunter2",
    ] {
        refused(StoreConfig::new(url));
    }
    fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).unwrap();
    assert!(refused(directory(root.path())).contains("chmod"));
    let file = root.path().join("file");
    fs::write(&file, "no certificate").unwrap();
    refused(directory(&file));
}

#[tokio::test]
async fn conversations_cross_no_network_in_clear() {
    let config = S3::start().await.config();
    for endpoint in
        ["http://192.0.2.1:9", "http://store.example", "http://localhost.example:80", "ftp://127.0.0.1", "x"]
    {
        for key in [AmazonS3ConfigKey::Endpoint, AmazonS3ConfigKey::S3Endpoint] {
            let mut config = config.clone();
            config.variables.push((key, endpoint.to_owned()));
            let refused = Store::open(&config, TaskTracker::new()).unwrap_err();
            assert!(matches!(refused, OpenError::Config(_)), "{endpoint}: {refused}");
        }
    }
    for (address, expected) in [
        ("http://127.0.0.1:9000/x", true),
        ("http://[::1]/x", true),
        ("http://localhost/x", true),
        // Where clouds give credentials to their machines.
        ("http://169.254.169.254/latest", true),
        ("http://10.0.0.1/x", false),
        ("http://[2001:db8::1]/x", false),
        ("http://example/x", false),
        ("https://example/x", true),
        ("/x", false),
    ] {
        assert_eq!(connector::may_go_to(&address.parse().unwrap()), expected, "{address}");
    }
}
