//! Whatever a journal and the rest of a transcript hold: what is restored has no gap, and nothing panics.
//!
//! `cargo +nightly fuzz run journal`, or with a stable compiler `RUSTC_BOOTSTRAP=1 cargo fuzz run journal`;
//! `-- -max_total_time=300` ends it after five minutes.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let at = input.first().map_or(0, |first| usize::from(*first) * input.len() / 256);
    let (left, kept) = input.split_at(at);
    // As it is, which is hardly ever a journal, and as the records of one.
    pilotlight::fuzzing::restore(left, kept);
    let lines: Vec<&[u8]> = kept.split(|byte| *byte == b'\n').collect();
    pilotlight::fuzzing::restore(left, &pilotlight::fuzzing::journal_of(&lines));
});
