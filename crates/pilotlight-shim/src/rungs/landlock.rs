//! Landlock: the CLI reaches the files below its mounts, the devices that every program expects, and the allowed ports.
//!
//! It needs no privilege. A domain also keeps its processes from tracing processes outside, hence from reading their
//! memory and environment, and with Linux 6.12 from sending them signals. It restricts neither Unix sockets with a path
//! (before Linux 7.1) nor UDP (before 7.2).

use std::{error::Error, io, os::fd::OwnedFd, path::Path};

use ::landlock::{
    ABI, Access as _, AccessFs, AccessNet, CompatLevel, Compatible as _, NetPort, PathBeneath, Ruleset,
    RulesetAttr as _, RulesetCreated, RulesetCreatedAttr as _, RulesetError, RulesetStatus, Scope,
};
use rustix::fs::{FileType, fstat};

use super::{
    at,
    reach::{self, Kind},
};
use crate::isolation::{Isolation, Network};

/// The newest version whose rights are used; older kernels restrict less.
const NEWEST: ABI = ABI::V10;
/// The version that restricts TCP.
const NETWORK: ABI = ABI::V4;

/// Devices without state, which programs expect.
pub(crate) const DEVICES: [&str; 6] =
    ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty"];

/// In a mount namespace it is the session's own.
const SHARED_MEMORY: &str = "/dev/shm";

/// Restricts this process for good.
///
/// `inside` says whether the mounts are already in place at their targets and hidden paths covered.
pub(crate) fn restrict(isolation: &Isolation, inside: bool) -> io::Result<()> {
    let mut ruleset = ruleset(&isolation.network).map_err(|error| as_io(&error))?;
    let hidden = if inside { Vec::new() } else { reach::resolved(&isolation.hidden) };
    for mount in &isolation.mounts {
        if inside {
            // The mounts are the right ones already, whatever links lead to them.
            ruleset = at(
                &mount.to,
                reach::open(&mount.to, false).and_then(|file| allow(ruleset, file, mount.write)),
            )?;
            continue;
        }
        for part in at(&mount.path, reach::parts(mount, &hidden))? {
            if part.kind == Kind::Tree {
                let file = at(&part.path, reach::open(&part.path, mount.write))?;
                ruleset = at(&part.path, allow(ruleset, file, mount.write))?;
            }
        }
    }
    // A container need not have all of them.
    let shared_memory = inside.then_some(SHARED_MEMORY);
    for device in DEVICES.into_iter().chain(shared_memory) {
        if let Ok(file) = reach::open(Path::new(device), false) {
            ruleset = allow(ruleset, file, true)?;
        }
    }
    let status = ruleset.restrict_self().map_err(|error| as_io(&error))?;
    if status.ruleset == RulesetStatus::NotEnforced {
        return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
    }
    Ok(())
}

fn ruleset(network: &Network) -> Result<RulesetCreated, RulesetError> {
    let mut ruleset =
        Ruleset::default().handle_access(AccessFs::from_all(NEWEST))?.scope(Scope::from_all(NEWEST))?;
    let Network::Ports(ports) = network else { return ruleset.create() };
    // What is requested must hold; newer rights are a gain.
    ruleset = ruleset
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessNet::from_all(NETWORK))?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessNet::from_all(NEWEST))?;
    ports.iter().try_fold(ruleset.create()?, |ruleset, port| {
        ruleset.add_rule(NetPort::new(*port, AccessNet::ConnectTcp))
    })
}

fn allow(ruleset: RulesetCreated, file: OwnedFd, write: bool) -> io::Result<RulesetCreated> {
    let mut access = if write { AccessFs::from_all(NEWEST) } else { AccessFs::from_read(NEWEST) };
    if FileType::from_raw_mode(fstat(&file)?.st_mode) != FileType::Directory {
        access &= AccessFs::from_file(NEWEST);
    }
    ruleset.add_rule(PathBeneath::new(file, access)).map_err(|error| as_io(&error))
}

/// The system error inside; without one, the kernel lacks what is required.
fn as_io(error: &RulesetError) -> io::Error {
    let mut source: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = source {
        if let Some(errno) = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
            return io::Error::from_raw_os_error(errno);
        }
        source = error.source();
    }
    io::Error::from_raw_os_error(libc::EOPNOTSUPP)
}
