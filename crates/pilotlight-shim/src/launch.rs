//! The start of the CLI: a fork that becomes it, without namespaces.

use std::{
    ffi::{CString, c_char},
    io,
    os::fd::BorrowedFd,
};

use rustix::{
    io::{Errno, retry_on_intr},
    pipe::{PipeFlags, pipe_with},
    process::{Pid, Signal, WaitOptions, kill_process, waitpid},
    stdio,
};

use super::{
    isolate::PreExec,
    progress::Progress,
    rungs::{Refusal, namespaces::Namespace},
    sys::{self, Forked},
};

/// What the CLI starts with.
pub(crate) struct Start<'a> {
    pub(crate) argv: Argv<'a>,
    /// Becomes its stdout.
    pub(crate) output: BorrowedFd<'a>,
    pub(crate) before: PreExec<'a>,
    /// The cgroup to fork into.
    pub(crate) group: Option<BorrowedFd<'a>>,
}

/// Program and arguments, as exec wants them.
pub(crate) struct Argv<'a> {
    pointers: Vec<*const c_char>,
    _strings: &'a [CString],
}

impl<'a> Argv<'a> {
    pub(crate) fn new(strings: &'a [CString]) -> Self {
        let pointers = strings.iter().map(|arg| arg.as_ptr()).chain([std::ptr::null()]).collect();
        Self { pointers, _strings: strings }
    }

    /// Never empty, and ends with a null pointer.
    pub(crate) fn pointers(&self) -> &[*const c_char] {
        &self.pointers
    }
}

/// A CLI that runs.
pub(crate) struct Started {
    pub(crate) cli: Pid,
    /// Whether it is in its cgroup.
    pub(crate) is_member: bool,
    pub(crate) namespace: Option<Namespace>,
}

/// Starts the CLI with descriptors 0, `output` and 2.
///
/// The standard library is not sufficient: its `execvp` runs files of unknown format with `/bin/sh`, and it cannot fork
/// into a cgroup. A later move into the cgroup costs 10 to 20 ms, because the kernel waits for an RCU grace period.
pub(crate) fn spawn(start: &Start<'_>) -> Result<Started, Refusal> {
    // A successful exec closes it.
    let (progress, report) = pipe_with(PipeFlags::CLOEXEC).map_err(io::Error::from)?;
    let (forked, is_member) = sys::fork_into(start.group)?;
    let Forked::Parent(cli) = forked else {
        Progress::Refused(become_cli(start, false)).send(report);
        sys::exit_child();
    };
    drop(report);
    match executed(Progress::receive(&progress)) {
        Ok(()) => Ok(Started { cli, is_member, namespace: None }),
        Err(refusal) => {
            // After a record it ends by itself. Without a readable one it may run.
            let _ended = kill_process(cli, Signal::KILL);
            let _reaped = retry_on_intr(|| waitpid(Some(cli), WaitOptions::empty()));
            Err(refusal)
        }
    }
}

/// Whether the child became the CLI: nothing but the end of the pipe says so.
fn executed(progress: io::Result<Option<Progress>>) -> Result<(), Refusal> {
    match progress? {
        None => Ok(()),
        Some(Progress::Refused(refusal)) => Err(refusal),
        Some(Progress::Init(_) | Progress::Cli(_)) => Err(Errno::BADMSG.into()),
    }
}

/// Prepares the forked child and executes the CLI. Returns only on failure. `inside` says whether it is in namespaces.
pub(crate) fn become_cli(start: &Start<'_>, inside: bool) -> Refusal {
    let redirected = stdio::dup2_stdout(start.output).map_err(Refusal::from);
    if let Err(refusal) = redirected.and_then(|()| start.before.apply(inside)) {
        return refusal;
    }
    sys::unblock_signals();
    sys::execute(&start.argv).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isolation::Rung;

    #[test]
    fn only_the_end_of_the_pipe_is_a_start() {
        assert_eq!(executed(Ok(None)), Ok(()));
        let refusal = Refusal { rung: Some(Rung::Landlock), errno: libc::EPERM };
        assert_eq!(executed(Ok(Some(Progress::Refused(refusal)))), Err(refusal));
        let unread = executed(Err(Errno::BADMSG.into()));
        assert_eq!(unread, Err(Refusal { rung: None, errno: libc::EBADMSG }));
        let pid = rustix::process::getpid();
        for record in [Progress::Init(pid), Progress::Cli(pid)] {
            assert_eq!(executed(Ok(Some(record))), Err(Refusal { rung: None, errno: libc::EBADMSG }));
        }
    }
}
