//! Whole lines of the CLI, as many as came together.

use std::ops::Deref;
use std::vec::IntoIter;

use bytes::Bytes;
use memchr::memchr;

/// Whole lines, each with its LF, as one slice. [`Lines::next`] takes them one by one without a copy.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lines {
    bytes: Bytes,
    /// Where the lines after the next one begin, if that is known; else each is searched for.
    begins: Option<IntoIter<usize>>,
    /// Bytes that were taken: `begins` counts from the beginning of all.
    taken: usize,
}

impl Lines {
    /// `begins`: where each line but the first begins.
    pub(crate) fn cut(bytes: Bytes, begins: Vec<usize>) -> Self {
        Self { bytes, begins: Some(begins.into_iter()), taken: 0 }
    }

    /// All lines that are left.
    pub(crate) fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Takes the next line, without its line end.
    pub(crate) fn next(&mut self) -> Option<Bytes> {
        if self.bytes.is_empty() {
            return None;
        }
        let end = match &mut self.begins {
            Some(begins) => begins.next().map(|begin| begin - self.taken),
            None => memchr(b'\n', &self.bytes).map(|found| found + 1),
        };
        let mut line = self.bytes.split_to(end.unwrap_or(self.bytes.len()));
        self.taken += line.len();
        if line.last() == Some(&b'\n') {
            line.truncate(line.len() - 1);
        }
        Some(line)
    }

    /// What was not taken.
    pub(crate) fn into_bytes(self) -> Bytes {
        self.bytes
    }
}

impl From<Bytes> for Lines {
    fn from(bytes: Bytes) -> Self {
        Self { bytes, ..Self::default() }
    }
}

/// What was not taken.
impl Deref for Lines {
    type Target = Bytes;

    fn deref(&self) -> &Bytes {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn known_and_searched_ends_give_the_same_lines(lines in prop::collection::vec(r"[^\n]{0,5}", 0..9)) {
            let (mut text, mut begins) = (String::new(), Vec::new());
            for line in &lines {
                begins.push(text.len());
                text.push_str(line);
                text.push('\n');
            }
            let bytes = Bytes::from(text);
            let begins = begins.into_iter().skip(1).collect();
            for mut found in [Lines::cut(bytes.clone(), begins), Lines::from(bytes)] {
                for line in &lines {
                    prop_assert_eq!(found.next().unwrap(), line.as_bytes());
                }
                prop_assert_eq!(found.next(), None);
            }
        }
    }

    #[test]
    fn line_without_end_is_the_last() {
        let mut lines = Lines::from(Bytes::from_static(b"one\ntwo"));
        assert_eq!((lines.next().unwrap(), lines.len()), (Bytes::from_static(b"one"), 3));
        assert_eq!(lines.clone().into_bytes(), "two");
        assert_eq!((lines.next().unwrap(), lines.next()), (Bytes::from_static(b"two"), None));
    }
}
