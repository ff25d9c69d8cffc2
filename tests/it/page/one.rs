//! The page of one session: why it failed, what it waits for and the answer, what was said, and what others may see of it.

use serde_json::json;

use super::keys::use_key;
use super::{in_row, open};
use crate::common::browser::Browser;
use crate::common::keyring::Keyring;
use crate::common::program::{Program, message, place};

const ASK: &str = "[permissions]\npolicy = \"ask\"";
const TOOL: &str = "[[tool:Bash {\"command\":\"touch made\"}]]";
const QUESTION: &str = r#"[[tool:AskUserQuestion {"questions":[{"question":"Which color?","header":"Color","multiSelect":false,"options":[{"label":"Red","description":"r"},{"label":"Blue","description":"b"}]}]}]]"#;

#[tokio::test(flavor = "multi_thread")]
async fn failure_leads_to_its_cause() {
    let Some((mut browser, _program, site, _place)) = open("").await else { return };
    // The disk of the machine may be nearly full.
    let calm = "document.querySelector('#attention li') && !document.querySelector('#attention').innerText.includes('failed at')";
    browser.until("nothing has failed", calm).await;
    site.turn("alice", "Write a poem").await.text();
    site.turn("alice", "[[fault:crash-mid]]").await;
    browser.until_text("#attention", "its CLI crashed: exit code 1").await;
    browser.picture("crash").await;
    browser.click("#attention li[data-kind=bad] a").await;
    browser.until_text("#why", "exit code 1").await;
    browser.until_text("#ends", "exit code 1").await;
    browser.until_text(".turns", "session lost").await;
    browser.until_text(".said-all", "Write a poem").await;
    assert_eq!(browser.text("#session h2").await, "Write a poem");
    browser.picture("crash-why").await;
    // A press of a button there.
    browser.until("it is idle", "document.querySelector('.headline .state').innerText === 'idle'").await;
    browser.click(".headline button[aria-label^=Evict]").await;
    browser.until_text("#notice", "is evicted").await;
    browser.until_text(".headline .state", "dormant").await;
    browser.was_good(&site.http).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn permission_is_seen_and_answered() {
    let Some((mut browser, _program, site, _place)) = open(ASK).await else { return };
    browser.until_text("#link", "Live").await;
    let running = site.asking("alice", &message(TOOL)).send().await.unwrap();
    browser.until_text("#attention", "alice waits for an answer").await;
    browser.until_text(&in_row("alice", "td[data-label=State]"), "asks").await;
    browser.until_text("#states [data-state=asks]", "1").await;
    browser.picture("permission").await;
    browser.click("#attention a").await;
    browser.until_text(".waits", "May it use Bash?").await;
    browser.until_text(".waits pre", "touch made").await;
    browser.picture("permission-asked").await;
    browser.resize(360, 740, true).await;
    browser.picture("permission-phone").await;
    browser.resize(1280, 900, false).await;
    browser.click(".waits button.main").await;
    browser.until("nothing waits", "!document.querySelector('.waits')").await;
    assert!(running.text().await.unwrap().contains("\"result\""), "the turn goes on");
    browser.until_text("#session", "made").await;

    let running = site.asking("bob", &message(QUESTION)).send().await.unwrap();
    browser.eval("location.hash = '#/session/bob/default'").await;
    browser.until_text(".waits legend", "Which color?").await;
    browser.click(".waits label:nth-of-type(2) input").await;
    browser.click(".waits button[type=submit]").await;
    browser.until("nothing waits", "!document.querySelector('.waits')").await;
    assert!(running.text().await.unwrap().contains("Blue"), "the answer is the model's");
    browser.was_good(&site.http).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tools_are_in_the_timeline_of_turns() {
    let Some((mut browser, _program, site, _place)) = open("[permissions]\npolicy = \"allow\"").await else {
        return;
    };
    browser.until_text("#link", "Live").await;
    let call = |command: &str| format!("[[tool:Bash {}]]", json!({ "command": command }));
    let read = json!({ "file_path": "missing.txt" });
    let text = format!("{} {} [[tool:Read {read}]] [[sleep:200]]", call("sleep 0.4"), call("sleep 0.2"));
    site.turn("alice", &format!("Build it {text}")).await.text();
    site.turn("alice", "Thanks [[sleep:300]]").await.text();
    browser.eval("location.hash = '#/session/alice/default'").await;
    browser.until_text(".calls", "Bash ×2").await;
    browser.until_text(".calls", "Read").await;
    let marks = "[...document.querySelectorAll('.runs i')].map((it) => [it.offsetLeft, it.offsetWidth, it.dataset.failed])";
    let marks = browser.eval(marks).await;
    let number = |mark: usize, field: usize| marks[mark][field].as_f64().unwrap();
    assert_eq!(marks.as_array().unwrap().len(), 3, "one turn has tools: {marks}");
    // Called in one message, whose blocks are lines of their own, and run one after the other.
    let end = |mark: usize| number(mark, 0) + number(mark, 1);
    assert!(number(0, 0) <= number(1, 0) && number(1, 0) < end(0) && end(0) < end(1), "{marks}");
    assert_eq!((&marks[0][2], &marks[2][2]), (&json!("false"), &json!("true")), "{marks}");
    let label = "document.querySelector('.bars:has(.runs)').ariaLabel";
    let label = browser.eval(label).await.as_str().unwrap().to_owned();
    assert!(
        label.contains("Bash after") && label.contains("Read after") && label.contains("failed"),
        "{label}"
    );
    assert!(!label.contains("sleep") && !label.contains("missing"), "names alone: {label}");
    browser.picture("tools").await;
    browser.resize(360, 740, true).await;
    browser.picture("tools-phone").await;
    browser.was_good(&site.http).await;
}

/// A long command could hide its end from who allows it.
#[tokio::test(flavor = "multi_thread")]
async fn permission_that_is_not_seen_whole_has_no_allow() {
    let Some((mut browser, _program, site, _place)) = open(ASK).await else { return };
    browser.until_text("#link", "Live").await;
    let input = json!({ "command": format!("true \u{202e}{} ; touch hidden", "x".repeat(30_000)) });
    let running = site.asking("alice", &message(&format!("[[tool:Bash {input}]]"))).send().await.unwrap();
    browser.until_text("#attention", "alice waits for an answer").await;
    browser.click("#attention a").await;
    browser.until_text(".waits", "more characters are not shown").await;
    browser.until_text(".waits pre", "<U+202E>").await;
    assert_eq!(browser.eval("document.querySelector('.waits button.main').disabled").await, true);
    browser.click(".waits .buttons button:not(.main)").await;
    browser.until("nothing waits", "!document.querySelector('.waits')").await;
    assert!(running.text().await.unwrap().contains("\"result\""), "the turn goes on");

    // One with many lines is laid out whole, above what allows it.
    let input = json!({ "command": format!("true{}; touch hidden", "\n".repeat(300)) });
    let running = site.asking("alice", &message(&format!("[[tool:Bash {input}]]"))).send().await.unwrap();
    browser.until_text(".waits pre", "touch hidden").await;
    let hides = "(() => { const it = document.querySelector('.waits pre'); return it.scrollHeight > it.clientHeight + 1; })()";
    assert_eq!(browser.eval(hides).await, false);
    browser.click(".waits .buttons button:not(.main)").await;
    assert!(running.text().await.unwrap().contains("\"result\""), "the turn goes on");
    browser.was_good(&site.http).await;
}

/// Names, words, inputs of tools, files and processes are strangers'.
#[tokio::test(flavor = "multi_thread")]
async fn page_of_a_session_takes_no_html() {
    let Some((mut browser, _program, site, _place)) = open(ASK).await else { return };
    browser.until_text("#link", "Live").await;
    let evil = "<img src=x onerror=\"document.title='owned'\">";
    let input = json!({ "command": evil, "__proto__": { "x": evil }, "constructor": null });
    let text = format!("say {evil} [[tool:Bash {input}]]");
    let running = site.asking(evil, &message(&text)).send().await.unwrap();
    browser.until_text("#attention", evil).await;
    browser.click("#attention a").await;
    browser.until_text(".waits pre", evil).await;
    browser.until_text(".said-all", evil).await;
    let broken =
        json!({ "questions": [null, 7, { "question": { "a": 1 }, "options": [null, { "label": [evil] }] }] });
    drop(running);
    let running =
        site.asking("bob", &message(&format!("[[tool:AskUserQuestion {broken}]]"))).send().await.unwrap();
    browser.eval("location.hash = '#/session/bob/default'").await;
    browser.until_text(".waits", "The model asks").await;
    let inside = "document.querySelectorAll('main img, main script, main iframe').length";
    assert_eq!(browser.eval(inside).await, 0);
    assert_eq!(browser.eval("document.title").await, "pilotlight");
    drop(running);
    browser.was_good(&site.http).await;
}

/// The page shows what the key may see, and offers what it may do.
#[tokio::test(flavor = "multi_thread")]
async fn rights_of_a_key_hold_on_a_sessions_page() {
    let place = place();
    let Some(mut browser) = Browser::start(&place).await else { return };
    let ring = Keyring::new(&place);
    let (alice, admin) = (ring.user("alice"), ring.key(&["--admin"]).0);
    let (_program, site) = Program::ready(&place, &format!("{ASK}\n{}", ring.config())).await;
    let running = site.post().header("x-api-key", &alice).json(&message(TOOL)).send().await.unwrap();

    // An operator sees what waits and cannot answer for the user.
    browser.open(&site.http).await;
    use_key(&mut browser, &admin).await;
    browser.until_text("#attention", "alice waits for an answer").await;
    browser.click("#attention a").await;
    browser.until_text(".waits", "cannot answer for a user").await;
    assert_eq!(browser.eval("document.querySelectorAll('.waits button').length").await, 0);
    browser.until_text("#session", "The files of a session are shown to its user").await;
    browser.until_text(".said-all", "touch made").await;

    // The user answers, and sees nothing of the whole service.
    browser.press("Escape", false).await;
    use_key(&mut browser, &alice).await;
    browser.until_text("#sessions-title", "Your sessions").await;
    browser.until_text("#attention", "waits for an answer").await;
    browser.eval("location.hash = '#/load'").await;
    browser.until_text("#limits", "Shown to keys of the role admin.").await;
    browser.eval("location.hash = '#/'").await;
    browser.until_text("#attention", "waits for an answer").await;
    browser.click("#attention a").await;
    browser.until_text(".waits", "May it use Bash?").await;
    browser.click(".waits button.main").await;
    browser.until("nothing waits", "!document.querySelector('.waits')").await;
    running.text().await.unwrap();
    browser.until_text("#session", "made").await;
    let asked = browser.asked_for();
    assert!(asked.iter().all(|url| !url.contains("plk_")), "never in an address");
    browser.was_good_but(&site.http, &["status of 401", "status of 403"]).await;
}
