//! What the forked processes report to the shim until the CLI is executed: records of a pipe that the execution closes.

use std::{io, os::fd::AsFd};

use rustix::{
    io::{Errno, read, retry_on_intr, write},
    process::Pid,
};

use super::{isolation::Rung, rungs::Refusal};

/// A record: its kind and a number. Far below the size up to which writes to a pipe are atomic.
const RECORD: usize = 2 * size_of::<i32>();

/// Kinds of records. Refusals by a rung follow the first, in the order of the rungs.
const REFUSED: i32 = 0;
const INIT: i32 = 16;
const CLI: i32 = 17;

/// One step of a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// The init process of the namespaces exists.
    Init(Pid),
    /// The process that becomes the CLI exists.
    Cli(Pid),
    /// The start has failed.
    Refused(Refusal),
}

impl Progress {
    fn encode(self) -> [u8; RECORD] {
        let (kind, number) = match self {
            Self::Init(pid) => (INIT, pid.as_raw_pid()),
            Self::Cli(pid) => (CLI, pid.as_raw_pid()),
            Self::Refused(Refusal { rung: None, errno }) => (REFUSED, errno),
            Self::Refused(Refusal { rung: Some(rung), errno }) => (kind_of(rung), errno),
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
        let number = number.ok()?;
        Some(match kind.ok()? {
            INIT => Self::Init(Pid::from_raw(number)?),
            CLI => Self::Cli(Pid::from_raw(number)?),
            REFUSED => Self::Refused(Refusal { rung: None, errno: number }),
            kind => {
                let rung = Rung::ALL.into_iter().find(|rung| kind_of(*rung) == kind)?;
                Self::Refused(Refusal { rung: Some(rung), errno: number })
            }
        })
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

fn kind_of(rung: Rung) -> i32 {
    REFUSED + 1 + rung as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_arrive_in_order_and_end() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let rungs = Rung::ALL.into_iter().map(Some).chain([None]);
        let refused = rungs.map(|rung| Progress::Refused(Refusal { rung, errno: libc::EPERM }));
        let pid = Pid::from_raw(4_194_304).unwrap();
        let sent: Vec<_> = [Progress::Init(pid), Progress::Cli(pid)].into_iter().chain(refused).collect();
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
