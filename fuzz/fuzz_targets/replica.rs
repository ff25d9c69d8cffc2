//! Whatever stands in an object of a replica, also under a checksum that fits: it is refused or has one form only, no path
//! leaves its place, and nothing panics.
//!
//! `cargo +nightly fuzz run replica`, or with a stable compiler `RUSTC_BOOTSTRAP=1 cargo fuzz run replica`;
//! `-- -max_total_time=300` ends it after five minutes.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    pilotlight::fuzzing::replica_object(input);
});
