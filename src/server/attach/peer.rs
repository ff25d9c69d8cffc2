//! Who is at the other end of the socket: never a child of this server, whatever its isolation lets it reach.
//!
//! The mode of the socket keeps other users out. A child may run as the same user, and Landlock filters no socket with a
//! path: so each peer's ancestors are looked at. The shim is the subreaper of its tree; what leaves its parent stays below.

use std::io;
use std::os::unix::net::SocketAddr;

use tokio::net::UnixStream;

/// Longest line of ancestors that is followed.
const MAX_ANCESTORS: usize = 256;

/// Why a peer is refused; `None`: it may speak.
pub(super) fn refusal(stream: &UnixStream) -> Option<&'static str> {
    let Ok(peer) = stream.peer_cred() else { return Some("the system does not say who asks") };
    let own = rustix::process::geteuid().as_raw();
    if peer.uid() != own && peer.uid() != 0 {
        return Some("only the server's own user may attach");
    }
    // Without a pid it is in none of the process namespaces below this one, where children are.
    let pid = peer.pid().filter(|pid| *pid > 0)?;
    let server = std::process::id().cast_signed();
    match descends(pid, server, parent_of) {
        Ok(false) => None,
        Ok(true) => Some("children of the server may not attach"),
        Err(_) => Some("the system does not say who asks"),
    }
}

/// Whether `pid` is below `server`.
fn descends(mut pid: i32, server: i32, parent_of: impl Fn(i32) -> io::Result<i32>) -> io::Result<bool> {
    if pid == server {
        return Ok(false);
    }
    for _ in 0..MAX_ANCESTORS {
        pid = parent_of(pid)?;
        if pid == server {
            return Ok(true);
        }
        if pid <= 1 {
            return Ok(false);
        }
    }
    Err(io::Error::other("too many ancestors"))
}

fn parent_of(pid: i32) -> io::Result<i32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in parentheses may hold anything.
    let (_, rest) = status.rsplit_once(')').ok_or(io::ErrorKind::InvalidData)?;
    let parent = rest.split_whitespace().nth(1).and_then(|parent| parent.parse().ok());
    parent.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Whether a socket of this address answers: another server's.
pub(super) fn is_in_use(address: &SocketAddr) -> bool {
    std::os::unix::net::UnixStream::connect_addr(address).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_descendants_are_children() {
        let parents = |pid: i32| match pid {
            9 => Ok(8),
            8 => Ok(5),
            5 => Ok(1),
            7 => Ok(0),
            _ => Err(io::Error::from(io::ErrorKind::NotFound)),
        };
        let found = |pid, server| descends(pid, server, parents).ok();
        assert_eq!(found(9, 5), Some(true));
        assert_eq!(found(9, 6), Some(false));
        assert_eq!(found(7, 5), Some(false), "from outside of the container");
        assert_eq!(found(5, 5), Some(false), "the server itself, as a library");
        assert_eq!(found(4, 5), None);
        assert_eq!(
            parent_of(std::process::id().cast_signed()).unwrap(),
            std::os::unix::process::parent_id().cast_signed()
        );
    }
}
