//! What homing and its workers may do, of all that root may. docs/security.md lists it, and `tests/tests/privileges.rs`
//! compares that list with what the kernel says of the processes.
//!
//! The kernel keeps all of this for each thread, and a new thread has what the one has that starts it: so whoever gives
//! something up does so before there are others.

use rustix::io::Errno;
use rustix::thread::{self, CapabilitySet, CapabilitySets};

use crate::config::{App, Config, KernelPath};

/// What homing needs for as long as it runs.
const ALWAYS: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SYS_PTRACE)
    .union(CapabilitySet::SYS_RESOURCE);

/// … and for the kernel path.
const KERNEL_PATH: CapabilitySet = CapabilitySet::BPF.union(CapabilitySet::NET_ADMIN).union(CapabilitySet::PERFMON);

/// What a worker of root keeps: files, users and low ports, and nothing of the kernel, the network or other processes.
const ROOT_WORKER: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID);

/// What a worker keeps that is to gain nothing by what it runs; all others keep what homing was started with.
pub(crate) fn of_worker(is_root: bool) -> CapabilitySet {
    if is_root { ROOT_WORKER } else { CapabilitySet::empty() }
}

/// Whether some worker may gain privileges by what it runs: only from a homing that could, too.
pub(crate) fn may_gain(apps: &[App]) -> bool {
    apps.iter().any(|app| !app.command.is_empty() && !app.isolation.no_new_privileges)
}

/// Gives up, for good, all that this configuration does not need once everything is open.
pub(crate) fn give_up(config: &Config) -> Result<(), Errno> {
    let kernel = if config.homing.kernel_path == KernelPath::Off { CapabilitySet::empty() } else { KERNEL_PATH };
    let least = ALWAYS.union(kernel);
    if !may_gain(&config.apps) {
        bound(least)?;
        thread::set_no_new_privs(true)?;
    }
    restrict(least)
}

/// For who has nothing more to do than to wait.
pub(crate) fn give_up_all() -> Result<(), Errno> {
    bound(CapabilitySet::empty())?;
    thread::set_no_new_privs(true)?;
    restrict(CapabilitySet::empty())
}

/// No program that is run from now on gets more than this. A plain loop of system calls: also for between fork and exec.
pub(crate) fn bound(keep: CapabilitySet) -> Result<(), Errno> {
    for number in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        // The first that it does not know is the end of those that it knows.
        let Ok(is_there) = thread::capability_is_in_bounding_set(capability) else { break };
        if is_there && !keep.contains(capability) {
            match thread::remove_capability_from_bounding_set(capability) {
                // Needs CAP_SETPCAP, which nobody but root has as a rule; others gain by set-user-ID programs alone, and
                // `no_new_privileges` sees to those.
                Err(Errno::PERM) => return Ok(()),
                removed => removed?,
            }
        }
    }
    Ok(())
}

/// What it has of these it keeps, and lends to nobody. As above.
pub(crate) fn restrict(keep: CapabilitySet) -> Result<(), Errno> {
    let CapabilitySets { effective, permitted, .. } = thread::capabilities(None)?;
    let sets = CapabilitySets {
        effective: effective.intersection(keep),
        permitted: permitted.intersection(keep),
        inheritable: CapabilitySet::empty(),
    };
    thread::set_capabilities(None, sets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_worker_keeps_nothing_that_homing_gives_up() {
        assert!(ALWAYS.contains(ROOT_WORKER));
        assert!(ROOT_WORKER.intersection(KERNEL_PATH).is_empty());
    }

    #[test]
    fn what_is_given_up_stays_so_for_this_thread_and_its_own() {
        let kept = std::thread::spawn(|| {
            give_up_all().expect("whoever can do nothing can do without");
            std::thread::spawn(|| thread::capabilities(None).expect("asked")).join().expect("it only asks")
        });
        let none = CapabilitySet::empty();
        let expected = CapabilitySets { effective: none, permitted: none, inheritable: none };
        assert_eq!(kept.join().expect("it only asks"), expected);
    }
}
