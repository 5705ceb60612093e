//! The HMAC keys of cookies and ring seeds, and the file that keeps them. Not what is sealed with them.

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// Name of the key file in the state directory: 32 bytes of the current key; after a rotation also 32 of the previous one
/// and 32 of the first of all.
pub const KEY_FILE: &str = "cookie.key";
/// Bytes of one key.
pub const KEY_BYTES: usize = 32;
/// Bytes of the key file after a rotation.
const ALL_BYTES: usize = 3 * KEY_BYTES;
/// Bytes that a MAC is truncated to: 128 bits, beyond any guessing (RFC 2104 section 5).
pub const TAG_BYTES: usize = 16;

type Keyed = Hmac<Sha256>;

type Key = [u8; KEY_BYTES];

/// The keys in force, for all who hold a copy. Deliberately without `Debug`.
#[derive(Clone)]
pub struct CookieKeys(Arc<ArcSwap<Keys>>);

/// HMAC keys, keyed once and copied for each MAC.
struct Keys {
    current: Keyed,
    previous: Option<Keyed>,
    /// The first of all: what is derived from it outlives rotations.
    first: Keyed,
}

/// Which key made a tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sealed {
    Current,
    Previous,
    Never,
}

/// The key file's contents.
struct KeyFile {
    current: Key,
    /// And the first of all.
    before: Option<(Key, Key)>,
}

impl CookieKeys {
    pub fn new(current: Key, previous: Option<Key>) -> Self {
        Self::from_file(&KeyFile { current, before: previous.map(|previous| (previous, previous)) })
    }

    fn from_file(file: &KeyFile) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(file.keys())))
    }

    /// Reads the key file in `dir`, or makes one with a fresh key. Two processes that start at once get the same key.
    pub fn load_or_create(dir: &Path) -> io::Result<Self> {
        let path = dir.join(KEY_FILE);
        let file = match read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                create(dir, &path).map_err(|error| at(&path, "cannot create the cookie key file", &error))?;
                read(&path)
            }
            other => other,
        };
        file.map(|file| Self::from_file(&file))
    }

    /// Reads the key file again, that another instance may have written.
    pub fn reload(&self, dir: &Path) -> io::Result<()> {
        self.0.store(Arc::new(read(&dir.join(KEY_FILE))?.keys()));
        Ok(())
    }

    /// Puts a fresh key before the current one, which goes on being believed until the next rotation.
    ///
    /// # Errors
    /// When the key file cannot be read or replaced; then nothing has changed.
    pub fn rotate(&self, dir: &Path) -> io::Result<()> {
        let path = dir.join(KEY_FILE);
        let old = read(&path)?;
        let first = old.before.map_or(old.current, |(_, first)| first);
        let new = KeyFile { current: random()?, before: Some((old.current, first)) };
        let mut bytes = new.current.to_vec();
        bytes.extend(old.current);
        bytes.extend(first);
        let replaced = draft(dir, &bytes).and_then(|draft| fs::rename(&draft, &path));
        replaced.map_err(|error| at(&path, "cannot replace the cookie key file", &error))?;
        self.0.store(Arc::new(new.keys()));
        Ok(())
    }

    /// A number that only holders of the first key can know: seeds of rings.
    pub fn derive(&self, label: &str) -> u64 {
        let first = self.0.load().first.clone();
        let mac = first.chain_update(b"homing derive\0").chain_update(label).finalize().into_bytes();
        let mut start = [0; 8];
        start.copy_from_slice(&mac[..8]);
        u64::from_be_bytes(start)
    }

    /// MAC with the current key.
    pub(super) fn tag(&self, message: &[&[u8]]) -> [u8; TAG_BYTES] {
        let mac = fed(&self.0.load().current, message).finalize().into_bytes();
        let mut tag = [0; TAG_BYTES];
        tag.copy_from_slice(&mac[..TAG_BYTES]);
        tag
    }

    /// Which of the two keys made the tag. Constant time in the tag's bytes.
    pub(super) fn verify(&self, message: &[&[u8]], tag: &[u8; TAG_BYTES]) -> Sealed {
        let keys = self.0.load();
        let made = |key| fed(key, message).verify_truncated_left(tag).is_ok();
        if made(&keys.current) {
            Sealed::Current
        } else if keys.previous.as_ref().is_some_and(made) {
            Sealed::Previous
        } else {
            Sealed::Never
        }
    }
}

impl KeyFile {
    fn keys(&self) -> Keys {
        let (previous, first) = self.before.unzip();
        Keys {
            current: keyed(&self.current),
            previous: previous.as_ref().map(keyed),
            first: keyed(&first.unwrap_or(self.current)),
        }
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

fn read(path: &Path) -> io::Result<KeyFile> {
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
    let mut bytes = Vec::with_capacity(ALL_BYTES + 1);
    // One byte more than the largest valid file, to see that it is too long without reading all of it.
    file.take(ALL_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    let key = |number: usize| key_of(&bytes[number * KEY_BYTES..][..KEY_BYTES]);
    match bytes.len() {
        KEY_BYTES => Ok(KeyFile { current: key(0), before: None }),
        ALL_BYTES => Ok(KeyFile { current: key(0), before: Some((key(1), key(2))) }),
        _ => Err(io::Error::new(
            ErrorKind::InvalidData,
            format!(
                "the cookie key file {} is damaged: expected {KEY_BYTES} bytes (one key) or {ALL_BYTES} (current, \
                 previous and first). Restore it, or remove it and users get new cookies once",
                path.display(),
            ),
        )),
    }
}

fn key_of(bytes: &[u8]) -> [u8; KEY_BYTES] {
    let mut key = [0; KEY_BYTES];
    key.copy_from_slice(bytes);
    key
}

/// Links a fresh key into place, so that nobody ever sees half a file and the first of two writers wins.
fn create(dir: &Path, path: &Path) -> io::Result<()> {
    let draft = draft(dir, &random::<KEY_BYTES>()?)?;
    let placed = match fs::hard_link(&draft, path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        other => other,
    };
    fs::remove_file(&draft).and(placed)
}

/// Writes under a name of its own, that nobody else can read.
fn draft(dir: &Path, bytes: &[u8]) -> io::Result<PathBuf> {
    let unique = u64::from_ne_bytes(random()?);
    let draft = dir.join(format!("{KEY_FILE}.{unique:016x}"));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
    match file.write_all(bytes).and_then(|()| file.sync_all()) {
        Ok(()) => Ok(draft),
        Err(error) => fs::remove_file(&draft).and(Err(error)),
    }
}

fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| io::Error::other(format!("no random bytes: {error}")))?;
    Ok(bytes)
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
    fn a_key_file_that_cannot_be_opened_is_named() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(KEY_FILE, dir.path().join(KEY_FILE)).unwrap();
        let message = message_of(CookieKeys::load_or_create(dir.path()));
        assert!(message.contains("cannot open the cookie key file") && message.contains(KEY_FILE), "{message}");
    }

    #[test]
    fn a_key_file_of_the_wrong_size_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for size in [0, 31, 33, 64, 95, 97, 4096] {
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
        assert_eq!(rotated.verify(&[b"ab"], &tag), Sealed::Previous);
        assert_eq!(old.verify(&[b"ab"], &rotated.tag(&[b"ab"])), Sealed::Never);
        assert_ne!(old.derive("x"), old.derive("y"));
    }

    #[test]
    fn a_rotation_reaches_all_who_hold_the_keys_and_keeps_the_rings() {
        let dir = tempfile::tempdir().unwrap();
        let keys = CookieKeys::load_or_create(dir.path()).unwrap();
        let (holder, ring, tag) = (keys.clone(), keys.derive("ring"), keys.tag(&[b"a"]));
        keys.rotate(dir.path()).unwrap();
        assert_eq!(holder.verify(&[b"a"], &tag), Sealed::Previous);
        assert_eq!(holder.verify(&[b"a"], &holder.tag(&[b"a"])), Sealed::Current);
        keys.rotate(dir.path()).unwrap();
        assert_eq!(holder.verify(&[b"a"], &tag), Sealed::Never, "two rotations end a cookie");
        assert_eq!(holder.derive("ring"), ring, "no client moves");
        let again = CookieKeys::load_or_create(dir.path()).unwrap();
        assert_eq!(again.derive("ring"), ring);
        assert_eq!(again.verify(&[b"a"], &keys.tag(&[b"a"])), Sealed::Current, "as the file has them");
        let file = dir.path().join(KEY_FILE);
        assert_eq!(file.metadata().unwrap().mode() & 0o7777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no draft is left behind");
    }

    #[test]
    fn a_rotation_that_fails_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let keys = CookieKeys::load_or_create(dir.path()).unwrap();
        let tag = keys.tag(&[b"a"]);
        fs::write(dir.path().join(KEY_FILE), b"short").unwrap();
        assert!(keys.rotate(dir.path()).unwrap_err().to_string().contains("damaged"));
        assert!(keys.reload(dir.path()).is_err());
        assert_eq!(keys.verify(&[b"a"], &tag), Sealed::Current);
    }
}
