//! A small disk, in memory, under all that a homing writes.

use std::fs;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Enough for state, keys and output.
const SIZE: &str = "size=16m";

/// Gone with the value.
pub struct Disk {
    at: PathBuf,
}

impl Disk {
    /// Below a folder that has nothing but a configuration, which stays.
    pub fn below(dir: &Path) -> Self {
        let file = dir.join("homing.toml");
        let text = fs::read(&file).expect("the configuration");
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", SIZE, "homing-chaos"]).arg(dir).status();
        assert!(mount.expect("mount is there").success(), "root may mount");
        let disk = Self { at: dir.to_owned() };
        fs::write(file, text).expect("there is room");
        disk
    }

    /// Full, while `act` lasts.
    pub fn while_full<T>(&self, act: impl FnOnce() -> T) -> T {
        let filler = Filler(self.at.join("filler"));
        let mut file = fs::File::create(&filler.0).expect("there is room");
        for block in [&[0; 1 << 16][..], &[0]] {
            let full = std::iter::repeat_with(|| file.write_all(block)).find_map(Result::err);
            assert_eq!(full.map(|error| error.kind()), Some(ErrorKind::StorageFull));
        }
        act()
    }
}

struct Filler(PathBuf);

impl Drop for Filler {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: who still writes there must not keep it.
        let _ = Command::new("umount").arg("--lazy").arg(&self.at).status();
        let _ = fs::remove_dir(&self.at);
    }
}
