//! A CLI that others could change is warned of, at the start and by `check`.

use std::os::unix::fs::PermissionsExt as _;

use crate::common::program::{Program, place};
use crate::common::{SOON, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn trust_cli_writable_by_others_is_warned_of() {
    let place = place();
    let mode = |path: &std::path::Path, mode: u32| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    let (bin, target) = (place.path().join("bin"), place.path().join("target"));
    for directory in [&bin, &target] {
        std::fs::create_dir(directory).unwrap();
        mode(directory, 0o755);
    }
    let (link, cli) = (bin.join("claude"), target.join("cli"));
    // Beside it, where its children may execute it.
    let sim = target.join("sim");
    crate::common::built::copy_program(env!("CARGO_BIN_EXE_pilotlight"), &sim);
    std::fs::write(&cli, format!("#!/bin/sh\nexec '{}' sim \"$@\"\n", sim.display())).unwrap();
    mode(&cli, 0o755);
    std::os::unix::fs::symlink(&cli, &link).unwrap();
    let config = format!("[cli]\nprogram = {:?}\n[isolation]\nrungs = []\n", link.display().to_string());
    let file = place.path().join("check.toml");
    std::fs::write(&file, &config).unwrap();
    let file = file.display().to_string();

    // What is not ours to change (the machine's own directories) may be doubtful too.
    let doubted = |text: &str| text.contains(&format!("{} can be written by others", target.display()));
    let mut check = Program::start(&place, &["check", "--config", &file], &[]);
    assert_eq!(check.code().await, Some(0), "{}", check.err());
    eventually("all is said", SOON, || check.out().contains("containment")).await;
    assert!(!doubted(&check.out()), "{}", check.out());

    mode(&target, 0o777);
    let mut check = Program::start(&place, &["check", "--config", &file], &[]);
    assert_eq!(check.code().await, Some(0), "a warning is no refusal: {}", check.err());
    eventually("the doubt is said", SOON, || doubted(&check.out())).await;

    let (program, _site) = Program::ready(&place, &config).await;
    eventually("the doubt is logged", SOON, || doubted(&program.err())).await;
}
