//! Starts commands in a session of their own, as the real CLI starts its Bash tools: no signal to the CLI's process
//! group reaches them. Without `unsafe` a program cannot call `setsid` between fork and exec, so it starts itself
//! once more, and that second instance does it and becomes the command.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use super::output::complain;

/// Hidden first argument of the second instance.
pub(crate) const OWN_SESSION_ARG: &str = "--run-in-own-session";

/// A command that will run `/bin/sh -c script` as leader of a new session.
pub(crate) fn shell(script: &str) -> Command {
    // The link names the running image even if the file was replaced meanwhile.
    let mut command = Command::new("/proc/self/exe");
    command.arg(super::selector()).arg(OWN_SESSION_ARG).args(["/bin/sh", "-c", script]);
    command
}

/// Leads a new session and becomes the command; comes back only to tell a failure.
pub(crate) fn become_command(command: &[OsString]) -> u8 {
    let Some((program, arguments)) = command.split_first() else { return 2 };
    if let Err(error) = rustix::process::setsid() {
        complain(&format!("setsid: {error}"));
        return 126;
    }
    let error = Command::new(program).args(arguments).exec();
    complain(&format!("{}: {error}", program.to_string_lossy()));
    127
}
