//! An `/etc` of the server's own, with the file of its environment where the systemd unit has it.

use std::path::Path;
use std::process::Command;

use rustix::process::geteuid;

use crate::common::installed::left_out;
use crate::rungs::Term;
use crate::scene::as_user;

/// The file of the server's environment. It has the variable `ESCAPE_SECRET` of the command.
pub(crate) const ENVIRONMENT: &str = "/etc/pilotlight/environment";

/// A copy of `/etc` in memory, which the kernel removes with the last process of the mount namespace: the file of the
/// server's user is in no directory of the host, however the test ends.
const OWN_ETC: &str = r#"
    copy=$1 owner=$2; shift 2
    mount -t tmpfs -o mode=755 etc "$copy"
    cp -a /etc/. "$copy"
    mkdir -p "$copy/pilotlight" && chmod 755 "$copy/pilotlight"
    (umask 077; printf 'PILOTLIGHT_CLI__ENV__X=%s\n' "$ESCAPE_SECRET" >"$copy/pilotlight/environment")
    chown "$owner" "$copy/pilotlight/environment"
    mount --move "$copy" /etc
    exec "$@"
"#;

/// The program as this user, and whether it has the file. Only root has an `/etc` of its own.
pub(crate) fn with_environment(user: Term, place: &Path) -> (Command, bool) {
    let program = as_user(user);
    if !geteuid().is_root() {
        left_out("only root gives the server an /etc of its own");
        return (program, false);
    }
    let copy = place.join("etc");
    std::fs::create_dir(&copy).unwrap();
    let owner = if user == Term::Root { "0:0" } else { "65534:65534" };
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-ec", OWN_ETC, "sh"]);
    command.arg(copy).arg(owner).arg(program.get_program()).args(program.get_args());
    (command, true)
}
