//! Small pieces of a message as one: the kernel takes a `send` sooner than a `writev`.

use std::io::IoSlice;

/// A head and a short body; what is longer is not worth a copy.
const GATHERED_BYTES_MAX: usize = 2 * 1024;

/// Where pieces are put together.
pub struct Room([u8; GATHERED_BYTES_MAX]);

impl Room {
    pub fn new() -> Self {
        Self([0; GATHERED_BYTES_MAX])
    }

    /// All pieces in a row, if they are few bytes.
    pub fn gather(&mut self, pieces: &[IoSlice<'_>]) -> Option<&[u8]> {
        let mut length = 0;
        for piece in pieces {
            let end = length + piece.len();
            self.0.get_mut(length..end)?.copy_from_slice(piece);
            length = end;
        }
        Some(&self.0[..length])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_bytes_are_put_in_a_row_and_many_are_left() {
        let mut room = Room::new();
        assert_eq!(
            room.gather(&[IoSlice::new(b"head "), IoSlice::new(b""), IoSlice::new(b"body")]),
            Some(&b"head body"[..])
        );
        let (most, more) = ([b'x'; GATHERED_BYTES_MAX - 1], [IoSlice::new(b"1"), IoSlice::new(b"2")]);
        assert_eq!(room.gather(&[IoSlice::new(&most), more[0]]).map(<[u8]>::len), Some(GATHERED_BYTES_MAX));
        assert_eq!(room.gather(&[IoSlice::new(&most), more[0], more[1]]), None);
    }
}
