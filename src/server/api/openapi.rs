//! The OpenAPI document, written by hand in `openapi.json`, and the endpoints listed in it.
//!
//! Not derived from types: the parsers accept several shapes and pass much through unparsed, so derived schemas would
//! be too narrow or too wide. Tests keep the file correct: every route is in it and every path is routed; the running
//! service accepts each example; each response fits its schema.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use serde::{Deserialize, Serialize};

/// The file with a placeholder for the version.
const FILE: &str = include_str!("openapi.json");
const VERSION_IN_FILE: &str = "\"version\": \"VERSION\"";

/// The file with its version, as text, so that the order of keys stays.
static DOCUMENT: LazyLock<String> = LazyLock::new(|| {
    let version = concat!("\"version\": \"", env!("CARGO_PKG_VERSION"), "\"");
    FILE.replacen(VERSION_IN_FILE, version, 1)
});

// An invalid file would give none; a test parses it.
static ENDPOINTS: LazyLock<Vec<Endpoint>> = LazyLock::new(|| read(FILE).unwrap_or_default());

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Endpoint {
    method: String,
    path: String,
    description: String,
}

#[derive(Deserialize)]
struct Document {
    paths: BTreeMap<String, BTreeMap<String, Operation>>,
}

#[derive(Deserialize)]
struct Operation {
    summary: String,
}

/// `GET /openapi.json`.
pub(crate) async fn serve() -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/json")], DOCUMENT.as_str())
}

pub(crate) fn endpoints() -> &'static [Endpoint] {
    &ENDPOINTS
}

fn read(file: &str) -> Result<Vec<Endpoint>, serde_json::Error> {
    let document: Document = serde_json::from_str(file)?;
    let operations = document.paths.into_iter().flat_map(|(path, methods)| {
        methods.into_iter().map(move |(method, operation)| Endpoint {
            method: method.to_ascii_uppercase(),
            path: path.clone(),
            description: operation.summary,
        })
    });
    Ok(operations.collect())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    type Routes = BTreeSet<(String, String)>;

    // Split, so that the search does not find itself.
    const CALL: &str = concat!(".rou", "te(\"");
    const METHODS: [&str; 5] = ["get", "post", "put", "patch", "delete"];
    /// Routes of the admin listener, which the document omits.
    const OPERATOR: [(&str, &str); 3] =
        [("GET", "/metrics"), ("DELETE", "/v1/users"), ("DELETE", "/v1/users/{id}")];
    fn set(routes: &[(&str, &str)]) -> Routes {
        routes.iter().map(|(method, path)| ((*method).to_owned(), (*path).to_owned())).collect()
    }

    /// Routes found in the sources, because axum does not list them.
    fn routed() -> Routes {
        let mut sources = String::new();
        read_all(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/server"), &mut sources);
        let routes = sources.split(CALL).skip(1).flat_map(|rest| {
            let (path, rest) = rest.split_once('"').unwrap();
            let methods = called(arguments(rest));
            let methods: Vec<_> = methods.filter(|name| METHODS.contains(name)).collect();
            assert!(!methods.is_empty(), "no method is seen for {path}");
            methods.into_iter().map(|method| (method.to_ascii_uppercase(), path.replace("{*", "{")))
        });
        routes.collect()
    }

    fn read_all(directory: &Path, sources: &mut String) {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                read_all(&path, sources);
            } else if path.extension().is_some_and(|kind| kind == "rs") {
                sources.push_str(&std::fs::read_to_string(path).unwrap());
            }
        }
    }

    /// The text up to the closing parenthesis.
    fn arguments(rest: &str) -> &str {
        let mut depth = 0;
        let end = rest.find(|letter| {
            depth += i32::from(letter == '(') - i32::from(letter == ')');
            depth < 0
        });
        rest.get(..end.unwrap()).unwrap()
    }

    /// Names of called functions.
    fn called(code: &str) -> impl Iterator<Item = &str> {
        code.match_indices('(')
            .filter_map(|(at, _)| code.get(..at)?.rsplit(|c: char| !c.is_alphabetic()).next())
    }

    fn described() -> Routes {
        let all = read(FILE).unwrap();
        all.into_iter().map(|endpoint| (endpoint.method, endpoint.path)).collect()
    }

    #[test]
    fn routes_and_descriptions_match() {
        let described = described();
        let routed: Routes = routed().difference(&set(&OPERATOR)).cloned().collect();
        let undescribed: Vec<_> = routed.difference(&described).collect();
        assert!(undescribed.is_empty(), "openapi.json lacks {undescribed:?}");
        let promised: Vec<_> = described.difference(&routed).collect();
        assert!(promised.is_empty(), "openapi.json has what is not routed: {promised:?}");
    }

    #[test]
    fn version_is_the_crates() {
        assert!(FILE.contains(VERSION_IN_FILE));
        let served: serde_json::Value = serde_json::from_str(&DOCUMENT).unwrap();
        assert_eq!(served["info"]["version"], env!("CARGO_PKG_VERSION"));
    }
}
