//! Ports for programs that cannot be asked for any free one.

use std::io::Read;
use std::net::{Ipv4Addr, TcpListener, TcpStream};

/// A port of loopback that nothing else is given for the next minute. A connection to it stays in TIME_WAIT, for which Linux
/// hands it to no socket that asks for any port; a listener that names it has it at once.
pub fn kept_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let address = listener.local_addr().expect("its address");
    let mut connection = TcpStream::connect(address).expect("a connection");
    // The end that closes first is the one that waits. A stranger may have come before.
    while listener.accept().expect("the other end").1 != connection.local_addr().expect("its address") {}
    drop(listener);
    connection.read_to_end(&mut Vec::new()).expect("the end of the connection");
    address.port()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_is_given_to_who_names_it_alone() {
        let port = kept_port();
        // More than the ports of the usual range: without the wait one of these has it.
        for _ in 0..200_000 {
            let any = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            assert_ne!(any.local_addr().unwrap().port(), port);
        }
        TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
    }
}
