//! The live page: `GET /` for browsers and its files. Programs get the service document.
//!
//! The files in `page/` are embedded in the binary and served unchanged; nothing is built or loaded from other hosts.
//! Texts of users and children reach the page through templates that know no HTML (`page/ui.js`), or as `textContent`.
//! They hold no data: the page calls the same API with the user's key. It may run only its own scripts and reach only
//! this service.

use axum::extract::Path;
use axum::http::header::{
    ACCEPT, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, VARY,
    X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, Method, Uri};
use axum::response::{IntoResponse, Response};

use super::api::error::ApiError;
use super::api::health;

const FOLDER: &str = "/page/";
const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const JAVASCRIPT: &str = "text/javascript; charset=utf-8";

const INDEX: &str = include_str!("page/index.html");

const FILES: [(&str, &str, &str); 22] = [
    ("answers.js", JAVASCRIPT, include_str!("page/answers.js")),
    ("app.js", JAVASCRIPT, include_str!("page/app.js")),
    ("attention.js", JAVASCRIPT, include_str!("page/attention.js")),
    ("charts.js", JAVASCRIPT, include_str!("page/charts.js")),
    ("conversation.js", JAVASCRIPT, include_str!("page/conversation.js")),
    ("events.js", JAVASCRIPT, include_str!("page/events.js")),
    ("load.js", JAVASCRIPT, include_str!("page/load.js")),
    ("message.js", JAVASCRIPT, include_str!("page/message.js")),
    ("nodes.js", JAVASCRIPT, include_str!("page/nodes.js")),
    ("now.js", JAVASCRIPT, include_str!("page/now.js")),
    ("overview.js", JAVASCRIPT, include_str!("page/overview.js")),
    ("routes.js", JAVASCRIPT, include_str!("page/routes.js")),
    ("service.js", JAVASCRIPT, include_str!("page/service.js")),
    ("session.js", JAVASCRIPT, include_str!("page/session.js")),
    ("sessions.js", JAVASCRIPT, include_str!("page/sessions.js")),
    ("store.js", JAVASCRIPT, include_str!("page/store.js")),
    ("text.js", JAVASCRIPT, include_str!("page/text.js")),
    ("turns.js", JAVASCRIPT, include_str!("page/turns.js")),
    ("ui.js", JAVASCRIPT, include_str!("page/ui.js")),
    ("verbs.js", JAVASCRIPT, include_str!("page/verbs.js")),
    ("style.css", CSS, include_str!("page/style.css")),
    ("icon.svg", "image/svg+xml", include_str!("page/icon.svg")),
];

/// Libraries of others, as they were released: `page/vendor/README.md` names their versions, licences and checksums.
const LIBRARIES: [(&str, &str, &str); 4] = [
    ("preact.mjs", JAVASCRIPT, include_str!("page/vendor/preact.mjs")),
    ("htm.mjs", JAVASCRIPT, include_str!("page/vendor/htm.mjs")),
    ("uPlot.iife.min.js", JAVASCRIPT, include_str!("page/vendor/uPlot.iife.min.js")),
    ("uPlot.min.css", CSS, include_str!("page/vendor/uPlot.min.css")),
];

/// Content security policy: only this service, no scripts from text (trusted types), no framing.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
                      require-trusted-types-for 'script'; trusted-types 'none'";

pub(super) fn has(path: &str) -> bool {
    path.strip_prefix(FOLDER).is_some_and(|name| find(name).is_some())
}

/// `GET /`.
pub(super) async fn root(headers: HeaderMap) -> Response {
    let mut response =
        if wants_html(&headers) { serve(HTML, INDEX) } else { health::document().await.into_response() };
    response.headers_mut().insert(VARY, ACCEPT.into());
    response
}

/// `GET /page/{file}`.
pub(super) async fn file(method: Method, uri: Uri, Path(name): Path<String>) -> Result<Response, ApiError> {
    let (_, kind, content) = find(&name).ok_or_else(|| ApiError::no_such_path(&method, &uri))?;
    Ok(serve(kind, content))
}

fn find(name: &str) -> Option<&'static (&'static str, &'static str, &'static str)> {
    FILES.iter().chain(&LIBRARIES).find(|(file, ..)| *file == name)
}

fn serve(kind: &'static str, content: &'static str) -> Response {
    let headers = [
        (CONTENT_TYPE, kind),
        // Files differ between versions.
        (CACHE_CONTROL, "no-cache"),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
    ];
    (headers, content).into_response()
}

/// Browsers accept HTML by name; programs accept JSON, anything, or nothing.
fn wants_html(headers: &HeaderMap) -> bool {
    let accepted = || headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let weight = |wanted: &str| {
        let of = |kind: &str| {
            let mut parts = kind.split(';').map(str::trim);
            let is_it = parts.next().is_some_and(|name| name.eq_ignore_ascii_case(wanted));
            let weight = parts.find_map(|part| part.strip_prefix("q=")).map_or(Some(1.0), |q| q.parse().ok());
            is_it.then(|| weight.unwrap_or(0.0))
        };
        accepted().flat_map(|value| value.split(',')).filter_map(of).fold(0.0_f32, f32::max)
    };
    let html = weight("text/html");
    html > 0.0 && html >= weight("application/json")
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use sha2::{Digest, Sha256};

    use super::*;
    use crate::support::hex;

    #[test]
    fn browsers_get_page_and_programs_document() {
        let wants = |accept: &'static str| {
            wants_html(&[(ACCEPT, HeaderValue::from_static(accept))].into_iter().collect())
        };
        for browser in [
            "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8",
            "text/html",
            "TEXT/HTML; charset=utf-8",
            "application/json;q=0.5, text/html",
        ] {
            assert!(wants(browser), "{browser}");
        }
        for program in
            ["*/*", "application/json", "", "text/*", "application/json, text/html;q=0.9", "text/html;q=0"]
        {
            assert!(!wants(program), "{program}");
        }
        assert!(!wants_html(&HeaderMap::new()));
    }

    /// Templates escape; these would not.
    #[test]
    fn own_files_write_no_html() {
        for (name, _, content) in FILES {
            for forbidden in
                ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "dangerouslySet", "eval("]
            {
                assert!(!content.contains(forbidden), "{name}: {forbidden}");
            }
        }
    }

    #[test]
    fn libraries_are_as_released() {
        let readme = include_str!("page/vendor/README.md");
        for (name, _, content) in LIBRARIES {
            let sum = hex::encode(&Sha256::digest(content));
            assert!(readme.contains(&format!("| `{name}` |")) && readme.contains(&sum), "{name}: {sum}");
        }
    }

    #[test]
    fn page_names_only_own_existing_files() {
        let all = FILES.iter().map(|(_, _, content)| *content).chain([INDEX]);
        for content in all {
            let hosts =
                content.match_indices("://").map(|(at, _)| content.get(at..at + 20).unwrap_or_default());
            let hosts: Vec<_> = hosts.filter(|host| !host.starts_with("://www.w3.org/2000")).collect();
            assert!(hosts.is_empty(), "{hosts:?}");
            for name in content.split("/page/").skip(1).filter_map(|rest| rest.split(['"', '\'']).next()) {
                assert!(has(&format!("{FOLDER}{name}")), "{name}");
            }
        }
        assert!(!has("/page/") && !has("/page/../auth.rs") && !has("/pagestyle.css"));
    }
}
