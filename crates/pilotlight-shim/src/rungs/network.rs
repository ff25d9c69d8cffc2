//! A network namespace with the loopback interface and one listening socket, which the server accepts connections on.

use std::{
    io,
    net::{Ipv4Addr, TcpListener},
    os::fd::AsFd as _,
};

use rustix::stdio;

use crate::{fd_passing, report::Report, sys};

/// Sets up the network of this process's new namespace and passes its listening socket to the server.
pub(crate) fn open(port: u16) -> io::Result<()> {
    sys::loopback_up()?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
    // For the server's event loop: the flag belongs to the socket, not to the descriptor.
    listener.set_nonblocking(true)?;
    fd_passing::send(stdio::stdout(), Report::Listening.encode().as_bytes(), listener.as_fd())
}
