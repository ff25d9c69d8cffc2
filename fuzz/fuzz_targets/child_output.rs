//! Whatever a child writes, in whatever pieces: the lines are those of a plain split, and no reader of a line panics.
//!
//! `cargo +nightly fuzz run child_output`, or with a stable compiler `RUSTC_BOOTSTRAP=1 cargo fuzz run child_output`;
//! `-- -max_total_time=300` ends it after five minutes. The recorded streams are a good beginning:
//! `cp tests/samples/*.out.jsonl fuzz/corpus/child_output/`.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pilotlight::fuzzing::read_every_way;

/// The framing is private to the crate; it needs nothing of it.
#[path = "../../src/child/framing.rs"]
mod framing;

use framing::{Framed, Framer};

const LIMIT: usize = 4096;

fuzz_target!(|input: &[u8]| {
    // The first byte says how long the pieces are, the second which lines are kept.
    let [piece, keep, input @ ..] = input else { return };
    let mut framer = Framer::new(LIMIT);
    let mut found: Vec<Option<Vec<u8>>> = Vec::new();
    let mut expected: Vec<u8> = Vec::new();
    let mut batches: Vec<u8> = Vec::new();
    for (round, bytes) in input.chunks(usize::from(*piece).max(1)).enumerate() {
        framer.buffer().extend_from_slice(bytes);
        while let Some(framed) = framer.next_line() {
            match framed {
                Framed::Line(line) => {
                    read_every_way(line);
                    found.push(Some(line.to_vec()));
                    if line.first().is_some_and(|first| first >= keep) {
                        expected.extend_from_slice(line);
                        expected.push(b'\n');
                        framer.keep();
                    }
                }
                Framed::TooLong { bytes_so_far } => {
                    assert!(bytes_so_far > LIMIT);
                    found.push(None);
                }
            }
        }
        if round % 3 == 0 {
            batches.extend_from_slice(&framer.take());
            framer.release();
        }
    }
    framer.finish();
    batches.extend_from_slice(&framer.take());
    assert_eq!(found, naive(input));
    assert_eq!(batches, expected);
});

/// The lines; `None` for one that is too long. Half a line at the end counts only if it is too long already.
fn naive(input: &[u8]) -> Vec<Option<Vec<u8>>> {
    let mut lines: Vec<&[u8]> = input.split(|&byte| byte == b'\n').collect();
    let half = lines.pop().unwrap_or_default();
    let lines = lines.into_iter().map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let lines = lines.filter(|line| line.len() > LIMIT || !line.trim_ascii().is_empty());
    let lines = lines.map(|line| (line.len() <= LIMIT).then(|| line.to_vec()));
    lines.chain((half.len() > LIMIT + 1).then_some(None)).collect()
}
