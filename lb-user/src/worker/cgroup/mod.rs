//! Control groups: one per worker, under one parent for this homing, so that no process of a worker is ever lost and its
//! memory and CPU can be bounded. Where none can be made homing goes on without, and says why.

mod group;
mod hierarchy;

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

pub use group::{Group, Kills};
pub use hierarchy::Version;

use self::group::{children, put};
use self::hierarchy::Place;

/// Begins the names of parents; the rest is this homing's own.
const PARENT_PREFIX: &str = "homing-";
/// Where homing itself moves in a cgroup v2 that was handed to it: processes and controlled groups exclude each other.
/// Also what `DelegateSubgroup=` in a systemd unit is to be.
const OWN_GROUP: &str = "homing";
/// In the state directory: the parents of this and earlier runs, one a line.
const RECORD: &str = "cgroups";
/// v1 hierarchies that may hold the tree where there is no v2.
const TREES_OF_V1: [&str; 4] = ["pids", "freezer", "memory", "cpu"];

/// How something is done, or why it is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    Group(Version),
    None { why: String },
}

impl Way {
    fn none(why: impl Into<String>) -> Self {
        Self::None { why: why.into() }
    }

    pub fn is_none(&self) -> bool {
        matches!(self, Self::None { .. })
    }
}

/// The parents of this homing's groups.
#[derive(Debug)]
pub struct Cgroups {
    /// Where new workers go.
    tree: Option<(Version, PathBuf)>,
    memory: Option<(Version, PathBuf)>,
    cpu: Option<(Version, PathBuf)>,
    /// All, those of earlier runs too.
    parents: Vec<PathBuf>,
    record: PathBuf,
    pub tree_way: Way,
    pub memory_way: Way,
    pub cpu_way: Way,
}

impl Cgroups {
    /// Makes the parents, as far as this machine allows it.
    pub fn open(state_dir: &Path, wanted: bool) -> Self {
        let record = state_dir.join(RECORD);
        let outcome = if wanted {
            name_of(state_dir)
                .and_then(|name| Ok((name, hierarchy::places("self")?)))
                .map_err(|error| format!("cgroups cannot be looked at: {error}"))
        } else {
            Err("homing.cgroups = \"off\" in the configuration".to_owned())
        };
        let mut cgroups = match outcome {
            Ok((name, places)) => Self::below(&places, &name, is_of_systemd()),
            Err(why) => Self::nothing(&why),
        };
        cgroups.parents.extend(recorded(&record));
        cgroups.parents.sort();
        cgroups.parents.dedup();
        cgroups.record = record;
        cgroups.write_record();
        cgroups
    }

    fn nothing(why: &str) -> Self {
        Self {
            tree: None,
            memory: None,
            cpu: None,
            parents: Vec::new(),
            record: PathBuf::new(),
            tree_way: Way::none(why),
            memory_way: Way::none(why),
            cpu_way: Way::none(why),
        }
    }

    /// `guarded`: systemd put homing where it is, and would not find its way back into a group that has controllers.
    fn below(places: &[Place], name: &str, guarded: bool) -> Self {
        let mut this = Self::nothing("this machine has no cgroups mounted");
        let mut whys = Vec::new();
        for place in places.iter().filter(|place| place.version == Version::V2) {
            match parent_in_v2(place, name) {
                Ok(parent) => this.take_v2(place, &parent, guarded),
                Err(why) => {
                    this.memory_way = Way::none(&why);
                    this.cpu_way = Way::none(&why);
                    whys.push(why);
                }
            }
        }
        let v1 = |controller: &str| {
            let place = places.iter().find(|place| place.version == Version::V1 && place.controls(controller))?;
            Some(make_parent(&place.directory, name))
        };
        for (parent, way, controller) in
            [(&mut this.memory, &mut this.memory_way, "memory"), (&mut this.cpu, &mut this.cpu_way, "cpu")]
        {
            if parent.is_some() {
                continue;
            }
            match v1(controller) {
                Some(Ok(directory)) => {
                    *parent = Some((Version::V1, directory));
                    *way = Way::Group(Version::V1);
                }
                Some(Err(why)) => *way = Way::None { why },
                None => {}
            }
        }
        if this.tree.is_none() {
            match TREES_OF_V1.iter().find_map(|controller| v1(controller)?.ok()) {
                Some(directory) => {
                    this.tree = Some((Version::V1, directory));
                    this.tree_way = Way::Group(Version::V1);
                }
                None => {
                    if let Some(why) = whys.pop() {
                        this.tree_way = Way::None { why };
                    }
                }
            }
        }
        let parents = [&this.tree, &this.memory, &this.cpu].into_iter().flatten().map(|(_, parent)| parent.clone());
        this.parents = parents.collect();
        this
    }

    fn take_v2(&mut self, place: &Place, parent: &Path, guarded: bool) {
        self.tree = Some((Version::V2, parent.to_owned()));
        self.tree_way = Way::Group(Version::V2);
        for (controller, at, way) in
            [("memory", &mut self.memory, &mut self.memory_way), ("cpu", &mut self.cpu, &mut self.cpu_way)]
        {
            match hand_down(place, parent, controller, guarded) {
                Ok(()) => {
                    *at = Some((Version::V2, parent.to_owned()));
                    *way = Way::Group(Version::V2);
                }
                Err(why) => *way = Way::None { why },
            }
        }
    }

    /// Makes the groups of a worker; `name` is its own and no earlier one's. `None` where there can be none.
    pub fn make(&self, name: &str, with_memory: bool, with_cpu: bool) -> io::Result<Option<Group>> {
        let Some((version, tree)) = &self.tree else { return Ok(None) };
        let tree = tree.join(name);
        // v2 has one directory for all; v1's are made for those who ask.
        let in_other = |parent: &Option<(Version, PathBuf)>, wanted: bool| {
            let (version, parent) = parent.as_ref()?;
            (wanted || *version == Version::V2).then(|| (*version, parent.join(name)))
        };
        let group = Group { tree, memory: in_other(&self.memory, with_memory), cpu: in_other(&self.cpu, with_cpu) };
        tracing::trace!(?version, name, "making groups");
        group.make()?;
        Ok(Some(group))
    }

    /// The groups that a running process is in, if they are this homing's.
    pub fn of(&self, pid: u32) -> Option<Group> {
        let places = hierarchy::places(&pid.to_string()).ok()?;
        let name = places.iter().find_map(|place| {
            let parent = self.parents.iter().find(|parent| place.directory.starts_with(parent))?;
            let below = place.directory.strip_prefix(parent).ok()?;
            Some(below.components().next()?.as_os_str().to_str()?.to_owned())
        })?;
        self.named(&name)
    }

    /// Groups that earlier runs left and nobody in `kept` has.
    pub fn leftovers(&self, kept: &[&Group]) -> Vec<Group> {
        let mut names: Vec<String> = self
            .parents
            .iter()
            .flat_map(|parent| children(parent))
            .filter(|directory| !kept.iter().any(|group| group.is_in(directory)))
            .filter_map(|directory| Some(directory.file_name()?.to_str()?.to_owned()))
            .collect();
        names.sort();
        names.dedup();
        names.iter().filter_map(|name| self.named(name)).collect()
    }

    /// What is there of a worker's groups.
    fn named(&self, name: &str) -> Option<Group> {
        let mut found = self.parents.iter().map(|parent| parent.join(name)).filter(|directory| directory.is_dir());
        let directories: Vec<PathBuf> = found.by_ref().collect();
        let with = |file: &str| directories.iter().find(|directory| directory.join(file).exists()).cloned();
        let memory_v2 = with("memory.max").map(|directory| (Version::V2, directory));
        let cpu_v2 = with("cpu.weight").map(|directory| (Version::V2, directory));
        Some(Group {
            memory: memory_v2.or_else(|| Some((Version::V1, with("memory.limit_in_bytes")?))),
            cpu: cpu_v2.or_else(|| Some((Version::V1, with("cpu.shares")?))),
            tree: with("cgroup.kill").or_else(|| with("cgroup.freeze")).or_else(|| directories.first().cloned())?,
        })
    }

    /// Removes parents that are empty, as at the end they are.
    pub fn close(&mut self) {
        self.parents.retain(|parent| fs::remove_dir(parent).is_err() && parent.is_dir());
        self.write_record();
    }

    fn write_record(&self) {
        let lines: String = self.parents.iter().map(|parent| format!("{}\n", parent.display())).collect();
        let outcome = if lines.is_empty() {
            fs::remove_file(&self.record)
                .or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
        } else {
            fs::write(&self.record, lines)
        };
        if let Err(error) = outcome {
            let record = self.record.display();
            tracing::warn!(%error, %record, "where workers' cgroups are could not be noted; a crash may leave processes");
        }
    }
}

/// The parents of earlier runs that are still there: homing may be started elsewhere now.
fn recorded(record: &Path) -> Vec<PathBuf> {
    let text = fs::read_to_string(record).unwrap_or_default();
    let is_parent = |path: &Path| {
        path.is_absolute()
            && path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(PARENT_PREFIX))
            && path.join("cgroup.procs").exists()
    };
    text.lines().map(PathBuf::from).filter(|path| is_parent(path)).collect()
}

/// Of two homings on a machine each has a state directory of its own.
fn name_of(state_dir: &Path) -> io::Result<String> {
    let path = state_dir.canonicalize()?;
    let metadata = path.metadata()?;
    let mut hash = Sha256::new();
    hash.update(path.as_os_str().as_encoded_bytes());
    hash.update(metadata.dev().to_le_bytes());
    hash.update(metadata.ino().to_le_bytes());
    let digits: String = hash.finalize().iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("{PARENT_PREFIX}{digits}"))
}

fn is_of_systemd() -> bool {
    std::env::var_os("INVOCATION_ID").is_some()
}

fn make_parent(base: &Path, name: &str) -> Result<PathBuf, String> {
    let parent = base.join(name);
    match fs::create_dir(&parent) {
        Ok(()) => Ok(parent),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(parent),
        Err(error) => Err(format!("no cgroup can be made in {}: {error}", base.display())),
    }
}

/// Beside homing's own group where that is for homing alone.
fn parent_in_v2(place: &Place, name: &str) -> Result<PathBuf, String> {
    make_parent(base_in_v2(place), name)
}

fn base_in_v2(place: &Place) -> &Path {
    let directory = place.directory.as_path();
    let is_own = directory.file_name().is_some_and(|name| name == OWN_GROUP) && directory != place.mount;
    directory.parent().filter(|_| is_own).unwrap_or(directory)
}

/// Makes a controller of cgroup v2 available to the groups in `parent`.
fn hand_down(place: &Place, parent: &Path, controller: &str, guarded: bool) -> Result<(), String> {
    let base = base_in_v2(place);
    let lists = |file: &str| {
        fs::read_to_string(base.join(file)).is_ok_and(|text| text.split_whitespace().any(|word| word == controller))
    };
    let word = format!("+{controller}");
    if !lists("cgroup.controllers") {
        return Err(format!("cgroup v2 has no {controller} controller in {}", base.display()));
    }
    if !lists("cgroup.subtree_control") {
        make_room(place, base, guarded)?;
        put(&base.join("cgroup.subtree_control"), &word)
            .map_err(|error| format!("the {controller} controller cannot be used in {}: {error}", base.display()))?;
    }
    put(&parent.join("cgroup.subtree_control"), &word)
        .map_err(|error| format!("the {controller} controller cannot be used in {}: {error}", parent.display()))
}

/// A group that hands controllers down has no processes of its own, but for the root (cgroups(7)).
fn make_room(place: &Place, base: &Path, guarded: bool) -> Result<(), String> {
    let is_root = !base.join("cgroup.type").exists();
    let inhabitants = fs::read_to_string(base.join("cgroup.procs")).unwrap_or_default();
    let own = std::process::id().to_string();
    if is_root || inhabitants.is_empty() {
        return Ok(());
    }
    let shown = place.directory.display();
    if inhabitants.lines().any(|pid| pid != own) {
        return Err(format!("homing shares {shown} with other processes; start it in a cgroup of its own"));
    }
    if guarded {
        return Err(format!(
            "systemd started homing in {shown} itself; add Delegate=yes and DelegateSubgroup={OWN_GROUP} to its unit"
        ));
    }
    let moved = make_parent(base, OWN_GROUP).and_then(|group| {
        put(&group.join("cgroup.procs"), "0").map_err(|error| format!("homing cannot move within {shown}: {error}"))
    });
    moved.map(drop)
}

#[cfg(test)]
mod tests;
