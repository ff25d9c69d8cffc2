//! Keeps the end of what a process writes, so that a failing test can show it, and finds lines in it.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// Enough to understand a failure.
const KEPT_LINES: usize = 400;

/// The end of an output; clones look at the same one.
#[derive(Clone, Default)]
pub struct Output {
    lines: Arc<Mutex<VecDeque<String>>>,
    readers: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

impl Output {
    /// Reads `source` on a thread of its own until its end: a pipe nobody reads would stop its writer.
    pub fn drain(&self, source: impl Read + Send + 'static) {
        let lines = Arc::clone(&self.lines);
        let reader = std::thread::spawn(move || {
            let mut source = BufReader::new(source);
            let mut line = Vec::new();
            while source.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
                let mut kept = lines.lock().expect("no reader panics");
                kept.push_back(String::from_utf8_lossy(&line).trim_end().to_owned());
                if kept.len() > KEPT_LINES {
                    kept.pop_front();
                }
                line.clear();
            }
        });
        self.readers.lock().expect("no reader panics").push(reader);
    }

    /// Whether all that was written has been read: the last writer has ended.
    pub fn is_whole(&self) -> bool {
        self.readers.lock().expect("no reader panics").iter().all(JoinHandle::is_finished)
    }

    /// What follows `prefix` in the first line that has it.
    pub fn after(&self, prefix: &str) -> Option<String> {
        let lines = self.lines.lock().expect("no reader panics");
        lines.iter().find_map(|line| line.strip_prefix(prefix)).map(str::to_owned)
    }

    /// All that is kept.
    pub fn text(&self) -> String {
        let lines = self.lines.lock().expect("no reader panics");
        lines.iter().map(String::as_str).collect::<Vec<_>>().join("\n")
    }
}
