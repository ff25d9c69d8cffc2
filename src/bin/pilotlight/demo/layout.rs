//! Layout of the demo's output: lines and tables. Pure.

use std::fmt::Display;
use std::time::Duration;

use anstyle::{AnsiColor, Style};

use super::text::wrapped;

/// Maximum line width: fits beside another window and into a pasted block.
const WIDEST: usize = 92;
/// Minimum line width, which tables need.
const NARROWEST: usize = 60;
const ANSWER_LINES: usize = 2;
const INDENT: &str = "  ";

/// Line width: the terminal's, else that of the variable `COLUMNS`, within bounds.
pub(super) fn width(terminal: Option<u16>, columns: Option<&str>) -> usize {
    let terminal = terminal.filter(|columns| *columns > 0).map(usize::from);
    let columns = || columns.and_then(|columns| columns.trim().parse().ok()).filter(|columns| *columns > 0);
    terminal.or_else(columns).unwrap_or(WIDEST).clamp(NARROWEST, WIDEST)
}

/// Width and styles in use; the styles are empty without a terminal.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Layout {
    width: usize,
    strong: Style,
    faint: Style,
    good: Style,
    bad: Style,
}

impl Layout {
    pub(super) fn plain(width: usize) -> Self {
        Self { width, ..Self::default() }
    }

    pub(super) fn colours(width: usize) -> Self {
        Self {
            width,
            strong: Style::new().bold(),
            faint: Style::new().dimmed(),
            good: AnsiColor::Green.on_default().bold(),
            bad: AnsiColor::Red.on_default().bold(),
        }
    }

    pub(super) fn title(&self, name: &str, rest: &str) -> String {
        let text = self.indented(&format!("{name} {rest}"), "", "");
        text.replacen(name, &paint(self.strong, name), 1)
    }

    /// Numbered heading: `1  Title ─────`
    pub(super) fn heading(&self, number: usize, text: &str) -> String {
        let rule = "─".repeat(self.width.saturating_sub(text.chars().count() + 4));
        format!(
            "\n{}  {} {}\n",
            paint(self.strong, number),
            paint(self.strong, text),
            paint(self.faint, rule)
        )
    }

    pub(super) fn text(&self, text: &str) -> String {
        self.indented(text, INDENT, INDENT)
    }

    pub(super) fn note(&self, text: &str) -> String {
        self.indented(text, INDENT, INDENT)
            .lines()
            .map(|line| format!("{}\n", paint(self.faint, line)))
            .collect()
    }

    /// Named fact. A value with a word too long for the line, such as a path, stands below its name.
    pub(super) fn field(&self, name: &str, value: impl Display) -> String {
        let (value, beside) = (value.to_string(), " ".repeat(13));
        let room = self.width.saturating_sub(beside.len());
        if value.split_whitespace().any(|word| word.chars().count() > room) {
            let below = self.indented(&value, "    ", "    ");
            return format!("{INDENT}{}\n{below}", paint(self.faint, name));
        }
        let body = self.indented(&value, &beside, &beside);
        format!("{INDENT}{} {}", paint(self.faint, format_args!("{name:<10}")), body.trim_start())
    }

    /// Checked statement; a failed one shows what was seen.
    pub(super) fn claim(&self, holds: bool, text: &str, seen: &str) -> String {
        let (style, mark) = if holds { (self.good, "✓") } else { (self.bad, "✗") };
        // The mark replaces the indentation.
        let body = self.indented(text, "    ", "    ");
        let mut line = format!("{INDENT}{} {}", paint(style, mark), body.trim_start());
        if !holds {
            line.push_str(&self.indented(&format!("seen: {seen}"), "      ", "            "));
        }
        line
    }

    pub(super) fn header(&self, columns: &Columns, names: &[&str]) -> String {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        format!("{}\n", paint(self.faint, columns.line(&names, self.width)))
    }

    pub(super) fn row(&self, columns: &Columns, cells: &[String]) -> String {
        format!("{}\n", columns.line(cells, self.width))
    }

    /// Message of a user, or an answer; long text is cut between words. The remark is aligned to the right.
    pub(super) fn said(&self, who: &str, text: &str, remark: &str) -> String {
        let room = self.width.saturating_sub(11);
        let mut lines = wrapped(text, room);
        if lines.len() > ANSWER_LINES {
            lines.truncate(ANSWER_LINES);
            if let Some(last) = lines.last_mut() {
                *last = format!("{} …", wrapped(last, room.saturating_sub(2)).swap_remove(0));
            }
        }
        let last = lines.last().map_or(0, |line| line.chars().count());
        let remark_width = remark.chars().count();
        if remark_width > 0 && last + 1 + remark_width > room {
            lines.push(String::new());
        }
        let count = lines.len();
        let mut all = String::new();
        for (index, line) in lines.iter().enumerate() {
            let who = if index == 0 { who } else { "" };
            all.push_str(&format!("{INDENT}{} {line}", paint(self.strong, format_args!("{who:<8}"))));
            if index + 1 == count && remark_width > 0 {
                let gap = room.saturating_sub(line.chars().count() + remark_width);
                all.push_str(&format!("{}{}", " ".repeat(gap), paint(self.faint, remark)));
            }
            all.push('\n');
        }
        all
    }

    fn indented(&self, text: &str, first: &str, rest: &str) -> String {
        let indent = first.chars().count().max(rest.chars().count());
        let lines = wrapped(text, self.width.saturating_sub(indent));
        let indents = std::iter::once(first).chain(std::iter::repeat(rest));
        indents.zip(lines).map(|(indent, line)| format!("{indent}{line}\n")).collect()
    }

    pub(super) fn verdict(&self, claims: usize, failed: usize, took: Duration) -> String {
        let (style, text) = match failed {
            0 => (self.good, format!("All {claims} claims hold.")),
            _ => (self.bad, format!("{failed} of {claims} claims do not hold.")),
        };
        format!("\n{} {:.1} s in all.\n", paint(style, text), took.as_secs_f64())
    }
}

/// Column widths of a table: the first column is aligned to the left, the others to the right. On a narrow page the
/// first column shrinks; a cell that does not fit stands above its row.
#[derive(Debug, Clone, Copy)]
pub(super) struct Columns(pub(super) &'static [usize]);

impl Columns {
    fn line(self, cells: &[String], width: usize) -> String {
        let room = width.saturating_sub(INDENT.len());
        let others: usize = self.0.iter().skip(1).map(|width| width + 2).sum();
        let first = self.0.first().map_or(0, |first| room.saturating_sub(others).min(*first));
        let (mut above, mut line) = (String::new(), INDENT.to_owned());
        for (index, (width, cell)) in self.0.iter().zip(cells).enumerate() {
            let length = cell.chars().count();
            if index == 0 && length <= first {
                line.extend([cell.as_str(), &" ".repeat(first - length)]);
            } else if index == 0 {
                above = wrapped(cell, room).iter().map(|line| format!("{INDENT}{line}\n")).collect();
                line.push_str(&" ".repeat(first));
            } else {
                line.extend(["  ", &" ".repeat(width.saturating_sub(length)), cell.as_str()]);
            }
        }
        line.truncate(line.trim_end().len());
        above + &line
    }
}

fn paint(style: Style, text: impl Display) -> String {
    format!("{style}{text}{style:#}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIDTHS: [usize; 3] = [60, 80, 92];
    const TABLE: Columns = Columns(&[46, 12, 14, 12]);

    fn words(text: &str) -> Vec<&str> {
        text.split_whitespace().collect()
    }

    #[test]
    fn every_line_fits_and_no_word_is_broken() {
        let long = "a sentence with many words, http://127.0.0.1:46511/metrics and more ".repeat(9);
        let cells = ["My code word is amber-720. Please say it back.", "455 ms", "455 ms", "19165"]
            .map(str::to_owned);
        for width in WIDTHS {
            let plain = Layout::plain(width);
            let rendered = [
                (plain.title("pilotlight", &long), format!("pilotlight {long}")),
                (plain.text(&long), long.clone()),
                (plain.note(&long), long.clone()),
                (plain.field("server", &long), format!("server {long}")),
                (plain.claim(false, &long, &long), format!("✗ {long} seen: {long}")),
                (plain.row(&TABLE, &cells), cells.join(" ")),
                (
                    plain.header(&TABLE, &["", "first word", "whole answer", "process"]),
                    "first word whole answer process".into(),
                ),
                (
                    plain.said(
                        "bob",
                        "Please count from 1 to 200, one number to a line.",
                        "1.2 ms, process 7",
                    ),
                    "bob Please count from 1 to 200, one number to a line. 1.2 ms, process 7".into(),
                ),
            ];
            for (text, wanted) in &rendered {
                assert_eq!(words(text), words(wanted), "{width}");
            }
            let more = [
                plain.heading(1, "A title"),
                plain.said("alice", &long, "1.2 ms, process 1"),
                plain.verdict(17, 1, Duration::MAX),
            ];
            for line in rendered.iter().map(|(text, _)| text).chain(&more).flat_map(|text| text.lines()) {
                assert!(line.chars().count() <= width, "{width}: {line}");
                assert!(!line.contains('\u{1b}'), "{line:?}");
            }
        }
    }

    #[test]
    fn long_path_breaks_after_slashes() {
        let usual = format!("/tmp/pilotlight-demo-{}", "a".repeat(32));
        assert_eq!(Layout::plain(60).field("directory", &usual), format!("  directory\n    {usual}\n"));
        let path = format!("/tmp/{}/{}", "a".repeat(40), "b".repeat(100));
        let text = Layout::plain(60).field("directory", &path);
        assert!(text.lines().all(|line| line.chars().count() <= 60), "{text}");
        assert_eq!(words(&text).concat(), format!("directory{path}"));
        assert!(text.lines().nth(1).is_some_and(|line| line.ends_with("a/")), "{text}");
    }

    #[test]
    fn width_is_the_terminals_within_bounds() {
        assert_eq!(width(Some(80), Some("70")), 80);
        assert_eq!([width(None, Some("70")), width(Some(0), Some("70"))], [70, 70]);
        assert_eq!([width(Some(20), None), width(Some(300), None)], [60, 92]);
        assert_eq!([width(None, None), width(None, Some("x")), width(None, Some("0"))], [92, 92, 92]);
    }

    #[test]
    fn claim_shows_what_was_seen_only_on_failure() {
        let plain = Layout::plain(WIDEST);
        assert_eq!(plain.claim(true, "it is so", "2"), "  ✓ it is so\n");
        assert_eq!(plain.claim(false, "it is so", "2"), "  ✗ it is so\n      seen: 2\n");
        assert!(Layout::colours(WIDEST).claim(true, "it is so", "").contains('\u{1b}'));
    }

    #[test]
    fn columns_are_aligned() {
        let columns = Columns(&[6, 5]);
        let cells = |a: &str, b: &str| [a.to_owned(), b.to_owned()];
        assert_eq!(columns.line(&cells("ab", "1"), 60), "  ab          1");
        assert_eq!(columns.line(&cells("äöü", "12345"), 60), "  äöü     12345");
        assert_eq!(columns.line(&cells("alone", ""), 60), "  alone");
    }
}
