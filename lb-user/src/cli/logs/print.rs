//! Bytes of several workers as lines on one output, each line whole and, where there are several workers, with its name.

use std::io::{self, Write};

use serde::Serialize;

use super::super::plain::plain;

/// A line longer than this is shown in pieces.
const LINE_BYTES_MAX: usize = 64 << 10;
/// The terminal's colours that are read well on dark and on light.
const COLOURS: [u8; 6] = [36, 33, 32, 35, 34, 31];

/// A line of `homing logs --json`.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct LogLine<'a> {
    /// APP/N.
    worker: &'a str,
    /// What it wrote, without the end of the line; what is no text is replaced by U+FFFD.
    line: &'a str,
    /// False where the line goes on in the worker's next object, being longer than 64 KiB, or was not ended by the worker yet.
    complete: bool,
}

/// How lines are written.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Form {
    /// For eyes: with or without colour, control characters shown.
    Terminal {
        has_colour: bool,
    },
    /// What the worker wrote.
    Text,
    Json,
}

pub(super) struct Printer<W: Write> {
    out: io::BufWriter<W>,
    form: Form,
    /// By worker: what its lines begin with, nothing for one alone; as JSON its name.
    names: Vec<String>,
    /// By worker: what is not a whole line yet.
    pending: Vec<Vec<u8>>,
    /// The one worker's line was begun and not ended.
    in_line: bool,
}

impl<W: Write> Printer<W> {
    pub(super) fn new(out: W, ids: &[&str], form: Form) -> Self {
        let width = ids.iter().map(|id| id.len()).max().unwrap_or(0);
        let name = |(number, &id): (usize, &&str)| match (ids.len(), form) {
            (_, Form::Json) => id.to_owned(),
            (1, _) => String::new(),
            (_, Form::Terminal { has_colour: true }) => {
                format!("\u{1b}[{}m{id:width$} |\u{1b}[0m ", COLOURS[number % COLOURS.len()])
            }
            (_, Form::Terminal { has_colour: false } | Form::Text) => format!("{id:width$} | "),
        };
        Self {
            out: io::BufWriter::new(out),
            form,
            names: ids.iter().enumerate().map(name).collect(),
            pending: vec![Vec::new(); ids.len()],
            in_line: false,
        }
    }

    /// A line is shown while it is being written: nobody else's can come between.
    fn shows_begun(&self) -> bool {
        self.pending.len() == 1 && self.form != Form::Json
    }

    fn is_terminal(&self) -> bool {
        matches!(self.form, Form::Terminal { .. })
    }

    pub(super) fn take(&mut self, worker: usize, bytes: &[u8]) -> io::Result<()> {
        let mut pending = std::mem::take(&mut self.pending[worker]);
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            pending.extend_from_slice(piece);
            if pending.last() == Some(&b'\n') {
                pending.pop();
                self.line(worker, &pending)?;
                pending.clear();
            } else if pending.len() > LINE_BYTES_MAX {
                let rest = self.part(worker, &pending)?;
                pending.drain(..pending.len() - rest);
            }
        }
        self.pending[worker] = pending;
        Ok(())
    }

    /// Nothing more comes for now: of one worker alone the begun line is shown.
    pub(super) fn pause(&mut self, worker: usize) -> io::Result<()> {
        if !self.shows_begun() || self.pending[worker].is_empty() {
            return Ok(());
        }
        let mut pending = std::mem::take(&mut self.pending[worker]);
        let rest = self.part(worker, &pending)?;
        pending.drain(..pending.len() - rest);
        self.pending[worker] = pending;
        Ok(())
    }

    /// Nothing more comes.
    pub(super) fn end(&mut self, worker: usize) -> io::Result<()> {
        let pending = std::mem::take(&mut self.pending[worker]);
        if !pending.is_empty() && self.form == Form::Json {
            return self.object(worker, &pending, false);
        }
        if !pending.is_empty() && self.shows_begun() && !self.is_terminal() {
            // To the byte, as far as it is text.
            return self.out.write_all(String::from_utf8_lossy(&pending).as_bytes());
        }
        if pending.is_empty() && !self.in_line { Ok(()) } else { self.line(worker, &pending) }
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    fn line(&mut self, worker: usize, bytes: &[u8]) -> io::Result<()> {
        if self.form == Form::Json {
            return self.object(worker, bytes, true);
        }
        // Ends of lines as some programs write them.
        let bytes = if self.is_terminal() { bytes.strip_suffix(b"\r").unwrap_or(bytes) } else { bytes };
        self.write(worker, &String::from_utf8_lossy(bytes))?;
        self.in_line = false;
        self.out.write_all(b"\n")
    }

    /// The beginning of a line, up to where it can be told from what may follow; returns how many bytes are left.
    fn part(&mut self, worker: usize, bytes: &[u8]) -> io::Result<usize> {
        let mut whole = bytes.len();
        if let Some(last) =
            bytes.utf8_chunks().last().map(|chunk| chunk.invalid().to_vec()).filter(|last| !last.is_empty())
            && std::str::from_utf8(&last).is_err_and(|error| error.error_len().is_none())
        {
            whole -= last.len();
        }
        if bytes[..whole].last() == Some(&b'\r') {
            whole -= 1;
        }
        if whole > 0 && self.form == Form::Json {
            self.object(worker, &bytes[..whole], false)?;
        } else if whole > 0 {
            self.write(worker, &String::from_utf8_lossy(&bytes[..whole]))?;
            if self.shows_begun() {
                self.in_line = true;
            } else {
                self.out.write_all(b"\n")?;
            }
        }
        Ok(bytes.len() - whole)
    }

    fn object(&mut self, worker: usize, bytes: &[u8], complete: bool) -> io::Result<()> {
        let line = LogLine { worker: &self.names[worker], line: &String::from_utf8_lossy(bytes), complete };
        serde_json::to_writer(&mut self.out, &line)?;
        self.out.write_all(b"\n")
    }

    fn write(&mut self, worker: usize, text: &str) -> io::Result<()> {
        self.out.write_all(self.names[worker].as_bytes())?;
        if self.is_terminal() {
            self.out.write_all(plain(text).as_bytes())
        } else {
            self.out.write_all(text.as_bytes())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Form = Form::Terminal { has_colour: false };

    /// What is printed of these pieces, by worker; an empty piece is a pause.
    fn printed(ids: &[&str], form: Form, pieces: &[(usize, &[u8])]) -> String {
        let mut out = Vec::new();
        let mut printer = Printer::new(&mut out, ids, form);
        for &(worker, bytes) in pieces {
            if bytes.is_empty() { printer.pause(worker) } else { printer.take(worker, bytes) }.expect("memory");
        }
        (0..ids.len()).for_each(|worker| printer.end(worker).expect("memory"));
        printer.flush().expect("memory");
        drop(printer);
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn lines_of_several_workers_are_whole_and_have_aligned_names() {
        let pieces: [(usize, &[u8]); 6] =
            [(0, b"one "), (1, b"other\nnext"), (0, b""), (1, b""), (0, b"line\n\n"), (1, b" line")];
        assert_eq!(
            printed(&["sales/9", "sales/10"], Form::Text, &pieces),
            "sales/10 | other\nsales/9  | one line\nsales/9  | \nsales/10 | next line\n"
        );
        let coloured = printed(&["a/0", "a/1"], Form::Terminal { has_colour: true }, &[(1, b"x\n")]);
        assert_eq!(coloured, "\u{1b}[33ma/1 |\u{1b}[0m x\n");
    }

    #[test]
    fn one_worker_alone_is_shown_as_it_writes() {
        assert_eq!(
            printed(&["a/0"], Form::Text, &[(0, b"a\nbegun"), (0, b""), (0, b" and ended\nrest")]),
            "a\nbegun and ended\nrest"
        );
        assert_eq!(printed(&["a/0"], PLAIN, &[(0, b"begun"), (0, b"")]), "begun\n");
    }

    #[test]
    fn what_is_no_text_is_replaced_and_a_letter_in_two_pieces_is_one() {
        let pieces: [(usize, &[u8]); 4] = [(0, b"\xff\xc3"), (0, b""), (0, b"\xa9\n"), (0, b"\xe2\x82\n")];
        assert_eq!(printed(&["a/0"], Form::Text, &pieces), "\u{fffd}é\n\u{fffd}\n");
    }

    #[test]
    fn orders_to_the_terminal_are_shown_on_one_and_passed_on_elsewhere() {
        let pieces: [(usize, &[u8]); 3] = [(0, b"\x1b[2Jx\r"), (0, b""), (0, b"\n")];
        assert_eq!(printed(&["a/0"], PLAIN, &pieces), "^[[2Jx\n");
        assert_eq!(printed(&["a/0"], Form::Text, &pieces), "\u{1b}[2Jx\r\n");
    }

    #[test]
    fn a_line_without_end_is_shown_in_pieces() {
        let piece = [b'x'; 40_000];
        let shown = printed(&["a/0", "a/1"], Form::Text, &[(0, &piece), (0, &piece), (0, b"\n")]);
        assert_eq!(shown.len(), 80_000 + 2 * "a/0 | \n".len());
    }

    #[test]
    fn as_json_each_line_is_an_object_that_names_its_worker_and_says_whether_it_is_all() {
        let piece = [b'x'; 40_000];
        let pieces: [(usize, &[u8]); 7] =
            [(0, b"say \"a\"\n\n"), (1, b"\xffb"), (1, b""), (1, b"c\n"), (1, &piece), (1, &piece), (0, b"begun")];
        let lines: Vec<serde_json::Value> = printed(&["s/0", "s/1"], Form::Json, &pieces)
            .lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect();
        let long = "x".repeat(80_000);
        let expected = [
            ("s/0", "say \"a\"", true),
            ("s/0", "", true),
            ("s/1", "\u{fffd}bc", true),
            ("s/1", long.as_str(), false),
            ("s/0", "begun", false),
        ];
        let expected = expected.map(
            |(worker, line, complete)| serde_json::json!({ "worker": worker, "line": line, "complete": complete }),
        );
        assert_eq!(lines, expected);
        // One worker alone is no exception.
        let alone = printed(&["s/0"], Form::Json, &[(0, b"a"), (0, b""), (0, b"b\n")]);
        assert_eq!(alone, "{\"worker\":\"s/0\",\"line\":\"ab\",\"complete\":true}\n");
    }
}
