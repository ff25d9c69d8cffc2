//! Printer of the demo; counts its claims.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use super::layout::{Columns, Layout, width};

#[derive(Debug, thiserror::Error)]
pub(super) enum Problem {
    #[error("cannot write: {0}")]
    Output(#[from] std::io::Error),
    /// A required step failed.
    #[error("{0}")]
    Seen(String),
}

impl Problem {
    pub(super) fn seen(what: impl Into<String>) -> Self {
        Self::Seen(what.into())
    }
}

pub(super) struct Show {
    layout: Layout,
    parts: usize,
    claims: usize,
    failed: usize,
}

impl Show {
    /// Colours for a terminal, unless `NO_COLOR` is set (<https://no-color.org>).
    pub(super) fn new() -> Self {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var_os("TERM").is_some_and(|terminal| terminal == "dumb");
        let coloured = std::io::stdout().is_terminal() && !refused;
        let terminal = rustix::termios::tcgetwinsize(std::io::stdout()).ok().map(|size| size.ws_col);
        let width = width(terminal, std::env::var("COLUMNS").ok().as_deref());
        let layout = if coloured { Layout::colours(width) } else { Layout::plain(width) };
        Self { layout, parts: 0, claims: 0, failed: 0 }
    }

    pub(super) fn title(&self, name: &str, rest: &str) -> Result<(), Problem> {
        print(&self.layout.title(name, rest))
    }

    pub(super) fn heading(&mut self, text: &str) -> Result<(), Problem> {
        self.parts += 1;
        print(&self.layout.heading(self.parts, text))
    }

    pub(super) fn text(&self, text: &str) -> Result<(), Problem> {
        print(&self.layout.text(text))
    }

    pub(super) fn note(&self, text: &str) -> Result<(), Problem> {
        print(&self.layout.note(text))
    }

    pub(super) fn gap(&self) -> Result<(), Problem> {
        print("\n")
    }

    pub(super) fn field(&self, name: &str, value: impl std::fmt::Display) -> Result<(), Problem> {
        print(&self.layout.field(name, value))
    }

    pub(super) fn header(&self, columns: &Columns, names: &[&str]) -> Result<(), Problem> {
        print(&self.layout.header(columns, names))
    }

    pub(super) fn row(&self, columns: &Columns, cells: &[String]) -> Result<(), Problem> {
        print(&self.layout.row(columns, cells))
    }

    pub(super) fn said(&self, who: &str, text: &str, remark: &str) -> Result<(), Problem> {
        print(&self.layout.said(who, text, remark))
    }

    /// Prints and counts a checked claim.
    pub(super) fn claim(
        &mut self,
        holds: bool,
        text: &str,
        seen: impl std::fmt::Display,
    ) -> Result<(), Problem> {
        self.claims += 1;
        self.failed += usize::from(!holds);
        print(&self.layout.claim(holds, text, &seen.to_string()))
    }

    /// Prints the last line; returns whether all claims hold.
    pub(super) fn verdict(&self, took: Duration) -> Result<bool, Problem> {
        print(&self.layout.verdict(self.claims, self.failed, took))?;
        Ok(self.failed == 0)
    }
}

fn print(text: &str) -> Result<(), Problem> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}
