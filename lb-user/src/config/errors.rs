//! Everything that is wrong with a configuration, told at once.

use std::fmt;

use super::location::Place;

/// A longer line is not quoted: nobody reads it, and a terminal would wrap its marker.
const QUOTED_CHARS_MAX: usize = 160;

/// At least one, in the order of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Errors(pub Vec<Problem>);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file's name, as the user gave it.
    pub file: String,
    /// Absent when the file as a whole is meant.
    pub place: Option<Place>,
    /// What is wrong and what to do.
    pub message: String,
}

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Errors {}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(place) = &self.place else {
            return write!(f, "{}: {}", self.file, self.message);
        };
        let Place { line, column, text, width } = place;
        write!(f, "{}:{line}:{column}: {}", self.file, self.message)?;
        if text.chars().count() > QUOTED_CHARS_MAX {
            return Ok(());
        }
        // Control characters would move the marker, or do worse to a terminal.
        let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let margin = " ".repeat(line.to_string().len());
        let before = " ".repeat(column - 1);
        write!(f, "\n  {line} | {text}\n  {margin} | {before}{}", "^".repeat(*width))
    }
}
