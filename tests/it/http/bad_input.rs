//! Whatever a client sends, the answer says what is wrong, and the child never sees it.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::common::program::{Answer, Program, message, place};

#[tokio::test(flavor = "multi_thread")]
async fn a_user_has_a_name_of_1_to_256_bytes() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let nobody = Answer::of(site.post().json(&message("a"))).await.error();
    assert_eq!((nobody.0, nobody.1.as_str()), (400, "missing_user"));
    for (name, code) in [(String::new(), "invalid_user"), ("u".repeat(257), "invalid_user")] {
        let error = Answer::of(site.asking(&name, &message("a"))).await.error();
        assert_eq!((error.0, error.1.as_str()), (400, code));
    }
    let twice = site.asking("a", &message("a")).header("x-pilotlight-user", "b");
    assert_eq!(Answer::of(twice).await.error().1, "invalid_user");

    let strange = reqwest::header::HeaderValue::from_bytes(b"../../\xff\xfe/etc").unwrap();
    let answer = Answer::of(site.post().header("x-pilotlight-user", strange).json(&message("a"))).await;
    assert_eq!(answer.text(), "echo 1: a");
    let mut outside: Vec<_> =
        std::fs::read_dir(place.path()).unwrap().map(|it| it.unwrap().file_name()).collect();
    outside.sort();
    assert_eq!(outside, ["data", "served.toml"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_methods_and_sizes_are_refused_with_a_type() {
    let place = place();
    let (_program, site) = Program::ready(&place, "[http]\nbody_limit = 65536").await;
    let error = site.get("/v1/nothing").await.error();
    assert_eq!((error.0, error.1.as_str()), (404, "not_found"));
    // What clients put before and behind a path is not seen otherwise; a secret behind it is not repeated.
    let wrong = site.of("POST", "/v1/v1/messages?key=s3cret", "alice");
    let (_, _, text) = Answer::of(wrong.json(&message("a"))).await.error();
    assert!(text.contains("POST /v1/v1/messages ") && text.contains("/openapi.json"), "{text}");
    assert!(!text.contains("s3cret"), "{text}");
    let of_the_page = site.get("/page/none.js").await.error();
    assert!(of_the_page.2.contains("GET /page/none.js"), "{}", of_the_page.2);
    let answer = site.get("/v1/messages/keepalive").await;
    assert_eq!(answer.header("allow"), "POST");
    assert_eq!((answer.error().0, answer.error().1.as_str()), (405, "method_not_allowed"));
    assert!(answer.error().2.contains("/v1/messages/keepalive does not answer GET"), "{answer:?}");
    assert_eq!(site.get("/metrics").await.error().0, 404, "the public listener has no metrics");
    let turn = site.web().post(format!("{}/v1/messages/keepalive", site.admin)).json(&message("a"));
    assert_eq!(Answer::of(turn).await.error().0, 404, "the admin listener takes no turns");

    for length in [70_000, 20_000_000] {
        let long = message(&"x".repeat(length));
        let answer = Answer::of(site.asking("alice", &long)).await;
        assert_eq!((answer.error().0, answer.error().1.as_str()), (413, "body_too_large"));
        assert_eq!(answer.header("connection"), "close");
    }
    let pieces = futures_util::stream::iter((0..70).map(|_| Ok::<_, std::io::Error>(vec![b' '; 1000])));
    let unannounced =
        site.post().header("x-pilotlight-user", "alice").body(reqwest::Body::wrap_stream(pieces));
    assert_eq!(Answer::of(unannounced).await.error().0, 413);

    let page = site.asking("alice", &message("a")).header("origin", "https://evil.example");
    let error = Answer::of(page).await.error();
    assert_eq!((error.0, error.1.as_str()), (403, "browser_refused"));
    assert_eq!(site.turn("alice", "still").await.text(), "echo 1: still");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_http_harms_nobody() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let address = site.http.strip_prefix("http://").unwrap();
    let headers: String = (0..100).map(|number| format!("h{number}: x\r\n")).collect();
    for bytes in [
        b"\x16\x03\x01\x00garbage\r\n\r\n".to_vec(),
        format!("GET / HTTP/1.1\r\nhost: x\r\n{headers}\r\n").into_bytes(),
        format!("GET / HTTP/1.1\r\nlong: {}\r\n\r\n", "x".repeat(400_000)).into_bytes(),
    ] {
        let mut connection = TcpStream::connect(address).await.unwrap();
        // The server may hang up before it has taken all.
        connection.write_all(&bytes).await.ok();
        let mut answer = Vec::new();
        connection.read_to_end(&mut answer).await.ok();
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    assert_eq!(site.get("/livez").await.status, 200);
}
