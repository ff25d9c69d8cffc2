//! The running server as a client sees it: address, key, requests, errors in words.

use std::io::Read as _;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use reqwest::{Method, RequestBuilder, Response};
use serde_json::Value;

use crate::args::Options;

/// Everything but a warming CLI answers at once.
const TIMEOUT: Duration = Duration::from_secs(120);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest file of a key.
const MAX_KEY: u64 = 4096;

/// A problem in words, for the operator.
pub(crate) type Problem = String;

/// Which server is asked, and how the answer is printed.
#[derive(Args, Debug, Clone)]
pub(crate) struct ServerOptions {
    /// Configuration file of the server (TOML), for its address
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Address of the server, such as http://127.0.0.1:8480; by default that of the configuration
    #[arg(long, value_name = "URL")]
    pub(crate) server: Option<String>,
    /// File with an admin key, for a server with keys
    #[arg(long, value_name = "FILE")]
    pub(crate) admin_key: Option<PathBuf>,
    /// Print JSON for programs
    #[arg(long)]
    pub(crate) json: bool,
}

pub(crate) struct Server {
    client: reqwest::Client,
    base: String,
    key: Option<String>,
}

impl Server {
    pub(crate) fn of(options: &ServerOptions) -> Result<Self, Problem> {
        let base = match &options.server {
            Some(address) => address.trim_end_matches('/').to_owned(),
            None => {
                let found = Options { config: options.config.clone(), ..Options::default() };
                let config = found.configuration().map_err(|error| error.to_string())?;
                format!(
                    "http://{}",
                    reachable(config.http.listen, "http.listen")
                        .map_err(|problem| format!("{problem}, or name the server with --server"))?
                )
            }
        };
        let key = options.admin_key.as_deref().map(read_key).transpose()?;
        if key.is_some() && !is_local(&base)? {
            let problem = "an admin key is sent to this machine only, because this program speaks no TLS: run this command \
                           on the host of the server, or through a tunnel";
            return Err(problem.to_owned());
        }
        let client = reqwest::Client::builder().no_proxy().connect_timeout(CONNECT_TIMEOUT).build();
        let client = client.map_err(|error| error.to_string())?;
        Ok(Self { client, base, key })
    }

    pub(crate) async fn get(&self, path: &str, fields: &[(&str, &str)]) -> Result<Value, Problem> {
        self.ask(Method::GET, path, fields).await
    }

    /// What the server says of itself, also if it is not ready.
    pub(crate) async fn health(&self) -> Result<Value, Problem> {
        let response = self.sent(self.request(Method::GET, "/health", &[]).timeout(CONNECT_TIMEOUT)).await?;
        response.json().await.map_err(|error| self.no_answer(&error))
    }

    pub(crate) async fn post(&self, path: &str, fields: &[(&str, &str)]) -> Result<Value, Problem> {
        self.ask(Method::POST, path, fields).await
    }

    pub(crate) async fn delete(&self, path: &str, fields: &[(&str, &str)]) -> Result<Value, Problem> {
        self.ask(Method::DELETE, path, fields).await
    }

    /// A response that goes on without a limit in time.
    pub(crate) async fn stream(&self, path: &str, fields: &[(&str, &str)]) -> Result<Response, Problem> {
        let response = self.sent(self.request(Method::GET, path, fields)).await?;
        match response.status().is_success() {
            true => Ok(response),
            false => Err(refusal(response).await),
        }
    }

    async fn ask(&self, method: Method, path: &str, fields: &[(&str, &str)]) -> Result<Value, Problem> {
        let response = self.sent(self.request(method, path, fields).timeout(TIMEOUT)).await?;
        if !response.status().is_success() {
            return Err(refusal(response).await);
        }
        response.json().await.map_err(|error| self.no_answer(&error))
    }

    fn request(&self, method: Method, path: &str, fields: &[(&str, &str)]) -> RequestBuilder {
        let fields: Vec<_> = fields.iter().map(|(name, value)| format!("{name}={}", encode(value))).collect();
        let separator = if fields.is_empty() { "" } else { "?" };
        let request =
            self.client.request(method, format!("{}{path}{separator}{}", self.base, fields.join("&")));
        match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    async fn sent(&self, request: RequestBuilder) -> Result<Response, Problem> {
        request.send().await.map_err(|error| self.no_answer(&error))
    }

    /// The address of a request has the user, and stays out of the message.
    fn no_answer(&self, error: &reqwest::Error) -> Problem {
        let base = &self.base;
        if error.is_connect() {
            return format!(
                "no server answers at {base}: start it (pilotlight serve), or name it with --server"
            );
        }
        let why =
            if error.is_timeout() { "it did not answer in time" } else { "its answer is none of pilotlight" };
        format!("the server at {base}: {why}")
    }
}

/// A refusal in the server's words, and what to do where it is about the key.
async fn refusal(response: Response) -> Problem {
    let status = response.status();
    let body: Value = response.json().await.unwrap_or_default();
    let message = body["error"]["message"].as_str().or(body["message"].as_str());
    let message = message.map_or_else(|| format!("status {status}"), super::show::plain);
    match status.as_u16() {
        401 => format!(
            "{message}; --admin-key FILE names the file of an admin key (pilotlight keys new --admin)"
        ),
        404 => format!("{message}; `pilotlight sessions` lists them"),
        403 => format!("{message}; this needs a key of the role admin"),
        _ => message,
    }
}

/// Key of an admin, in a file that others cannot read.
pub(crate) fn read_key(file: &Path) -> Result<String, Problem> {
    let failed = |error: std::io::Error| format!("{}: {error}", file.display());
    let opened = std::fs::File::open(file).map_err(failed)?;
    if opened.metadata().map_err(failed)?.permissions().mode() & 0o007 != 0 {
        return Err(format!("{}: others can read or change this file; chmod 600 it", file.display()));
    }
    let mut key = String::new();
    opened.take(MAX_KEY).read_to_string(&mut key).map_err(failed)?;
    Ok(key.trim().to_owned())
}

/// Percent-encodes everything but letters, digits, `-` and `_`.
pub(crate) fn encode(text: impl AsRef<[u8]>) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    let encoded = |byte: u8| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    text.as_ref().iter().copied().map(encoded).collect()
}

/// The address under which this machine reaches a listener.
pub(crate) fn reachable(mut address: SocketAddr, key: &str) -> Result<SocketAddr, Problem> {
    if address.port() == 0 {
        return Err(format!("{key} has port 0, so that the address is not known here; configure a port"));
    }
    if address.ip().is_unspecified() {
        let is_v4 = address.is_ipv4();
        address.set_ip(if is_v4 { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() });
    }
    Ok(address)
}

fn is_local(base: &str) -> Result<bool, Problem> {
    let url = reqwest::Url::parse(base).map_err(|error| format!("--server: {error}"))?;
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    Ok(host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_encoded_whole() {
        assert_eq!(encode("a-b_1"), "a-b_1");
        assert_eq!(encode("../ä?&"), "%2E%2E%2F%C3%A4%3F%26");
    }

    #[test]
    fn listener_of_all_addresses_is_reached_on_loopback() {
        let reached = |address: &str| {
            reachable(address.parse().unwrap(), "http.listen").map(|address| address.to_string())
        };
        assert_eq!(reached("0.0.0.0:8480").unwrap(), "127.0.0.1:8480");
        assert_eq!(reached("[::]:8480").unwrap(), "[::1]:8480");
        assert_eq!(reached("10.1.2.3:80").unwrap(), "10.1.2.3:80");
        assert!(reached("127.0.0.1:0").unwrap_err().contains("http.listen"));
    }

    #[test]
    fn key_stays_on_this_machine() {
        for (base, expected) in [
            ("http://127.0.0.1:8480", true),
            ("http://localhost:1", true),
            ("http://[::1]:8480", true),
            ("http://10.0.0.1:8480", false),
            ("http://127.0.0.1.example.com", false),
        ] {
            assert_eq!(is_local(base), Ok(expected), "{base}");
        }
        assert!(is_local("nonsense").is_err());
    }
}
