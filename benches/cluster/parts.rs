//! The two steps of a commit by themselves: an object, and a transaction.

use std::time::Instant;

use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStore as _, PutMode, PutOptions, PutPayload};
use serde_json::json;

use crate::etcd::{Etcd, encoded};
use crate::table::median;

/// Bytes of a user's head in etcd, roughly.
const HEAD_BYTES: usize = 300;

/// A place for objects, and keys in etcd.
pub(crate) struct Parts<'a> {
    etcd: &'a Etcd,
    store: LocalFileSystem,
    _directory: tempfile::TempDir,
    written: usize,
}

impl<'a> Parts<'a> {
    pub(crate) fn new(etcd: &'a Etcd) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = LocalFileSystem::new_with_prefix(directory.path()).unwrap().with_fsync(true);
        Self { etcd, store, _directory: directory, written: 0 }
    }

    /// Seconds for an object that is created, its directory being there.
    pub(crate) async fn object(&mut self, bytes: usize, count: usize) -> f64 {
        let mut times = Vec::new();
        for _ in 0..count {
            self.written += 1;
            let path = Path::from(format!("user/{}", self.written));
            let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
            let begin = Instant::now();
            self.store.put_opts(&path, PutPayload::from(vec![1; bytes]), options).await.unwrap();
            times.push(begin.elapsed().as_secs_f64());
        }
        median(times)
    }

    /// Seconds for a transaction that compares one key and writes another.
    pub(crate) async fn transaction(&self, count: usize) -> f64 {
        let [owner, head] = ["/floor/owner", "/floor/head"].map(|key| encoded(key.as_bytes()));
        let value = encoded(&[b'x'; HEAD_BYTES]);
        let compare = json!([{ "key": owner, "target": "CREATE", "create_revision": "0" }]);
        let write = json!([{ "request_put": { "key": head, "value": value } }]);
        let request = json!({ "compare": compare, "success": write });
        let mut times = Vec::new();
        for _ in 0..count {
            let begin = Instant::now();
            self.etcd.ask("kv/txn", &request).await;
            times.push(begin.elapsed().as_secs_f64());
        }
        median(times)
    }
}
