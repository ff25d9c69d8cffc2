//! A file of keys, made as an operator makes it: with `pilotlight keys`.

use std::path::PathBuf;
use std::process::{Command, Output};

use crate::common::place::Place;

/// The file of a place.
pub(crate) struct Keyring(pub(crate) PathBuf);

impl Keyring {
    pub(crate) fn new(place: &Place) -> Self {
        Self(place.path().join("keys.jsonl"))
    }

    /// A new key and its id.
    pub(crate) fn key(&self, arguments: &[&str]) -> (String, String) {
        let output = self.run("new", arguments);
        assert!(output.status.success(), "{output:?}");
        let key = String::from_utf8(output.stdout).unwrap();
        let note = String::from_utf8(output.stderr).unwrap();
        let id = note.strip_prefix("key ").and_then(|rest| rest.split(' ').next()).expect("the key's id");
        assert!(!note.contains(key.trim()));
        (key.trim().to_owned(), id.to_owned())
    }

    pub(crate) fn user(&self, user: &str) -> String {
        self.key(&["--user", user]).0
    }

    pub(crate) fn run(&self, command: &str, arguments: &[&str]) -> Output {
        let mut keys = Command::new(env!("CARGO_BIN_EXE_pilotlight"));
        keys.args(["keys", command, "--file"]).arg(&self.0).args(arguments);
        keys.output().expect("the program runs")
    }

    /// The part of a configuration that names it.
    pub(crate) fn config(&self) -> String {
        format!("[auth]\nkeys_file = \"{}\"\n", self.0.display())
    }
}
