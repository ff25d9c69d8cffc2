//! Cuts the child's output into lines, in place.
//!
//! Owned by the pipes of one child. Knows bytes and line ends and nothing of what the lines mean: no I/O, no protocol,
//! no clock.
//!
//! Every byte is looked at once (by a vectorised search) and normally copied never: lines are judged where they were
//! read, those to be handed on gather at the front of the buffer, and all of them leave as one slice.
//!
//! Memory: nothing until the first read; then blocks of about [`READ_ROOM`], each shared by the slices cut from it
//! and freed with the last of them. So a reader who holds one small event holds such a block (at most twice
//! `READ_ROOM`). A line longer than that grows its block, at most to twice the limit; as soon as the line is taken,
//! what was read behind it moves to a fresh block, so only the long line itself and what was taken together with it
//! keep the memory.

use bytes::{Buf, BytesMut};
use memchr::memchr;

use crate::turn::Lines;

/// Room for one read, and the size of a block. A pipe holds 64 KiB: more would seldom be filled by one read.
const READ_ROOM: usize = 64 << 10;

/// Lines of a batch that their places are first reserved for. Their places take less memory than the lines.
const USUAL_LINES: usize = 64;

/// A block with less room left is not read into any more: reads of a few bytes would cost a system call each.
const LEAST_ROOM: usize = 4 << 10;

/// A block that is larger than this has grown for a long line.
const ORDINARY_BLOCK: usize = 2 * READ_ROOM;

#[derive(Debug)]
pub(crate) struct Framer {
    /// `[0, kept)` the batch · `[kept, read)` left out, and at its end the line last returned · `[read, scanned)`
    /// searched, no line end · the rest not yet searched.
    buffer: BytesMut,
    kept: usize,
    /// Where the lines of the batch begin, except for the first. A line that comes alone needs no memory for it.
    begins: Vec<usize>,
    read: usize,
    scanned: usize,
    /// The line last returned: where it begins and how long it is without its line end.
    current: Option<(usize, usize)>,
    limit: usize,
    /// In the middle of a line that was reported as too long.
    skipping: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Framed<'a> {
    /// A whole line without its line end (LF or CR LF).
    Line(&'a [u8]),
    /// A line longer than the limit. Reported once per line, as soon as it is known; its bytes are discarded up to the
    /// next LF.
    TooLong {
        /// How much of it had come by then.
        bytes_so_far: usize,
    },
}

impl Framer {
    /// `limit` is the longest line, without its line end. Allocates nothing.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            buffer: BytesMut::new(),
            kept: 0,
            begins: Vec::new(),
            read: 0,
            scanned: 0,
            current: None,
            limit,
            skipping: false,
        }
    }

    /// Where the next bytes are to be read to; appending is all that may be done with it. Has at least
    /// [`LEAST_ROOM`], mostly [`READ_ROOM`] of spare room, which is not initialised.
    ///
    /// May be called while lines are kept; they stay.
    pub(crate) fn buffer(&mut self) -> &mut BytesMut {
        self.current = None;
        self.drop_gap();
        self.leave_long_block();
        if self.buffer.capacity() - self.buffer.len() < LEAST_ROOM {
            if self.buffer.len() > READ_ROOM {
                // A long line: its block doubles, so that it is moved a few times only.
                self.buffer.reserve(self.buffer.len());
            } else {
                self.fresh_block();
            }
        }
        &mut self.buffer
    }

    /// The next whole line. Blank lines are passed over. Lines that are not [kept](Framer::keep) before the next call
    /// are left out.
    pub(crate) fn next_line(&mut self) -> Option<Framed<'_>> {
        self.current = None;
        loop {
            let Some(found) = memchr(b'\n', self.buffer.get(self.scanned..)?) else {
                return self.no_line_end();
            };
            let (start, end) = (self.read, self.scanned + found);
            self.read = end + 1;
            self.scanned = end + 1;
            if std::mem::take(&mut self.skipping) {
                continue;
            }
            let line = self.buffer.get(start..end)?;
            let length = line.len() - usize::from(line.last() == Some(&b'\r'));
            if length > self.limit {
                return Some(Framed::TooLong { bytes_so_far: length });
            }
            let may_be_blank = line.first().is_none_or(u8::is_ascii_whitespace);
            if may_be_blank && line.trim_ascii().is_empty() {
                continue;
            }
            self.current = Some((start, length));
            return self.buffer.get(start..start + length).map(Framed::Line);
        }
    }

    /// Adds the line last returned by [`Framer::next_line`] to the batch. Costs nothing, unless a line was left out
    /// since the batch began: then this one moves up to its neighbour.
    pub(crate) fn keep(&mut self) {
        let Some((mut start, length)) = self.current.take() else { return };
        if self.kept == 0 && start > 0 {
            self.buffer.advance(start);
            self.read -= start;
            self.scanned -= start;
            start = 0;
        }
        if start != self.kept {
            self.buffer.copy_within(start..start + length, self.kept);
        }
        if self.kept > 0 {
            if self.begins.is_empty() {
                self.begins.reserve(USUAL_LINES);
            }
            self.begins.push(self.kept);
        }
        self.kept += length;
        // In the place of the line's own LF, or of the CR before it.
        if let Some(end) = self.buffer.get_mut(self.kept) {
            *end = b'\n';
        }
        self.kept += 1;
    }

    /// The length of the batch, line ends included.
    pub(crate) fn kept(&self) -> usize {
        self.kept
    }

    /// The batch: all kept lines in their order, each with its LF. Empty if there are none. No copy.
    pub(crate) fn take(&mut self) -> Lines {
        self.current = None;
        let batch = self.buffer.split_to(self.kept);
        self.read -= self.kept;
        self.scanned -= self.kept;
        self.kept = 0;
        self.drop_gap();
        self.leave_long_block();
        Lines::cut(batch.freeze(), std::mem::take(&mut self.begins))
    }

    /// The end of the stream, once [`Framer::next_line`] has nothing more: the length of half a line that was left,
    /// which is discarded. A batch can still be taken.
    pub(crate) fn finish(&mut self) -> Option<usize> {
        let rest = self.buffer.get(self.read..).unwrap_or_default();
        let half = (!self.skipping && !rest.trim_ascii().is_empty()).then_some(rest.len());
        self.buffer.truncate(self.read);
        self.scanned = self.read;
        self.skipping = false;
        half
    }

    /// Gives the memory back if nothing is buffered. For the end of a turn; between the reads of a turn it would only
    /// make every read allocate a block of its own.
    pub(crate) fn release(&mut self) {
        self.current = None;
        self.drop_gap();
        if self.buffer.is_empty() {
            self.buffer = BytesMut::new();
        }
    }

    /// All bytes are searched: waits for more of the line, or gives it up.
    fn no_line_end(&mut self) -> Option<Framed<'_>> {
        let bytes_so_far = self.buffer.len() - self.read;
        // One byte above the limit may be the CR of a line that is just short enough.
        let too_long = !self.skipping && bytes_so_far > self.limit.saturating_add(1);
        if self.skipping || too_long {
            self.skipping = true;
            self.buffer.truncate(self.read);
        }
        self.scanned = self.buffer.len();
        too_long.then_some(Framed::TooLong { bytes_so_far })
    }

    /// Forgets what was left out, if it is at the front.
    fn drop_gap(&mut self) {
        if self.kept == 0 && self.read > 0 {
            self.buffer.advance(self.read);
            self.scanned -= self.read;
            self.read = 0;
        }
    }

    fn leave_long_block(&mut self) {
        if self.buffer.capacity() > ORDINARY_BLOCK && self.buffer.len() <= READ_ROOM {
            self.fresh_block();
        }
    }

    fn fresh_block(&mut self) {
        let mut block = BytesMut::with_capacity(self.buffer.len() + READ_ROOM);
        block.extend_from_slice(&self.buffer);
        self.buffer = block;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, PartialEq, Eq)]
    enum Found {
        Line(Vec<u8>),
        TooLong,
    }

    /// What a reader would expect: cut at LF, strip one CR, forget blanks.
    fn naive(input: &[u8], limit: usize) -> (Vec<Found>, Option<usize>) {
        let mut pieces: Vec<&[u8]> = input.split(|&byte| byte == b'\n').collect();
        let half = pieces.pop().unwrap_or_default();
        let mut found: Vec<Found> = pieces
            .into_iter()
            .map(|line| line.strip_suffix(b"\r").unwrap_or(line))
            .filter(|line| line.len() > limit || !line.trim_ascii().is_empty())
            .map(|line| if line.len() > limit { Found::TooLong } else { Found::Line(line.to_vec()) })
            .collect();
        if half.len() > limit + 1 {
            found.push(Found::TooLong);
            return (found, None);
        }
        (found, (!half.trim_ascii().is_empty()).then_some(half.len()))
    }

    /// The batch, with its lines as the places say.
    fn taken(framer: &mut Framer) -> Vec<u8> {
        let mut lines = framer.take();
        let batch = lines.to_vec();
        let mut again = Vec::new();
        while let Some(line) = lines.next() {
            again.extend_from_slice(&line);
            again.push(b'\n');
            assert!(!line.contains(&b'\n'));
        }
        assert_eq!(again, batch);
        batch
    }

    /// Feeds the pieces; keeps every line for which `keep` is true; takes after every read if `take_often`.
    fn drive(
        framer: &mut Framer,
        pieces: &[&[u8]],
        take_often: bool,
        keep: impl Fn(&[u8]) -> bool,
    ) -> (Vec<Found>, Vec<u8>, Option<usize>) {
        let (mut found, mut batches) = (Vec::new(), Vec::new());
        for piece in pieces {
            framer.buffer().extend_from_slice(piece);
            while let Some(framed) = framer.next_line() {
                match framed {
                    Framed::Line(line) => {
                        let keep = keep(line);
                        found.push(Found::Line(line.to_vec()));
                        if keep {
                            framer.keep();
                        }
                    }
                    Framed::TooLong { .. } => found.push(Found::TooLong),
                }
            }
            if take_often {
                batches.extend_from_slice(&taken(framer));
                framer.release();
            }
        }
        let half = framer.finish();
        batches.extend_from_slice(&taken(framer));
        (found, batches, half)
    }

    fn split<'a>(input: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (input.len() + 1)).collect();
        cuts.extend([0, input.len()]);
        cuts.sort_unstable();
        cuts.windows(2).map(|pair| &input[pair[0]..pair[1]]).collect()
    }

    /// Bytes with many line ends, some carriage returns and blanks.
    fn lines() -> impl Strategy<Value = Vec<u8>> {
        let byte = prop_oneof![4 => any::<u8>(), 3 => Just(b'\n'), 1 => Just(b'\r'), 1 => Just(b' ')];
        prop::collection::vec(byte, 0..200)
    }

    proptest! {
        #[test]
        fn any_split_of_any_bytes_gives_the_same_lines(
            input in lines(),
            cuts in prop::collection::vec(any::<usize>(), 0..20),
            limit in 1_usize..40,
            take_often: bool,
            kept_first_bytes: u8,
        ) {
            let keep = |line: &[u8]| line[0] >= kept_first_bytes;
            let mut framer = Framer::new(limit);
            let (found, batches, half) = drive(&mut framer, &split(&input, &cuts), take_often, keep);
            let (expected, expected_half) = naive(&input, limit);
            prop_assert_eq!(&found, &expected);
            prop_assert_eq!(half, expected_half);
            let mut kept = Vec::new();
            for line in &expected {
                if let Found::Line(line) = line && keep(line) {
                    kept.extend_from_slice(line);
                    kept.push(b'\n');
                }
            }
            prop_assert_eq!(batches, kept);
            framer.release();
            prop_assert_eq!(framer.buffer.capacity(), 0);
        }

        #[test]
        fn long_lines_arrive_whole_whatever_the_reads(
            lengths in prop::collection::vec(1_usize..300_000, 1..6),
            read in 1_usize..200_000,
        ) {
            let read = read.max(1000);
            let input: Vec<u8> =
                lengths.iter().flat_map(|&length| [vec![b'x'; length], vec![b'\n']].concat()).collect();
            let pieces: Vec<&[u8]> = input.chunks(read).collect();
            let mut framer = Framer::new(250_000);
            let (found, _, half) = drive(&mut framer, &pieces, true, |_| true);
            prop_assert_eq!(half, None);
            let lengths_found: Vec<Option<usize>> = found
                .iter()
                .map(|found| match found { Found::Line(line) => Some(line.len()), Found::TooLong => None })
                .collect();
            let expected: Vec<Option<usize>> =
                lengths.iter().map(|&length| (length <= 250_000).then_some(length)).collect();
            prop_assert_eq!(lengths_found, expected);
        }
    }

    #[test]
    fn neighbours_leave_as_one_slice_without_a_copy() {
        let mut framer = Framer::new(100);
        framer.buffer().extend_from_slice(b"one\ntwo\nthree\n");
        let start = framer.buffer.as_ptr();
        while framer.next_line().is_some() {
            framer.keep();
        }
        assert_eq!(framer.kept(), 14);
        let batch = framer.take();
        assert_eq!(&batch[..], b"one\ntwo\nthree\n");
        assert_eq!(batch.as_ptr(), start);
    }

    #[test]
    fn a_line_left_out_at_the_front_costs_no_copy_either() {
        let mut framer = Framer::new(100);
        framer.buffer().extend_from_slice(b"answer\none\ntwo\n");
        let start = framer.buffer.as_ptr();
        assert_eq!(framer.next_line(), Some(Framed::Line(b"answer")));
        while framer.next_line().is_some() {
            framer.keep();
        }
        let batch = framer.take();
        assert_eq!(&batch[..], b"one\ntwo\n");
        assert_eq!(batch.as_ptr() as usize, start as usize + 7);
    }

    #[test]
    fn a_line_may_be_kept_once_only_and_not_after_a_read() {
        let mut framer = Framer::new(100);
        framer.buffer().extend_from_slice(b"one\n");
        framer.next_line();
        framer.keep();
        framer.keep();
        assert_eq!(framer.kept(), 4);
        framer.buffer().extend_from_slice(b"two\n");
        framer.next_line();
        framer.buffer().extend_from_slice(b"three\n");
        framer.keep();
        assert_eq!(&framer.take()[..], b"one\n");
        assert_eq!(framer.next_line(), Some(Framed::Line(b"three")));
    }

    #[test]
    fn endless_line_is_reported_once_without_memory() {
        let mut framer = Framer::new(200_000);
        let mut reports = 0;
        let mut largest = 0;
        for _ in 0..1000 {
            framer.buffer().extend_from_slice(&[b'x'; 30_000]);
            while let Some(framed) = framer.next_line() {
                assert!(matches!(framed, Framed::TooLong { bytes_so_far } if bytes_so_far <= 230_000));
                reports += 1;
            }
            largest = largest.max(framer.buffer.capacity());
        }
        assert_eq!(reports, 1);
        assert!(largest <= 2 * 200_000 + ORDINARY_BLOCK, "{largest}");
        framer.buffer().extend_from_slice(b"tail\nin step\n");
        assert_eq!(framer.next_line(), Some(Framed::Line(b"in step")));
        assert!(framer.buffer().capacity() <= ORDINARY_BLOCK);
    }

    #[test]
    fn nothing_behind_a_long_line_stays_in_its_block() {
        let mut framer = Framer::new(32 << 20);
        for _ in 0..100 {
            framer.buffer().extend_from_slice(&[b'x'; 60_000]);
            assert_eq!(framer.next_line(), None);
        }
        framer.buffer().extend_from_slice(b"\nsmall\nhal");
        framer.next_line();
        framer.keep();
        let long = framer.take();
        assert_eq!(long.len(), 6_000_001);
        assert!(framer.buffer.capacity() <= ORDINARY_BLOCK);
        framer.next_line();
        framer.keep();
        assert_eq!(&framer.take()[..], b"small\n");
        assert_eq!(framer.finish(), Some(3));
    }

    #[test]
    fn small_reads_share_a_block() {
        let mut framer = Framer::new(1 << 20);
        let mut held = Vec::new();
        for _ in 0..100 {
            framer.buffer().extend_from_slice(&[b"0123456789".as_slice(), b"\n"].concat());
            framer.next_line();
            framer.keep();
            held.push(framer.take());
        }
        let addresses: Vec<usize> = held.iter().map(|line| line.as_ptr() as usize).collect();
        assert_eq!(addresses[99] - addresses[0], 99 * 11);
    }

    #[test]
    fn costs_nothing_until_used() {
        assert_eq!(Framer::new(32 << 20).buffer.capacity(), 0);
    }
}
