//! Programs of others where homing's are: named, never touched.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;

use aya::programs::{ProgramInfo, loaded_programs};

use super::netlink;

/// Who holds an interface against homing's XDP program.
pub(super) fn on_interface(name: &str) -> Option<String> {
    let index = nix::net::if_::if_nametoindex(name).ok()?;
    let id = netlink::xdp_program(index).ok()??;
    Some(format!("another XDP program is attached ({}); homing leaves it there", name_of(id)))
}

/// The sk_lookup programs of this network namespace but the one that is pinned at `own`.
///
/// # Errors
/// When the kernel does not list them.
pub(super) fn on_lookups(own: &Path) -> io::Result<Vec<String>> {
    let own = ProgramInfo::from_pin(own).ok().map(|info| info.id());
    let namespace = File::open("/proc/self/ns/net")?;
    let ids = crate::sys::lookup_programs(namespace.as_fd())?;
    Ok(ids.into_iter().filter(|id| Some(*id) != own).map(name_of).collect())
}

fn name_of(id: u32) -> String {
    let info = loaded_programs().flatten().find(|info| info.id() == id);
    let name = info.as_ref().and_then(|info| info.name_as_str()).filter(|name| !name.is_empty());
    format!("{}, id {id}", name.unwrap_or("no name"))
}
