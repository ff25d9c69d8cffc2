//! Ends a server with its test, also if the process of the test is killed or aborts.

use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};

/// A process that kills another one once the end of its input says that the test is gone.
pub struct Guard(Child);

impl Guard {
    /// Guards the process of this id, until the guard is dropped.
    pub fn of(pid: u32) -> Self {
        let guard = Command::new("sh")
            .args(["-c", "read -r _; kill -KILL \"$1\"", "sh", &pid.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // A signal to the group of the test ends both otherwise.
            .process_group(0)
            .spawn();
        Self(guard.expect("sh starts"))
    }

    /// As the end of the test's process does.
    pub fn lose_test(&mut self) {
        drop(self.0.stdin.take());
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // Before its input ends.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}
