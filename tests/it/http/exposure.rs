//! Tools of several users run side by side only where rungs of isolation keep them apart, or with the operator's word.

use crate::common::keyring::Keyring;
use crate::common::program::{Answer, Program, Site, message, place};
use crate::common::{SOON, eventually, eventually_some};

const TOOLS: &str = "[permissions]\npolicy = \"allow\"\n";

/// Starts a subcommand with nothing but this configuration, without isolation and without the word that the other tests
/// give.
fn start(place: &std::sync::Arc<crate::common::place::Place>, subcommand: &str, config: &str) -> Program {
    start_with(place, subcommand, config, "[]")
}

/// The same with these rungs.
fn start_with(
    place: &std::sync::Arc<crate::common::place::Place>,
    subcommand: &str,
    config: &str,
    rungs: &str,
) -> Program {
    let file = place.path().join("exposed.toml");
    std::fs::write(&file, config).unwrap();
    let data = place.data_dir().display().to_string();
    let file = file.display().to_string();
    let mut arguments = vec![subcommand, "--config", &file, "--data-dir", &data, "--cli", "sim"];
    arguments.extend(["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]);
    Program::start(place, &arguments, &[("PILOTLIGHT_ISOLATION__RUNGS", rungs)])
}

async fn turn(site: &Site, key: &str) -> u16 {
    Answer::of(site.post().header("x-api-key", key).json(&message("hello"))).await.status
}

#[tokio::test(flavor = "multi_thread")]
async fn exposure_several_users_with_tools_refused() {
    for subcommand in ["serve", "check"] {
        for (keys, exposure) in [
            (vec![], "without auth.keys_file"),
            (vec![vec!["--service"]], "service key"),
            (vec![vec!["--user", "alice"], vec!["--user", "bob"]], "2 users"),
        ] {
            for policy in ["allow", "ask"] {
                let place = place();
                let ring = Keyring::new(&place);
                keys.iter().for_each(|arguments| drop(ring.key(arguments)));
                let named = if keys.is_empty() { String::new() } else { ring.config() };
                let mut program =
                    start(&place, subcommand, &format!("{named}[permissions]\npolicy = \"{policy}\"\n"));
                assert_eq!(program.code().await, Some(2), "{subcommand} {exposure} {policy}");
                for part in [exposure, "isolation.accept_none", "permissions.policy"] {
                    assert!(program.err().contains(part), "{part} is not in {}", program.err());
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn exposure_of_mcp_of_every_caller_is_refused() {
    let place = place();
    for subcommand in ["serve", "check"] {
        let mut program = start(&place, subcommand, "[mcp]\ncallers = \"all\"\n");
        assert_eq!(program.code().await, Some(2), "{subcommand}");
        for part in ["mcp.callers", "isolation.accept_none"] {
            assert!(program.err().contains(part), "{part} is not in {}", program.err());
        }
    }
}

/// With rungs that keep users apart, several users with tools are served without the operator's word.
#[tokio::test(flavor = "multi_thread")]
async fn exposure_separated_users_start() {
    let place = place();
    let ring = Keyring::new(&place);
    let (alice, bob) = (ring.user("alice"), ring.user("bob"));
    let config = format!("{}{TOOLS}[mcp]\ncallers = \"all\"\n", ring.config());
    let rungs = "[\"landlock\", \"namespaces\", \"uid\"]";
    let mut check = start_with(&place, "check", &config, rungs);
    let code = check.code().await;
    if !check.out().contains(" held") {
        return crate::common::installed::left_out("no rung that keeps users apart can be built here");
    }
    assert_eq!(code, Some(0), "{}", check.err());
    let mut program = start_with(&place, "serve", &config, rungs);
    let site = program.listening().await;
    site.ready().await;
    assert_eq!(turn(&site, &alice).await, 200);
    assert_eq!(turn(&site, &bob).await, 200);
    // A user that is added later is served as well.
    let carol = ring.user("carol");
    eventually_some("the new key works", SOON, async || (turn(&site, &carol).await == 200).then_some(()))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn exposure_one_user_or_word_starts() {
    for (keys, config) in [
        (vec![vec!["--user", "alice"], vec!["--user", "alice"], vec!["--admin"]], TOOLS),
        (vec![vec!["--service"]], "[permissions]\npolicy = \"deny\"\n"),
        (vec![], "[permissions]\npolicy = \"deny\"\n"),
        (vec![vec!["--service"]], "[permissions]\npolicy = \"ask\"\n[isolation]\naccept_none = true\n"),
        (vec![], "[permissions]\npolicy = \"allow\"\n[isolation]\naccept_none = true\n"),
    ] {
        let place = place();
        let ring = Keyring::new(&place);
        keys.iter().for_each(|arguments| drop(ring.key(arguments)));
        let named = if keys.is_empty() { String::new() } else { ring.config() };
        let mut check = start(&place, "check", &format!("{named}{config}"));
        assert_eq!(check.code().await, Some(0), "{keys:?} {config}: {}", check.err());
        let mut served = start(&place, "serve", &format!("{named}{config}"));
        served.listening().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn exposure_second_user_added_later_stays_out() {
    let place = place();
    let ring = Keyring::new(&place);
    let (alice, first) = ring.key(&["--user", "alice"]);
    let mut program = start(&place, "serve", &format!("{}{TOOLS}", ring.config()));
    let site = program.listening().await;
    site.ready().await;
    assert_eq!(turn(&site, &alice).await, 200);

    let bob = ring.user("bob");
    let (service, _) = ring.key(&["--service"]);
    let admin = ring.key(&["--admin"]).0;
    eventually("the refusal is logged", SOON, || program.err().contains("isolation.accept_none")).await;
    let sessions = || site.web().get(format!("{}/v1/sessions", site.http)).header("x-api-key", &admin);
    eventually_some("the operator's key works", SOON, async || {
        (Answer::of(sessions()).await.status == 200).then_some(())
    })
    .await;
    assert_eq!(turn(&site, &bob).await, 401);
    assert_eq!(turn(&site, &service).await, 401);
    assert_eq!(turn(&site, &alice).await, 200);

    // What is taken out is out, although the rest of the file is refused.
    assert!(ring.run("revoke", &[&first]).status.success());
    eventually_some("the revoked key is refused", SOON, async || {
        (turn(&site, &alice).await == 401).then_some(())
    })
    .await;
    assert_eq!(turn(&site, &bob).await, 401);
}
