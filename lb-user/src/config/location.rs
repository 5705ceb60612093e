//! Byte offsets of a text as lines and columns, for people.

use std::ops::Range;

/// A spot in a text, counted as editors do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// The line itself, without its end.
    pub text: String,
    /// How many characters of that line are meant, at least 1.
    pub width: usize,
}

/// Where `span` begins, and how much of its first line it takes. Offsets beyond the text, or inside a character, are taken
/// as the nearest spot before.
pub fn place(text: &str, span: &Range<usize>) -> Place {
    let start = floor(text, span.start);
    let line_start = text[..start].rfind('\n').map_or(0, |newline| newline + 1);
    let line_end = text[start..].find('\n').map_or(text.len(), |newline| start + newline);
    let line = text[line_start..line_end].trim_end_matches('\r');
    let end = floor(text, span.end).clamp(start, (line_start + line.len()).max(start));
    Place {
        line: text[..start].matches('\n').count() + 1,
        column: text[line_start..start].chars().count() + 1,
        text: line.to_owned(),
        width: text[start..end].chars().count().max(1),
    }
}

fn floor(text: &str, offset: usize) -> usize {
    text.floor_char_boundary(offset.min(text.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str, span: Range<usize>) -> (usize, usize, String, usize) {
        let place = place(text, &span);
        (place.line, place.column, place.text, place.width)
    }

    #[test]
    fn lines_and_columns_count_from_one_and_in_characters() {
        assert_eq!(of("abc", 0..1), (1, 1, "abc".into(), 1));
        assert_eq!(of("a\nbcd\ne", 3..5), (2, 2, "bcd".into(), 2));
        assert_eq!(of("é = ü\n", 3..4), (1, 3, "é = ü".into(), 1));
    }

    #[test]
    fn a_span_over_several_lines_is_marked_on_its_first() {
        assert_eq!(of("a = [\r\n1,\r\n]", 4..12), (1, 5, "a = [".into(), 1));
    }

    #[test]
    fn the_end_of_the_text_has_a_place_too() {
        assert_eq!(of("", 0..0), (1, 1, String::new(), 1));
        assert_eq!(of("a\n", 2..2), (2, 1, String::new(), 1));
        assert_eq!(of("a", 99..100), (1, 2, "a".into(), 1));
    }

    #[test]
    fn an_offset_inside_a_character_is_taken_as_its_beginning() {
        assert_eq!(of("aé", 2..3), (1, 2, "aé".into(), 1));
    }
}
