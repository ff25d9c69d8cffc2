//! What the live page is made of, and whose requests are taken for its own. How it looks and works is `crate::page`'s.

use crate::common::keyring::Keyring;
use crate::common::program::{Answer, Program, Site, message, place};

const BROWSER: &str = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";

async fn as_browser(site: &Site) -> Answer {
    Answer::of(site.web().get(format!("{}/", site.http)).header("accept", BROWSER)).await
}

/// A browser gets a page that can do nothing but ask this service.
#[tokio::test(flavor = "multi_thread")]
async fn page_may_only_call_this_service() {
    let place = place();
    let ring = Keyring::new(&place);
    ring.user("alice");
    // Also where keys are asked for: the page holds no data, and asks for the key itself.
    let (_program, site) = Program::ready(&place, &ring.config()).await;
    let page = as_browser(&site).await;
    assert_eq!((page.status, page.header("content-type")), (200, "text/html; charset=utf-8"));
    assert_eq!(page.header("vary"), "accept");
    assert!(page.body.starts_with("<!doctype html>"));
    let mut files: Vec<_> =
        page.body.split("/page/").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    files.extend(["service.js", "sessions.js", "events.js", "message.js"]);
    files.extend(["ui.js", "session.js", "charts.js", "preact.mjs", "htm.mjs", "uPlot.iife.min.js"]);
    for path in ["/".to_owned()].into_iter().chain(files.iter().map(|file| format!("/page/{file}"))) {
        let request = site.web().get(format!("{}{path}", site.http)).header("accept", BROWSER);
        let answer = Answer::of(request).await;
        assert_eq!(answer.status, 200, "{path}");
        let policy = answer.header("content-security-policy");
        for rule in
            ["default-src 'none'", "script-src 'self';", "connect-src 'self'", "frame-ancestors 'none'"]
        {
            assert!(policy.contains(rule), "{rule} is not in {policy}");
        }
        assert!(!policy.contains("unsafe"), "{policy}");
        assert_eq!(answer.header("x-content-type-options"), "nosniff");
        assert_eq!(answer.header("referrer-policy"), "no-referrer");
    }
    assert_eq!(site.get("/").await.json()["service"], "pilotlight", "programs get the document");
    assert_eq!(site.get("/page/none.js").await.status, 401);
    assert_eq!(site.get("/v1/events/stream").await.status, 401);
    assert_eq!(site.get("/page/app.js").await.header("content-type"), "text/javascript; charset=utf-8");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_keys_the_own_page_may_ask_and_no_other() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let turn = |host: &str, origin: &str| {
        site.asking("alice", &message("hello")).header("host", host).header("origin", origin)
    };
    let port = site.http.rsplit_once(':').unwrap().1;
    for name in ["localhost", "127.0.0.1", "[::1]"] {
        let host = format!("{name}:{port}");
        Answer::of(turn(&host, &format!("http://{host}"))).await.text();
    }
    let host = format!("127.0.0.1:{port}");
    for origin in [
        "http://evil.example".to_owned(),
        format!("http://evil.example:{port}"),
        format!("http://localhost:{port}"),
        "http://127.0.0.1:1".to_owned(),
        format!("https://{host}"),
        "null".to_owned(),
    ] {
        let error = Answer::of(turn(&host, &origin)).await.error();
        assert_eq!((error.0, error.1.as_str()), (403, "browser_refused"), "{origin}");
        let sessions = site.web().get(format!("{}/v1/sessions", site.http)).header("origin", &origin);
        assert_eq!(Answer::of(sessions).await.status, 403, "{origin}");
    }
    // A picture or a frame: browsers send no Origin with it, but say where it is.
    let picture =
        site.web().get(format!("{}/v1/events/stream", site.http)).header("sec-fetch-site", "cross-site");
    assert_eq!(Answer::of(picture).await.status, 403);
    // Its own name resolves to us: the origin is the host, but neither is this machine.
    let rebound = format!("evil.example:{port}");
    let error = Answer::of(turn(&rebound, &format!("http://{rebound}"))).await.error();
    assert_eq!((error.0, error.1.as_str()), (403, "browser_refused"));
}
