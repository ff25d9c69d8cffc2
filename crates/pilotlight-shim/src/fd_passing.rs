//! Passes the pipe that becomes the CLI's stdout to the shim, as the first message on the control socket.
//!
//! `std::process::Command` sets three descriptors; the shim needs four. Stdin and stdout are not one socket: the server
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
    let (descriptors, mut space) = ([output], [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))]);
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    sendmsg(control, &[IoSlice::new(&BYTE)], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives the descriptor. It was queued before the shim started, hence a non-blocking read.
pub(crate) fn receive_output(control: impl AsFd) -> io::Result<OwnedFd> {
    let (mut byte, mut space) = (BYTE, [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))]);
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    recvmsg(control, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, flags)?;
    let descriptors = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    descriptors.flatten().next().ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn descriptor_is_received_only_after_it_was_sent() {
        let (server, shim) = UnixStream::pair().unwrap();
        assert!(receive_output(&shim).is_err(), "empty socket");
        let (mut reader, output) = UnixStream::pair().unwrap();
        send_output(&server, output.as_fd()).unwrap();
        drop(output);
        UnixStream::from(receive_output(&shim).unwrap()).write_all(b"hello").unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
        (&server).write_all(b"t").unwrap();
        assert!(receive_output(&shim).is_err(), "a byte without a descriptor");
    }
}
