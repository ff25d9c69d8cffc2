//! Starting: what is refused with which exit code, a CLI that is missing and comes back, `check`.

use std::os::unix::fs::PermissionsExt;

use crate::common::program::{Program, place};

/// Arguments, variables, and what the complaint must name.
type Case<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)], &'a [&'a str]);

/// Wrong arguments and configurations end with 2 and name the key.
#[tokio::test(flavor = "multi_thread")]
async fn wrong_configuration_exits_2_and_names_key() {
    let place = place();
    let file = place.path().join("wrong.toml");
    std::fs::write(&file, "[session]\nidle_timeot = 1\n").unwrap();
    let file = file.display().to_string();
    let data = place.data_dir().display().to_string();
    let none: &[(&str, &str)] = &[];
    let cases: &[Case<'_>] = &[
        (&["serve", "--config", &file], none, &["session.idle_timeot", "idle_timeout"]),
        (&["serve", "--config", "/nowhere.toml"], none, &["/nowhere.toml"]),
        (&["serve"], &[("PILOTLIGHT_SESSION__IDLE_TIMEOUT", "soon")], &["session.idle_timeout", "300s"]),
        (&["serve"], &[("PILOTLIGHT_LIMITS__NONSENSE", "1")], &["limits.nonsense"]),
        (&["serve"], &[("PILOTLIGHT_LOG", "a=b=c")], &["PILOTLIGHT_LOG"]),
        (
            &["serve", "--data-dir", &data, "--listen", "0.0.0.0:0"],
            none,
            &["http.listen", "loopback", "auth.keys_file", "--allow-unauthenticated"],
        ),
        (
            &["serve", "--data-dir", &data, "--listen", "127.0.0.1:0", "--admin-listen", "[::]:0"],
            none,
            &["admin.listen", "loopback"],
        ),
        (&["serve", "--listen", "here"], none, &["--listen"]),
        (&["serve", "--nonsense"], none, &["--nonsense"]),
        (&["check", "--config", &file], none, &["session.idle_timeot"]),
        (&["nonsense"], none, &["nonsense"]),
    ];
    for (arguments, variables, named) in cases {
        let mut program = Program::start(&place, arguments, variables);
        assert_eq!(program.code().await, Some(2), "{arguments:?} {variables:?}: {}", program.err());
        // Standard error is read to its end a moment after the exit.
        let has_all = || named.iter().all(|name| program.err().contains(name));
        crate::common::eventually("the key is named", crate::common::SOON, has_all).await;
        assert_eq!(program.out(), "");
    }
    assert!(!place.data_dir().exists(), "nothing is made before the configuration is right");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_and_a_locked_directory_end_with_1() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let taken = site.http.strip_prefix("http://").unwrap();
    let data = place.data_dir().display().to_string();
    let other = place.path().join("other").display().to_string();
    let free = "127.0.0.1:0";
    for (listen, directory, named) in [(taken, &other, taken), (free, &data, data.as_str())] {
        let arguments =
            ["serve", "--cli", "sim", "--listen", listen, "--admin-listen", free, "--data-dir", directory];
        let mut second = Program::start(&place, &arguments, &[]);
        assert_eq!(second.code().await, Some(1), "{}", second.err());
        crate::common::eventually("it is said", crate::common::SOON, || second.err().contains(named)).await;
    }
    assert_eq!(site.turn("alice", "unharmed").await.text(), "echo 1: unharmed");
}

/// A missing CLI is reported; once installed, it is used without a restart.
#[tokio::test(flavor = "multi_thread")]
async fn missing_cli_is_reported_then_used_once_there() {
    let place = place();
    let cli = place.path().join("the-cli");
    let config = format!("[cli]\nprogram = \"{}\"\n[restart]\ncircuit_pause = \"200ms\"", cli.display());
    let (_program, site) = Program::serve(&place, &config).await;
    let mentions_it = async || site.get("/readyz").await.body.contains("the-cli").then_some(());
    crate::common::eventually_some("/readyz says what is missing", crate::common::SOON, mentions_it).await;
    let readyz = site.get("/readyz").await;
    assert_eq!((readyz.status, &readyz.json()["ready"]), (503, &false.into()));
    assert_eq!(site.get("/health").await.status, 503);
    assert_eq!(site.get("/livez").await.status, 200);
    let answer = site.turn("alice", "hello").await;
    let error = answer.error();
    assert_eq!((error.0, error.1.as_str()), (503, "cli_not_started"));
    assert!(!answer.header("retry-after").is_empty());

    let script = format!("#!/bin/sh\nexec '{}' sim \"$@\"\n", env!("CARGO_BIN_EXE_pilotlight"));
    std::fs::write(&cli, script).unwrap();
    std::fs::set_permissions(&cli, std::fs::Permissions::from_mode(0o755)).unwrap();
    site.ready().await;
    let answers = async || {
        let answer = site.turn("alice", "hello").await;
        (answer.status == 200).then(|| answer.text())
    };
    let text = crate::common::eventually_some("the circuit closes", crate::common::SOON, answers).await;
    assert_eq!(text, "echo 1: hello");
}

#[tokio::test(flavor = "multi_thread")]
async fn check_tells_what_it_found_and_leaves_nothing() {
    let place = place();
    let temporary = place.path().join("tmp");
    std::fs::create_dir(&temporary).unwrap();
    let temporary_text = temporary.display().to_string();
    // As long as `session.idle_timeout`.
    let variables = [("TMPDIR", temporary_text.as_str()), ("PILOTLIGHT_SESSION__HIBERNATE_AFTER", "300s")];
    let mut check = Program::start(&place, &["check", "--cli", "sim"], &variables);
    assert_eq!(check.code().await, Some(0), "{}", check.err());
    let named = ["version", "ready after", "memory", "containment", "session.hibernate_after has no effect"];
    let has_all = || named.iter().all(|what| check.out().contains(what));
    crate::common::eventually("the report is read", crate::common::SOON, has_all).await;
    assert!(!check.out().contains("not measured"), "{}", check.out());

    let mut check = Program::start(&place, &["check", "--cli", "/nowhere/at/all"], &variables);
    assert_eq!(check.code().await, Some(1));
    let named = || check.err().contains("/nowhere/at/all") && check.err().contains("cli_not_started");
    crate::common::eventually("the fault is named", crate::common::SOON, named).await;
    assert_eq!(std::fs::read_dir(&temporary).unwrap().count(), 0, "the temporary directory is empty again");
}
