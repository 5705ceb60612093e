//! The secret that who asks must show, where there is one.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

/// What can be guessed in a lifetime is shorter.
const BYTES_MIN: usize = 16;
const BYTES_MAX: usize = 1_024;

/// Known by its SHA-256, so that neither a dump of the configuration nor the time of a comparison tells it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Token([u8; 32]);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(…)")
    }
}

impl Token {
    /// The file's only line.
    ///
    /// # Errors
    /// What is wrong with it, as a phrase after the name of its key.
    pub fn read(path: &Path) -> Result<Self, String> {
        let shown = path.display();
        let mut bytes = Vec::new();
        File::open(path)
            .and_then(|file| file.take(BYTES_MAX as u64 + 2).read_to_end(&mut bytes))
            .map_err(|error| format!("`{shown}` cannot be read: {error}"))?;
        let token = bytes.trim_ascii_end();
        if !(BYTES_MIN..=BYTES_MAX).contains(&token.len()) || !token.iter().all(u8::is_ascii_graphic) {
            return Err(format!(
                "`{shown}` must hold one line of {BYTES_MIN} to {BYTES_MAX} letters, digits and marks, such as \
                 `openssl rand -hex 32` prints"
            ));
        }
        Ok(Self::of(token))
    }

    fn of(text: &[u8]) -> Self {
        Self(Sha256::digest(text).into())
    }

    /// Whether this is it, in a time that does not tell how much of it is right.
    pub fn is(&self, shown: &[u8]) -> bool {
        self.0.ct_eq(&Self::of(shown).0).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_one_line_of_a_file_and_is_known_again() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("token");
        let read = |text: &str| {
            std::fs::write(&path, text).expect("written");
            Token::read(&path)
        };
        let token = read("0123456789abcdef\n").expect("a token");
        assert!(token.is(b"0123456789abcdef"));
        for other in [&b""[..], b"0123456789abcdef\n", b"0123456789abcdeF", b"0123456789abcde"] {
            assert!(!token.is(other), "{other:?}");
        }
        assert_eq!(format!("{token:?}"), "Token(…)");
        for wrong in ["", "short", "0123456789abcdef 0", "0123456789abcdef\nx", "ä0123456789abcdef", &"x".repeat(1_025)]
        {
            let why = read(wrong).expect_err(wrong);
            assert!(why.contains("one line of 16 to 1024") && !why.contains("0123"), "{why}");
        }
        assert!(Token::read(&dir.path().join("none")).expect_err("none").contains("cannot be read"));
    }
}
