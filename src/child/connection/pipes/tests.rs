//! Partial reads and writes over real pipes, without a process.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::task::Waker;

use super::*;
use crate::child::framing::Framed;

const TIMEOUT: Duration = Duration::from_secs(5);

/// The child's ends.
struct Ends {
    input: StdStream,
    output: Option<OwnedFd>,
}

fn pipes() -> (PipeIo, Ends) {
    let (input, their_input) = StdStream::pair().unwrap();
    input.set_nonblocking(true).unwrap();
    their_input.set_nonblocking(true).unwrap();
    let (output, their_output) = io::pipe().unwrap();
    let output = pipe::Receiver::from_owned_fd(output.into()).unwrap();
    let metrics = Arc::new(Metrics::register_current("t"));
    let io = PipeIo::new((UnixStream::from_std(input).unwrap(), output), 100, TIMEOUT, metrics);
    (io, Ends { input: their_input, output: Some(their_output.into()) })
}

impl Ends {
    fn read(&mut self) -> usize {
        let mut block = vec![0; 1 << 20];
        io::Read::read(&mut self.input, &mut block).unwrap_or(0)
    }

    fn say(&self, text: &str) {
        rustix::io::write(self.output.as_ref().unwrap(), text.as_bytes()).unwrap();
    }
}

async fn write(io: &mut PipeIo, now: Instant) {
    std::future::poll_fn(|context| io.poll_write(now, context)).await;
}

#[tokio::test]
async fn long_line_is_written_in_parts_as_it_is_read() {
    let (mut io, mut ends) = pipes();
    let now = Instant::now();
    let length = 3 << 20;
    assert!(io.outbox.push(Bytes::from(vec![b'x'; length]), now));
    let (mut got, mut parts) = (0, 0);
    while got < length {
        io.flush(now);
        let part = ends.read();
        (got, parts) = (got + part, parts + usize::from(part > 0));
        tokio::task::yield_now().await;
        let mut context = Context::from_waker(Waker::noop());
        let _pending_or_written = io.poll_write(now, &mut context);
    }
    assert!(parts > 1, "it did not fit at once");
    write_rest(&mut io, now).await;
    assert_eq!((got, !io.outbox.lines.is_empty(), io.outbox.deadline), (length, false, None));
}

async fn write_rest(io: &mut PipeIo, now: Instant) {
    if !io.outbox.lines.is_empty() {
        write(io, now).await;
    }
}

#[tokio::test]
async fn closed_reader_empties_the_outbox() {
    let (mut io, ends) = pipes();
    let now = Instant::now();
    drop(ends);
    assert!(io.outbox.push(Bytes::from_static(b"a\n"), now));
    write(&mut io, now).await;
    assert!(io.outbox.lines.is_empty() && io.outbox.deadline.is_none());
    let mut context = Context::from_waker(Waker::noop());
    assert!(io.poll_write(now, &mut context).is_pending(), "nothing to write");
}

#[tokio::test]
async fn closing_the_input_drops_what_waits() {
    let (mut io, mut ends) = pipes();
    assert!(io.outbox.push(Bytes::from_static(b"a\n"), Instant::now()));
    io.close_input().unwrap();
    assert!(io.outbox.lines.is_empty());
    assert_eq!(ends.read(), 0, "the end of the input");
}

#[tokio::test]
async fn reads_come_in_a_turn_between_turns_and_at_once() {
    let (mut io, mut ends) = pipes();
    ends.say("one\n");
    for (in_turn, text) in [(true, "two\n"), (false, "three\n")] {
        let read = std::future::poll_fn(|context| io.poll_read(in_turn, context)).await;
        assert_eq!(read, Read::Bytes);
        assert!(matches!(io.framer.next_line(), Some(Framed::Line(_))));
        io.settle_read(in_turn);
        ends.say(text);
    }
    assert!(io.has_unread());
    assert_eq!(io.try_read(), Some(Read::Bytes));
    assert_eq!(io.framer.next_line(), Some(Framed::Line(b"three")));
    assert_eq!((io.try_read(), io.has_unread()), (None, false));
    ends.say("part");
    ends.output = None;
    assert_eq!(io.try_read(), Some(Read::Bytes));
    assert_eq!(io.framer.next_line(), None);
    assert_eq!(io.try_read(), Some(Read::End));
    let end = std::future::poll_fn(|context| io.poll_read(true, context)).await;
    assert_eq!(end, Read::End);
    assert!(io.end_output() && io.ended);
    assert!(!io.end_output(), "counted once");
}

#[test]
fn outbox_is_bounded_and_written_in_order() {
    let now = Instant::now();
    let mut outbox = Outbox { lines: VecDeque::new(), deadline: None, timeout: TIMEOUT };
    for _ in 0..MAX_UNWRITTEN {
        assert!(outbox.push(Bytes::from_static(b"abc"), now));
    }
    assert!(!outbox.push(Bytes::from_static(b"abc"), now));
    outbox.written(2, now);
    assert_eq!(outbox.lines.front().map(|line| &line[..]), Some(&b"c"[..]));
    outbox.written(1, now);
    assert_eq!(outbox.lines.len(), MAX_UNWRITTEN - 1);
}

#[test]
fn stall_counts_from_the_last_byte_that_was_taken() {
    let start = Instant::now();
    let mut outbox = Outbox { lines: VecDeque::new(), deadline: None, timeout: TIMEOUT };
    assert!(!outbox.is_stalled(start));
    outbox.push(Bytes::from_static(b"abc"), start);
    outbox.push(Bytes::from_static(b"d"), start + TIMEOUT / 2);
    assert!(!outbox.is_stalled(start + TIMEOUT / 2));
    outbox.written(1, start + TIMEOUT / 2);
    assert!(!outbox.is_stalled(start + TIMEOUT));
    assert!(outbox.is_stalled(start + TIMEOUT / 2 + TIMEOUT));
    // Noticed too late: it begins again.
    let late = start + TIMEOUT / 2 + TIMEOUT + ABSENT;
    assert!(!outbox.is_stalled(late));
    assert_eq!(outbox.deadline, Some(late + TIMEOUT));
    outbox.clear();
    assert!(!outbox.is_stalled(late + 2 * TIMEOUT));
}
