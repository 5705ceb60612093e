//! What outlives homing besides the pins: which processes are whose, so that the next run adopts them.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Write as _};
use std::path::Path;

use lb_common::abi::BackendId;
use serde::{Deserialize, Serialize};

/// Raised when the file's meaning changes; another version is set aside, not read.
const VERSION: u32 = 1;
const FILE: &str = "state.json";

#[derive(Serialize, Deserialize, Debug, Default, PartialEq)]
pub struct Saved {
    version: u32,
    /// The last id of every backend index, so that none comes twice.
    pub last_ids: Vec<u32>,
    /// App names by their number in the datapath's tables; an empty one where there is none.
    pub apps: Vec<String>,
    pub workers: Vec<SavedWorker>,
    /// Remote hosts, which rings and bindings name by their ids.
    #[serde(default)]
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
    /// What places it on the ring; 0 where an earlier homing did not say.
    #[serde(default)]
    pub place: u64,
    pub backend: u32,
    pub pid: u32,
    /// Field 22 of /proc/PID/stat: with the pid, the process and no other.
    pub start_time: u64,
    pub port: u16,
    pub incarnation: u64,
    /// Unix time, seconds.
    pub started_at: u64,
    /// What it was started with; a worker of another command is replaced.
    pub command: Vec<String>,
}

impl Saved {
    pub fn new(
        last_ids: &[BackendId],
        apps: Vec<String>,
        workers: Vec<SavedWorker>,
        remotes: Vec<SavedRemote>,
    ) -> Self {
        Self { version: VERSION, last_ids: last_ids.iter().map(|id| id.0).collect(), apps, workers, remotes }
    }

    /// The apps' numbers in the datapath's tables.
    pub fn numbers(&self) -> HashMap<String, u32> {
        self.apps.iter().cloned().zip(0..).filter(|(name, _)| !name.is_empty()).collect()
    }

    /// Writes it in one step: a reader, or a crash, finds the old file or the new one.
    ///
    /// # Errors
    /// When the state directory does not take the file.
    pub fn write(&self, dir: &Path) -> io::Result<()> {
        let path = dir.join(FILE);
        let next = dir.join(format!("{FILE}.next"));
        let mut file = fs::File::create(&next)?;
        serde_json::to_writer(&mut file, self)?;
        file.flush()?;
        file.sync_data()?;
        fs::rename(next, path)
    }

    /// Reads what the last run left; a file that cannot be read is set aside with a warning, never fatal.
    pub fn read(dir: &Path) -> Self {
        let path = dir.join(FILE);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Self::default(),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the state file cannot be read; starting without it");
                return Self::default();
            }
        };
        match serde_json::from_slice::<Self>(&text) {
            Ok(saved) if saved.version == VERSION => saved,
            result => {
                let why = result.err().map_or_else(|| "another version".to_owned(), |error| error.to_string());
                let aside = dir.join(format!("{FILE}.unreadable"));
                let _ = fs::rename(&path, &aside);
                tracing::warn!(aside = %aside.display(), %why, "the state file was set aside; starting without it");
                Self::default()
            }
        }
    }

    /// Removes the file: nothing is left to adopt.
    pub fn remove(dir: &Path) {
        let _ = fs::remove_file(dir.join(FILE));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saved() -> Saved {
        let worker = SavedWorker {
            app: "sales".into(),
            number: 2,
            place: 3,
            backend: BackendId::new(2, 7).0,
            pid: 4242,
            start_time: 99,
            port: 40_001,
            incarnation: 1,
            started_at: 1_700_000_000,
            command: vec!["uvicorn".into()],
        };
        let remote = SavedRemote {
            app: "sales".into(),
            address: ([10, 0, 0, 11], 8080).into(),
            backend: BackendId::new(3, 1).0,
        };
        Saved::new(&[BackendId::new(2, 7)], vec!["sales".into()], vec![worker], vec![remote])
    }

    #[test]
    fn what_is_written_is_read_back() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        saved().write(dir.path()).expect("written");
        assert_eq!(Saved::read(dir.path()), saved());
    }

    #[test]
    fn a_corrupt_or_foreign_file_is_set_aside_and_does_not_stop_the_start() {
        for text in ["{ not json", r#"{"version":99,"last_ids":[],"apps":[],"workers":[]}"#] {
            let dir = tempfile::tempdir().expect("a temporary directory");
            fs::write(dir.path().join(FILE), text).expect("written");
            assert_eq!(Saved::read(dir.path()), Saved::default());
            let aside = fs::read_to_string(dir.path().join("state.json.unreadable")).expect("set aside");
            assert_eq!(aside, text, "what was set aside is what was there");
            assert!(!dir.path().join(FILE).exists());
        }
    }
}
