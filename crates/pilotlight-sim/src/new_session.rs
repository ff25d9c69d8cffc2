//! Starts commands in new sessions, as claude starts its Bash tools: signals to the CLI's process group do not reach them.
//!
//! Safe code cannot call setsid(2) between fork and exec. Instead, the program starts itself again, and the second process
//! calls setsid(2) and executes the command.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use crate::output::write_error;

/// Hidden first argument of the second process.
pub(crate) const NEW_SESSION_ARG: &str = "--run-in-own-session";

/// Builds a command that runs `/bin/sh -c script` as leader of a new session.
pub(crate) fn shell(script: &str) -> Command {
    // This link names the running image even after the file was replaced.
    let mut command = Command::new("/proc/self/exe");
    command.arg(crate::selector()).arg(NEW_SESSION_ARG).args(["/bin/sh", "-c", script]);
    command
}

/// Creates a session and executes the command; returns only on failure.
pub(crate) fn become_command(command: &[OsString]) -> u8 {
    let Some((program, arguments)) = command.split_first() else { return 2 };
    if let Err(error) = rustix::process::setsid() {
        write_error(&format!("setsid: {error}"));
        return 126;
    }
    let error = Command::new(program).args(arguments).exec();
    write_error(&format!("{}: {error}", program.to_string_lossy()));
    127
}
