//! Each rung of the isolation from outside: what a CLI can do without it and cannot do with it.

use std::{
    fs,
    net::{TcpListener, UdpSocket},
    os::{linux::net::SocketAddrExt as _, unix::fs::PermissionsExt as _},
    path::{Path, PathBuf},
    process::Command,
};

use pilotlight_shim::{
    args::{self, ChildLimits},
    isolation::{Isolation, Mount, Network},
};
use rustix::process::{Signal, geteuid};

use super::harness::*;
use crate::common::installed::left_out;

const SHIM: &str = env!("CARGO_BIN_EXE_pilotlight-shim");
/// Variable with the session's directory: it marks the processes of a shim.
const OWN: &str = "PILOTLIGHT_TEST_OWN";
/// What programs of the system need.
const SYSTEM: [&str; 7] = ["/usr", "/lib", "/lib64", "/bin", "/sbin", "/etc", "/proc"];

/// The commands by which a shim starts: as this user, and as one without privilege.
fn origins() -> Vec<&'static [&'static str]> {
    let unprivileged: &[&str] = &["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    if geteuid().is_root() && Command::new("setpriv").arg("--version").output().is_ok() {
        return vec![&[], unprivileged];
    }
    left_out("only root with setpriv can start a shim as another user");
    vec![&[]]
}

fn start(origin: &[&str], isolation: &Isolation, program: &str, args: &[&str]) -> Shim {
    start_in(origin, Path::new("/"), isolation, program, args)
}

fn start_in(origin: &[&str], work: &Path, isolation: &Isolation, program: &str, args: &[&str]) -> Shim {
    let line = args::encode(None, false, &ChildLimits::default(), isolation, Path::new("/"), &[]);
    let options = line.iter().map(|word| word.to_str().unwrap()).take_while(|word| *word != "--");
    let mut command = match origin {
        [] => Command::new(SHIM),
        [first, rest @ ..] => {
            let mut command = Command::new(first);
            command.args(rest).arg(SHIM);
            command
        }
    };
    command.current_dir(work).env_clear().env("PATH", "/usr/bin:/bin");
    let own = isolation.mounts.iter().find(|mount| mount.write);
    command.envs(own.map(|mount| (OWN, &mount.path)));
    Shim::start_by(command, &options.collect::<Vec<_>>(), program.as_ref(), args)
}

/// Two sessions below one directory, and what belongs to the server.
struct Fixture {
    _dir: tempfile::TempDir,
    own: PathBuf,
    others: PathBuf,
    tcp: TcpListener,
    udp: UdpSocket,
    _named: std::os::unix::net::UnixListener,
    _abstract: std::os::unix::net::UnixListener,
    name: String,
    victim: Shim,
    victim_pid: i32,
}

impl Fixture {
    fn new(origin: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(dir.path()).unwrap();
        let [own, others] = ["own", "others"].map(|name| root.join(name));
        for dir in [&root, &own, &others, &own.join("tmp")] {
            fs::create_dir_all(dir).unwrap();
            fs::set_permissions(dir, fs::Permissions::from_mode(0o777)).unwrap();
        }
        for file in [own.join("file"), others.join("secret")] {
            fs::write(&file, "text").unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
        }
        crate::common::built::copy_program("/bin/true", others.join("program"));
        fs::set_permissions(others.join("program"), fs::Permissions::from_mode(0o777)).unwrap();
        let socket = others.join("socket");
        let named = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        fs::set_permissions(&socket, fs::Permissions::from_mode(0o777)).unwrap();
        let name = format!("pilotlight-test-{}", token());
        let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
        let mut victim = start(origin, &Isolation::default(), "/bin/sleep", &[&token()]);
        let victim_pid = victim.started().as_raw_pid();
        Self {
            _dir: dir,
            own,
            others,
            tcp: TcpListener::bind("127.0.0.1:0").unwrap(),
            udp: UdpSocket::bind("127.0.0.1:0").unwrap(),
            _named: named,
            _abstract: std::os::unix::net::UnixListener::bind_addr(&address).unwrap(),
            name,
            victim,
            victim_pid,
        }
    }

    fn port(&self) -> u16 {
        self.tcp.local_addr().unwrap().port()
    }

    /// A session's usual mounts.
    fn isolation(&self) -> Isolation {
        let mut mounts: Vec<_> =
            SYSTEM.into_iter().filter(|path| Path::new(path).exists()).map(Mount::read).collect();
        mounts.push(Mount::read(Path::new(SHIM).parent().unwrap()));
        mounts.push(Mount::write(&self.own));
        Isolation { mounts, ..Isolation::default() }
    }
}

/// The attempts that succeed.
fn succeeding(origin: &[&str], isolation: &Isolation, attempts: &[String]) -> Vec<String> {
    let args: Vec<_> = ["probe"].into_iter().chain(attempts.iter().map(String::as_str)).collect();
    let mut shim = start(origin, isolation, SHIM, &args);
    let line = shim.line();
    assert!(line.starts_with("started ") || line == "listening", "{line}: {isolation:?}");
    let output = shim.output();
    let lines: Vec<_> = output.lines().collect();
    assert_eq!(lines.len(), attempts.len(), "{output}");
    let outcomes = attempts.iter().zip(lines).filter_map(|(attempt, line)| {
        let (word, outcome) = line.split_once(' ').unwrap();
        assert_eq!(attempt.split('=').next().unwrap(), word);
        assert!(["ok", "denied"].contains(&outcome), "{line}");
        (outcome == "ok").then(|| attempt.clone())
    });
    outcomes.collect()
}

/// Each attempt succeeds without the isolation, and only those in `still` with it.
fn check(origin: &[&str], isolation: &Isolation, allowed: &[String], refused: &[String]) {
    let attempts = [allowed, refused].concat();
    let without = succeeding(origin, &Isolation::default(), &attempts);
    assert_eq!(without, attempts, "without isolation by {origin:?}");
    let with = succeeding(origin, isolation, &attempts);
    assert_eq!(with, allowed, "with {isolation:?} by {origin:?}");
}

#[test]
fn landlock_leaves_the_sessions_own() {
    for origin in origins() {
        let fixture = Fixture::new(origin);
        let Fixture { own, others, victim_pid: pid, name, .. } = &fixture;
        let (own, others) = (own.display(), others.display());
        let allowed = [
            format!("read={own}/file"),
            format!("write={own}/file"),
            format!("list={own}"),
            "read=/etc/passwd".to_owned(),
            "execute=/bin/true".to_owned(),
            "write=/dev/null".to_owned(),
            "read=/dev/urandom".to_owned(),
            "read=/proc/self/status".to_owned(),
            format!("tcp={}", fixture.port()),
        ];
        let outside = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let other_port = TcpListener::bind("127.0.0.1:0").unwrap();
        let refused = [
            format!("read={others}/secret"),
            format!("write={others}/secret"),
            format!("list={others}"),
            format!("execute={others}/program"),
            format!("list={own}/.."),
            "list=/".to_owned(),
            "list=/tmp".to_owned(),
            format!("signal={pid}"),
            format!("environ={pid}"),
            format!("memory={pid}"),
            format!("maps={pid}"),
            format!("trace={pid}"),
            format!("abstract={name}"),
            format!("tcp={}", other_port.local_addr().unwrap().port()),
        ];
        let isolation = Isolation {
            landlock: true,
            network: Network::Ports(vec![fixture.port()]),
            ..fixture.isolation()
        };
        check(origin, &isolation, &allowed, &refused);
        let closed = format!("tcp={outside}");
        assert!(succeeding(origin, &isolation, &[closed]).is_empty(), "nothing listens there");
    }
}

#[test]
fn landlock_hides_below_a_mount() {
    for origin in origins() {
        let fixture = Fixture::new(origin);
        let others = fixture.others.display();
        let mut isolation = Isolation { landlock: true, ..fixture.isolation() };
        isolation.mounts.push(Mount::read(&fixture.others));
        isolation.hidden = vec![fixture.others.join("secret")];
        let allowed = [format!("execute={others}/program")];
        let refused = [format!("read={others}/secret"), format!("list={others}")];
        check(origin, &isolation, &allowed, &refused);
        // A new file at the hidden path stays hidden.
        fs::remove_file(fixture.others.join("secret")).unwrap();
        check(origin, &isolation, &allowed, &[format!("list={others}")]);
        fs::write(fixture.others.join("secret"), "other text").unwrap();
        fs::set_permissions(fixture.others.join("secret"), fs::Permissions::from_mode(0o666)).unwrap();
        check(origin, &isolation, &allowed, &refused);
    }
}

#[test]
fn seccomp_refuses_what_no_cli_needs() {
    for origin in origins() {
        let mut fixture = Fixture::new(origin);
        let pid = fixture.victim_pid;
        let isolation = Isolation { seccomp: true, ..fixture.isolation() };
        let allowed = [
            "execute=/bin/true".to_owned(),
            format!("read={}/file", fixture.own.display()),
            format!("tcp={}", fixture.port()),
            format!("udp={}", fixture.udp.local_addr().unwrap().port()),
            format!("unix={}/socket", fixture.others.display()),
        ];
        let refused = [
            format!("trace={pid}"),
            "unfiltered".to_owned(),
            "keyring".to_owned(),
            "user_namespace".to_owned(),
        ];
        check(origin, &isolation, &allowed, &refused);
        // With ports it closes what Landlock leaves open.
        let ports = Isolation { landlock: true, network: Network::Ports(vec![fixture.port()]), ..isolation };
        let [_, _, tcp, udp, _] = allowed;
        check(origin, &ports, &[tcp], &[udp]);
        fixture.victim.order(b"k");
        assert_eq!(fixture.victim.line(), "exited signal 9");
    }
}

/// A rung that cannot be applied is named, and nothing starts with less.
#[test]
fn missing_mount_prevents_the_start() {
    for (origin, namespaces) in origins().into_iter().flat_map(|origin| [(origin, false), (origin, true)]) {
        let fixture = Fixture::new(origin);
        let rung = if namespaces { "namespaces" } else { "landlock" };
        let planted = fixture.own.join("planted");
        std::os::unix::fs::symlink(&fixture.others, &planted).unwrap();
        for (mount, errno) in [
            (Mount::read("/nonexistent/tools"), libc::ENOENT),
            (Mount::write(fixture.own.join("missing")), libc::ENOENT),
            (Mount::write(planted), libc::ELOOP),
        ] {
            let mut isolation = Isolation { landlock: true, namespaces, ..fixture.isolation() };
            isolation.mounts.push(mount);
            let mut shim = start(origin, &isolation, "/bin/true", &[]);
            assert_eq!(shim.line(), format!("unisolated {rung} {errno}"));
            assert_eq!(shim.line(), format!("failed {errno}"));
            assert_eq!(shim.line(), "", "nothing follows");
            assert_eq!(shim.ended(LONG).code(), Some(1));
        }
    }
}

fn inside(fixture: &Fixture, network: Network) -> Isolation {
    let tmp = Mount { path: fixture.own.join("tmp"), to: "/tmp".into(), write: true };
    let mut isolation = Isolation { namespaces: true, network, ..fixture.isolation() };
    isolation.mounts.push(tmp);
    isolation
}

#[test]
fn namespaces_show_the_sessions_own() {
    for origin in origins() {
        let fixture = Fixture::new(origin);
        let Fixture { own, others, victim_pid: pid, name, .. } = &fixture;
        let (own, others) = (own.display(), others.display());
        let allowed = [
            format!("read={own}/file"),
            format!("write={own}/file"),
            format!("list={own}"),
            "list=/".to_owned(),
            "list=/tmp".to_owned(),
            "read=/etc/passwd".to_owned(),
            "execute=/bin/true".to_owned(),
            "write=/dev/null".to_owned(),
            "read=/dev/urandom".to_owned(),
            "read=/proc/self/status".to_owned(),
        ];
        let refused = [
            format!("read={others}/secret"),
            format!("write={others}/secret"),
            format!("list={others}"),
            format!("execute={others}/program"),
            format!("signal={pid}"),
            format!("environ={pid}"),
            format!("memory={pid}"),
            format!("maps={pid}"),
            format!("trace={pid}"),
            format!("unix={others}/socket"),
            format!("abstract={name}"),
            format!("tcp={}", fixture.port()),
            format!("udp={}", fixture.udp.local_addr().unwrap().port()),
            "processes".to_owned(),
        ];
        check(origin, &inside(&fixture, Network::Private { port: 8080 }), &allowed, &refused);
    }
}

#[test]
fn namespaces_hide_below_a_mount() {
    for origin in origins() {
        let fixture = Fixture::new(origin);
        let others = fixture.others.display();
        std::os::unix::fs::symlink("program", fixture.others.join("link")).unwrap();
        let mut isolation = inside(&fixture, Network::Open);
        isolation.mounts.push(Mount::read(&fixture.others));
        isolation.hidden = vec![fixture.others.join("secret")];
        let allowed =
            [format!("execute={others}/program"), format!("execute={others}/link"), format!("list={others}")];
        let refused = [format!("read={others}/secret"), format!("write={others}/program")];
        check(origin, &isolation, &allowed, &refused);
        // A file that replaces the hidden one while the CLI runs stays hidden.
        let script = format!("echo ready; read line; cat {others}/secret; ls {others}");
        let mut shim = start(origin, &isolation, "/bin/sh", &["-c", &script]);
        shim.started();
        assert_eq!(shim.output_line(), "ready");
        fs::write(fixture.others.join("new"), "other text").unwrap();
        fs::rename(fixture.others.join("new"), fixture.others.join("secret")).unwrap();
        std::io::Write::write_all(&mut shim.input, b"go\n").unwrap();
        assert_eq!(shim.output(), "link\nprogram\nsocket\n");
    }
}

#[test]
fn all_rungs_together() {
    for origin in origins() {
        let fixture = Fixture::new(origin);
        let Fixture { own, others, .. } = &fixture;
        let isolation =
            Isolation { landlock: true, seccomp: true, ..inside(&fixture, Network::Private { port: 8080 }) };
        let allowed = [
            format!("write={}/file", own.display()),
            "list=/tmp".to_owned(),
            "write=/dev/null".to_owned(),
            "execute=/bin/true".to_owned(),
            "read=/proc/self/status".to_owned(),
            "list=/dev/shm".to_owned(),
        ];
        let refused = [
            format!("read={}/secret", others.display()),
            format!("tcp={}", fixture.port()),
            "processes".to_owned(),
            "unfiltered".to_owned(),
            "keyring".to_owned(),
            "user_namespace".to_owned(),
            "list=/".to_owned(),
        ];
        check(origin, &isolation, &allowed, &refused);
        // What is refused without the rungs too, at least in part.
        let always = ["capabilities", "bounding", "privileges", "mount", "host_name", "memory=1", "trace=1"];
        let always = always.map(str::to_owned);
        assert!(succeeding(origin, &isolation, &always).is_empty(), "by {origin:?}");
    }
}

/// The socket listens inside: what connects there arrives outside, and nothing else does.
#[test]
fn listener_of_the_private_network_is_passed_on() {
    use pilotlight_shim::fd_passing;
    for origin in origins() {
        let fixture = Fixture::new(origin);
        let attempts = ["tcp=8080".to_owned(), "tcp=8081".to_owned()];
        let isolation = inside(&fixture, Network::Private { port: 8080 });
        assert!(succeeding(origin, &Isolation::default(), &attempts).is_empty(), "the ports are in use here");
        let mut shim = start(origin, &isolation, SHIM, &["probe", &attempts[0], &attempts[1]]);
        let control = shim.control.as_ref().unwrap().get_ref();
        rustix::io::retry_on_intr(|| {
            rustix::event::poll(
                &mut [rustix::event::PollFd::new(control, rustix::event::PollFlags::IN)],
                Some(&rustix::event::Timespec { tv_sec: 20, tv_nsec: 0 }),
            )
        })
        .unwrap();
        let mut line = [0; 64];
        let (length, listener) = fd_passing::receive(control, &mut line).unwrap();
        assert_eq!(&line[..length], b"listening\n");
        let listener = TcpListener::from(listener.expect("a descriptor comes with the line"));
        assert_eq!(listener.local_addr().unwrap().to_string(), "127.0.0.1:8080");
        assert_eq!(shim.output(), "tcp ok\ntcp denied\n");
        let (_, from) = listener.accept().expect("the connection waits, and the socket does not block");
        assert!(from.ip().is_loopback());
        assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    }
}

/// A tree that tries to survive: own sessions, no environment, and signals to the init process.
fn survivors(token: &str) -> String {
    format!(
        "{} kill -KILL 1; kill -STOP 1; (env -i setsid /bin/sh -c 'kill -KILL 1; kill -STOP 1; exec sleep {token}' &); \
         echo ready; while :; do sleep {token}; done",
        escape_artists(token)
    )
}

/// The shim with this directory, and what it has forked: by the environment that it was started with.
fn of_shim(own: &Path) -> Vec<i32> {
    let entry = format!("{OWN}={}", own.display());
    processes()
        .filter(|pid| {
            let variables = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            variables.split(|byte| *byte == 0).any(|variable| variable == entry.as_bytes())
        })
        .collect()
}

fn init_of(shim: &Shim, cli: rustix::process::Pid) -> rustix::process::Pid {
    let mut children = Vec::new();
    pilotlight_shim::descendants::children(shim.child.id().cast_signed(), &mut children);
    children.retain(|child| *child != cli.as_raw_pid());
    let [init] = children[..] else { panic!("besides the CLI: {children:?}") };
    rustix::process::Pid::from_raw(init).unwrap()
}

#[test]
fn nothing_outlives_a_killed_shim() {
    nothing_outlives(|shim, _| rustix::process::kill_process(shim.pid(), Signal::KILL).unwrap());
}

#[test]
fn nothing_outlives_a_killed_init_process() {
    nothing_outlives(|shim, cli| {
        rustix::process::kill_process(init_of(shim, cli), Signal::KILL).unwrap();
        assert_eq!(shim.line(), "exited signal 9");
        let (method, _, stuck) = shim.swept();
        assert_eq!((method.as_str(), stuck), ("namespace", 0));
    });
}

#[test]
fn nothing_outlives_a_killed_cli() {
    nothing_outlives(|shim, cli| {
        rustix::process::kill_process(cli, Signal::KILL).unwrap();
        assert_eq!(shim.line(), "exited signal 9");
        let (method, killed, stuck) = shim.swept();
        assert_eq!((method.as_str(), stuck), ("namespace", 0));
        assert!(killed > 0);
    });
}

#[test]
fn nothing_outlives_a_killed_server() {
    nothing_outlives(|shim, _| shim.break_lifeline());
}

fn nothing_outlives(end: impl Fn(&mut Shim, rustix::process::Pid)) {
    for origin in origins() {
        let fixture = Fixture::new(origin);
        let token = token();
        let isolation = inside(&fixture, Network::Private { port: 8080 });
        let mut shim = start(origin, &isolation, "/bin/sh", &["-c", &survivors(&token)]);
        assert_eq!(shim.line(), "listening");
        let cli = shim.started();
        assert_eq!(shim.output_line(), "ready");
        eventually("some run", LONG, || (!sleepers(&token).is_empty()).then_some(()));
        let init = init_of(&shim, cli);
        assert!(!is_gone(init), "the CLI has ended its init process");
        end(&mut shim, cli);
        shim.ended(PROMISE);
        eventually("all are gone", PROMISE, || sleepers(&token).is_empty().then_some(()));
        // It has no memory any more; its entry stays until the CLI, an orphan now, is reaped.
        eventually("so is the init process", PROMISE, || {
            status_field(init, "VmSize").is_none().then_some(())
        });
        eventually("so is the CLI", PROMISE, || is_gone(cli).then_some(()));
    }
}

/// Whatever fails, and wherever, neither builder nor init process stays.
#[test]
fn failed_start_leaves_no_process() {
    for origin in origins() {
        let fixture = Fixture::new(origin);
        let sound = Isolation { landlock: true, ..inside(&fixture, Network::Private { port: 8080 }) };
        let with = |mount: Mount| {
            let mut isolation = sound.clone();
            isolation.mounts.push(mount);
            isolation
        };
        let file = fixture.own.join("file");
        let mut unsound = vec![
            (with(Mount::read("/nonexistent")), "/bin/true", "unisolated namespaces 2"),
            // A directory on a file, and below one that is not writable.
            (
                with(Mount { path: fixture.own.clone(), to: file, write: true }),
                "/bin/true",
                "unisolated namespaces 20",
            ),
            (
                with(Mount { path: fixture.own.clone(), to: "/usr/none".into(), write: true }),
                "/bin/true",
                "unisolated namespaces 30",
            ),
            (sound.clone(), "/nonexistent", "failed 2"),
            (sound.clone(), "/etc/passwd", "failed 13"),
        ];
        // The working directory of the shim, which is not in sight.
        unsound.push((sound.clone(), "", "unisolated namespaces 2"));
        for (isolation, program, report) in unsound {
            let mut shim = match program {
                "" => start_in(origin, &fixture.others, &isolation, "/bin/true", &[]),
                program => start(origin, &isolation, program, &[]),
            };
            let mut line = shim.line();
            if line == "listening" {
                line = shim.line();
            }
            assert_eq!(line, report, "{program} by {origin:?}");
            shim.ended(LONG);
            assert_eq!(of_shim(&fixture.own), [0; 0], "{report} by {origin:?}");
        }
    }
}

/// No descriptor of the shim, the builder or the init process reaches the CLI, and none of the CLI's stays with them.
#[test]
fn descriptors_stay_where_they_belong() {
    for origin in origins() {
        let fixture = Fixture::new(origin);
        let isolation =
            Isolation { landlock: true, seccomp: true, ..inside(&fixture, Network::Private { port: 8080 }) };
        let mut shim = start(origin, &isolation, "/bin/sh", &["-c", "ls /proc/self/fd; echo end; exec cat"]);
        assert_eq!(shim.line(), "listening");
        let cli = shim.started();
        for expected in ["0", "1", "2", "3", "end"] {
            // 3 is the directory that `ls` reads.
            assert_eq!(shim.output_line(), expected);
        }
        let open = |pid: rustix::process::Pid| -> Vec<String> {
            let dir = fs::read_dir(format!("/proc/{}/fd", pid.as_raw_pid())).unwrap();
            let links = dir.map(|entry| fs::read_link(entry.unwrap().path()).unwrap());
            let mut open: Vec<_> =
                links.map(|link| link.to_str().unwrap().split(':').next().unwrap().to_owned()).collect();
            open.sort();
            open
        };
        if geteuid().is_root() {
            assert_eq!(open(init_of(&shim, cli)), ["pipe"]);
        }
        let held = || open(shim.pid());
        let expected = ["/dev/null", "/dev/null", "anon_inode", "pipe", "socket"];
        eventually("the shim lets the CLI's pipes go", LONG, || (held() == expected).then_some(()));
    }
}

#[test]
fn init_process_shows_no_arguments() {
    for origin in origins() {
        let fixture = Fixture::new(origin);
        let hidden = vec![fixture.others.join("secret")];
        let isolation = Isolation { namespaces: true, hidden, ..fixture.isolation() };
        let script = "tr -d '\\0' < /proc/1/cmdline | wc -c; echo end";
        let mut shim = start(origin, &isolation, "/bin/sh", &["-c", script]);
        shim.started();
        let output = shim.output();
        assert_eq!(output.split_whitespace().collect::<Vec<_>>(), ["0", "end"], "{origin:?}");
    }
}

#[test]
fn hidden_directory_is_empty_inside() {
    for origin in origins() {
        let fixture = Fixture::new(origin);
        let mut isolation = Isolation { namespaces: true, ..fixture.isolation() };
        isolation.mounts.push(Mount::read(fixture.others.parent().unwrap()));
        let read = |isolation: &Isolation| {
            let script = format!(
                "cat {0}/secret; ls {0}; cat {1}/file",
                fixture.others.display(),
                fixture.own.display()
            );
            let mut shim = start(origin, isolation, "/bin/sh", &["-c", &script]);
            shim.started();
            shim.output()
        };
        assert!(read(&isolation).contains("program"), "{origin:?}: nothing is hidden");
        isolation.hidden = vec![fixture.others.clone()];
        assert_eq!(read(&isolation), "text", "{origin:?}");
    }
}

/// What is renamed there is not where the next session hides it.
#[test]
fn nothing_above_a_hidden_directory_is_renamed() {
    for origin in origins() {
        let fixture = Fixture::new(origin);
        let shared = fixture.others.join("shared");
        for dir in [shared.clone(), shared.join("above"), shared.join("above/hidden")] {
            fs::create_dir(&dir).unwrap();
            fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).unwrap();
        }
        fs::write(shared.join("above/hidden/secret"), "text").unwrap();
        let mut isolation = Isolation { namespaces: true, ..fixture.isolation() };
        isolation.mounts.push(Mount { write: true, ..Mount::read(&shared) });
        isolation.hidden = vec![shared.join("above/hidden")];
        let script =
            format!("mv {0}/above {0}/elsewhere; cat {0}/*/*/secret; ls {0}/*/; echo end", shared.display());
        let mut shim = start(origin, &isolation, "/bin/sh", &["-c", &script]);
        shim.started();
        assert_eq!(shim.output().trim(), "end", "{origin:?}");
        assert!(shared.join("above/hidden/secret").exists(), "{origin:?}");
    }
}
