//! The SDKs on a server with keys, which are made as an operator makes them.

use std::process::Command;

use crate::common::place::Place;
use crate::common::program::{Program, place};
use crate::python::{Age, Script};

/// Makes a key; what is printed is the key.
fn new_key(place: &Place, of: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pilotlight"));
    command.args(["keys", "new", "--file"]).arg(place.path().join("keys")).args(of);
    let output = command.output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text").trim().to_owned()
}

async fn check(script: &'static str, age: Age) {
    let Some(script) = Script::with_package(script, age) else { return };
    let place = place();
    let user = new_key(&place, &["--user", "alice"]);
    let service = new_key(&place, &["--service"]);
    let admin = new_key(&place, &["--admin"]);
    let config = format!("[auth]\nkeys_file = {:?}\n", place.path().join("keys"));
    let (_program, site) = Program::ready(&place, &config).await;
    let variables = [
        ("PILOTLIGHT_URL", site.http.as_str()),
        ("PILOTLIGHT_ADMIN_URL", &site.admin),
        ("PILOTLIGHT_USER_KEY", &user),
        ("PILOTLIGHT_SERVICE_KEY", &service),
        ("PILOTLIGHT_ADMIN_KEY", &admin),
    ];
    script.run(&place, &variables).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_current_anthropic_sdk() {
    check("anthropic_keys", Age::Current).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_anthropic_sdk_of_a_year_ago() {
    check("anthropic_keys", Age::YearOld).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_current_openai_sdk() {
    check("openai_keys", Age::Current).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_openai_sdk_of_a_year_ago() {
    check("openai_keys", Age::YearOld).await;
}
