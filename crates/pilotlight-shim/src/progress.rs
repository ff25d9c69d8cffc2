//! What the forked processes report to the shim until the CLI is executed: records of a pipe that the execution closes.

use std::{io, os::fd::AsFd};

use rustix::io::{Errno, read, retry_on_intr, write};

use super::{isolation::Rung, rungs::Refusal};

/// A record: its kind and a number. Far below the size up to which writes to a pipe are atomic.
const RECORD: usize = 2 * size_of::<i32>();

/// The CLI was not executed, for a reason other than a rung. Rungs follow in their order.
const REFUSED: i32 = 0;

/// One step of a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// The start has failed.
    Refused(Refusal),
}

impl Progress {
    fn encode(self) -> [u8; RECORD] {
        let (kind, number) = match self {
            Self::Refused(Refusal { rung: None, errno }) => (REFUSED, errno),
            Self::Refused(Refusal { rung: Some(rung), errno }) => (REFUSED + 1 + index(rung), errno),
        };
        let mut record = [0; RECORD];
        let (first, second) = record.split_at_mut(RECORD / 2);
        first.copy_from_slice(&kind.to_ne_bytes());
        second.copy_from_slice(&number.to_ne_bytes());
        record
    }

    fn decode(record: [u8; RECORD]) -> Option<Self> {
        let (kind, number) = record.split_at(RECORD / 2);
        let [kind, number] = [kind, number].map(|half| half.try_into().map(i32::from_ne_bytes));
        let (kind, errno) = (kind.ok()?, number.ok()?);
        let rung = match kind {
            REFUSED => None,
            _ => Some(Rung::ALL.into_iter().find(|rung| REFUSED + 1 + index(*rung) == kind)?),
        };
        Some(Self::Refused(Refusal { rung, errno }))
    }

    /// Writes the record. A failed write leaves the reader with the end of file.
    pub(crate) fn send(self, pipe: impl AsFd) {
        let _reader_is_gone = retry_on_intr(|| write(&pipe, &self.encode()));
    }

    /// Waits for the next record; `None` at the end of file.
    pub(crate) fn receive(pipe: impl AsFd) -> io::Result<Option<Self>> {
        let mut record = [0; RECORD];
        match retry_on_intr(|| read(&pipe, &mut record))? {
            0 => Ok(None),
            RECORD => Self::decode(record).map(Some).ok_or(Errno::BADMSG.into()),
            _ => Err(Errno::BADMSG.into()),
        }
    }
}

fn index(rung: Rung) -> i32 {
    rung as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_arrive_in_order_and_end() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let rungs = Rung::ALL.into_iter().map(Some).chain([None]);
        let sent: Vec<_> =
            rungs.map(|rung| Progress::Refused(Refusal { rung, errno: libc::EPERM })).collect();
        sent.iter().for_each(|progress| progress.send(&writer));
        for progress in sent {
            assert_eq!(Progress::receive(&reader).unwrap(), Some(progress));
        }
        drop(writer);
        assert_eq!(Progress::receive(&reader).unwrap(), None);
    }

    #[test]
    fn other_records_are_errors() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        write(&writer, &[0xff; RECORD]).unwrap();
        assert!(Progress::receive(&reader).is_err(), "an unknown kind");
        write(&writer, &[0; RECORD - 1]).unwrap();
        assert!(Progress::receive(&reader).is_err(), "a part of a record");
    }
}
