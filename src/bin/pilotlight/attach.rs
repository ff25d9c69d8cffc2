//! `pilotlight attach`: the CLI of an Agent SDK, whose work a child of a running server does.
//!
//! Two threads pass bytes on and nothing else: the server judges the lines. Its end, however it comes, ends the child.

use std::ffi::OsString;
use std::io::{BufRead as _, BufReader, IsTerminal as _, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use pilotlight::Config;
use pilotlight::config::ConfigError;
use pilotlight::server::attach::wire::{END, EXIT, Hello, NOTE, OUTPUT};

use crate::args::{FAILED, MISUSED, complain, environment, note};

/// Name of a link to the program that makes it this subcommand: SDKs take a path and no arguments.
const NAME: &str = "pilotlight-attach";
/// Variables of this subcommand.
const SOCKET: &str = "PILOTLIGHT_SOCKET";
const USER: &str = "PILOTLIGHT_USER";
const SESSION: &str = "PILOTLIGHT_SESSION_NAME";
const KEY: &str = "PILOTLIGHT_KEY";
/// Bytes of one read of the standard input.
const READ: usize = 64 << 10;

const HELP: &str = "\
Be the CLI of an Agent SDK: its lines go to a child of a running server

Usage: pilotlight attach [FLAGS OF THE CLI]

The Agent SDKs start it with the flags of the CLI and speak stream-json with it. Give them the path of a link
named pilotlight-attach to this program: cli_path in Python, pathToClaudeCodeExecutable in TypeScript. The server
takes flags and control requests as far as its policies allow (docs/attach.md). The working directory is that of the
session.

Variables:
  PILOTLIGHT_SOCKET        the server's socket; default: attach.socket of the configuration in the environment, else
                           attach.sock in its data directory
  PILOTLIGHT_USER          the user; not needed with a key of a user, or where http.default_user is set
  PILOTLIGHT_SESSION_NAME  the session; default: default
  PILOTLIGHT_KEY           the key, where the server has keys

Options:
  -h, --help     Print help
  -v, --version  Print version

Exit codes: that of the child; 1 if the server refuses or ends the connection, 2 for an invalid environment.";

/// Whether the program was started by the name of this subcommand.
pub(crate) fn is_called_so() -> bool {
    let name = std::env::args_os().next().unwrap_or_default();
    Path::new(&name).file_name().is_some_and(|name| name == NAME)
}

pub(crate) fn run(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let arguments: Option<Vec<String>> = arguments.map(|argument| argument.into_string().ok()).collect();
    let Some(arguments) = arguments else { return complain("an argument is not UTF-8", MISUSED) };
    match arguments.first().map(String::as_str) {
        Some("--help" | "-h") => return print(HELP),
        Some("--version" | "-v") => return print(concat!(env!("CARGO_PKG_VERSION"), " (pilotlight)")),
        _ => {}
    }
    let path = match socket() {
        Ok(path) => path,
        Err(error) => return complain(&error.to_string(), MISUSED),
    };
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let hello = Hello { user: variable(USER), session: variable(SESSION), key: variable(KEY), arguments };
    let unreachable = |error: std::io::Error| {
        let problem = format!("no server answers at {}: {error} ({SOCKET} names its socket)", path.display());
        complain(&problem, FAILED)
    };
    let mut stream = match UnixStream::connect(&path) {
        Ok(stream) => stream,
        Err(error) => return unreachable(error),
    };
    let mut line = match serde_json::to_vec(&hello) {
        Ok(line) => line,
        Err(error) => return complain(&error.to_string(), FAILED),
    };
    line.push(b'\n');
    // A server that refuses does so perhaps before it has read all: why is on the way.
    stream.write_all(&line).ok();
    let input = match stream.try_clone() {
        Ok(input) => input,
        Err(error) => return unreachable(error),
    };
    // SDKs pass standard error on to their callers, who expect none of a good run.
    if std::io::stderr().is_terminal() {
        note("pilotlight: attached: the working directory is that of the session, not this one");
    }
    // It ends with the process.
    std::thread::spawn(move || pass_input(input));
    pass_output(stream)
}

/// Where the server's socket is.
fn socket() -> Result<PathBuf, ConfigError> {
    if let Some(path) = std::env::var_os(SOCKET).filter(|path| !path.is_empty()) {
        return Ok(path.into());
    }
    let own = [USER, SESSION, KEY];
    let variables = environment()?.into_iter().filter(|(name, _)| !own.contains(&name.as_str()));
    Ok(Config::load(None, variables)?.attach_socket())
}

fn print(text: &str) -> ExitCode {
    // A closed output is no failure.
    writeln!(std::io::stdout(), "{text}").ok();
    ExitCode::SUCCESS
}

/// Passes the standard input on, and says when it ends.
fn pass_input(mut stream: UnixStream) {
    let mut stdin = std::io::stdin().lock();
    let mut block = vec![0; READ];
    let mut last = b'\n';
    loop {
        let read = match stdin.read(&mut block) {
            Ok(read) => read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(_) => 0,
        };
        let bytes = block.get(..read).unwrap_or_default();
        let Some(end) = bytes.last() else { break };
        last = *end;
        if stream.write_all(bytes).is_err() {
            return;
        }
    }
    let missing: &[u8] = if last == b'\n' { b"" } else { b"\n" };
    // The other thread notices a server that is gone.
    stream.write_all(missing).and_then(|()| stream.write_all(END)).ok();
}

/// Passes the server's lines on, until the last one.
fn pass_output(stream: UnixStream) -> ExitCode {
    let mut lines = BufReader::with_capacity(READ, &stream);
    let mut line = Vec::new();
    let mut stdout = std::io::stdout().lock();
    loop {
        line.clear();
        let read = lines.read_until(b'\n', &mut line);
        let (Ok(_), true) = (read, line.ends_with(b"\n")) else {
            return complain("the server is gone", FAILED);
        };
        match line.split_first() {
            Some((&OUTPUT, rest)) => {
                if stdout.write_all(rest).and_then(|()| stdout.flush()).is_err() {
                    // Nobody reads any more: the end of the connection ends the child.
                    stream.shutdown(Shutdown::Both).ok();
                    return ExitCode::from(FAILED);
                }
            }
            Some((&NOTE, rest)) => note(String::from_utf8_lossy(rest).trim_end()),
            Some((&EXIT, rest)) => {
                let code = std::str::from_utf8(rest).ok().and_then(|code| code.trim().parse::<i32>().ok());
                let code = code.and_then(|code| u8::try_from(code).ok());
                return ExitCode::from(code.unwrap_or(FAILED));
            }
            _ => {
                return complain(
                    "the server does not speak as this program expects: use the same version",
                    FAILED,
                );
            }
        }
    }
}
