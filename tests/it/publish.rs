//! `release/publish` against programs that answer as cargo, skopeo and gh do: what is published is left alone, the rest follows,
//! and an answer that does not say which publishes nothing.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const VERSION: &str = env!("CARGO_PKG_VERSION");
const CRATES: [&str; 4] = ["pilotlight-startup", "pilotlight-shim", "pilotlight-sim", "pilotlight"];

/// The registry is a file of names; `late` has those that were uploaded and are in the index only from the next refusal on.
const CARGO: &str = r#"
name=${*: -1}
case $1 in
    info)
        [[ ! -e $STATE/down ]] || { echo 'error: failed to download from the index: timed out' >&2; exit 101; }
        grep -qx "${name%@*}" "$STATE/index" || {
            echo "error: could not find \`$name\` in registry \`https://example.org/index\`" >&2
            exit 101
        } ;;
    publish)
        echo "$3" >>"$STATE/done"
        echo "$3" >>"$STATE/index"
        ! grep -qx "$3" "$STATE/late" || { echo "error: crate $3 already exists on crates.io index" >&2; exit 101; } ;;
    *) exit 64 ;;
esac
"#;
const SKOPEO: &str = r#"
case $1 in
    inspect) cat "$STATE/inspected"; [[ -e $STATE/found ]] ;;
    copy) echo "copied to $3" >>"$STATE/done" ;;
    *) exit 64 ;;
esac
"#;
const GH: &str = r#"
case $2 in
    view) cat "$STATE/viewed"; [[ -e $STATE/found ]] ;;
    create | upload | edit) echo "$2 $3" >>"$STATE/done"; [[ $2 != create || $* == *--draft* ]] ;;
    *) exit 64 ;;
esac
"#;

struct Site(tempfile::TempDir);

impl Site {
    /// A site whose state is these files.
    fn new(files: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        for name in ["index", "late", "done"] {
            std::fs::write(directory.path().join(name), "").unwrap();
        }
        for (name, text) in files {
            std::fs::write(directory.path().join(name), text).unwrap();
        }
        for (name, body) in [("cargo", CARGO), ("skopeo", SKOPEO), ("gh", GH)] {
            let program = directory.path().join("bin").join(name);
            std::fs::create_dir_all(program.parent().unwrap()).unwrap();
            std::fs::write(&program, format!("#!/usr/bin/env bash\nset -euo pipefail\n{body}")).unwrap();
            std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        Self(directory)
    }

    fn publish(&self, arguments: &[&str]) -> Output {
        let path = std::env::var("PATH").unwrap();
        Command::new(Path::new(ROOT).join("release/publish"))
            .args(arguments)
            .env("PATH", format!("{}:{path}", self.file("bin").display()))
            .env("STATE", self.0.path())
            .env("IMAGE", "registry.example.org/pilotlight")
            .env("PILOTLIGHT_PUBLISH_PAUSE", "0")
            .env("SOURCE_DATE_EPOCH", "0")
            .output()
            .unwrap()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// What was done, in order.
    fn done(&self) -> Vec<String> {
        std::fs::read_to_string(self.file("done")).unwrap().lines().map(str::to_owned).collect()
    }
}

fn lines(names: &[&str]) -> String {
    names.iter().map(|name| format!("{name}\n")).collect()
}

#[test]
fn crates_follow_in_order_and_once() {
    let site = Site::new(&[]);
    for _ in 0..2 {
        let run = site.publish(&["crates"]);
        assert!(run.status.success(), "{run:?}");
        assert_eq!(site.done(), CRATES, "a second run publishes nothing");
    }
}

#[test]
fn crates_of_a_failed_run_are_not_published_again() {
    // The third was uploaded as well, and the index did not have it yet.
    let site = Site::new(&[("index", &lines(&CRATES[..2])), ("late", "pilotlight-sim\n")]);
    let run = site.publish(&["crates"]);
    assert!(run.status.success(), "{run:?}");
    assert_eq!(site.done(), CRATES[2..]);
}

#[test]
fn an_index_without_an_answer_publishes_nothing() {
    let site = Site::new(&[("down", "")]);
    let run = site.publish(&["crates"]);
    assert!(!run.status.success() && String::from_utf8_lossy(&run.stderr).contains("timed out"), "{run:?}");
    assert!(site.done().is_empty());
}

#[test]
fn the_list_of_crates_is_that_of_the_workspace() {
    let mut members: Vec<_> = std::fs::read_dir(Path::new(ROOT).join("crates"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    members.push("pilotlight".to_owned());
    members.sort();
    let mut published = CRATES.to_vec();
    published.sort_unstable();
    assert_eq!(members, published);
}

#[test]
fn an_image_that_is_there_is_left_alone() {
    let copied = format!("copied to docker://registry.example.org/pilotlight:{VERSION}");
    for (files, expected) in [
        (vec![("inspected", "sha256:0123\n"), ("found", "")], Some(vec![])),
        (vec![("inspected", "reading manifest 0.1.0: manifest unknown\n")], Some(vec![copied.clone()])),
        (vec![("inspected", "denied: requested access to the resource is denied\n")], Some(vec![copied])),
        (vec![("inspected", "unauthorized: authentication required\n")], None),
    ] {
        let site = Site::new(&files);
        let run = site.publish(&["image", &format!("v{VERSION}")]);
        assert_eq!(run.status.success(), expected.is_some(), "{run:?}");
        assert_eq!(site.done(), expected.unwrap_or_default(), "{files:?}");
    }
}

#[test]
fn a_draft_of_a_release_is_completed() {
    let completed = ["upload v9", "edit v9"];
    for (files, expected) in [
        (vec![("viewed", "false\n"), ("found", "")], Some(vec![])),
        (vec![("viewed", "true\n"), ("found", "")], Some(completed.to_vec())),
        (vec![("viewed", "release not found\n")], Some([&["create v9"], completed.as_slice()].concat())),
        (vec![("viewed", "HTTP 502\n")], None),
    ] {
        let site = Site::new(&files);
        let run = site.publish(&["files", "v9"]);
        assert_eq!(run.status.success(), expected.is_some(), "{run:?}");
        assert_eq!(site.done(), expected.unwrap_or_default(), "{files:?}");
    }
}
