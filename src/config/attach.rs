//! Section `attach`: clients that speak the CLI's own protocol to a child of their session.

use std::path::PathBuf;
use std::time::Duration;

use super::validate::{bounded, invalid};
use super::{Config, ConfigError, value};

/// Longest path that the address of a Unix socket holds.
const MAX_PATH: usize = 107;
/// More connections than a host has children.
const MOST_CONNECTIONS: usize = 4096;

section! {
    /// Clients of `pilotlight attach`: each speaks the CLI's own protocol to a child of its session, over a Unix socket.
    #[derive(Debug)]
    pub struct Attach {
        /// Path of the socket, which only the server's user may open. Default: `attach.sock` in the data directory.
        pub socket: Option<PathBuf> = None,
        /// Maximum number of attached clients. Default 0: there is no socket.
        pub connections: usize = 0,
        /// Maximum time without a line of the client or its child before the child is stopped. Default 30 min.
        #[serde(with = "value::duration")]
        pub idle_timeout: Duration = Duration::from_secs(30 * 60),
    }
}

impl Config {
    /// Path of the socket of attached clients.
    #[must_use]
    pub fn attach_socket(&self) -> PathBuf {
        self.attach.socket.clone().unwrap_or_else(|| self.data_dir.join("attach.sock"))
    }
}

pub(super) fn validate(config: &Config) -> Result<(), ConfigError> {
    bounded("attach.connections", config.attach.connections, 0, MOST_CONNECTIONS)?;
    if config.attach.idle_timeout.is_zero() {
        return Err(invalid("attach.idle_timeout", "must be more than 0"));
    }
    let Some(socket) = &config.attach.socket else { return Ok(()) };
    if !socket.is_absolute() || socket.as_os_str().len() > MAX_PATH {
        let problem = format!("must be an absolute path of at most {MAX_PATH} bytes");
        return Err(invalid("attach.socket", problem));
    }
    if ["sessions", "records"].iter().any(|own| socket.starts_with(config.data_dir.join(own))) {
        return Err(invalid(
            "attach.socket",
            "must not lie among the files of sessions, where children write",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_lie_out_of_reach_of_children() {
        let checked = |socket: &str| {
            let mut config = Config::new("/data");
            config.attach.socket = Some(socket.into());
            config.validate()
        };
        checked("/run/pilotlight/attach.sock").unwrap();
        for socket in
            ["attach.sock", "/data/sessions/x/work/a", "/data/records/a", &format!("/{}", "a".repeat(107))]
        {
            assert!(checked(socket).unwrap_err().to_string().contains("attach.socket"), "{socket}");
        }
        assert_eq!(Config::new("/data").attach_socket(), PathBuf::from("/data/attach.sock"));
    }
}
