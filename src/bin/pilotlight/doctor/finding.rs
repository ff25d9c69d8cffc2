//! A finding: how bad it is, what it is about, and what to do.

use serde_json::{Value, json};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    Good,
    Warning,
    Problem,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) level: Level,
    pub(crate) subject: &'static str,
    pub(crate) text: String,
    /// What to do about it.
    pub(crate) remedy: String,
}

impl Level {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Good => "ok",
            Self::Warning => "warning",
            Self::Problem => "problem",
        }
    }
}

impl Finding {
    pub(crate) fn good(subject: &'static str, text: impl Into<String>) -> Self {
        Self { level: Level::Good, subject, text: text.into(), remedy: String::new() }
    }

    pub(crate) fn warning(subject: &'static str, text: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { level: Level::Warning, subject, text: text.into(), remedy: remedy.into() }
    }

    pub(crate) fn problem(subject: &'static str, text: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { level: Level::Problem, subject, text: text.into(), remedy: remedy.into() }
    }

    pub(crate) fn json(&self) -> Value {
        let remedy = Some(&self.remedy).filter(|remedy| !remedy.is_empty());
        json!({ "level": self.level.as_str(), "subject": self.subject, "text": self.text, "remedy": remedy })
    }

    /// One line, and what to do below it.
    pub(crate) fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!("{:<8} {:<14} {}", self.level.as_str(), self.subject, self.text)];
        if !self.remedy.is_empty() {
            lines.push(format!("{:<8} {:<14} -> {}", "", "", self.remedy));
        }
        lines
    }
}
