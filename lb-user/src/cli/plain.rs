//! Text of others as a terminal may have it: what would move the cursor, ring, or turn the writing around is shown.

use std::borrow::Cow;

/// Without control characters but tabs, each shown as `^` and a letter, or as the replacement character.
pub(super) fn plain(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_order) {
        return text.into();
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '\0'..='\u{1f}' if c != '\t' => shown.extend(['^', char::from(c as u8 ^ 0x40)]),
            '\u{7f}' => shown.push_str("^?"),
            _ if is_order(c) => shown.push(char::REPLACEMENT_CHARACTER),
            _ => shown.push(c),
        }
    }
    shown.into()
}

/// Whether a terminal would do something else than show it.
fn is_order(c: char) -> bool {
    // Bidirectional overrides and isolates: they make a line read as another.
    let turns = matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    (c.is_control() && c != '\t') || turns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_to_the_terminal_are_shown_and_everything_else_is_as_it_was() {
        for (text, expected) in [
            ("plain, é, 漢字,\ttab", "plain, é, 漢字,\ttab"),
            ("\u{1b}[2J\u{1b}]0;title\u{7}", "^[[2J^[]0;title^G"),
            ("50 %\r100 %\n", "50 %^M100 %^J"),
            ("\u{9b}31m\u{7f}\0", "\u{fffd}31m^?^@"),
            ("\u{202e}txt.exe", "\u{fffd}txt.exe"),
        ] {
            assert_eq!(plain(text), expected);
        }
    }
}
