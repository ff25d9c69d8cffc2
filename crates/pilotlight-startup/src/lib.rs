//! Lets a test program serve as shim and as simulated CLI of pilotlight, although the test harness owns its `main`.
//!
//! A crate of its own, because the code before `main` needs an exception from the ban of unsafe code.

/// Runs before `main`. Returns at once in every process but those that pilotlight itself has started.
#[ctor::ctor(unsafe)]
fn run_if_asked() {
    pilotlight_shim::run_if_asked();
    pilotlight_sim::run_if_asked_by_its_name();
}

/// Does nothing; a call keeps this crate in the program of the caller.
pub fn link() {}
