//! Children of attached clients: walled as any other child, whatever the client's command line and lines ask for.

use serde_json::json;

use crate::common::attached::Attached;
use crate::findings::Findings;
use crate::rungs::all_walls;
use crate::scene::{Cli, MALLORY, Scene, command, read, tool};

const ATTACH: &str = "[attach]\nconnections = 4\n";
const PROMISE: &str = "attached-read";

/// An attached client of the attacker, in its own session.
fn attach(scene: &Scene, flags: &[&str]) -> Attached {
    Attached::start(&scene.place, MALLORY, flags, &[("PILOTLIGHT_KEY", scene.key.trim())])
}

/// The tool of an attached child makes one attempt. Gives what it printed.
async fn attempt(scene: &Scene, client: &mut Attached, words: &[&str]) -> String {
    let loot = scene.work.join("loot");
    std::fs::remove_file(&loot).ok();
    let result = client.turn(&tool(&command(words))).await;
    assert_eq!(result["permission_denials"], json!([]), "the tool runs: {result}");
    read(&loot)
}

async fn attack(scene: &Scene, findings: &mut Findings) {
    let victim = &scene.victim;
    let outside = victim.dir.join("work").display().to_string();
    let (code, errors) = attach(scene, &["--add-dir", &outside]).end().await;
    assert!(code == 1 && errors.contains("--add-dir"), "{code} {errors}");

    let mut client = attach(scene, &["--permission-mode", "acceptEdits", "--add-dir", "."]);
    // What would have the child start a program, or another one, outside of its walls.
    for request in [
        json!({ "subtype": "mcp_set_servers", "servers": { "x": { "command": "sh" } } }),
        json!({ "subtype": "apply_flag_settings", "settings": { "apiKeyHelper": "id" } }),
        json!({ "subtype": "claim_session" }),
    ] {
        assert_eq!(client.ask(&request).await["subtype"], "error", "{request}");
    }
    for path in [victim.dir.join("work/private"), victim.dir.join("home/private")] {
        let printed = attempt(scene, &mut client, &["read", &path.display().to_string()]).await;
        findings.judge(&scene.walls, PROMISE, printed.contains(&scene.secrets.file), &printed);
    }
    for path in [victim.record.join("session.json"), scene.keys.0.clone(), scene.users_file.clone()] {
        let kept = read(&path);
        assert!(!kept.trim().is_empty(), "{} has something to gain", path.display());
        let printed = attempt(scene, &mut client, &["read", &path.display().to_string()]).await;
        // A record is written again at any time; what it names stays.
        let gain = kept.lines().find(|line| line.contains("cli_session_id")).unwrap_or(&kept).trim();
        findings.judge(&scene.walls, PROMISE, printed.contains(gain), &printed);
    }
    let printed =
        attempt(scene, &mut client, &["read", &format!("/proc/{}/environ", victim.child.pid)]).await;
    findings.judge(&scene.walls, PROMISE, printed.contains(&scene.secrets.child), &printed);
    drop(client.input.take());
    let (code, errors) = client.end().await;
    assert_eq!((code, errors.as_str()), (0, ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn escape_attached_children_are_walled_as_others() {
    let mut findings = Findings::default();
    for walls in all_walls() {
        let scene = Scene::with(&Cli::Simulated, &walls, ATTACH).await;
        attack(&scene, &mut findings).await;
        scene.end().await;
    }
    findings.report();
}
