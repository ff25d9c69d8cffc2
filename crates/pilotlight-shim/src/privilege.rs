//! Capabilities: the CLI has none, the shim keeps the one that it needs to end what it started.
//!
//! Without this a CLI of a server that runs as root reads the memory of all processes, writes all files and opens the
//! doors again that later restrictions close. `no_new_privs`, set before, keeps a set-uid program from giving anything
//! back. A shim that keeps one is out of reach of its CLI's debugger calls, for the kernel lets nobody trace a process
//! that may do more than the tracer.

use std::io;

use rustix::{
    io::Errno,
    thread::{
        CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
        remove_capability_from_bounding_set, set_capabilities,
    },
};

/// The kernel keeps them in 64 bits.
const MOST_CAPABILITIES: u32 = 64;

/// Empties the bounding set, as far as the process may: it needs CAP_SETPCAP, so this comes before all that gives up
/// capabilities, a change of user included.
pub(crate) fn empty_bounding_set() -> io::Result<()> {
    for number in 0..MOST_CAPABILITIES {
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << number)) {
            Ok(()) => {}
            // More than the kernel knows, or not ours to give up: what stays there gives nothing without the others.
            Err(Errno::INVAL | Errno::PERM) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Gives up all of the others, for good.
pub(crate) fn drop_all() -> io::Result<()> {
    keep(CapabilitySet::empty())
}

/// Gives up all but CAP_KILL, with which a CLI of another user can be ended.
pub(crate) fn keep_what_kills() -> io::Result<()> {
    keep(CapabilitySet::KILL)
}

fn keep(wanted: CapabilitySet) -> io::Result<()> {
    match clear_ambient_capability_set() {
        // Kernels before 4.3 have no such set.
        Ok(()) | Err(Errno::INVAL) => {}
        Err(error) => return Err(error.into()),
    }
    let kept = capabilities(None)?.permitted & wanted;
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    Ok(set_capabilities(None, sets)?)
}
