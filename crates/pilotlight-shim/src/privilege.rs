//! Capabilities: the CLI has none, the shim keeps CAP_KILL only.
//!
//! The CLI of a server that runs as root could otherwise read the memory of all processes and write all files.
//! `no_new_privs`, set earlier, keeps set-uid programs from restoring capabilities. CAP_KILL also protects the shim from
//! ptrace(2) by its CLI: the kernel refuses to trace a process with more capabilities than the tracer.

use std::io;

use rustix::{
    io::Errno,
    thread::{
        CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
        remove_capability_from_bounding_set, set_capabilities,
    },
};

/// Number of bits in the kernel's capability sets.
const MOST_CAPABILITIES: u32 = 64;

/// Empties the bounding set as far as permitted. It needs CAP_SETPCAP, hence it precedes every step that drops
/// capabilities, such as a change of user.
pub(crate) fn empty_bounding_set() -> io::Result<()> {
    for number in 0..MOST_CAPABILITIES {
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << number)) {
            Ok(()) => {}
            // Past the kernel's last capability, or without CAP_SETPCAP; the other sets are emptied anyway.
            Err(Errno::INVAL | Errno::PERM) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Drops all capabilities permanently.
pub(crate) fn drop_all() -> io::Result<()> {
    restrict_to(CapabilitySet::empty())
}

/// Drops all capabilities but CAP_KILL, which permits to kill a CLI that runs as another user.
pub(crate) fn keep_cap_kill() -> io::Result<()> {
    restrict_to(CapabilitySet::KILL)
}

fn restrict_to(wanted: CapabilitySet) -> io::Result<()> {
    match clear_ambient_capability_set() {
        // Kernels before 4.3 have no ambient set.
        Ok(()) | Err(Errno::INVAL) => {}
        Err(error) => return Err(error.into()),
    }
    let kept = capabilities(None)?.permitted & wanted;
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    Ok(set_capabilities(None, sets)?)
}
