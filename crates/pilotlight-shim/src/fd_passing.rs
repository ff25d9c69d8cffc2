//! Passes the pipe that becomes the CLI's stdout to the shim, as the first message on the control socket, and the page of
//! a deadline, if there is one, as the second.
//!
//! `std::process::Command` sets three descriptors; the shim needs four or five. Stdin and stdout are not one socket: the server
//! could not see the CLI close one direction, and each read at one end wakes a reader that sleeps at the other end.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

/// Descriptors travel with at least one byte of data.
const BYTE: [u8; 1] = [b'o'];

/// Queues the CLI's stdout on the control socket, before the shim starts.
///
/// # Errors
/// The error of sendmsg(2).
pub fn send_output(control: impl AsFd, output: BorrowedFd<'_>) -> io::Result<()> {
    send(control, &BYTE, output)
}

/// Queues the page of the deadline after it. The command line says that it comes ([`crate::args::encode`]).
///
/// # Errors
/// The error of sendmsg(2).
pub fn send_page(control: impl AsFd, page: BorrowedFd<'_>) -> io::Result<()> {
    send(control, &BYTE, page)
}

/// Receives the next descriptor. It was queued before the shim started, hence a non-blocking read.
pub(crate) fn receive_queued(control: impl AsFd) -> io::Result<OwnedFd> {
    match receive(control, &mut { BYTE }) {
        Ok((_byte, Some(descriptor))) => Ok(descriptor),
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
        // Nothing was queued, or the limit on open files left no room for it.
        _ => Err(rustix::io::Errno::BADF.into()),
    }
}

/// Sends bytes with a descriptor. A report is shorter than any socket's buffer, hence never split.
pub(crate) fn send(control: impl AsFd, bytes: &[u8], descriptor: BorrowedFd<'_>) -> io::Result<()> {
    let (descriptors, mut space) = ([descriptor], [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))]);
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    sendmsg(control, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives what has arrived, without waiting: the number of bytes, and the descriptor that came with them.
///
/// # Errors
/// The error of recvmsg(2), `WouldBlock` if nothing has arrived.
pub fn receive(control: impl AsFd, bytes: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let received = recvmsg(control, &mut [IoSliceMut::new(bytes)], &mut ancillary, flags)?;
    let descriptors = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    Ok((received.bytes, descriptors.flatten().next()))
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn descriptor_is_received_only_after_it_was_sent() {
        let (server, shim) = UnixStream::pair().unwrap();
        assert!(receive_queued(&shim).is_err(), "empty socket");
        let (mut reader, output) = UnixStream::pair().unwrap();
        send_output(&server, output.as_fd()).unwrap();
        drop(output);
        UnixStream::from(receive_queued(&shim).unwrap()).write_all(b"hello").unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
        (&server).write_all(b"t").unwrap();
        assert!(receive_queued(&shim).is_err(), "a byte without a descriptor");
    }
}
