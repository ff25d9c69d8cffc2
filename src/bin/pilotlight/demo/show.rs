//! The page while it is being written: prints, and counts what was claimed.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use super::page::{Columns, Paint, width};

/// Why a part of the demo could not be shown to its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum Problem {
    /// Nobody reads any more.
    #[error("cannot write: {0}")]
    Output(#[from] std::io::Error),
    /// Something that had to work did not.
    #[error("{0}")]
    Seen(String),
}

impl Problem {
    pub(super) fn seen(what: impl Into<String>) -> Self {
        Self::Seen(what.into())
    }
}

/// See the module.
pub(super) struct Show {
    paint: Paint,
    parts: usize,
    claims: usize,
    failed: usize,
}

impl Show {
    /// In colour if somebody looks and has not asked for none (<https://no-color.org>).
    pub(super) fn new() -> Self {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var_os("TERM").is_some_and(|terminal| terminal == "dumb");
        let coloured = std::io::stdout().is_terminal() && !refused;
        let terminal = rustix::termios::tcgetwinsize(std::io::stdout()).ok().map(|size| size.ws_col);
        let width = width(terminal, std::env::var("COLUMNS").ok().as_deref());
        let paint = if coloured { Paint::colours(width) } else { Paint::plain(width) };
        Self { paint, parts: 0, claims: 0, failed: 0 }
    }

    pub(super) fn title(&self, name: &str, rest: &str) -> Result<(), Problem> {
        print(&self.paint.title(name, rest))
    }

    pub(super) fn heading(&mut self, text: &str) -> Result<(), Problem> {
        self.parts += 1;
        print(&self.paint.heading(self.parts, text))
    }

    pub(super) fn text(&self, text: &str) -> Result<(), Problem> {
        print(&self.paint.text(text))
    }

    pub(super) fn note(&self, text: &str) -> Result<(), Problem> {
        print(&self.paint.note(text))
    }

    pub(super) fn gap(&self) -> Result<(), Problem> {
        print("\n")
    }

    pub(super) fn field(&self, name: &str, value: impl std::fmt::Display) -> Result<(), Problem> {
        print(&self.paint.field(name, value))
    }

    pub(super) fn header(&self, columns: &Columns, names: &[&str]) -> Result<(), Problem> {
        print(&self.paint.header(columns, names))
    }

    pub(super) fn row(&self, columns: &Columns, cells: &[String]) -> Result<(), Problem> {
        print(&self.paint.row(columns, cells))
    }

    pub(super) fn said(&self, who: &str, text: &str, remark: &str) -> Result<(), Problem> {
        print(&self.paint.said(who, text, remark))
    }

    /// Says something that was checked, and counts it.
    pub(super) fn claim(
        &mut self,
        holds: bool,
        text: &str,
        seen: impl std::fmt::Display,
    ) -> Result<(), Problem> {
        self.claims += 1;
        self.failed += usize::from(!holds);
        print(&self.paint.claim(holds, text, &seen.to_string()))
    }

    /// The last line; whether all is well.
    pub(super) fn verdict(&self, took: Duration) -> Result<bool, Problem> {
        print(&self.paint.verdict(self.claims, self.failed, took))?;
        Ok(self.failed == 0)
    }
}

fn print(text: &str) -> Result<(), Problem> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}
