//! A server's children and their tools have no capability, whatever user runs the server.

use std::os::unix::fs::{PermissionsExt, chown};
use std::process::Command;
use std::sync::Arc;

use rustix::process::geteuid;

use crate::common::place::Place;
use crate::common::program::{Answer, Program, Site, message, place};

const NOBODY: u32 = 65534;
const TOOLS: &str = "[permissions]\npolicy = \"allow\"\n";

async fn check(site: &Site) {
    let call = r#"[[tool:Bash {"command":"cat /proc/self/status > status"}]]"#;
    let mut body = message(call);
    body["include_files"] = serde_json::json!(true);
    let events = Answer::of(site.asking("alice", &body)).await.events();
    let batch = events.iter().find(|event| event["type"] == "files_batch").expect("the tool's file");
    let tool = batch["files"][0]["content"].as_str().expect("its text").to_owned();
    let child = std::fs::read_to_string(format!("/proc/{}/status", site.pid("alice").await)).unwrap();
    for status in [tool, child] {
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_else(|| panic!("no {name} in {status}")).trim().to_owned()
        };
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
            assert_eq!(field(set), "0000000000000000", "{set}");
        }
        assert_eq!(field("NoNewPrivs:"), "1");
        if geteuid().is_root() && field("Uid:").starts_with("0\t") {
            assert_eq!(field("CapBnd:"), "0000000000000000");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn privilege_children_of_this_user_have_none() {
    let place = place();
    let (program, site) = Program::ready(&place, TOOLS).await;
    check(&site).await;
    let warnings = program.err().matches("running as root").count();
    assert_eq!(warnings, usize::from(geteuid().is_root()), "{}", program.err());
}

#[tokio::test(flavor = "multi_thread")]
async fn privilege_children_of_another_user_have_none() {
    if !geteuid().is_root() {
        return crate::common::installed::left_out("only root can start a server as another user");
    }
    let place: Arc<Place> = place();
    std::fs::set_permissions(place.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::create_dir(place.data_dir()).unwrap();
    chown(place.data_dir(), Some(NOBODY), Some(NOBODY)).unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", env!("CARGO_BIN_EXE_pilotlight")]);
    let (program, site) = Program::ready_by(&place, command, TOOLS).await;
    check(&site).await;
    assert!(!program.err().contains("running as root"), "{}", program.err());
}
