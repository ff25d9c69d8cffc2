//! How the pipe that becomes the CLI's stdout gets to the shim: over the control socket, before anything else. One
//! file for both ends.
//!
//! A program can be started with three descriptors and the shim needs four. Stdin and stdout are not one socket because
//! the server would not see the CLI close one of them, and because every read at one end wakes whoever sleeps in a read
//! at the other.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

/// A descriptor needs at least one byte to travel with.
const BYTE: [u8; 1] = [b'o'];

/// Sends the CLI's stdout ahead of the shim that will receive it.
pub fn give_output(control: impl AsFd, output: BorrowedFd<'_>) -> io::Result<()> {
    let (descriptors, mut space) = ([output], [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))]);
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    sendmsg(control, &[IoSlice::new(&BYTE)], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives it. It is there before the shim is, so this does not wait.
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
    fn what_was_given_is_received_and_what_was_not_is_an_error() {
        let (server, shim) = UnixStream::pair().unwrap();
        assert!(receive_output(&shim).is_err(), "nothing is there");
        let (mut reader, output) = UnixStream::pair().unwrap();
        give_output(&server, output.as_fd()).unwrap();
        drop(output);
        UnixStream::from(receive_output(&shim).unwrap()).write_all(b"hello").unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
        (&server).write_all(b"t").unwrap();
        assert!(receive_output(&shim).is_err(), "a byte without a descriptor");
    }
}
