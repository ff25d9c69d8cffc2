//! Durations, sizes and wrapped lines as text. Pure.

use std::time::Duration;

pub(super) fn took(time: Duration) -> String {
    let milliseconds = time.as_secs_f64() * 1e3;
    match milliseconds {
        0.0..9.95 => format!("{milliseconds:.1} ms"),
        9.95..999.5 => format!("{milliseconds:.0} ms"),
        _ => format!("{:.2} s", time.as_secs_f64()),
    }
}

pub(super) fn size(bytes: f64) -> String {
    let mebibytes = bytes / 1_048_576.0;
    if mebibytes < 1024.0 { format!("{mebibytes:.1} MiB") } else { format!("{:.1} GiB", mebibytes / 1024.0) }
}

/// The first `most` characters of a text, on one line.
pub(super) fn cut(text: &str, most: usize) -> String {
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if line.chars().count() <= most {
        return line;
    }
    line.chars().take(most.saturating_sub(1)).chain(['…']).collect()
}

/// Breaks a text between words into lines of at most `width` characters. Never empty.
pub(super) fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in text.split_whitespace() {
        for (index, piece) in pieces(word, width).into_iter().enumerate() {
            let gap = usize::from(index == 0 && !line.is_empty());
            if !line.is_empty() && line.chars().count() + gap + piece.chars().count() > width {
                lines.push(std::mem::take(&mut line));
            } else if gap > 0 {
                line.push(' ');
            }
            line.push_str(&piece);
        }
    }
    lines.push(line);
    lines
}

/// Splits a word that does not fit (a path, JSON) after its punctuation, and where a line ends.
fn pieces(word: &str, width: usize) -> Vec<String> {
    if word.chars().count() <= width {
        return vec![word.to_owned()];
    }
    let mut pieces = Vec::new();
    for part in word.split_inclusive(['/', ',', ':']) {
        let part: Vec<char> = part.chars().collect();
        pieces.extend(part.chunks(width.max(1)).map(|part| part.iter().collect::<String>()));
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes_are_short() {
        assert_eq!(took(Duration::from_micros(2_345)), "2.3 ms");
        assert_eq!(took(Duration::from_micros(9_970)), "10 ms");
        assert_eq!(took(Duration::from_millis(471)), "471 ms");
        assert_eq!(took(Duration::from_millis(2_350)), "2.35 s");
        assert_eq!((size(1_572_864.0), size(2e10)), ("1.5 MiB".to_owned(), "18.6 GiB".to_owned()));
    }

    #[test]
    fn text_is_cut_between_characters() {
        assert_eq!(cut("äöü\nx", 10), "äöü x");
        assert_eq!(cut("äöüäöü", 4), "äöü…");
    }
}
