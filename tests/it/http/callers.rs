//! Clients with a handicap: web pages of other origins, and those that cannot set headers.

use reqwest::header::HeaderMap;

use crate::common::keyring::Keyring;
use crate::common::program::{Answer, Program, Site, message, place};

const PAGE: &str = "https://chat.example.org";

async fn preflight(site: &Site, origin: &str, path: &str) -> Answer {
    let request = site.web().request(reqwest::Method::OPTIONS, format!("{}{path}", site.http));
    let request = request.header("origin", origin).header("access-control-request-method", "POST");
    Answer::of(request.header("access-control-request-headers", "authorization,x-stainless-lang")).await
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_named_origins_alone_may_call() {
    let place = place();
    let ring = Keyring::new(&place);
    let key = ring.user("alice");
    let config = format!("{}[http]\ncors_origins = [\"{PAGE}\", \"http://localhost:3000\"]\n", ring.config());
    let (_program, site) = Program::ready(&place, &config).await;
    for origin in [PAGE, "http://localhost:3000"] {
        for path in ["/v1/messages", "/v1/chat/completions", "/v1/sessions/default/interrupt"] {
            let answer = preflight(&site, origin, path).await;
            assert_eq!(answer.status, 200, "without a key: {answer:?}");
            assert_eq!(answer.header("access-control-allow-origin"), origin);
            assert!(answer.header("access-control-allow-methods").contains("POST"));
            assert!(answer.header("access-control-allow-headers").contains("x-stainless-lang"));
            assert!(!answer.headers.contains_key("access-control-allow-credentials"));
        }
    }
    for origin in
        ["https://evil.example", "https://chat.example.org.evil.example", "null", "http://chat.example.org"]
    {
        let answer = preflight(&site, origin, "/v1/messages").await;
        assert!(!answer.headers.contains_key("access-control-allow-origin"), "{origin}: {answer:?}");
    }
    let answered = site.metric("http_requests_total", &["route=\"chat\"", "status=\"2xx\""]).await;
    assert_eq!(answered, 2.0, "preflights are counted");
    let turn = site.post().bearer_auth(&key).header("origin", PAGE).json(&message("hello"));
    let answer = Answer::of(turn).await;
    assert_eq!(answer.header("access-control-allow-origin"), PAGE);
    let vary: String = answer.headers.get_all("vary").iter().map(|it| it.to_str().unwrap()).collect();
    assert!(vary.to_lowercase().contains("origin"), "{answer:?}");
    let exposed = answer.header("access-control-expose-headers");
    for name in [
        "x-pilotlight-session",
        "x-pilotlight-ignored",
        "x-request-id",
        "request-id",
        "retry-after",
        "retry-after-ms",
        "anthropic-ratelimit-requests-limit",
        "anthropic-ratelimit-requests-remaining",
        "anthropic-ratelimit-requests-reset",
        "x-ratelimit-limit-requests",
        "x-ratelimit-remaining-requests",
        "x-ratelimit-reset-requests",
    ] {
        assert!(exposed.contains(name), "{name} in {exposed}");
    }
    assert_eq!(answer.text(), "echo 1: hello");
    // A refusal can be read by the page as well; nothing but the preflight is answered without a key.
    let refused = Answer::of(site.post().header("origin", PAGE).json(&message("hello"))).await;
    assert_eq!((refused.status, refused.header("access-control-allow-origin")), (401, PAGE));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_configured_origins_no_page_may_call() {
    let place = place();
    let ring = Keyring::new(&place);
    ring.user("alice");
    let (_program, site) = Program::ready(&place, &ring.config()).await;
    let answer = preflight(&site, PAGE, "/v1/messages").await;
    assert_eq!(answer.status, 401);
    assert_eq!(header(&answer.headers, "access-control-allow-origin"), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_without_headers_is_the_default_user() {
    let place = place();
    let (program, site) = Program::ready(&place, "").await;
    let mut body = message("hello");
    (body["model"], body["max_tokens"]) = ("sonnet".into(), 9.into());
    body["input"] = body["messages"].clone();
    let ask = async |site: &Site, path: &str| {
        Answer::of(site.web().post(format!("{}{path}", site.http)).json(&body)).await
    };
    for path in ["/v1/messages/keepalive", "/v1/messages", "/v1/chat/completions", "/v1/responses"] {
        let refused = ask(&site, path).await;
        let error = &refused.json()["error"];
        assert_eq!((refused.status, &error["code"]), (400, &"missing_user".into()), "{path}");
        assert!(error["message"].as_str().unwrap().contains("http.default_user"), "{error}");
    }
    drop(program);
    let (_program, site) =
        Program::ready(&place, "[http]\ndefault_user = \"me\"\nrequests_per_minute = 7\n").await;
    for path in ["/v1/messages/keepalive", "/v1/messages", "/v1/chat/completions", "/v1/responses"] {
        assert_eq!(ask(&site, path).await.status, 200, "{path}");
    }
    assert_eq!(site.turn("me", "again").await.text(), "echo 2: again", "it is the same user");
    assert_eq!(site.turn("bob", "not me").await.text(), "echo 1: not me", "a header goes before it");
    let session = site.web().get(format!("{}/v1/sessions/default", site.http));
    assert_eq!(Answer::of(session).await.json()["turns"], 2);
    assert_eq!(ask(&site, "/v1/messages/keepalive").await.status, 200);
    assert_eq!(ask(&site, "/v1/messages/keepalive").await.error().1, "too_many_requests", "it is counted");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_is_localhost_or_a_port_alone() {
    for (listen, admin) in [("localhost:0", "0"), ("0", "localhost:0")] {
        let place = place();
        let data = place.data_dir().display().to_string();
        let arguments =
            ["serve", "--cli", "sim", "--data-dir", &data, "--listen", listen, "--admin-listen", admin];
        let mut program = Program::start(&place, &arguments, &[]);
        let site = program.listening().await;
        assert_eq!(site.get("/livez").await.status, 200, "{listen}");
        assert_eq!(site.get_admin("/livez").await.status, 200, "{admin}");
    }
}
