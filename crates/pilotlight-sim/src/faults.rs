//! The ways to break, by name. Where each one strikes is decided where it is asked for (start, turn, delta).

use std::fs::OpenOptions;
use std::io::Write as _;
use std::str::FromStr;

use rustix::process::{Signal, getpid, kill_process};

use super::output::write_all;

/// A fault with its argument, as in `name=argument`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) kind: Kind,
    pub(crate) argument: Option<String>,
}

macro_rules! kinds {
    ($($kind:ident $name:literal $text:literal),* $(,)?) => {
        /// The known faults.
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
    CrashBefore "crash-before" "die before any event of the turn [=CODE|abort|kill, default 1]",
    CrashInit "crash-init" "die after the turn's init alone",
    CrashMid "crash-mid" "die after some deltas, before the answer",
    CrashAfter "crash-after" "die right after the result, before the transcript is written",
    Exit0Mid "exit0-mid" "exit with 0 in the middle of the answer",
    DieOnce "die-once" "=FILE: die as crash-before unless FILE exists; FILE is made first, so a retry succeeds",
    Hang "hang" "stop doing anything in mid-turn, control requests and SIGTERM included",
    Spin "spin" "the same, burning processor time",
    StopSelf "stop-self" "SIGSTOP to itself in mid-turn",
    Mute "mute" "=MS: no line at all for that long, but control requests are answered [60000]",
    IgnoreTerm "ignore-term" "forget SIGTERM, SIGHUP and SIGINT from now on",
    IgnoreEof "ignore-eof" "live on when the input ends",
    GarbageLine "garbage-line" "one line that is no JSON, then go on",
    HalfLine "half-line" "half a line, then die",
    InvalidUtf8 "invalid-utf8" "one line with bytes that are no UTF-8, then go on",
    LongLine "long-line" "=BYTES: one line of that length [100000000], then go on",
    StderrFlood "stderr-flood" "=BYTES to standard error [10000000], then go on",
    CloseStdout "close-stdout" "close the output but live",
    NoRead "no-read" "never read the input again",
    Memory "memory" "=MB: grow by that much touched memory [256] and keep it",
    Outlive "outlive" "=SECONDS: leave three processes in sessions of their own [600], one without environment",
    OutliveHolding "outlive-holding-pipes" "the same, and they hold output and error open",
    SlowStart "slow-start" "=MS: react to nothing for that long after the start [2000]",
    NeverReady "never-ready" "read, but never answer anything",
    SilentServers "silent-servers" "never answer the request that sets MCP servers",
    ExitAtStart "exit-at-start" "=CODE: exit at once [1]",
    CrashStarts "crash-starts" "=N:FILE: exit with 1 at the first N starts, counted in FILE",
    RefuseResume "refuse-resume" "deny that the conversation to resume exists",
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

/// The faults of the environment variable, for hosts that fix the command line.
pub(crate) fn from_environment() -> Result<Vec<Fault>, String> {
    let text = std::env::var("PILOTLIGHT_SIM_FAULT").unwrap_or_default();
    text.split(',').filter(|name| !name.trim().is_empty()).map(str::parse).collect()
}

/// Ends this process at once: nothing is flushed, no handler runs.
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

/// Stops this process; returns when somebody continues it.
pub(crate) fn stop_self() {
    kill_process(getpid(), Signal::STOP).ok();
}

/// Never comes back, and needs nothing.
pub(crate) fn hang() -> ! {
    loop {
        std::thread::park();
    }
}

/// Never comes back, and needs a whole processor.
pub(crate) fn spin() -> ! {
    loop {
        std::hint::spin_loop();
    }
}

/// Writes that much to standard error, in lines.
pub(crate) fn flood_stderr(bytes: u64) {
    let line = [b"the simulated CLI floods its standard error ".as_slice(), &[b'!'; 979], b"\n"].concat();
    let mut left = usize::try_from(bytes).unwrap_or(usize::MAX);
    while left > 0 {
        let piece = line.get(..left.min(line.len())).unwrap_or(&line);
        write_all(rustix::stdio::stderr(), piece);
        left -= piece.len();
    }
}

/// Memory that the kernel really has to give.
pub(crate) fn ballast(megabytes: u64) -> Vec<Vec<u8>> {
    (0..megabytes).map(|_| vec![1; 1 << 20]).collect()
}

/// True for the first call with this file, ever: it is made here.
pub(crate) fn first_time(file: &str) -> bool {
    OpenOptions::new().write(true).create_new(true).open(file).is_ok()
}

/// Counts this start in a file and tells whether it is one of those that must fail (`N:FILE`).
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
    fn every_listed_fault_is_understood() {
        for (name, _) in ALL {
            assert!(name.parse::<Fault>().is_ok(), "{name}");
        }
        let fault: Fault = "mute=250".parse().unwrap();
        assert_eq!((fault.kind, fault.number(1)), (Kind::Mute, 250));
        assert!("nonsense".parse::<Fault>().is_err());
    }
}
