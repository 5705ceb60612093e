//! Programs of others where homing's are: told of, never touched. A running homing knows their ids alone: names are for
//! CAP_SYS_ADMIN, which it gave up. `homing check` has both.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;

use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::{ProgramInfo, loaded_programs};

use super::{interfaces, netlink, pin, routes};
use crate::config::{Config, Forward};
use crate::sys::{self, TcxSide};

/// Which program it is, for people.
pub(super) type InWords = fn(u32) -> String;

/// The XDP program on an interface.
pub(super) fn xdp_holder(index: u32) -> Option<u32> {
    netlink::xdp_program(index).ok()?
}

/// Why homing's XDP program is not on an interface.
pub(super) fn held_by(holder: u32, in_words: InWords) -> String {
    format!("another XDP program is attached ({}); homing leaves it there", in_words(holder))
}

/// The sk_lookup programs of this network namespace but the one that is pinned at `own`.
///
/// # Errors
/// When the kernel does not list them.
pub(super) fn on_lookups(own: &Path, in_words: InWords) -> io::Result<Vec<String>> {
    let own = ProgramInfo::from_pin(own).ok().map(|info| info.id());
    let namespace = File::open("/proc/self/ns/net")?;
    let ids = sys::lookup_programs(namespace.as_fd())?;
    Ok(ids.into_iter().filter(|id| Some(*id) != own).map(in_words).collect())
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

/// Where tc programs of others are on an interface, homing having none: its queueing disciplines for filters alone, and
/// programs that are there without one (tcx, Linux 6.6). Those on the way out too: what XDP sends passes them by.
pub(super) fn on_tc(index: u32, in_words: InWords) -> Vec<String> {
    let disciplines = netlink::queueing_disciplines(index).unwrap_or_default().into_iter();
    let programs = [(TcxSide::Ingress, "ingress"), (TcxSide::Egress, "egress")].into_iter();
    let programs = programs.flat_map(|(side, word)| {
        // An older kernel knows no such question.
        let programs = sys::tcx_programs(index, side).unwrap_or_default();
        programs.into_iter().map(move |program| format!("{TCX}{word} ({})", in_words(program)))
    });
    disciplines.filter(|kind| matches!(kind.as_str(), "clsact" | "ingress")).chain(programs).collect()
}

/// What the kind of a program without a queueing discipline begins with.
const TCX: &str = "tcx ";

/// What homing would meet if it were started now, a line for each.
#[must_use]
pub fn others(config: &Config) -> Vec<String> {
    let own = own_programs(&config.homing.pin_dir);
    let direct = config.apps.iter().flat_map(|app| &app.backends).filter(|backend| backend.forward != Forward::Http);
    let direct: Vec<_> = direct.map(|backend| backend.address).collect();
    let mut lines = Vec::new();
    let mut present = Vec::new();
    let interfaces = interfaces(config).unwrap_or_default();
    for name in &interfaces {
        let Ok(index) = nix::net::if_::if_nametoindex(name.as_str()) else {
            lines.push(format!("{name}: there is no such interface now; it gets the program when it comes"));
            continue;
        };
        lines.extend(
            xdp_holder(index).filter(|id| !own.contains(id)).map(|id| format!("{name}: {}", held_by(id, by_name))),
        );
        lines.extend(on_tc(index, by_name).into_iter().map(|kind| format!("{name}: {}", beside_tc(&kind))));
        if let Some(kind) = routes::above_others(index).filter(|_| !direct.is_empty()) {
            lines.push(format!(
                "{name}: packets reach a {kind} merged (GRO), and XDP refuses what is then larger than the way to a host takes; \
                 turn that off below it: ethtool -K INTERFACE gro off"
            ));
        }
        present.push((name.as_str(), index));
    }
    for host in direct {
        let obstacle = routes::obstacle(host.ip(), &present);
        lines.extend(obstacle.map(|obstacle| format!("{host}: {obstacle}; the HTTP path will forward")));
    }
    let lookups = on_lookups(&super::attach::lookup_path(&config.homing.pin_dir), by_name).unwrap_or_default();
    lines.extend(lookups.into_iter().map(|program| format!("another sk_lookup program is here ({program})")));
    lines
}

/// What tc programs mean for homing.
pub fn beside_tc(kind: &str) -> String {
    match kind.strip_prefix(TCX) {
        None => {
            format!("tc filters may be here (qdisc {kind}); they see what XDP lets pass, and homing leaves them there")
        }
        Some(program) if program.starts_with("egress") => {
            format!(
                "a tc program is on {kind}; it sees what the stack sends, not what XDP does, and homing leaves it there"
            )
        }
        Some(_) => format!("a tc program is on {kind}; it sees what XDP lets pass, and homing leaves it there"),
    }
}

/// The programs of a homing that runs on this pin directory.
fn own_programs(pin_dir: &Path) -> Vec<u32> {
    let pins = fs::read_dir(pin_dir).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let links =
        pins.filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(pin::LINK_PREFIX)));
    links.filter_map(|path| Some(FdLink::from(PinnedLink::from_pin(path).ok()?).info().ok()?.program_id())).collect()
}

pub(super) fn by_id(id: u32) -> String {
    format!("id {id}")
}

fn by_name(id: u32) -> String {
    let info = loaded_programs().flatten().find(|info| info.id() == id);
    let name = info.as_ref().and_then(ProgramInfo::name_as_str).filter(|name| !name.is_empty());
    name.map_or_else(|| by_id(id), |name| format!("{name}, {}", by_id(id)))
}
