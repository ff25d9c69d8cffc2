//! A page of another origin in Chromium: with `http.cors_origins` it speaks with the service by `fetch` and by the
//! official SDKs, with its user's key. Pages of other origins get nothing, because the browser does not let them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Router;
use axum::extract::Path as InPath;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{Html, IntoResponse as _, Response};
use axum::routing::get;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::common::browser::Browser;
use crate::common::keyring::Keyring;
use crate::common::place::Place;
use crate::common::program::{Program, Site, place};
use crate::node::node_modules;

const SCRIPT: &str = include_str!("page.mjs");

/// Where the modules are that the SDKs import by name. The library for webhooks is no module of browsers.
const PAGE: &str = r#"<!doctype html><meta charset="utf-8"><title>a page of another origin</title>
<link rel="icon" href="data:,"><script type="importmap">{"imports":{
"@opentelemetry/api":"/modules/@opentelemetry/api/dist/index.mjs",
"standardwebhooks":"data:text/javascript,export class Webhook {}"}}</script>"#;

fn javascript(text: impl Into<String>) -> Response {
    ([(CONTENT_TYPE, "text/javascript")], text.into()).into_response()
}

/// A file of a package; its variant for browsers, if it has one.
fn module(modules: &Path, path: &str) -> Response {
    let variant = path.strip_suffix(".mjs").map(|name| modules.join(format!("{name}.browser.mjs")));
    let file = variant.filter(|file| file.is_file()).unwrap_or_else(|| modules.join(path));
    std::fs::read_to_string(file).map_or_else(|_| StatusCode::NOT_FOUND.into_response(), javascript)
}

/// Serves the page until the test ends: its origin.
#[allow(clippy::disallowed_methods, reason = "it ends with the runtime of the test")]
async fn page(modules: &Path) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = format!("http://{}", listener.local_addr().unwrap());
    let modules: Arc<PathBuf> = Arc::new(modules.to_owned());
    let router = Router::new()
        .route("/", get(async || Html(PAGE)))
        .route("/page.mjs", get(async || javascript(SCRIPT)))
        .route("/modules/{*path}", get(async move |InPath(path): InPath<String>| module(&modules, &path)));
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    origin
}

/// A service that allows one origin, a browser, that origin and another one, and the key of a user.
struct Scene {
    browser: Browser,
    allowed: String,
    other: String,
    key: String,
    site: Site,
    _program: Program,
    _place: Arc<Place>,
}

impl Scene {
    /// None where the packages or the browser are missing.
    async fn new() -> Option<Self> {
        let modules = node_modules()?;
        let place = place();
        let browser = Browser::start(&place).await?;
        let (allowed, other) = (page(&modules).await, page(&modules).await);
        let ring = Keyring::new(&place);
        let key = ring.user("alice");
        let config =
            format!("{}[http]\ncors_origins = [{allowed:?}]\nrequests_per_minute = 60\n", ring.config());
        let (program, site) = Program::ready(&place, &config).await;
        Some(Self { browser, allowed, other, key, site, _program: program, _place: place })
    }

    /// What the page's module gives; it has the service's address and the key as `site`.
    async fn run(&mut self, expression: &str) -> Value {
        let site = json!({ "url": self.site.http, "key": self.key });
        let script = format!(
            "(async () => {{ const page = await import('/page.mjs'); const site = {site}; return {expression}; }})()"
        );
        self.browser.eval(&script).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn page_of_an_allowed_origin_is_a_client() {
    let Some(mut scene) = Scene::new().await else { return };
    let origin = scene.allowed.clone();
    scene.browser.open(&origin).await;
    assert_eq!(scene.run("await page.start(site)").await, json!({}));
}

#[tokio::test(flavor = "multi_thread")]
async fn browser_refuses_pages_of_other_origins() {
    let Some(mut scene) = Scene::new().await else { return };
    let origin = scene.other.clone();
    scene.browser.open(&origin).await;
    let attempt = "await page.post(site, {}).then((answer) => answer.type, (error) => error.name)";
    assert_eq!(scene.run(attempt).await, "TypeError");
    // Nor can it send what needs no preflight, and read the answer.
    let simple = "await fetch(`${site.url}/v1/models`).then((answer) => answer.type, (error) => error.name)";
    assert_eq!(scene.run(simple).await, "TypeError");
    let complaints = scene.browser.complaints().join("\n");
    assert!(complaints.contains("CORS") || complaints.contains("Access-Control"), "{complaints}");
    assert_eq!(scene.site.metric("turns_total", &[]).await, 0.0, "nothing was run");
}
