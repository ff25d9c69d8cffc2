//! What a tool sees of the file system: its session, the system, configured mounts, and nothing of the server.

use std::os::unix::fs::symlink;

use super::{served, session_directories, tool};
use crate::common::keyring::Keyring;
use crate::common::program::{Program, place};

/// Rungs that restrict files, each by itself.
const OF_FILES: [&str; 2] = ["landlock", "namespaces"];

#[tokio::test(flavor = "multi_thread")]
async fn tool_sees_its_session_and_not_the_servers_files() {
    for rung in OF_FILES {
        let place = place();
        let Some((_program, site)) = served(&place, &[rung], "").await else { continue };
        tool(&site, "alice", "echo hers > secret").await;
        let others = session_directories(&place).remove(0).join("work/secret");
        assert!(others.exists());
        let config = place.path().join("served.toml");
        let command = format!(
            "cat {} {}; ls {}; echo mine > $HOME/a && cat $HOME/a; echo $$ > $TMPDIR/b && cat $TMPDIR/b && ls /usr/bin/env",
            others.display(),
            config.display(),
            place.data_dir().join("records").display(),
        );
        let output = tool(&site, "bob", &command).await;
        assert!(!output.contains("hers") && !output.contains("policy"), "{rung}: {output}");
        assert!(output.contains("mine") && output.contains("/usr/bin/env"), "{rung}: {output}");
        let refused = output.lines().filter(|line| line.contains("denied") || line.contains("No such file"));
        assert_eq!(refused.count(), 3, "{rung}: {output}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn configured_mount_is_in_reach_of_tools() {
    for rung in OF_FILES {
        for write in [false, true] {
            let (place, tools) = (place(), tempfile::tempdir().unwrap());
            let path = tools.path().canonicalize().unwrap();
            std::fs::write(path.join("file"), "of the operator").unwrap();
            let mount = format!("[[isolation.mounts]]\npath = \"{}\"\nwrite = {write}\n", path.display());
            let Some((_program, site)) = served_with_mount(&place, rung, &mount).await else { continue };
            let file = path.join("file").display().to_string();
            let output = tool(&site, "alice", &format!("cat {file} && echo x > {file}.new")).await;
            assert!(output.contains("of the operator"), "{rung}: {output}");
            assert_eq!(path.join("file.new").exists(), write, "{rung}: {output}");
        }
    }
}

async fn served_with_mount(
    place: &std::sync::Arc<crate::common::place::Place>,
    rung: &str,
    mount: &str,
) -> Option<(crate::common::program::Program, crate::common::program::Site)> {
    served(place, &[rung], mount).await
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_file_below_a_mount_stays_hidden() {
    for rung in OF_FILES {
        let (place, shared) = (place(), tempfile::tempdir().unwrap());
        let path = shared.path().canonicalize().unwrap();
        let ring = Keyring(path.join("keys.jsonl"));
        let alice = ring.user("alice");
        std::fs::write(path.join("open"), "for tools").unwrap();
        let more = format!("{}[[isolation.mounts]]\npath = \"{}\"\n", ring.config(), path.display());
        let Some((_program, site)) = served(&place, &[rung], &more).await else { continue };
        let input = serde_json::json!({
            "command": format!("cat {}/open {}/keys.jsonl > output.txt 2>&1; true", path.display(), path.display())
        });
        let mut body = crate::common::program::message(&format!("[[tool:Bash {input}]]"));
        body["include_files"] = true.into();
        let request = site.post().header("x-api-key", &alice).json(&body);
        let answer = crate::common::program::Answer::of(request).await;
        let events = answer.events();
        let batch = events.iter().find(|event| event["type"] == "files_batch").unwrap();
        let output = batch["files"][0]["content"].as_str().unwrap();
        assert!(output.contains("for tools"), "{rung}: {output}");
        assert!(!output.contains("digest") && !output.contains("alice"), "{rung}: {output}");
    }
}

/// A directory with a hidden file is shown by its other entries, which are too many here.
#[tokio::test(flavor = "multi_thread")]
async fn mount_that_cannot_be_shown_prevents_start() {
    const ENTRIES: usize = 600;
    for rung in OF_FILES {
        let (place, good, full) = (place(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        if served(&place, &[rung], "").await.is_none() {
            continue;
        }
        let [good, full] = [&good, &full].map(|of| of.path().canonicalize().unwrap());
        let ring = Keyring(full.join("keys.jsonl"));
        ring.user("alice");
        (0..ENTRIES).for_each(|number| std::fs::write(full.join(number.to_string()), "").unwrap());
        let (file, data) = (place.path().join("unfit.toml"), place.path().join("other"));
        let config = format!(
            "data_dir = {data:?}\n[cli]\nprogram = \"sim\"\n{}[isolation]\nrungs = [\"{rung}\", \"seccomp\"]\n\
             [[isolation.mounts]]\npath = {good:?}\n[[isolation.mounts]]\npath = {full:?}\n",
            ring.config()
        );
        std::fs::write(&file, config).unwrap();
        let file = file.display().to_string();
        for subcommand in ["serve", "check"] {
            let mut program = Program::start(&place, &[subcommand, "--config", &file], &[]);
            let code = program.code().await;
            let said = program.err();
            assert_eq!(code, Some(2), "{rung} {subcommand}: {said}");
            for part in ["isolation.mounts[1].path", full.to_str().unwrap(), "cannot be shown to children"] {
                assert!(said.contains(part), "{rung} {subcommand}: {part} is not in {said}");
            }
        }
    }
}

/// Beside the configuration file lie files that the server does not know of.
#[tokio::test(flavor = "multi_thread")]
async fn files_beside_the_configuration_stay_hidden() {
    for rung in OF_FILES {
        let (place, shared) = (place(), tempfile::tempdir().unwrap());
        let path = shared.path().canonicalize().unwrap();
        std::fs::create_dir(path.join("conf")).unwrap();
        std::fs::write(path.join("conf/environment"), "KEY=of-the-operator").unwrap();
        std::fs::write(path.join("open"), "for tools").unwrap();
        // The configuration is written through the link.
        symlink(path.join("conf/served.toml"), place.path().join("served.toml")).unwrap();
        let mount = format!("[[isolation.mounts]]\npath = {path:?}\n");
        let Some((_program, site)) = served(&place, &[rung], &mount).await else { continue };
        assert!(path.join("conf/served.toml").exists());
        let shown = path.display();
        let command = format!("cat {shown}/open {shown}/conf/environment {shown}/conf/served.toml");
        let output = tool(&site, "alice", &command).await;
        assert!(output.contains("for tools"), "{rung}: {output}");
        assert!(!output.contains("of-the-operator") && !output.contains("policy"), "{rung}: {output}");
    }
}
