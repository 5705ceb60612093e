//! The HMAC keys of cookies and ring seeds, and the file that keeps them. Not what is sealed with them.

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// Name of the key file in the state directory: 32 bytes of the current key, then 32 of the previous one if any.
pub const KEY_FILE: &str = "cookie.key";
/// Bytes of one key.
pub const KEY_BYTES: usize = 32;
/// Bytes of the key file after a rotation.
const BOTH_BYTES: usize = 2 * KEY_BYTES;
/// Bytes that a MAC is truncated to: 128 bits, beyond any guessing (RFC 2104 section 5).
pub const TAG_BYTES: usize = 16;

type Keyed = Hmac<Sha256>;

/// HMAC keys: current first, then the previous one. Deliberately without `Debug`.
#[derive(Clone)]
pub struct CookieKeys {
    /// Keyed once, copied for each MAC.
    current: Keyed,
    previous: Option<Keyed>,
}

impl CookieKeys {
    pub fn new(current: [u8; KEY_BYTES], previous: Option<[u8; KEY_BYTES]>) -> Self {
        Self { current: keyed(&current), previous: previous.as_ref().map(keyed) }
    }

    /// Reads the key file in `dir`, or makes one with a fresh key. Two processes that start at once get the same key.
    pub fn load_or_create(dir: &Path) -> io::Result<Self> {
        let path = dir.join(KEY_FILE);
        match read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                create(dir, &path).map_err(|error| at(&path, "cannot create the cookie key file", &error))?;
                read(&path)
            }
            other => other,
        }
    }

    /// A number that only holders of the key can know: seeds of rings.
    pub fn derive(&self, label: &str) -> u64 {
        let mac = self.current.clone().chain_update(b"homing derive\0").chain_update(label).finalize().into_bytes();
        let mut first = [0; 8];
        first.copy_from_slice(&mac[..8]);
        u64::from_be_bytes(first)
    }

    /// MAC with the current key.
    pub(super) fn tag(&self, message: &[&[u8]]) -> [u8; TAG_BYTES] {
        let mac = fed(&self.current, message).finalize().into_bytes();
        let mut tag = [0; TAG_BYTES];
        tag.copy_from_slice(&mac[..TAG_BYTES]);
        tag
    }

    /// Whether either key made the tag. Constant time in the tag's bytes.
    pub(super) fn verify(&self, message: &[&[u8]], tag: &[u8; TAG_BYTES]) -> bool {
        std::iter::once(&self.current)
            .chain(&self.previous)
            .any(|key| fed(key, message).verify_truncated_left(tag).is_ok())
    }
}

fn keyed(key: &[u8; KEY_BYTES]) -> Keyed {
    Keyed::new_from_slice(key).expect("HMAC takes keys of any length")
}

fn fed(key: &Keyed, message: &[&[u8]]) -> Keyed {
    message.iter().fold(key.clone(), |mac, part| mac.chain_update(part))
}

fn at(path: &Path, what: &str, error: &dyn std::fmt::Display) -> io::Error {
    io::Error::other(format!("{what} {}: {error}", path.display()))
}

fn read(path: &Path) -> io::Result<CookieKeys> {
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Err(error),
        Err(error) => return Err(at(path, "cannot open the cookie key file", &error)),
    };
    let mode = file.metadata()?.mode();
    if mode & 0o077 != 0 {
        return Err(io::Error::new(
            ErrorKind::PermissionDenied,
            format!(
                "the cookie key file {path} has mode {mode:04o}, so others can read or change it and forge cookies: \
                 `chmod 600 {path}` if nobody has, else remove it (users then get new cookies once)",
                path = path.display(),
                mode = mode & 0o7777
            ),
        ));
    }
    let mut bytes = Vec::with_capacity(BOTH_BYTES + 1);
    // One byte more than the largest valid file, to see that it is too long without reading all of it.
    file.take(BOTH_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    match bytes.len() {
        KEY_BYTES => Ok(CookieKeys::new(key_of(&bytes), None)),
        BOTH_BYTES => Ok(CookieKeys::new(key_of(&bytes[..KEY_BYTES]), Some(key_of(&bytes[KEY_BYTES..])))),
        _ => Err(io::Error::new(
            ErrorKind::InvalidData,
            format!(
                "the cookie key file {} is damaged: expected {KEY_BYTES} bytes (one key) or {} (current and previous). \
                 Restore it, or remove it and users get new cookies once",
                path.display(),
                BOTH_BYTES
            ),
        )),
    }
}

fn key_of(bytes: &[u8]) -> [u8; KEY_BYTES] {
    let mut key = [0; KEY_BYTES];
    key.copy_from_slice(bytes);
    key
}

/// Writes a key under a name of its own and links it into place, so that nobody ever sees half a file and the
/// first of two writers wins.
fn create(dir: &Path, path: &Path) -> io::Result<()> {
    let mut bytes = [0; KEY_BYTES + 8];
    getrandom::fill(&mut bytes).map_err(|error| io::Error::other(format!("no random bytes: {error}")))?;
    let (key, unique) = bytes.split_at(KEY_BYTES);
    let draft = dir.join(format!("{KEY_FILE}.{}", unique.iter().map(|b| format!("{b:02x}")).collect::<String>()));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
    let placed = file.write_all(key).and_then(|()| file.sync_all()).and_then(|()| match fs::hard_link(&draft, path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        other => other,
    });
    fs::remove_file(&draft).and(placed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    fn message_of(result: io::Result<CookieKeys>) -> String {
        result.err().expect("refused").to_string()
    }

    #[test]
    fn a_key_is_created_private_and_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let first = CookieKeys::load_or_create(dir.path()).unwrap();
        let again = CookieKeys::load_or_create(dir.path()).unwrap();
        assert_eq!(first.derive("ring"), again.derive("ring"));
        let file = dir.path().join(KEY_FILE);
        assert_eq!(file.metadata().unwrap().mode() & 0o7777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no draft is left behind");
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        CookieKeys::load_or_create(dir.path()).unwrap();
        fs::set_permissions(dir.path().join(KEY_FILE), Permissions::from_mode(0o640)).unwrap();
        let message = message_of(CookieKeys::load_or_create(dir.path()));
        assert!(message.contains("0640") && message.contains("chmod 600"), "{message}");
    }

    #[test]
    fn a_key_file_of_the_wrong_size_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for size in [0, 31, 33, 63, 65, 4096] {
            let file = dir.path().join(KEY_FILE);
            fs::write(&file, vec![7; size]).unwrap();
            fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
            let message = message_of(CookieKeys::load_or_create(dir.path()));
            assert!(message.contains("damaged"), "{size} bytes: {message}");
        }
    }

    #[test]
    fn a_missing_directory_is_named() {
        let message = message_of(CookieKeys::load_or_create(Path::new("/nonexistent/homing")));
        assert!(message.contains("/nonexistent/homing/cookie.key"), "{message}");
    }

    #[test]
    fn the_previous_key_still_verifies_and_the_current_one_tags() {
        let old = CookieKeys::new([1; KEY_BYTES], None);
        let rotated = CookieKeys::new([2; KEY_BYTES], Some([1; KEY_BYTES]));
        let tag = old.tag(&[b"a", b"b"]);
        assert!(rotated.verify(&[b"ab"], &tag));
        assert!(!old.verify(&[b"ab"], &rotated.tag(&[b"ab"])));
        assert_ne!(old.derive("x"), old.derive("y"));
    }
}
