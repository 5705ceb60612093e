//! The last words of a worker: what an operator wants to see first when it has ended.

use std::io;
use std::path::Path;

use super::stream::{BRIEF, Place, View};

/// Enough for what an interpreter says when it gives up.
const LINES_MAX: usize = 5;
const BYTES_MAX: u64 = 2 << 10;
/// A file that is rotated while it is read is read again.
const TRIES: usize = 3;

/// Where the worker's next byte goes; what is before it was written by others.
pub fn mark(path: &Path) -> Place {
    View::open_within(path, BRIEF).ok().flatten().map_or(0, |view| view.end())
}

/// The last lines that were written since `mark`; empty where there are none, or they cannot be read.
pub fn lines(path: &Path, mark: Place) -> Vec<String> {
    for _ in 0..TRIES {
        let Ok(Some(view)) = View::open_within(path, BRIEF) else { break };
        let is_cut = view.start().max(mark) < view.end() - BYTES_MAX.cast_signed();
        match view.tail(BYTES_MAX, mark) {
            Ok(bytes) => return last(&bytes, is_cut),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    Vec::new()
}

/// `is_cut`: there was more before the bytes.
fn last(bytes: &[u8], is_cut: bool) -> Vec<String> {
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(LINES_MAX);
    let line = |(index, line): (usize, &&str)| match index {
        0 if is_cut => format!("…{line}"),
        _ => (*line).to_owned(),
    };
    lines.iter().enumerate().skip(from).map(line).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write as _;

    use super::*;

    #[test]
    fn five_lines_at_most_and_two_kibibytes() {
        assert_eq!(last(b"", false), [""; 0]);
        assert_eq!(last(b"a\n\nb", false), ["a", "", "b"]);
        assert_eq!(last(b"1\n2\n3\n4\n5\n6\n", false), ["2", "3", "4", "5", "6"]);
        assert_eq!(last(b"tail of it\r\nnext\n", true), ["…tail of it", "next"]);
        assert_eq!(last(b"\xff\xfe\n", false), ["\u{fffd}\u{fffd}"]);
    }

    #[test]
    fn what_an_earlier_process_wrote_is_not_the_later_ones() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("sales-0.log");
        assert_eq!(lines(&path, mark(&path)), [""; 0], "there is no file yet");
        let before = mark(&path);
        fs::write(&path, "of the first\n").expect("written");
        assert_eq!(lines(&path, before), ["of the first"]);
        let mark = mark(&path);
        assert_eq!(lines(&path, mark), [""; 0]);
        let mut file = fs::OpenOptions::new().append(true).open(&path).expect("opened");
        write!(file, "of the second").expect("written");
        assert_eq!(lines(&path, mark), ["of the second"]);
        write!(file, "{}", "x".repeat(5_000)).expect("written");
        let lines = lines(&path, mark);
        assert_eq!((lines.len(), lines[0].chars().count()), (1, 2_049));
        assert!(lines[0].starts_with("…xxx"), "{lines:?}");
    }
}
