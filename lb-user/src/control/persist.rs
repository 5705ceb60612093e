//! What outlives homing besides the pins: which processes are whose, so that the next run adopts them. This is its form
//! as bytes; `saver` keeps the files.
//!
//! A state file is JSON: the version, the SHA-256 of the bytes of `state`, and `state`. So whatever happened to it, it
//! is read as what was written or refused by name.

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;

use std::collections::HashMap;
use std::fmt::Write as _;

use lb_common::abi::BackendId;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use crate::address::Address;

/// Raised when the file's meaning changes; another version is set aside, not read.
const VERSION: u32 = 3;

#[derive(Serialize, Deserialize, Debug, Clone, Default, PartialEq)]
pub struct Saved {
    /// The last id of every backend index, so that none comes twice.
    pub last_ids: Vec<u32>,
    /// App names by their number in the datapath's tables; an empty one where there is none.
    pub apps: Vec<String>,
    pub workers: Vec<SavedWorker>,
    /// Remote hosts, which rings and bindings name by their ids.
    pub remotes: Vec<SavedRemote>,
}

#[derive(Serialize, Deserialize, Debug, Clone, PartialEq)]
pub struct SavedRemote {
    pub app: String,
    pub address: std::net::SocketAddr,
    pub backend: u32,
}

#[derive(Serialize, Deserialize, Debug, Clone, PartialEq)]
pub struct SavedWorker {
    pub app: String,
    pub number: u32,
    /// What places it on the ring.
    pub place: u64,
    /// It keeps its clients and takes no others: because an operator drained it, or for another reason.
    pub drained: bool,
    pub draining: bool,
    pub backend: u32,
    pub pid: u32,
    /// Field 22 of /proc/PID/stat: with the pid, the process and no other.
    pub start_time: u64,
    pub address: Address,
    pub incarnation: u64,
    /// Unix time, seconds.
    pub started_at: u64,
    /// Where its output begins.
    pub output_since: i64,
    /// Stands for all that it was given at its start; a worker that would be given something else now is replaced.
    pub given: String,
}

/// Why a state file is not believed.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum Refusal {
    #[error("it is no whole state file ({0})")]
    NotWhole(String),
    #[error("it is of version {found}, and this homing reads version {VERSION}")]
    OtherVersion { found: u32 },
    #[error("its checksum does not fit its content: it was damaged, or edited")]
    Checksum,
    #[error("it cannot be read ({0})")]
    Unreadable(String),
}

#[derive(Serialize, Deserialize)]
struct Envelope<'a> {
    version: u32,
    /// In hexadecimal, of `state` to the byte.
    sha256: String,
    #[serde(borrow)]
    state: &'a RawValue,
}

impl Saved {
    pub fn new(
        last_ids: &[BackendId],
        apps: Vec<String>,
        workers: Vec<SavedWorker>,
        remotes: Vec<SavedRemote>,
    ) -> Self {
        Self { last_ids: last_ids.iter().map(|id| id.0).collect(), apps, workers, remotes }
    }

    pub fn encode(&self) -> Vec<u8> {
        let state = serde_json::value::to_raw_value(self).expect("names and numbers are always JSON");
        let envelope = Envelope { version: VERSION, sha256: checksum(state.get().as_bytes()), state: &state };
        let mut bytes = serde_json::to_vec(&envelope).expect("as is this");
        bytes.push(b'\n');
        bytes
    }

    /// The apps' numbers in the datapath's tables.
    pub fn numbers(&self) -> HashMap<String, u32> {
        self.apps.iter().cloned().zip(0..).filter(|(name, _)| !name.is_empty()).collect()
    }

    /// # Errors
    /// Whatever is not as [`Self::encode`] wrote it.
    pub fn decode(bytes: &[u8]) -> Result<Self, Refusal> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let not_whole = |error: serde_json::Error| Refusal::NotWhole(error.to_string());
        // Other versions may have other fields.
        let Versioned { version } = serde_json::from_slice(bytes).map_err(not_whole)?;
        if version != VERSION {
            return Err(Refusal::OtherVersion { found: version });
        }
        let envelope: Envelope<'_> = serde_json::from_slice(bytes).map_err(not_whole)?;
        if checksum(envelope.state.get().as_bytes()) != envelope.sha256 {
            return Err(Refusal::Checksum);
        }
        serde_json::from_str(envelope.state.get()).map_err(not_whole)
    }
}

/// SHA-256, in hexadecimal.
pub(super) fn checksum(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(in crate::control) fn saved() -> Saved {
        let worker = SavedWorker {
            app: "sales".into(),
            number: 2,
            place: 3,
            drained: false,
            draining: true,
            backend: BackendId::new(2, 7).0,
            pid: 4242,
            start_time: 99,
            address: Address::Tcp(([127, 0, 0, 1], 40_001).into()),
            incarnation: u64::MAX,
            started_at: 1_700_000_000,
            output_since: 4_096,
            given: "--é\"\\ \u{1}".into(),
        };
        let remote = SavedRemote {
            app: "sales".into(),
            address: ([10, 0, 0, 11], 8080).into(),
            backend: BackendId::new(3, 1).0,
        };
        Saved::new(&[BackendId::new(2, 7)], vec!["sales".into()], vec![worker], vec![remote])
    }

    /// The same state, or a refusal: never another state.
    fn assert_same_or_refused(bytes: &[u8], what: &str) {
        if let Ok(read) = Saved::decode(bytes) {
            assert_eq!(read, saved(), "{what}: {}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        assert_eq!(Saved::decode(&saved().encode()), Ok(saved()));
        assert_eq!(Saved::decode(&Saved::default().encode()), Ok(Saved::default()));
    }

    #[test]
    fn a_file_cut_at_any_length_is_the_same_state_or_refused() {
        let bytes = saved().encode();
        for length in 0..bytes.len() {
            assert_same_or_refused(&bytes[..length], &format!("cut at {length}"));
        }
        assert!(matches!(Saved::decode(&bytes[..bytes.len() / 2]), Err(Refusal::NotWhole(_))));
        assert!(matches!(Saved::decode(&[]), Err(Refusal::NotWhole(_))), "as after a power failure");
    }

    #[test]
    fn a_file_with_any_bit_flipped_is_the_same_state_or_refused() {
        let bytes = saved().encode();
        for place in 0..bytes.len() {
            for bit in 0..8 {
                let mut flipped = bytes.clone();
                flipped[place] ^= 1 << bit;
                assert_same_or_refused(&flipped, &format!("bit {bit} of byte {place} flipped"));
            }
        }
        let digit = bytes.iter().position(|&byte| byte == b'7').expect("a digit of the state");
        let mut flipped = bytes;
        flipped[digit] = b'8';
        assert!(Saved::decode(&flipped).is_err());
    }

    #[test]
    fn other_versions_are_refused_by_their_number() {
        let first = br#"{"version":1,"last_ids":[],"apps":[],"workers":[]}"#;
        assert_eq!(Saved::decode(first), Err(Refusal::OtherVersion { found: 1 }));
        let later = br#"{"version":99,"anything":{}}"#;
        assert_eq!(Saved::decode(later), Err(Refusal::OtherVersion { found: 99 }));
    }

    proptest! {
        #[test]
        fn any_state_is_read_back_and_any_wrong_byte_is_seen(
            names in prop::collection::vec(any::<String>(), 0..4),
            ids in prop::collection::vec(any::<u32>(), 0..4),
            place in any::<prop::sample::Index>(),
            byte in any::<u8>(),
        ) {
            let mut saved = Saved { last_ids: ids, apps: names.clone(), ..saved() };
            saved.workers[0].given = names.concat();
            let mut bytes = saved.encode();
            prop_assert_eq!(Saved::decode(&bytes), Ok(saved.clone()));
            let place = place.index(bytes.len());
            bytes[place] = byte;
            if let Ok(read) = Saved::decode(&bytes) {
                prop_assert_eq!(read, saved);
            }
        }

        #[test]
        fn any_bytes_are_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            prop_assert!(Saved::decode(&bytes).is_err());
        }
    }
}
