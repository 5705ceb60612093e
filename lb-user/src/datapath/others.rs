//! Programs of others where homing's are: named, never touched.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;

use aya::programs::{ProgramInfo, loaded_programs};

use super::netlink;

/// The XDP program on an interface.
pub(super) fn xdp_holder(index: u32) -> Option<u32> {
    netlink::xdp_program(index).ok()?
}

/// Why homing's XDP program is not on an interface.
pub(super) fn held_by(holder: u32) -> String {
    format!("another XDP program is attached ({}); homing leaves it there", name_of(holder))
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

/// To whom it may concern.
pub fn say_other_lookups(programs: &[String]) {
    for program in programs {
        tracing::warn!(
            program,
            "another sk_lookup program is in this network namespace; of two that want a connection the one that was \
             attached last gets it"
        );
    }
}

fn name_of(id: u32) -> String {
    let info = loaded_programs().flatten().find(|info| info.id() == id);
    let name = info.as_ref().and_then(ProgramInfo::name_as_str).filter(|name| !name.is_empty());
    format!("{}, id {id}", name.unwrap_or("no name"))
}
