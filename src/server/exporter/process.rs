//! Standard process metrics under their usual names. Only the server exports them: an embedding program may have its
//! own. Rendered as text, because the recorder's counters are integers and CPU time is not.

use std::fmt::Write as _;
use std::time::SystemTime;

use procfs::process::Process;

#[derive(Clone)]
pub(crate) struct Started(SystemTime);

impl Started {
    pub(crate) fn now() -> Self {
        Self(SystemTime::now())
    }

    /// Appends the metrics to a text; unavailable ones are omitted.
    pub(crate) fn render(&self, text: &mut String) {
        let since = self.0.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        family(
            text,
            "start_time_seconds",
            "gauge",
            "When this server began, in Unix time.",
            since.as_secs_f64(),
        );
        let Ok(stat) = Process::myself().and_then(|process| process.stat()) else { return };
        let processor = (stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64;
        let help = "Processor time of this process, its children left out.";
        family(text, "cpu_seconds_total", "counter", help, processor);
        let help = "Memory of this process, its children left out.";
        let resident = stat.rss as f64 * procfs::page_size() as f64;
        family(text, "resident_memory_bytes", "gauge", help, resident);
    }
}

fn family(text: &mut String, name: &str, kind: &str, help: &str, value: f64) {
    // Writing to a string does not fail.
    let _written = write!(
        text,
        "# HELP process_{name} {help}\n# TYPE process_{name} {kind}\nprocess_{name} {value}\n\n"
    );
}
