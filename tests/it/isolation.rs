//! Isolation of children as the server wires it: which rungs are proven and shown, and what a tool of a child sees through
//! them. What each rung withstands is the subject of the escape suite.

mod broker;
mod cgroups;
mod containment;
mod mounts;
mod proof;
mod users;

use std::sync::Arc;

use serde_json::json;

use crate::common::installed::left_out;
use crate::common::place::Place;
use crate::common::program::{Answer, Program, Site, message};

/// A server with these rungs whose tools run; `None` where one of them cannot be built.
async fn served(place: &Arc<Place>, rungs: &[&str], more: &str) -> Option<(Program, Site)> {
    let list = rungs.iter().map(|rung| format!("\"{rung}\"")).collect::<Vec<_>>().join(", ");
    let config = format!("{more}\n[permissions]\npolicy = \"allow\"\n[isolation]\nrungs = [{list}]\n");
    let (program, site) = Program::ready(place, &config).await;
    for rung in rungs {
        if site.metric("isolation_info", &[&format!("rung=\"{rung}\"")]).await != 1.0 {
            left_out(&format!("the rung {rung} cannot be built here"));
            return None;
        }
    }
    Some((program, site))
}

/// Runs a command of the shell as a tool of a user's child; returns what it wrote to both its outputs.
async fn tool(site: &Site, user: &str, command: &str) -> String {
    let input = json!({ "command": format!("( {command} ) > output.txt 2>&1; true") });
    let mut body = message(&format!("[[tool:Bash {input}]]"));
    body["include_files"] = json!(true);
    let events = Answer::of(site.asking(user, &body)).await.events();
    let batch = events.iter().find(|event| event["type"] == "files_batch");
    let files = batch.unwrap_or_else(|| panic!("no file in {events:#?}"))["files"].as_array().unwrap();
    let output =
        files.iter().find(|file| file["path"].as_str().is_some_and(|path| path.ends_with("output.txt")));
    output.unwrap_or_else(|| panic!("no output in {files:#?}"))["content"].as_str().unwrap().to_owned()
}

/// The directories of the only session, by what they belong to: `work`, `home`, `tmp`.
fn session_directories(place: &Place) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(place.data_dir().join("sessions")).unwrap();
    let sessions = entries.map(|entry| entry.unwrap().path());
    sessions.filter(|path| !path.file_name().unwrap().to_string_lossy().starts_with('.')).collect()
}
