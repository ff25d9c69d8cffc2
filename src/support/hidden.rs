//! Characters that a reader does not see, or that change how others are read: control and format characters, fillers
//! without width, and marks that turn the direction of writing. Pure.
//!
//! Text of users and children with them could pass for another text, or drive a terminal.

/// Whether a character is one of them, by the tables of Unicode 16 (`Cc`, `Cf`, `Zl`, `Zp`, default ignorable).
#[must_use]
pub fn is_hidden(character: char) -> bool {
    // Nearly every character is one of these.
    if (' '..='~').contains(&character) {
        return false;
    }
    character.is_control()
        || matches!(
            character,
            '\u{ad}' | '\u{34f}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{890}'..='\u{891}'
                | '\u{8e2}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}' | '\u{180b}'..='\u{180f}'
                | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}'
                | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{110bd}' | '\u{110cd}'
                | '\u{13430}'..='\u{1343f}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}'
                | '\u{e0000}'..='\u{e0fff}'
        )
}

#[cfg(test)]
mod tests {
    use super::is_hidden;

    #[test]
    fn hidden_characters_are_known() {
        for hidden in [
            '\0',
            '\n',
            '\u{1b}',
            '\u{7f}',
            '\u{9b}',
            '\u{ad}',
            '\u{61c}',
            '\u{200b}',
            '\u{200d}',
            '\u{200e}',
            '\u{200f}',
            '\u{2028}',
            '\u{202a}',
            '\u{202b}',
            '\u{202c}',
            '\u{202d}',
            '\u{202e}',
            '\u{2060}',
            '\u{2066}',
            '\u{2067}',
            '\u{2068}',
            '\u{2069}',
            '\u{3164}',
            '\u{fe0f}',
            '\u{feff}',
            '\u{fffa}',
            '\u{e0041}',
        ] {
            assert!(is_hidden(hidden), "{}", hidden.escape_unicode());
        }
        for shown in [' ', 'a', '~', '\u{a0}', 'ß', 'é', 'א', 'م', '語', '😀', '\u{301}', '\u{fffd}', '…']
        {
            assert!(!is_hidden(shown), "{}", shown.escape_unicode());
        }
    }
}
