//! A file of keys, made as an operator makes it: with `pilotlight keys`.

use std::path::PathBuf;
use std::process::{Command, Output};

use crate::place::Place;

/// The file of a place.
pub struct Keyring(pub PathBuf);

impl Keyring {
    pub fn new(place: &Place) -> Self {
        Self(place.path().join("keys.jsonl"))
    }

    /// A new key and its id.
    pub fn key(&self, arguments: &[&str]) -> (String, String) {
        let output = self.run("new", arguments);
        assert!(output.status.success(), "{output:?}");
        let key = String::from_utf8(output.stdout).unwrap();
        let note = String::from_utf8(output.stderr).unwrap();
        let id = note.strip_prefix("key ").and_then(|rest| rest.split(' ').next()).expect("the key's id");
        assert!(!note.contains(key.trim()));
        (key.trim().to_owned(), id.to_owned())
    }

    pub fn user(&self, user: &str) -> String {
        self.key(&["--user", user]).0
    }

    pub fn run(&self, command: &str, arguments: &[&str]) -> Output {
        let mut keys = Command::new(crate::built::pilotlight());
        keys.args(["keys", command, "--file"]).arg(&self.0).args(arguments);
        keys.output().expect("the program runs")
    }

    /// The part of a configuration that names it.
    pub fn config(&self) -> String {
        format!("[auth]\nkeys_file = \"{}\"\n", self.0.display())
    }
}
