//! Programs onto their hooks, each link pinned. A program that is already there, instruction for instruction, stays.

use std::fs;
use std::path::{Path, PathBuf};

use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::{XdpLink, XdpMode};
use aya::programs::{BtfTracePoint, Program, ProgramInfo, SkLookup, Xdp};
use aya::{Btf, Ebpf};

use super::pin::{LINK_PREFIX, chain};
use super::{Unavailable, others};

/// An interface that the XDP program is on, or why not.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Attached {
    pub name: String,
    /// The kernel's number for it: stays when it is renamed, is another when it went and came back; 0 while it is not there.
    pub index: u32,
    pub mode: Mode,
    /// Why it is not in native mode, where it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The kernel's number for the XDP program of another that holds it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub holder: Option<u32>,
}

impl Attached {
    /// To whom it may concern.
    pub fn say(&self) {
        let reason = self.reason.as_deref().unwrap_or("no reason given");
        match self.mode {
            Mode::None => {
                tracing::warn!(
                    interface = %self.name,
                    %reason,
                    "no XDP here; connections to workers are steered all the same, but protect's rates and backends by l2, \
                     ipip and gue need it"
                );
            }
            Mode::Native | Mode::Generic => {
                tracing::info!(interface = %self.name, mode = ?self.mode, "XDP is attached");
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// In the driver.
    Native,
    /// In the stack, on any interface.
    Generic,
    /// Not at all: connections are steered all the same, by sk_lookup.
    None,
}

const XDP: &str = "homing_xdp";
const LOOKUP: &str = "homing_lookup";
/// Of a kind, since one alone misses what happens while it runs.
const STATES: [&str; 2] = ["homing_state", "homing_state_too"];

/// Attaches all programs. An interface that refuses XDP is reported, not fatal: delivery does not need it.
pub(super) fn attach_all(ebpf: &mut Ebpf, pin_dir: &Path, interfaces: &[String]) -> Result<Vec<Attached>, Unavailable> {
    attach_lookup(program(ebpf, LOOKUP)?, pin_dir)?;
    for name in STATES {
        attach_state(program(ebpf, name)?, name, pin_dir)?;
    }
    attach_xdp(program(ebpf, XDP)?, pin_dir, interfaces)
}

fn attach_lookup(program: &mut SkLookup, pin_dir: &Path) -> Result<(), Unavailable> {
    program.load().map_err(|error| Unavailable::Load(chain(&error)))?;
    if is_pinned_already(&program.info(), pin_dir, LOOKUP) {
        return Ok(());
    }
    let netns = fs::File::open("/proc/self/ns/net").map_err(failed(LOOKUP))?;
    let id = program.attach(netns).map_err(failed(LOOKUP))?;
    let link: FdLink = program.take_link(id).map_err(failed(LOOKUP))?.into();
    replace_pin(link, pin_dir, LOOKUP)?;
    repin_program(program, pin_dir, LOOKUP)
}

fn attach_state(program: &mut BtfTracePoint, name: &'static str, pin_dir: &Path) -> Result<(), Unavailable> {
    let btf = Btf::from_sys_fs().map_err(|error| Unavailable::Load(chain(&error)))?;
    program.load("inet_sock_set_state", &btf).map_err(|error| Unavailable::Load(chain(&error)))?;
    if is_pinned_already(&program.info(), pin_dir, name) {
        return Ok(());
    }
    let id = program.attach().map_err(failed(name))?;
    let link: FdLink = program.take_link(id).map_err(failed(name))?.into();
    replace_pin(link, pin_dir, name)?;
    repin_program(program, pin_dir, name)
}

fn attach_xdp(program: &mut Xdp, pin_dir: &Path, interfaces: &[String]) -> Result<Vec<Attached>, Unavailable> {
    program.load().map_err(|error| Unavailable::Load(chain(&error)))?;
    Ok(attach_xdp_everywhere(program, pin_dir, interfaces))
}

fn attach_xdp_everywhere(program: &mut Xdp, pin_dir: &Path, interfaces: &[String]) -> Vec<Attached> {
    let interfaces = indexed(interfaces);
    for stale in stale_xdp_links(pin_dir, &interfaces) {
        let _ = fs::remove_file(stale);
    }
    interfaces.into_iter().map(|(name, index)| attach_xdp_to(program, pin_dir, name, index)).collect()
}

fn attach_xdp_to(program: &mut Xdp, pin_dir: &Path, name: String, index: u32) -> Attached {
    if index == 0 {
        let reason = "there is no such interface now; it gets the program when it comes".to_owned();
        return Attached { name, index, mode: Mode::None, reason: Some(reason), holder: None };
    }
    let modes = [(Mode::Native, XdpMode::Driver), (Mode::Generic, XdpMode::Skb)];
    for (mode, _) in modes {
        let path = xdp_link_path(pin_dir, mode, index);
        let Ok(link) = PinnedLink::from_pin(&path) else { continue };
        if let Ok(link) = XdpLink::try_from(FdLink::from(link))
            && program.attach_to_link(link).is_ok_and(|id| program.take_link(id).is_ok())
        {
            return Attached { name, index, mode, reason: None, holder: None };
        }
        // Another interface had this number: its link is dead.
        let _ = fs::remove_file(&path);
    }
    // Asked before, too: a holder that lets go just after the refusal is a reason to try again.
    let holder = others::xdp_holder(index);
    let mut refusals: Vec<String> = Vec::new();
    for (mode, xdp_mode) in modes {
        let tried = program
            .attach_to_if_index(index, xdp_mode)
            .and_then(|id| program.take_link(id))
            .map_err(|error| chain(&error))
            .and_then(|link| FdLink::try_from(link).map_err(|error| chain(&error)))
            .and_then(|link| link.pin(xdp_link_path(pin_dir, mode, index)).map_err(|error| chain(&error)));
        match tried {
            Ok(_) => return Attached { name, index, mode, reason: refusals.pop(), holder: None },
            Err(error) => refusals.push(error),
        }
    }
    refusals.dedup();
    let holder = others::xdp_holder(index).or(holder);
    let reason = holder.map_or_else(|| refusals.join("; "), |holder| others::held_by(holder, others::by_id));
    Attached { name, index, mode: Mode::None, reason: Some(reason), holder }
}

/// Whether this is how things are: nothing came, went or was renamed, and whoever held an interface still does.
pub(super) fn is_current(attached: &[Attached], interfaces: &[String]) -> bool {
    let is_same = |(attached, (name, index)): (&Attached, (String, u32))| {
        attached.name == name
            && attached.index == index
            && (attached.mode != Mode::None || index == 0 || attached.holder == others::xdp_holder(index))
    };
    attached.len() == interfaces.len() && attached.iter().zip(indexed(interfaces)).all(is_same)
}

/// After interfaces have come or gone.
pub(super) fn reattach(ebpf: &mut Ebpf, pin_dir: &Path, interfaces: &[String]) -> Result<Vec<Attached>, Unavailable> {
    Ok(attach_xdp_everywhere(program(ebpf, XDP)?, pin_dir, interfaces))
}

/// Interfaces with the kernel's numbers for them.
fn indexed(interfaces: &[String]) -> Vec<(String, u32)> {
    let index = |name: &str| nix::net::if_::if_nametoindex(name).unwrap_or(0);
    interfaces.iter().map(|name| (name.clone(), index(name))).collect()
}

/// Where the sk_lookup program is pinned.
pub(super) fn lookup_path(pin_dir: &Path) -> PathBuf {
    program_path(pin_dir, LOOKUP)
}

/// Links to interfaces that are no longer wanted.
fn stale_xdp_links(pin_dir: &Path, interfaces: &[(String, u32)]) -> Vec<PathBuf> {
    let keep: Vec<PathBuf> = interfaces
        .iter()
        .flat_map(|(_, index)| [Mode::Native, Mode::Generic].map(|mode| xdp_link_path(pin_dir, mode, *index)))
        .collect();
    let prefix = format!("{LINK_PREFIX}{XDP}_");
    let entries = fs::read_dir(pin_dir).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    entries
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix)))
        .filter(|path| !keep.contains(path))
        .collect()
}

/// The mode stands in the name, since a link does not tell it. The interface by number: names pass from one to the next.
fn xdp_link_path(pin_dir: &Path, mode: Mode, index: u32) -> PathBuf {
    let mode = if mode == Mode::Generic { "generic" } else { "native" };
    link_path(pin_dir, &format!("{XDP}_{mode}_{index}"))
}

fn program<'a, P>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut P, Unavailable>
where
    &'a mut P: TryFrom<&'a mut Program, Error = aya::programs::ProgramError>,
{
    ebpf.program_mut(name)
        .ok_or_else(|| Unavailable::Load(format!("the object has no program {name}")))?
        .try_into()
        .map_err(|error| Unavailable::Load(chain(&error)))
}

fn failed<E: std::error::Error>(program: &'static str) -> impl Fn(E) -> Unavailable {
    move |error| Unavailable::Attach { program, error: chain(&error) }
}

fn link_path(pin_dir: &Path, name: &str) -> PathBuf {
    pin_dir.join(format!("{LINK_PREFIX}{name}"))
}

fn program_path(pin_dir: &Path, name: &str) -> PathBuf {
    pin_dir.join(format!("prog_{name}"))
}

/// Whether the pinned program is this one, by the kernel's own digest of its instructions, and still linked.
fn is_pinned_already(
    info: &Result<ProgramInfo, aya::programs::ProgramError>,
    pin_dir: &Path,
    name: &'static str,
) -> bool {
    let pinned = ProgramInfo::from_pin(program_path(pin_dir, name));
    matches!((info, pinned), (Ok(new), Ok(old)) if new.tag() == old.tag()) && link_path(pin_dir, name).exists()
}

/// Pins the link in the place of the one before, which is attached until then: no connection finds nobody.
fn replace_pin(link: FdLink, pin_dir: &Path, name: &'static str) -> Result<(), Unavailable> {
    let path = link_path(pin_dir, name);
    let next = link_path(pin_dir, &format!("{name}_next"));
    let _ = fs::remove_file(&next);
    link.pin(&next).map_err(failed(name))?;
    fs::rename(&next, &path).map_err(failed(name))
}

fn repin_program<P>(program: &mut P, pin_dir: &Path, name: &'static str) -> Result<(), Unavailable>
where
    P: PinProgram,
{
    let path = program_path(pin_dir, name);
    let _ = fs::remove_file(&path);
    program.pin_at(&path).map_err(failed(name))
}

/// aya gives each program type a `pin` of its own.
trait PinProgram {
    fn pin_at(&mut self, path: &Path) -> Result<(), aya::pin::PinError>;
}

impl PinProgram for SkLookup {
    fn pin_at(&mut self, path: &Path) -> Result<(), aya::pin::PinError> {
        self.pin(path)
    }
}

impl PinProgram for BtfTracePoint {
    fn pin_at(&mut self, path: &Path) -> Result<(), aya::pin::PinError> {
        self.pin(path)
    }
}
