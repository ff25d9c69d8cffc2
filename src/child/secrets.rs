//! What a child was given and must not be repeated by anything that it writes.
//!
//! A program that fails likes to tell what it was called with. Its standard error is shown to callers and operators, so
//! the values that it got as secrets are blacked out there. Pure.

use std::fmt;
use std::sync::Arc;

use serde_json::{Map, Value};

/// In the names of variables that hold secrets. Others (a region, a base URL) are what one needs to find a fault.
const SECRET_NAMES: [&str; 7] = ["KEY", "TOKEN", "SECRET", "PASSW", "CREDENTIAL", "AUTH", "HEADERS"];
/// Shorter values are words such as `true`, which would be blacked out everywhere.
const SHORTEST: usize = 6;
/// What stands in their place.
const BLACK: &str = "[redacted]";

/// Values that are not shown. Prints redacted.
#[derive(Clone, Default)]
pub(crate) struct Secrets(Arc<Vec<String>>);

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secrets({})", self.0.len())
    }
}

impl Secrets {
    /// Of variables and of a session's MCP servers, whose variables and headers are all taken for secrets.
    pub(crate) fn of<'a>(
        variables: impl Iterator<Item = (&'a String, &'a String)>,
        servers: &Map<String, Value>,
    ) -> Self {
        let is_secret = |name: &str| {
            let name = name.to_ascii_uppercase();
            SECRET_NAMES.iter().any(|part| name.contains(part))
        };
        let of_variables = variables.filter(|(name, _)| is_secret(name)).map(|(_, value)| value.clone());
        let tables = servers.values().flat_map(|server| [server.get("env"), server.get("headers")]).flatten();
        let of_servers = tables.filter_map(Value::as_object).flat_map(|table| table.values());
        // A header may be told without the name of its scheme.
        let of_servers = of_servers.filter_map(Value::as_str);
        let of_servers = of_servers.flat_map(|value| [Some(value), value.strip_prefix("Bearer ")]).flatten();
        let of_servers = of_servers.map(str::to_owned);
        let mut values: Vec<String> =
            of_variables.chain(of_servers).filter(|value| value.len() >= SHORTEST).collect();
        // The longer ones first: one may be the beginning of another.
        values.sort_by_key(|value| std::cmp::Reverse(value.len()));
        Self(Arc::new(values))
    }

    /// The text without them.
    pub(super) fn black_out(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, secret| text.replace(secret.as_str(), BLACK))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_given_as_a_secret_is_blacked_out() {
        let variables = [
            ("AWS_SECRET_ACCESS_KEY", "s3cret+1"),
            ("my_api_token", "s3cret+1 and more"),
            ("AWS_REGION", "eu-west-1"),
            ("SHORT_KEY", "on"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
        let servers = serde_json::json!({"m": {"command": "serve", "env": {"A": "in the env"}},
            "n": {"url": "http://n", "headers": {"Authorization": "Bearer of it all"}}});
        let secrets =
            Secrets::of(variables.iter().map(|(name, value)| (name, value)), servers.as_object().unwrap());
        let text = secrets.black_out(
            "eu-west-1 on s3cret+1 s3cret+1 and more, in the env, Bearer of it all, of it all serve",
        );
        assert_eq!(text, "eu-west-1 on [redacted] [redacted], [redacted], [redacted], [redacted] serve");
        assert!(!format!("{secrets:?}").contains("s3cret"));
    }
}
