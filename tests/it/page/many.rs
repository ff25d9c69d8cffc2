//! Many sessions: found by search, state and order, drawn only as far as they are in sight, and cheap at rest.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::sync::Arc;
use std::time::Duration;

use pilotlight::model::ids::{SessionKey, UserId};
use rustix::process::Signal;
use serde_json::Value;

use crate::common::browser::Browser;
use crate::common::place::Place;
use crate::common::program::{Program, place};

/// At rest the page may work for a tenth of the time.
const MOST_SCRIPT_MS: f64 = 100.0;
/// Long enough for a few looks at the service.
const AT_REST: Duration = Duration::from_secs(6);

/// Writes the records of `count` sessions, three to a user, each a copy of a real one.
fn plant(place: &Place, count: usize) {
    let records = place.data_dir().join("records");
    let one = fs::read_dir(&records).unwrap().flatten().find(|it| it.path().join("session.json").exists());
    let template = fs::read(one.expect("a record").path().join("session.json")).unwrap();
    let mut record: Value = serde_json::from_slice(&template).unwrap();
    for number in 0..count {
        let user = format!("user{:04}@example.org", number / 3);
        let conversation = if number % 3 == 0 { "default".to_owned() } else { format!("auto-{number:032x}") };
        let key = SessionKey::new(UserId::new(user.as_str()).unwrap(), &conversation).unwrap();
        record["user"] = user.bytes().map(|byte| format!("{byte:02x}")).collect::<String>().into();
        record["conversation"] = conversation.into();
        record["title"] = format!("Question number {number}").into();
        record["cost_usd"] = (number as f64 / 100.0).into();
        let directory = records.join(key.hash().as_str());
        fs::DirBuilder::new().mode(0o700).create(&directory).unwrap();
        let mut file = fs::OpenOptions::new();
        let file =
            file.write(true).create_new(true).mode(0o600).open(directory.join("session.json")).unwrap();
        serde_json::to_writer(file, &record).unwrap();
    }
}

/// A server with `count` sessions, and the one that the others are copies of; an empty browser.
async fn planted(count: usize) -> Option<(Browser, Program, String, Arc<Place>)> {
    let place = place();
    let browser = Browser::start(&place).await?;
    let (mut program, site) = Program::ready(&place, "").await;
    site.turn("zoe", "The very first words").await.text();
    program.signal(Signal::TERM);
    assert_eq!(program.code().await, Some(0));
    plant(&place, count);
    let (program, site) = Program::ready(&place, "").await;
    Some((browser, program, site.http, place))
}

/// A page of `count` sessions, and of the one that the others are copies of.
async fn with(count: usize) -> Option<(Browser, Program, String)> {
    let (mut browser, program, site, _place) = planted(count).await?;
    browser.open(&site).await;
    let all = format!(
        "document.querySelector('#rows tr') && document.querySelector('#table').ariaRowCount === '{}'",
        count + 2
    );
    browser.until("all sessions are there", &all).await;
    Some((browser, program, site))
}

async fn found(browser: &mut Browser) -> u64 {
    let rows = browser.eval("Number(document.querySelector('#table').ariaRowCount) - 1").await;
    rows.as_f64().unwrap() as u64
}

async fn first(browser: &mut Browser) -> String {
    browser.text("#rows tr b").await
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_found_by_search_state_and_order() {
    let Some((mut browser, _program, site)) = with(200).await else { return };
    browser.picture("many-200").await;
    let height = browser.eval("document.documentElement.scrollHeight").await.as_f64().unwrap();
    assert!(height < 2000.0, "the page is {height} pixels long");
    let drawn = browser.eval("document.querySelectorAll('#rows tr').length").await.as_f64().unwrap();
    assert!(drawn < 60.0, "{drawn} rows are drawn");

    // First words, user and name lead to a session.
    for (text, number, title) in [
        ("very first", 1, "The very first words"),
        ("USER0012", 3, "Question number 3"),
        ("number 199", 1, "Question number 199"),
    ] {
        browser.press("Escape", false).await;
        browser.press("/", false).await;
        browser.write(text).await;
        browser
            .until(
                "it is searched",
                &format!("document.querySelector('#found').innerText.startsWith('{number} of')"),
            )
            .await;
        assert!(first(&mut browser).await.starts_with(title), "{text}");
    }
    browser.eval("(() => { const it = document.querySelector('#search'); it.value = ''; it.dispatchEvent(new Event('input')); it.blur(); })()").await;

    browser.click("#states [data-state=dormant] button").await;
    assert_eq!(found(&mut browser).await, 201);
    browser.click("#states [data-state=dormant] button").await;
    browser.click("#states [data-state=busy] button").await;
    browser.until_text("#sessions-empty", "No session matches.").await;
    browser.click("#states [data-state=busy] button").await;

    // By cost, both ways; the end of the list is reached.
    browser.click("#head th:nth-child(7) button").await;
    assert_eq!(first(&mut browser).await, "Question number 199");
    browser.eval("document.querySelector('#list').scrollTop = 1e6").await;
    browser.until_text("#rows", "Question number 0").await;
    browser.click("#head th:nth-child(7) button").await;
    browser.eval("document.querySelector('#list').scrollTop = 0").await;
    browser.until("the cheapest is first", "['The very first words', 'Question number 0'].includes(document.querySelector('#rows tr b').innerText)").await;

    // By keyboard: down, up, into a session, and back.
    for key in ["j", "j", "k", "j"] {
        browser.press(key, false).await;
    }
    browser.until("one is chosen", "document.querySelectorAll('#rows tr[data-selected]').length === 1").await;
    let chosen = browser.text("#rows tr[data-selected] b").await;
    browser.press("Enter", false).await;
    browser.until_text("#session h2", &chosen).await;
    browser.press("Escape", false).await;
    browser.until("the list is back", "document.querySelector('#list').checkVisibility()").await;
    browser.press("?", false).await;
    browser.until("the keys are listed", "document.querySelector('#help').open").await;
    browser.press("Escape", false).await;
    browser.until("the list is closed", "!document.querySelector('#help').open").await;
    browser.was_good(&site).await;
}

/// After a start no more accounts are read than sessions are listed.
#[tokio::test(flavor = "multi_thread")]
async fn spend_says_what_it_lacks() {
    let Some((mut browser, _program, site, place)) = planted(10_050).await else { return };
    let usage = place.data_dir().join("records/usage");
    let account = fs::read_dir(&usage).unwrap().flatten().next().expect("an account");
    for name in ["a", "b", "c"] {
        fs::copy(account.path(), usage.join(name.repeat(32))).unwrap();
    }
    browser.open(&format!("{site}/#/spend")).await;
    browser.until_text("#spend-users", "1 of 4 users").await;
    browser.until_text("#spend-users", "3 users are not in memory").await;
    browser.was_good(&site).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_sessions_are_cheap_at_rest() {
    // One less than a list may hold: the original is a session as well.
    let Some((mut browser, _program, site)) = with(9990).await else { return };
    let (script, all) = browser.load(AT_REST).await;
    crate::common::installed::say(&format!(
        "10,000 sessions at rest: {script:.1} ms of script, {all:.1} ms in all a second"
    ));
    assert!(script < MOST_SCRIPT_MS, "{script} ms of script in a second");
    let drawn = browser.eval("document.querySelectorAll('#rows tr').length").await.as_f64().unwrap();
    assert!(drawn < 60.0, "{drawn} rows are drawn");
    browser.picture("many-10000").await;
    browser.was_good(&site).await;
}
