//! Addresses of listeners, in every form that a configuration may use.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};

use serde::de::Deserializer;
use toml::Value;

use crate::config::value;

/// Allowed forms of an address.
const ALLOWED: &str =
    "a socket address such as \"127.0.0.1:8480\" or \"[::1]:8480\", localhost:PORT, or a port alone";

/// Parses `ADDRESS:PORT`, `localhost:PORT` or `PORT`; the last two are loopback. Other host names are refused, because
/// their addresses are not under the control of this machine.
///
/// # Errors
/// A message that names the allowed forms.
pub fn listen_address(text: &str) -> Result<SocketAddr, String> {
    let wrong = || format!("must be {ALLOWED}");
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(address);
    }
    if let Ok(port) = text.parse::<u16>() {
        return Ok(of_this_machine(port));
    }
    match text.rsplit_once(':') {
        Some((name, port)) if name.eq_ignore_ascii_case("localhost") => {
            port.parse().map(localhost).map_err(|_| wrong())
        }
        _ => Err(wrong()),
    }
}

fn of_this_machine(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// Address of `localhost` on this machine, IPv4 first. Never an address that is not loopback.
fn localhost(port: u16) -> SocketAddr {
    let found = ("localhost", port).to_socket_addrs().into_iter().flatten();
    let own = found.filter(|address| address.ip().is_loopback());
    own.min_by_key(|address| matches!(address.ip(), IpAddr::V6(_))).unwrap_or_else(|| of_this_machine(port))
}

pub(in crate::config) fn deserialize<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<SocketAddr, D::Error> {
    value::read(deserializer, ALLOWED, |value| match value {
        Value::Integer(port) => u16::try_from(*port).ok().map(of_this_machine),
        Value::String(text) => listen_address(text).ok(),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_ports_localhost_are_parsed() {
        for (text, address) in [
            ("127.0.0.1:8480", "127.0.0.1:8480"),
            ("[::1]:0", "[::1]:0"),
            ("0.0.0.0:80", "0.0.0.0:80"),
            ("8480", "127.0.0.1:8480"),
            ("0", "127.0.0.1:0"),
        ] {
            assert_eq!(listen_address(text), Ok(address.parse().unwrap()), "{text}");
        }
        for text in ["localhost:8480", "LOCALHOST:8480"] {
            let address = listen_address(text).unwrap();
            assert!(address.ip().is_loopback() && address.port() == 8480, "{address}");
        }
    }

    #[test]
    fn other_text_is_refused_with_allowed_forms() {
        for text in [
            "",
            "here",
            ":8480",
            "localhost",
            "localhost:",
            "localhost:99999",
            "example.org:80",
            "70000",
            "-1",
            "127.0.0.1",
            "::1",
        ] {
            let refused = listen_address(text).unwrap_err();
            assert!(
                refused.contains("localhost:PORT") && refused.contains("127.0.0.1:8480"),
                "{text}: {refused}"
            );
        }
    }
}
