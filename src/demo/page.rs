//! How the demo looks: lines of text from what is to be said. Pure; knows nothing of servers, processes or the terminal.

use std::fmt::Display;
use std::time::Duration;

use anstyle::{AnsiColor, Style};

/// No line is wider. Fits beside another window, and into a pasted block.
pub(super) const WIDTH: usize = 92;
/// Before every line below a heading.
const INDENT: &str = "  ";

/// The styles in use; all of them empty where there is no terminal.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Paint {
    strong: Style,
    faint: Style,
    good: Style,
    bad: Style,
}

impl Paint {
    /// For a terminal.
    pub(super) fn colours() -> Self {
        Self {
            strong: Style::new().bold(),
            faint: Style::new().dimmed(),
            good: AnsiColor::Green.on_default().bold(),
            bad: AnsiColor::Red.on_default().bold(),
        }
    }

    /// The first line of all.
    pub(super) fn title(&self, name: &str, rest: &str) -> String {
        format!("{} {rest}\n", paint(self.strong, name))
    }

    /// `1  What comes now ─────`
    pub(super) fn heading(&self, number: usize, text: &str) -> String {
        let rule = "─".repeat(WIDTH.saturating_sub(text.chars().count() + 4));
        format!(
            "\n{}  {} {}\n",
            paint(self.strong, number),
            paint(self.strong, text),
            paint(self.faint, rule)
        )
    }

    /// A sentence or two.
    pub(super) fn text(&self, text: &str) -> String {
        indented(text, INDENT, INDENT)
    }

    /// A remark that may be skipped.
    pub(super) fn note(&self, text: &str) -> String {
        indented(text, INDENT, INDENT).lines().map(|line| format!("{}\n", paint(self.faint, line))).collect()
    }

    /// A fact with its name.
    pub(super) fn field(&self, name: &str, value: impl Display) -> String {
        format!("{INDENT}{} {value}\n", paint(self.faint, format_args!("{name:<10}")))
    }

    /// A statement that was checked; one that does not hold says what was seen instead.
    pub(super) fn claim(&self, holds: bool, text: &str, seen: &str) -> String {
        let (style, mark) = if holds { (self.good, "✓") } else { (self.bad, "✗") };
        // The mark takes the place of the first blanks.
        let body = indented(text, "    ", "    ");
        let mut line = format!("{INDENT}{} {}", paint(style, mark), body.trim_start());
        if !holds {
            line.push_str(&indented(&format!("seen: {seen}"), "      ", "            "));
        }
        line
    }

    /// The names above a table's columns.
    pub(super) fn header(&self, columns: &Columns, names: &[&str]) -> String {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        format!("{}\n", paint(self.faint, columns.line(&names)))
    }

    /// A line of a table.
    pub(super) fn row(&self, columns: &Columns, cells: &[String]) -> String {
        format!("{}\n", columns.line(cells))
    }

    /// What somebody says.
    pub(super) fn said(&self, who: &str, text: &str, remark: &str) -> String {
        let room = WIDTH.saturating_sub(12 + remark.chars().count());
        let text = cut(text, room);
        if remark.is_empty() {
            return format!("{INDENT}{} {text}\n", paint(self.strong, format_args!("{who:<8}")));
        }
        let gap = " ".repeat(room.saturating_sub(text.chars().count()));
        format!(
            "{INDENT}{} {text}{gap} {}\n",
            paint(self.strong, format_args!("{who:<8}")),
            paint(self.faint, remark)
        )
    }

    /// The last line of all.
    pub(super) fn verdict(&self, claims: usize, failed: usize, took: Duration) -> String {
        let took = took.as_secs_f64();
        if failed == 0 {
            let all = format!("All {claims} claims hold.");
            return format!("\n{} {took:.1} s in all.\n", paint(self.good, all));
        }
        let some = format!("{failed} of {claims} claims do not hold.");
        format!("\n{} {took:.1} s in all.\n", paint(self.bad, some))
    }
}

/// The widths of a table's columns: the first to the left, the others to the right, a last one of width 0 as it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Columns(pub(super) &'static [usize]);

impl Columns {
    fn line(self, cells: &[String]) -> String {
        let mut line = INDENT.to_owned();
        for (index, (width, cell)) in self.0.iter().zip(cells).enumerate() {
            if index > 0 {
                line.push_str("  ");
            }
            let gap = " ".repeat(width.saturating_sub(cell.chars().count()));
            if index == 0 {
                line.extend([cell.as_str(), &gap]);
            } else {
                line.extend([&gap, cell.as_str()]);
            }
        }
        line.truncate(line.trim_end().len());
        line
    }
}

/// A duration in three figures.
pub(super) fn took(time: Duration) -> String {
    let milliseconds = time.as_secs_f64() * 1e3;
    match milliseconds {
        0.0..9.95 => format!("{milliseconds:.1} ms"),
        9.95..999.5 => format!("{milliseconds:.0} ms"),
        _ => format!("{:.2} s", time.as_secs_f64()),
    }
}

/// A size in MiB or GiB.
pub(super) fn size(bytes: f64) -> String {
    let mebibytes = bytes / 1_048_576.0;
    if mebibytes < 1024.0 { format!("{mebibytes:.1} MiB") } else { format!("{:.1} GiB", mebibytes / 1024.0) }
}

/// The beginning of a text, on one line.
pub(super) fn cut(text: &str, most: usize) -> String {
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if line.chars().count() <= most {
        return line;
    }
    line.chars().take(most.saturating_sub(1)).chain(['…']).collect()
}

fn paint(style: Style, text: impl Display) -> String {
    format!("{style}{text}{style:#}")
}

/// Breaks a text between words.
fn indented(text: &str, first: &str, rest: &str) -> String {
    let mut lines = Vec::new();
    let mut line = first.to_owned();
    let mut is_begun = false;
    for word in text.split_whitespace() {
        if is_begun && line.chars().count() + 1 + word.chars().count() > WIDTH {
            lines.push(std::mem::replace(&mut line, rest.to_owned()));
            is_begun = false;
        }
        if is_begun {
            line.push(' ');
        }
        line.push_str(word);
        is_begun = true;
    }
    lines.push(line);
    lines.iter().map(|line| format!("{line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn widest(text: &str) -> usize {
        text.lines().map(|line| line.chars().count()).max().unwrap_or(0)
    }

    #[test]
    fn nothing_is_wider_than_the_page_and_plain_means_plain() {
        let plain = Paint::default();
        let long = "a sentence with many words ".repeat(20);
        let lines = [
            plain.heading(1, "A title"),
            plain.text(&long),
            plain.note(&long),
            plain.claim(false, &long, &long),
            plain.said("alice", &long, "process 1"),
        ];
        for line in lines {
            assert!(widest(&line) <= WIDTH + 2, "{line}");
            assert!(!line.contains('\u{1b}'), "{line:?}");
        }
    }

    #[test]
    fn a_claim_tells_what_was_seen_only_when_it_fails() {
        let plain = Paint::default();
        assert_eq!(plain.claim(true, "it is so", "2"), "  ✓ it is so\n");
        assert_eq!(plain.claim(false, "it is so", "2"), "  ✗ it is so\n      seen: 2\n");
        assert!(Paint::colours().claim(true, "it is so", "").contains('\u{1b}'));
    }

    #[test]
    fn columns_stand_below_each_other() {
        let columns = Columns(&[6, 5]);
        let cells = |a: &str, b: &str| [a.to_owned(), b.to_owned()];
        assert_eq!(columns.line(&cells("ab", "1")), "  ab          1");
        assert_eq!(columns.line(&cells("äöü", "12345")), "  äöü     12345");
        assert_eq!(columns.line(&cells("alone", "")), "  alone");
    }

    #[test]
    fn times_and_sizes_are_short() {
        assert_eq!(took(Duration::from_micros(2_345)), "2.3 ms");
        assert_eq!(took(Duration::from_micros(9_970)), "10 ms");
        assert_eq!(took(Duration::from_millis(471)), "471 ms");
        assert_eq!(took(Duration::from_millis(2_350)), "2.35 s");
        assert_eq!((size(1_572_864.0), size(2e10)), ("1.5 MiB".to_owned(), "18.6 GiB".to_owned()));
    }

    #[test]
    fn a_text_is_cut_between_characters() {
        assert_eq!(cut("äöü\nx", 10), "äöü x");
        assert_eq!(cut("äöüäöü", 4), "äöü…");
    }
}
