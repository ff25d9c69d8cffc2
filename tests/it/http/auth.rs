//! Who may call: keys and their roles, how the server follows their file, what is open without them.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use reqwest::RequestBuilder;
use rustix::process::Signal;

use crate::common::keyring::Keyring;
use crate::common::place::Place;
use crate::common::program::{Answer, Program, Site, message, place};
use crate::common::{SOON, eventually, eventually_some};

/// A turn with a key, for the user whom the key says.
fn turn(site: &Site, key: &str) -> RequestBuilder {
    site.post().header("x-api-key", key).json(&message("hello"))
}

async fn refused(request: RequestBuilder) -> (u16, String) {
    let error = Answer::of(request).await.error();
    (error.0, error.1)
}

fn is(status: u16, code: &str) -> (u16, String) {
    (status, code.to_owned())
}

/// Without a right key nothing is served but the state of the service.
#[tokio::test(flavor = "multi_thread")]
async fn invalid_key_gets_only_service_state() {
    let place = place();
    let ring = Keyring::new(&place);
    let key = ring.user("alice");
    let (_program, site) = Program::ready(&place, &ring.config()).await;
    for path in ["/", "/livez", "/readyz", "/health"] {
        assert_eq!(site.get(path).await.status, 200, "{path}");
    }
    let health = site.get("/health").await.json();
    assert!(health["sessions"].is_null(), "how much is going on is nobody's business: {health}");

    let missing = Answer::of(site.post().json(&message("a"))).await;
    assert_eq!(missing.json()["error"]["type"], "authentication_error");
    assert!(missing.header("www-authenticate").starts_with("Bearer"));
    assert_eq!(missing.error().1, "missing_key");
    assert_eq!(missing.status, 401);
    assert_eq!(refused(turn(&site, &key.chars().take(46).collect::<String>())).await, is(401, "invalid_key"));
    assert_eq!(refused(turn(&site, &format!("{key}x"))).await, is(401, "invalid_key"));
    let two = turn(&site, &key).header("authorization", "Bearer plk_another");
    assert_eq!(refused(two).await, is(401, "ambiguous_key"));
    // Which paths exist is not disclosed either, and a long body is not waited for.
    assert_eq!(site.get("/v1/pool/stats").await.status, 401);
    assert_eq!(site.get("/v1/nothing").await.status, 401);
    let long = site.post().header("x-api-key", "plk_wrong").body(vec![b' '; 20_000_000]);
    assert_eq!(refused(long).await.0, 401);

    for request in [
        turn(&site, &key),
        site.post().bearer_auth(&key).json(&message("hello")),
        turn(&site, &key).bearer_auth(&key),
        turn(&site, &key).header("origin", "https://a-tool.example"),
    ] {
        Answer::of(request).await.text();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_decides_whose_sessions_are_meant() {
    let place = place();
    let ring = Keyring::new(&place);
    let (alice, bob) = (ring.user("alice"), ring.user("bob"));
    let (service, admin) = (ring.key(&["--service"]).0, ring.key(&["--admin", "--label", "me"]).0);
    let (_program, site) = Program::ready(&place, &ring.config()).await;

    assert_eq!(Answer::of(turn(&site, &alice)).await.text(), "echo 1: hello");
    assert_eq!(refused(turn(&site, &alice).header("x-pilotlight-user", "bob")).await, is(403, "other_user"));
    assert_eq!(refused(turn(&site, &service)).await, is(400, "missing_user"));
    let for_alice = turn(&site, &service).header("x-pilotlight-user", "alice");
    assert_eq!(Answer::of(for_alice).await.text(), "echo 2: hello", "the same session as the user's own");
    assert_eq!(refused(turn(&site, &admin)).await, is(403, "admin_has_no_sessions"));
    assert_eq!(Answer::of(turn(&site, &bob)).await.text(), "echo 1: hello");

    let stats = async |key: &str, user: Option<&str>| {
        let request = site.web().get(format!("{}/v1/pool/stats", site.http)).bearer_auth(key);
        let request = user.into_iter().fold(request, |it, user| it.header("x-pilotlight-user", user));
        let stats = Answer::of(request).await;
        let users = stats.json()["active_users"].as_array().map(|users| {
            let mut users: Vec<_> = users.iter().map(|user| user["user_id"].to_string()).collect();
            users.sort();
            users.join(" ")
        });
        (stats.status, users.unwrap_or_default())
    };
    assert_eq!(stats(&alice, None).await, (200, "\"alice...\"".to_owned()));
    assert_eq!(stats(&service, Some("bob")).await, (200, "\"bob...\"".to_owned()));
    assert_eq!(stats(&service, None).await.0, 400);
    assert_eq!(stats(&admin, None).await, (200, "\"alice...\" \"bob...\"".to_owned()));
    // Credentials identify the user only where there are no keys.
    let mut body = message("hello");
    body["oauth_credentials"] =
        serde_json::json!({ "access_token": "a", "refresh_token": "r", "expires_at": 1 });
    let with_credentials = site.post().header("x-api-key", &service).json(&body);
    assert_eq!(refused(with_credentials).await, is(400, "missing_user"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_file_is_followed_by_itself_and_on_sighup() {
    let place = place();
    let ring = Keyring::new(&place);
    let (first, id) = ring.key(&["--user", "alice"]);
    let (mut program, site) = Program::ready(&place, &ring.config()).await;
    let status = async |key: &str| Answer::of(turn(&site, key)).await.status;
    assert_eq!(status(&first).await, 200);

    let second = ring.user("alice");
    let served = async || (status(&second).await == 200).then_some(());
    eventually_some("a new key is served", SOON, served).await;
    assert!(ring.run("revoke", &[&id]).status.success());
    let is_refused = async || (status(&first).await == 401).then_some(());
    eventually_some("a revoked key is refused", SOON, is_refused).await;
    assert_eq!(ring.run("revoke", &[&id]).status.code(), Some(1));

    // As an editor saves: another file takes the name.
    let text = std::fs::read_to_string(&ring.0).unwrap();
    let beside = place.path().join("edited");
    std::fs::write(&beside, format!("# all out\n#{text}")).unwrap();
    std::fs::set_permissions(&beside, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::rename(&beside, &ring.0).unwrap();
    let is_refused = async || (status(&second).await == 401).then_some(());
    eventually_some("a file renamed into place is read", SOON, is_refused).await;

    // A broken file changes nothing and is logged.
    let third = ring.user("alice");
    let served = async || (status(&third).await == 200).then_some(());
    eventually_some("the third is served", SOON, served).await;
    std::fs::write(&ring.0, "nonsense\n").unwrap();
    program.signal(Signal::HUP);
    eventually("the log has it", SOON, || program.err().contains("the keys stay as they were")).await;
    assert_eq!(status(&third).await, 200);
    assert!(program.is_running());
}

/// SIGHUP makes the keys be read again and never ends the server.
#[tokio::test(flavor = "multi_thread")]
async fn sighup_reloads_keys_and_keeps_server() {
    let place = place();
    let ring = Keyring::new(&place);
    let key = ring.user("alice");
    let (mut program, site) = Program::ready(&place, &ring.config()).await;
    // Nothing has changed, so this is not the server's own looking.
    assert!(!program.err().contains("was read again"));
    program.signal(Signal::HUP);
    let read = || program.err().contains("the key file was read again");
    eventually("the file is read again", SOON, read).await;
    assert_eq!(Answer::of(turn(&site, &key)).await.text(), "echo 1: hello");
    assert!(program.is_running());
    drop(program);

    let (mut program, site) = Program::ready(&place, "").await;
    for count in 1..=3 {
        program.signal(Signal::HUP);
        let handled = || program.err().matches("SIGHUP").count() >= count;
        eventually("the signal is handled", SOON, handled).await;
    }
    assert_eq!(site.turn("bob", "still here").await.text(), "echo 1: still here");
    assert!(program.is_running());
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_made_listed_and_revoked() {
    let place = place();
    let ring = Keyring::new(&place);
    let (key, id) = ring.key(&["--user", "alice", "--label", "her laptop", "--requests-per-minute", "7"]);
    ring.key(&["--service", "--concurrent-turns", "3"]);
    assert_eq!(ring.0.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!std::fs::read_to_string(&ring.0).unwrap().contains(&key));
    let listed = String::from_utf8(ring.run("list", &[]).stdout).unwrap();
    for shown in [&id, "alice", "her laptop", "7/min", "service", "3 turns"] {
        assert!(listed.contains(shown), "{shown} in {listed}");
    }
    assert!(!listed.contains(&key));
    assert!(ring.run("revoke", &[&id]).status.success());
    assert!(!String::from_utf8(ring.run("list", &[]).stdout).unwrap().contains(&id));
    for wrong in [
        &["--user", ""][..],
        &[],
        &["--service", "--admin"],
        &["--user", "a", "--concurrent-turns", "0"],
        &["--user", "a", "--models", ""],
        &["--user", "a", "--models", "-x"],
        &["--user", "a", "--policy", "perhaps"],
        &["--user", "a", "--tools", "Bash(git:*)"],
        &["--user", "a", "--mcp", "a b"],
        &["--user", "a", "--usd-per-day", "0"],
        &["--user", "a", "--usd-per-day", "nan"],
        &["--admin", "--policy", "deny"],
    ] {
        assert_eq!(ring.run("new", wrong).status.code(), Some(2), "{wrong:?}");
    }
}

/// Key files that cannot be trusted are refused at the start.
#[tokio::test(flavor = "multi_thread")]
async fn untrusted_key_file_is_refused_at_start() {
    let place = place();
    let ring = Keyring::new(&place);
    ring.user("alice");
    let secret = place.path().join("pasted");
    std::fs::write(&secret, "plk_s3cret\n").unwrap();
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::set_permissions(&ring.0, std::fs::Permissions::from_mode(0o644)).unwrap();
    let nowhere = place.path().join("nowhere");
    for (file, named) in [(&ring.0, "0600"), (&secret, "line 1"), (&nowhere, "nowhere")] {
        let mut program = start(&place, &["--listen", "127.0.0.1:0", "--keys", &file.display().to_string()]);
        assert_eq!(program.code().await, Some(2), "{named}");
        eventually("it is logged", SOON, || program.err().contains(named)).await;
        assert!(program.err().contains("auth.keys_file") && !program.err().contains("s3cret"));
    }
    assert!(!place.data_dir().exists());
}

fn start(place: &Arc<Place>, arguments: &[&str]) -> Program {
    let data = place.data_dir().display().to_string();
    let mut all = vec!["serve", "--cli", "sim", "--data-dir", &data];
    all.extend(arguments);
    Program::start(place, &all, &[])
}

/// With keys the server may listen on any address; metrics need an admin key.
#[tokio::test(flavor = "multi_thread")]
async fn keys_allow_any_address_metrics_need_admin() {
    let place = place();
    let ring = Keyring::new(&place);
    let (user, admin) = (ring.user("alice"), ring.key(&["--admin"]).0);
    let file = ring.0.display().to_string();
    let everywhere = ["--listen", "0.0.0.0:0", "--admin-listen", "0.0.0.0:0"];
    let mut program = start(&place, &[&everywhere[..], &["--keys", &file]].concat());
    let site = program.listening().await;
    site.ready().await;
    Answer::of(turn(&site, &user)).await.text();
    let metrics = || site.web().get(format!("{}/metrics", site.admin));
    assert_eq!(Answer::of(metrics()).await.status, 401);
    assert_eq!(refused(metrics().bearer_auth(&user)).await, is(403, "admin_only"));
    assert_eq!(Answer::of(metrics().bearer_auth(&admin)).await.status, 200);
    assert_eq!(site.get_admin("/livez").await.status, 200);
    drop(program);

    let mut program = start(&place, &[&everywhere[..], &["--allow-unauthenticated"]].concat());
    let site = program.listening().await;
    site.ready().await;
    assert_eq!(site.turn("bob", "hello").await.text(), "echo 1: hello");
    let mut both = start(&place, &["--allow-unauthenticated", "--keys", &file]);
    assert_eq!(both.code().await, Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_without_keys_serves_only_its_own_name() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let named = |host: &str| site.asking("alice", &message("hello")).header("host", host);
    for host in ["evil.example", "127.0.0.1.evil.example:8480", "10.0.0.1"] {
        assert_eq!(refused(named(host)).await, is(403, "host_refused"), "{host}");
    }
    let metrics = site.web().get(format!("{}/metrics", site.admin)).header("host", "evil.example");
    assert_eq!(refused(metrics).await, is(403, "host_refused"));
    assert_eq!(Answer::of(named("localhost:1234")).await.text(), "echo 1: hello");
}

/// Tokens that the CLI renewed identify the caller, also after a restart.
#[tokio::test(flavor = "multi_thread")]
async fn renewed_tokens_identify_user_after_restart() {
    let place = place();
    let ask = async |site: &Site, access: &str, refresh: &str, expires_at: i64| {
        let mut body = message("hello");
        body["oauth_credentials"] =
            serde_json::json!({ "access_token": access, "refresh_token": refresh, "expires_at": expires_at });
        Answer::of(site.post().json(&body)).await.text()
    };
    let (mut program, site) = Program::ready(&place, "").await;
    assert_eq!(ask(&site, "access-1", "refresh-1", 4_000_000_000_000).await, "echo 1: hello");
    let session = crate::common::layout::session_dirs(&place.data_dir()).remove(0);
    let file = session.join("home/.claude/.credentials.json");
    let renew = |number: i64| {
        let text = std::fs::read_to_string(&file).unwrap();
        let mut held: serde_json::Value = serde_json::from_str(&text).unwrap();
        let tokens = &mut held["claudeAiOauth"];
        tokens["accessToken"] = format!("access-{number}").into();
        tokens["refreshToken"] = format!("refresh-{number}").into();
        tokens["expiresAt"] = (4_000_000_000_000 + number).into();
        std::fs::write(&file, held.to_string()).unwrap();
    };
    // The CLI renews, and the client learns of it by other means than us.
    renew(2);
    assert_eq!(ask(&site, "access-2", "refresh-2", 4_000_000_000_002).await, "echo 2: hello");
    // An older pair is still the same user's, and does not take the newer one's place.
    assert_eq!(ask(&site, "access-1", "refresh-1", 4_000_000_000_000).await, "echo 3: hello");
    assert!(std::fs::read_to_string(&file).unwrap().contains("access-2"));
    assert_eq!(ask(&site, "access-x", "refresh-x", 4_000_000_000_000).await, "echo 1: hello", "a stranger");

    program.signal(Signal::TERM);
    assert_eq!(program.code().await, Some(0));
    renew(3);
    let (_program, site) = Program::ready(&place, "").await;
    assert_eq!(ask(&site, "unknown", "refresh-3", 4_000_000_000_000).await, "echo 4: hello");
}
