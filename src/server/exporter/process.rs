//! Standard process metrics under their usual names. Only the server exports them: an embedding program may have its
//! own. Rendered as text, because the recorder's counters are integers and CPU time is not.

use std::fmt::Write as _;
use std::time::SystemTime;

use procfs::process::Process;

/// Start time of the server.
#[derive(Clone)]
pub(crate) struct Started(SystemTime);

impl Started {
    pub(crate) fn now() -> Self {
        Self(SystemTime::now())
    }

    /// Appends the metrics to a text; unavailable ones are omitted.
    pub(crate) fn render(&self, text: &mut String) {
        let since = self.0.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let begin = ("process_start_time_seconds", "gauge", "When this server began, in Unix time.");
        family(text, begin, since.as_secs_f64());
        let Ok(stat) = Process::myself().and_then(|process| process.stat()) else { return };
        let processor = (stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64;
        let used = (
            "process_cpu_seconds_total",
            "counter",
            "Processor time of this process, its children left out.",
        );
        family(text, used, processor);
        let resident =
            ("process_resident_memory_bytes", "gauge", "Memory of this process, its children left out.");
        family(text, resident, stat.rss as f64 * procfs::page_size() as f64);
    }
}

fn family(text: &mut String, (name, kind, help): (&str, &str, &str), value: f64) {
    // Writing to a string does not fail.
    let _written = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_metrics_are_rendered() {
        let mut text = String::new();
        Started::now().render(&mut text);
        for name in
            ["process_start_time_seconds", "process_cpu_seconds_total", "process_resident_memory_bytes"]
        {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            let value: f64 = line.unwrap_or_else(|| panic!("no {name}")).parse().unwrap();
            assert!(value >= 0.0);
            assert!(text.contains(&format!("# HELP {name} ")) && text.contains(&format!("# TYPE {name} ")));
        }
    }
}
