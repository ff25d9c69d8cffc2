//! What `pilotlight attach` and the server say to each other over the socket.
//!
//! The client sends one [`Hello`] as a line of JSON, then the lines of its own client, and [`END`] when there are no more.
//! The server sends lines, each with the kind of its content as the first byte; an exit code is the last one.

use serde::{Deserialize, Serialize};

/// Line after the client's last one.
pub const END: &[u8] = b"\x04\n";

/// Kind of a line for the client's standard output.
pub const OUTPUT: u8 = b'o';
/// Kind of a line for the client's standard error.
pub const NOTE: u8 = b'e';
/// Kind of the last line: the exit code in decimal digits.
pub const EXIT: u8 = b'x';

/// First line of a client: who it is and what it was started with.
#[derive(Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Hello {
    /// The user; a key of a user needs none.
    pub user: Option<String>,
    /// The conversation; `None`: the default one.
    pub session: Option<String>,
    /// The key, where the server has keys.
    pub key: Option<String>,
    /// The words of the command line.
    pub arguments: Vec<String>,
}

impl std::fmt::Debug for Hello {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Holds a key and prompts.
        f.write_str("Hello")
    }
}
