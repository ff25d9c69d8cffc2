//! Rungs are proven at the start, and shown: `check`, metrics, readiness, and a refusal of what is required.

use std::os::unix::fs::chown;
use std::process::Command;

use rustix::process::geteuid;

use crate::common::installed::left_out;
use crate::common::program::{Program, place};

const RUNGS: [&str; 5] = ["landlock", "seccomp", "namespaces", "uid", "cgroup"];

/// The options of a subcommand with a configuration.
fn arguments(place: &crate::common::place::Place, subcommand: &str, config: &str) -> Vec<String> {
    let file = place.path().join("isolated.toml");
    std::fs::write(&file, config).unwrap();
    let data = place.data_dir().display().to_string();
    let mut arguments = [subcommand, "--config", &file.display().to_string(), "--data-dir", &data]
        .map(str::to_owned)
        .to_vec();
    arguments.extend(
        ["--cli", "sim", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"].map(str::to_owned),
    );
    arguments
}

#[tokio::test(flavor = "multi_thread")]
async fn check_shows_each_rung_and_how_to_get_it() {
    let place = place();
    let line = arguments(
        &place,
        "check",
        "[isolation]\nrungs = [\"landlock\", \"seccomp\", \"namespaces\", \"cgroup\"]\n",
    );
    let mut program = Program::start(&place, &line.iter().map(String::as_str).collect::<Vec<_>>(), &[]);
    assert_eq!(program.code().await, Some(0), "{}", program.err());
    let out = program.out();
    for rung in RUNGS {
        let line = out.lines().find(|line| line.starts_with("isolation ") && line.contains(rung));
        let line = line.unwrap_or_else(|| panic!("no {rung} in {out}"));
        match rung {
            "uid" => assert!(line.contains("off (isolation.rungs)"), "{line}"),
            _ => assert!(
                line.ends_with(" held") || (line.contains("unavailable: ") && line.contains("needs ")),
                "{line}"
            ),
        }
    }
}

/// A server without privileges has neither user ids to give nor groups to make.
#[tokio::test(flavor = "multi_thread")]
async fn required_rung_that_is_missing_prevents_start() {
    if !geteuid().is_root() {
        return left_out("only root can start a server as another user");
    }
    let place = place();
    std::fs::set_permissions(place.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::create_dir(place.data_dir()).unwrap();
    chown(place.data_dir(), Some(65534), Some(65534)).unwrap();
    for subcommand in ["serve", "check"] {
        let line = arguments(&place, subcommand, "[isolation]\nrequire = [\"seccomp\", \"uid\"]\n");
        let output = Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups", env!("CARGO_BIN_EXE_pilotlight")])
            .args(&line)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        for part in ["isolation.require", "\"uid\"", "CAP_SETUID", "needs a server that runs as root"] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn proven_rungs_are_shown_by_metrics_and_readiness() {
    let place = place();
    let config = "[isolation]\nrungs = [\"seccomp\", \"uid\"]\nuids = \"1-9\"\n";
    // The server's own id is in the range unless it is root: the rung cannot hold then either way.
    let (program, site) = Program::ready(&place, config).await;
    let metric = async |name: &str, rung: &str| site.metric(name, &[&format!("rung=\"{rung}\"")]).await;
    assert_eq!(metric("isolation_info", "seccomp").await, 1.0, "{}", program.err());
    assert_eq!(metric("isolation_info", "landlock").await, 0.0);
    assert_eq!(metric("isolation_missing", "landlock").await, 0.0, "it is not asked for");
    let uid = metric("isolation_info", "uid").await;
    assert_eq!(metric("isolation_missing", "uid").await, 1.0 - uid);
    for path in ["/readyz", "/health"] {
        let warnings = site.get(path).await.json()["warnings"].to_string();
        assert_eq!(warnings.contains("isolation rung uid"), uid == 0.0, "{path}: {warnings}");
    }
    assert!(program.logs("isolation of children"), "{}", program.err());
}

#[tokio::test(flavor = "multi_thread")]
async fn mount_that_does_not_exist_prevents_start() {
    let place = place();
    let line = arguments(&place, "serve", "[[isolation.mounts]]\npath = \"/no/such/directory\"\n");
    let mut program = Program::start(&place, &line.iter().map(String::as_str).collect::<Vec<_>>(), &[]);
    assert_eq!(program.code().await, Some(2), "{}", program.err());
    assert!(program.err().contains("isolation.mounts[0].path"), "{}", program.err());
}

/// Nothing of the probes stays.
#[tokio::test(flavor = "multi_thread")]
async fn probes_leave_nothing_behind() {
    let place = place();
    let (_program, _site) =
        Program::ready(&place, "[isolation]\nrungs = [\"landlock\", \"seccomp\", \"namespaces\", \"uid\"]\n")
            .await;
    assert!(!place.data_dir().join("isolation").exists());
}

/// Landlock knows no addresses, so what it holds of `isolation.egress` is less than what is written.
#[tokio::test(flavor = "multi_thread")]
async fn egress_by_port_only_is_said_everywhere() {
    const SAID: &str = "holds a port and no address";
    for (rungs, egress, expected) in [
        ("\"landlock\"", "\"api\"", true),
        ("\"landlock\"", "{ allow = [\"example.com:443\"] }", true),
        ("\"landlock\"", "\"open\"", false),
        ("\"landlock\", \"namespaces\"", "\"api\"", false),
    ] {
        let place = place();
        let config = format!(
            "[isolation]\nrungs = [{rungs}]\nrequire = [{rungs}]\negress = {egress}\naccept_none = true\n"
        );
        let check = Command::new(env!("CARGO_BIN_EXE_pilotlight"))
            .args(arguments(&place, "check", &config))
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&check.stdout).into_owned();
        if !check.status.success() {
            left_out(&format!("{rungs} with egress {egress} cannot be built here: {check:?}"));
            continue;
        }
        assert_eq!(text.contains(SAID), expected, "{config} {text}");
        let (program, site) = Program::ready(&place, &config).await;
        assert_eq!(program.err().contains(SAID), expected, "{config} {}", program.err());
        for path in ["/readyz", "/health"] {
            let warnings = site.get(path).await.json()["warnings"].to_string();
            assert_eq!(warnings.contains(SAID), expected, "{config} {path}: {warnings}");
        }
    }
}
