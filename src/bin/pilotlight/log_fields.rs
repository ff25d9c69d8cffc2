//! Fields of spans and events as the log writes them, without the detour over styles of a terminal.
//!
//! The usual formatter paints each name and each sign, also where nothing has a colour. Spans and events of a turn have a dozen
//! fields, and painting took most of the time of its log line.

use std::error::Error;
use std::fmt::{self, Debug};

use tracing::field::{Field, Visit};
use tracing_subscriber::field::{RecordFields, VisitOutput as _};
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::{DefaultVisitor, Writer};

/// Writes what [`tracing_subscriber::fmt::format::DefaultFields`] writes.
pub(crate) struct PlainFields;

impl<'writer> FormatFields<'writer> for PlainFields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut visitor = PlainVisitor { writer, is_empty: true, result: Ok(()) };
        fields.record(&mut visitor);
        visitor.result
    }
}

struct PlainVisitor<'a> {
    writer: Writer<'a>,
    is_empty: bool,
    result: fmt::Result,
}

impl PlainVisitor<'_> {
    /// Whether a field is no more than its name and its value.
    fn is_plain(&self, name: &str) -> bool {
        name != "message" && !name.starts_with("r#") && !self.writer.has_ansi_escapes()
    }

    fn visit_usually(&mut self, visit: impl FnOnce(&mut DefaultVisitor<'_>)) {
        if self.result.is_ok() {
            let mut usual = DefaultVisitor::new(self.writer.by_ref(), self.is_empty);
            visit(&mut usual);
            self.result = usual.finish();
            self.is_empty = false;
        }
    }

    fn write(&mut self, name: &str, value: &dyn Debug) -> fmt::Result {
        if !std::mem::take(&mut self.is_empty) {
            self.writer.write_char(' ')?;
        }
        self.writer.write_str(name)?;
        self.writer.write_char('=')?;
        write!(self.writer, "{value:?}")
    }
}

impl Visit for PlainVisitor<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let name = field.name();
        if name.starts_with("log.") {
            // Said in another place of the line.
        } else if !self.is_plain(name) {
            self.visit_usually(|usual| usual.record_debug(field, value));
        } else if self.result.is_ok() {
            self.result = self.write(name, value);
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if self.is_plain(field.name()) {
            self.record_debug(field, &value);
        } else {
            self.visit_usually(|usual| usual.record_str(field, value));
        }
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        self.visit_usually(|usual| usual.record_error(field, value));
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use proptest::prelude::*;
    use tracing_subscriber::Registry;
    use tracing_subscriber::layer::{Layer, SubscriberExt as _};

    use super::*;

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Log {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Failed(String, #[source] io::Error);

    /// A layer that writes to the log, with these fields.
    fn lines<N>(log: &Log, fields: N, has_colours: bool) -> impl Layer<Registry> + Send + Sync
    where
        N: for<'a> FormatFields<'a> + Send + Sync + 'static,
    {
        let log = log.clone();
        tracing_subscriber::fmt::layer()
            .without_time()
            .with_ansi(has_colours)
            .fmt_fields(fields)
            .with_writer(move || log.clone())
    }

    fn say(text: &str, number: u64) {
        let failed = Failed(text.to_owned(), io::Error::other(text.to_owned()));
        let error: &(dyn Error + 'static) = &failed;
        let span = tracing::info_span!("span", text, number, r#type = %text, empty = tracing::field::Empty, later = tracing::field::Empty);
        let _entered = span.enter();
        tracing::info!(text, ?number, shown = %text, yes = true, part = 0.5, "what {text}");
        span.record("later", text);
        tracing::warn!(error, r#type = text, "failed");
        tracing::info!(text);
        tracing::info!("{}", text);
        tracing::error!(error);
        tracing::info!(message = text, number);
    }

    proptest! {
        #[test]
        fn lines_are_those_of_the_usual_fields(text in "[a-z \"\\\\\u{1b}\u{9b}é\n]{0,8}", number: u64, has_colours: bool) {
            let logged = |write: &dyn Fn(&Log) -> Box<dyn Layer<Registry> + Send + Sync>| {
                let log = Log::default();
                let subscriber = Registry::default().with(write(&log));
                tracing::subscriber::with_default(subscriber, || say(&text, number));
                log.text()
            };
            let usual = tracing_subscriber::fmt::format::DefaultFields::new;
            let expected = logged(&|log| Box::new(lines(log, usual(), has_colours)));
            prop_assert!(expected.contains("failed"));
            prop_assert_eq!(logged(&|log| Box::new(lines(log, PlainFields, has_colours))), expected);
        }
    }
}
