//! The pin directory: what makes steering outlive homing.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use aya::maps::{Array, Map, MapData};
use aya::{Ebpf, EbpfLoader};
use lb_common::abi::ABI_VERSION;

use super::{Sizes, Unavailable};

/// `BPF_FS_MAGIC` (Linux: include/uapi/linux/magic.h).
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;
const BPF_FS: &str = "/sys/fs/bpf";
pub(super) const LINK_PREFIX: &str = "link_";
const META: &str = "META";

#[derive(Debug, thiserror::Error)]
pub enum PinError {
    #[error(
        "{path} is not on a BPF file system and it could not be mounted: {error}; run homing as root, or mount it first: mount -t bpf bpf {BPF_FS}"
    )]
    NotBpfFs { path: PathBuf, error: io::Error },
    #[error("cannot make the pin directory {path}: {error}; run homing as root or set homing.pin_dir")]
    Create { path: PathBuf, error: io::Error },
    #[error(
        "the maps pinned in {path} are of ABI version {found}, this homing speaks {ABI_VERSION}; stop the other version, \
         or remove its pins with: homing detach"
    )]
    Abi { path: PathBuf, found: u32 },
    #[error("cannot remove the pin {path}: {error}")]
    Remove { path: PathBuf, error: io::Error },
}

/// Makes `pin_dir`, mounting the BPF file system first where the machine has not.
pub(super) fn prepare(pin_dir: &Path) -> Result<(), PinError> {
    let not_bpf = |error| PinError::NotBpfFs { path: pin_dir.to_owned(), error };
    let existing = pin_dir.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let is_bpf = rustix::fs::statfs(existing).is_ok_and(|fs| fs.f_type == BPF_FS_MAGIC);
    if !is_bpf {
        if !pin_dir.starts_with(BPF_FS) {
            return Err(not_bpf(io::Error::other(format!("homing only mounts {BPF_FS} by itself"))));
        }
        let flags =
            rustix::mount::MountFlags::NOSUID | rustix::mount::MountFlags::NODEV | rustix::mount::MountFlags::NOEXEC;
        rustix::mount::mount("bpf", BPF_FS, "bpf", flags, Some(c"mode=0700")).map_err(|e| not_bpf(e.into()))?;
    }
    fs::create_dir_all(pin_dir).map_err(|error| PinError::Create { path: pin_dir.to_owned(), error })
}

pub(super) fn is_empty(pin_dir: &Path) -> bool {
    fs::read_dir(pin_dir).is_ok_and(|mut entries| entries.next().is_none())
}

/// Loads the object on the maps that are pinned, pinning those that are not.
pub(super) fn load_on_pins(pin_dir: &Path, object: &[u8], sizes: Sizes) -> Result<Ebpf, Unavailable> {
    check_abi(pin_dir)?;
    say_if_bindings_keep_their_size(pin_dir, sizes);
    let mut loader = EbpfLoader::new();
    loader.map_max_entries("BINDINGS", sizes.bindings).map_max_entries("CLIENT_DUE", sizes.paces);
    for map in super::MAPS {
        loader.map_pin_path(map, pin_dir.join(map));
    }
    let mut ebpf = loader.load(object).map_err(|error| Unavailable::Load(chain(&error)))?;
    let mut meta: Array<&mut MapData, u32> = ebpf
        .map_mut(META)
        .ok_or_else(|| Unavailable::Load(format!("the object has no map {META}")))?
        .try_into()
        .map_err(|error| Unavailable::Load(chain(&error)))?;
    meta.set(0, ABI_VERSION, 0).map_err(|error| Unavailable::Load(chain(&error)))?;
    Ok(ebpf)
}

/// A table that is in use keeps its size: clients are bound in it.
fn say_if_bindings_keep_their_size(pin_dir: &Path, sizes: Sizes) {
    let pinned = MapData::from_pin(pin_dir.join("BINDINGS")).and_then(|map| map.info());
    let Ok(found) = pinned.map(|info| info.max_entries()) else { return };
    if found != sizes.bindings {
        tracing::warn!(
            "the table of bindings keeps its room for {found} clients until homing is stopped and started; \
             homing.bindings asks for {}",
            sizes.bindings
        );
    }
}

fn check_abi(pin_dir: &Path) -> Result<(), PinError> {
    let Ok(meta) = MapData::from_pin(pin_dir.join(META)) else { return Ok(()) };
    let found = Array::<_, u32>::try_from(Map::Array(meta)).and_then(|meta| meta.get(&0, 0)).unwrap_or(0);
    // 0: a run that ended between pinning the map and writing the version; its maps are empty.
    if found == ABI_VERSION || found == 0 { Ok(()) } else { Err(PinError::Abi { path: pin_dir.to_owned(), found }) }
}

/// Removes every pin: links first, so that no program runs on half of its maps. The directory goes too.
///
/// # Errors
/// The first pin that could not be removed; those before it are gone.
pub fn detach(pin_dir: &Path) -> Result<(), PinError> {
    let Ok(entries) = fs::read_dir(pin_dir) else { return Ok(()) };
    let mut pins: Vec<PathBuf> = entries.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect();
    pins.sort_by_key(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        (!name.starts_with(LINK_PREFIX), name)
    });
    for path in pins {
        fs::remove_file(&path).map_err(|error| PinError::Remove { path, error })?;
    }
    fs::remove_dir(pin_dir).map_err(|error| PinError::Remove { path: pin_dir.to_owned(), error })
}

/// An error with its causes, in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
