//! The interface in OpenAPI, kept by hand in `openapi.json`, and the list of endpoints that follows from it.
//!
//! By hand and not derived from types: the bodies are read by parsers that accept several shapes and pass much of them on
//! unparsed, so derived schemas would say either less than is true or more. What keeps the file honest are tests: each
//! route is in it and each path of it is routed; each example of a request is answered by the running service; each
//! answer of the service fits its schema. Knows no handler.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use serde::{Deserialize, Serialize};

/// The file, with a word where the version belongs.
const FILE: &str = include_str!("openapi.json");
const VERSION_IN_FILE: &str = "\"version\": \"VERSION\"";

/// The file with its version: text, so that its order stays.
static DOCUMENT: LazyLock<String> = LazyLock::new(|| {
    let version = concat!("\"version\": \"", env!("CARGO_PKG_VERSION"), "\"");
    FILE.replacen(VERSION_IN_FILE, version, 1)
});

/// What can be asked for, by path.
// A file that is not what this reads would give none; a test reads it.
static ENDPOINTS: LazyLock<Vec<Endpoint>> = LazyLock::new(|| read(FILE).unwrap_or_default());

/// One method of one path.
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

/// Everything that the service answers to its callers.
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

    // In two pieces, not to be found itself.
    const CALL: &str = concat!(".rou", "te(\"");
    const METHODS: [&str; 5] = ["get", "post", "put", "patch", "delete"];
    /// Routes of the operator's listener alone: the document is for callers.
    const OPERATOR: [(&str, &str); 1] = [("GET", "/metrics")];
    fn set(routes: &[(&str, &str)]) -> Routes {
        routes.iter().map(|(method, path)| ((*method).to_owned(), (*path).to_owned())).collect()
    }

    /// The routes as they stand in the sources: axum tells nobody which it has.
    fn routed() -> Routes {
        let mut sources = String::new();
        read_all(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/server"), &mut sources);
        let routes = sources.split(CALL).skip(1).flat_map(|rest| {
            let (path, rest) = rest.split_once('"').unwrap();
            let methods = called(arguments(rest));
            let methods: Vec<_> = methods.filter(|name| METHODS.contains(name)).collect();
            assert!(!methods.is_empty(), "no method is seen for {path}");
            methods.into_iter().map(|method| (method.to_ascii_uppercase(), path.to_owned()))
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

    /// Everything up to the bracket that closes the call.
    fn arguments(rest: &str) -> &str {
        let mut depth = 0;
        let end = rest.find(|letter| {
            depth += i32::from(letter == '(') - i32::from(letter == ')');
            depth < 0
        });
        rest.get(..end.unwrap()).unwrap()
    }

    /// The names right before an opening bracket.
    fn called(code: &str) -> impl Iterator<Item = &str> {
        code.match_indices('(')
            .filter_map(|(at, _)| code.get(..at)?.rsplit(|c: char| !c.is_alphabetic()).next())
    }

    fn described() -> Routes {
        let all = read(FILE).unwrap();
        all.into_iter().map(|endpoint| (endpoint.method, endpoint.path)).collect()
    }

    #[test]
    fn every_route_is_described_and_every_description_is_routed() {
        let described = described();
        let routed: Routes = routed().difference(&set(&OPERATOR)).cloned().collect();
        let undescribed: Vec<_> = routed.difference(&described).collect();
        assert!(undescribed.is_empty(), "openapi.json lacks {undescribed:?}");
        let promised: Vec<_> = described.difference(&routed).collect();
        assert!(promised.is_empty(), "openapi.json has what is not routed: {promised:?}");
    }

    #[test]
    fn the_version_is_ours() {
        assert!(FILE.contains(VERSION_IN_FILE));
        let served: serde_json::Value = serde_json::from_str(&DOCUMENT).unwrap();
        assert_eq!(served["info"]["version"], env!("CARGO_PKG_VERSION"));
    }
}
