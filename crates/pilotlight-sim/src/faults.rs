//! Faults by name. The code of start, turn and stream decides where each one applies.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::str::FromStr;

use rustix::process::{Signal, getpid, kill_process};

use crate::output::write_all;

/// A fault with its argument, such as `name=argument`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) kind: Kind,
    pub(crate) argument: Option<String>,
}

macro_rules! kinds {
    ($($kind:ident $name:literal $text:literal),* $(,)?) => {
        /// The faults.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Kind { $($kind),* }

        /// Name and effect of each fault, for the help text.
        pub(crate) const ALL: &[(&str, &str)] = &[$(($name, $text)),*];

        fn kind_of(name: &str) -> Option<Kind> {
            match name { $($name => Some(Kind::$kind),)* _ => None }
        }
    };
}

kinds! {
    CrashBefore "crash-before" "exit before the first line of the turn [=CODE|abort|kill, default 1]",
    CrashInit "crash-init" "exit after the turn's init",
    CrashMid "crash-mid" "exit after some deltas, before the answer",
    CrashAfter "crash-after" "exit after the result, before the transcript is written",
    Exit0Mid "exit0-mid" "exit with 0 in the middle of the answer",
    DieOnce "die-once" "=FILE: exit as crash-before unless FILE exists; FILE is created first, so a retry succeeds",
    Hang "hang" "block during the turn; ignore control requests and SIGTERM",
    Spin "spin" "the same with a busy loop",
    StopSelf "stop-self" "SIGSTOP to itself during the turn",
    Mute "mute" "=MS: no line for this time, but answers to control requests [60000]",
    IgnoreTerm "ignore-term" "ignore SIGTERM, SIGHUP and SIGINT from now on",
    IgnoreEof "ignore-eof" "continue to run after the end of input",
    GarbageLine "garbage-line" "one line that is not JSON, then continue",
    HalfLine "half-line" "half a line, then exit",
    InvalidUtf8 "invalid-utf8" "one line with invalid UTF-8, then continue",
    LongLine "long-line" "=BYTES: one line of this length [100000000], then continue",
    StderrFlood "stderr-flood" "=BYTES to standard error [10000000], then continue",
    CloseStdout "close-stdout" "close standard output but continue to run",
    NoRead "no-read" "stop reading the input",
    Outlive "outlive" "=SECONDS: start three processes in new sessions [600], one without environment",
    OutliveHolding "outlive-holding-pipes" "the same, with standard output and error open",
    SlowStart "slow-start" "=MS: ignore input for this time after the start [2000]",
    SilentServers "silent-servers" "no answer to the request that sets MCP servers",
    ExitAtStart "exit-at-start" "=CODE: exit at the start [1]",
    CrashStarts "crash-starts" "=N:FILE: exit with 1 at the first N starts, counted in FILE",
    RefuseResume "refuse-resume" "report that the conversation to resume does not exist",
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, argument) = match text.split_once('=') {
            Some((name, argument)) => (name, Some(argument.to_owned())),
            None => (text, None),
        };
        match kind_of(name.trim()) {
            Some(kind) => Ok(Self { kind, argument }),
            None => Err(format!("error: unknown fault '{name}'")),
        }
    }
}

impl Fault {
    /// The argument as a number.
    pub(crate) fn number(&self, default: u64) -> u64 {
        self.argument.as_deref().and_then(|text| text.parse().ok()).unwrap_or(default)
    }
}

/// Faults from the environment variable, for hosts with a fixed command line.
pub(crate) fn from_environment() -> Result<Vec<Fault>, String> {
    let text = std::env::var("PILOTLIGHT_SIM_FAULT").unwrap_or_default();
    text.split(',').filter(|name| !name.trim().is_empty()).map(str::parse).collect()
}

/// Ends this process at once, without a flush or an exit handler.
pub(crate) fn die(how: Option<&str>) -> ! {
    match how {
        Some("abort") => std::process::abort(),
        Some("kill") => {
            kill_process(getpid(), Signal::KILL).ok();
            std::process::abort()
        }
        code => std::process::exit(code.and_then(|code| code.parse().ok()).unwrap_or(1)),
    }
}

/// Stops this process with SIGSTOP; returns after SIGCONT.
pub(crate) fn stop_self() {
    kill_process(getpid(), Signal::STOP).ok();
}

/// Blocks forever without processor time.
pub(crate) fn hang() -> ! {
    loop {
        std::thread::park();
    }
}

/// Blocks forever with a busy loop.
pub(crate) fn spin() -> ! {
    loop {
        std::hint::spin_loop();
    }
}

/// Writes `bytes` bytes to standard error, in lines.
pub(crate) fn flood_stderr(bytes: u64) {
    let line = [b"the simulated CLI floods its standard error ".as_slice(), &[b'!'; 979], b"\n"].concat();
    let mut left = usize::try_from(bytes).unwrap_or(usize::MAX);
    while left > 0 {
        let piece = line.get(..left.min(line.len())).unwrap_or(&line);
        write_all(rustix::stdio::stderr(), piece);
        left -= piece.len();
    }
}

/// Creates the file; true if it did not exist.
pub(crate) fn first_time(file: &str) -> bool {
    OpenOptions::new().write(true).create_new(true).open(file).is_ok()
}

/// Counts this start in a file. True for the first N starts (`N:FILE`).
pub(crate) fn start_must_fail(argument: Option<&str>) -> bool {
    let Some((count, file)) = argument.and_then(|text| text.split_once(':')) else { return true };
    let starts = std::fs::metadata(file).map_or(0, |data| data.len());
    let counted = OpenOptions::new().append(true).create(true).open(file).and_then(|mut f| f.write_all(b"."));
    counted.is_ok() && starts < count.parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::{ALL, Fault, Kind};

    #[test]
    fn listed_faults_parse() {
        for (name, _) in ALL {
            assert!(name.parse::<Fault>().is_ok(), "{name}");
        }
        let fault: Fault = "mute=250".parse().unwrap();
        assert_eq!((fault.kind, fault.number(1)), (Kind::Mute, 250));
        assert!("nonsense".parse::<Fault>().is_err());
    }
}
