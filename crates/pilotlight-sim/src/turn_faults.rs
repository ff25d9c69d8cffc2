//! Faults of a turn: before its first line, after `init`, and in the middle of its answer.

use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::engine::{Engine, Stop};
use crate::faults::{self, Kind};
use crate::turn::Turn;

impl Engine {
    /// Faults before the first line.
    pub(crate) fn apply_faults_before_turn(&mut self, turn: &Turn) -> Result<(), Stop> {
        if let Some(fault) = self.fault(turn, Kind::DieOnce)
            && faults::first_time(fault.argument.as_deref().unwrap_or("die-once"))
        {
            faults::die(None);
        }
        if let Some(fault) = self.fault(turn, Kind::CrashBefore) {
            faults::die(fault.argument.as_deref());
        }
        // A stuck process ignores signals from the first line on, which a host may wait for.
        if self.fault(turn, Kind::Hang).or_else(|| self.fault(turn, Kind::Spin)).is_some() {
            self.ignore_signals.set();
        }
        if let Some(fault) = self.fault(turn, Kind::Mute) {
            self.wait(Duration::from_millis(fault.number(60_000)))?;
        }
        Ok(())
    }

    /// Faults after `init`.
    pub(crate) fn apply_faults_after_init(&mut self, turn: &mut Turn) {
        if let Some(fault) = self.fault(turn, Kind::CrashInit) {
            faults::die(fault.argument.as_deref());
        }
        if self.fault(turn, Kind::Hang).is_some() {
            faults::hang();
        }
        if self.fault(turn, Kind::Spin).is_some() {
            faults::spin();
        }
        if self.fault(turn, Kind::StopSelf).is_some() {
            faults::stop_self();
        }
        if self.fault(turn, Kind::GarbageLine).is_some() {
            self.out.bytes(b"this line is no JSON {\"type\":\n");
        }
        if self.fault(turn, Kind::InvalidUtf8).is_some() {
            self.out.bytes(b"{\"type\":\"system\",\"subtype\":\"broken\",\"text\":\"\xff\xfe\xc3\"}\n");
        }
        if let Some(fault) = self.fault(turn, Kind::LongLine) {
            self.long_line(fault.number(100_000_000));
        }
        if self.fault(turn, Kind::CloseStdout).is_some() {
            self.out.close();
        }
        // From the command line these apply at the start.
        for fault in turn.script.faults.clone() {
            match fault.kind {
                Kind::IgnoreTerm => self.ignore_signals.set(),
                Kind::IgnoreEof => self.ignore_eof(),
                Kind::NoRead => self.reading_stopped.store(true, Ordering::SeqCst),
                Kind::StderrFlood => faults::flood_stderr(fault.number(10_000_000)),
                Kind::Outlive | Kind::OutliveHolding => turn.survivors = self.spawn_survivors(&fault),
                _ => {}
            }
        }
    }

    fn long_line(&mut self, bytes: u64) {
        const CHUNK: &[u8] = &[b'x'; 64 * 1024];
        let start: &[u8] = br#"{"type":"system","subtype":"long","text":""#;
        let end: &[u8] = b"\"}\n";
        self.out.bytes(start);
        let mut left = usize::try_from(bytes).unwrap_or(usize::MAX).saturating_sub(start.len() + end.len());
        while left > 0 {
            let chunk = CHUNK.get(..left.min(CHUNK.len())).unwrap_or(CHUNK);
            self.out.bytes(chunk);
            left -= chunk.len();
        }
        self.out.bytes(end);
    }

    /// Faults in the middle of the answer.
    pub(crate) fn apply_mid_answer_faults(&mut self, turn: &Turn) {
        if let Some(fault) = self.fault(turn, Kind::CrashMid) {
            faults::die(fault.argument.as_deref());
        }
        if self.fault(turn, Kind::Exit0Mid).is_some() {
            faults::die(Some("0"));
        }
        if let Some(fault) = self.fault(turn, Kind::HalfLine) {
            self.out.bytes(br#"{"type":"assistant","message":{"id":"msg_half","type":"mess"#);
            faults::die(fault.argument.as_deref());
        }
    }
}
