//! The listening sockets of a worker that opened them itself: found by port among all its processes, and duplicated.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::net::SocketAddr;
use std::os::fd::{OwnedFd, RawFd};

use rustix::io::Errno;
use rustix::process::PidfdGetfdFlags;
use socket2::SockRef;

use super::process::{Process, open_verified};
use super::procfs::Stat;

/// TCP_LISTEN, as /proc/net/tcp writes it.
const STATE_LISTEN: &str = "0A";

/// A duplicate of a worker's listening socket.
///
/// Drop it as soon as the kernel's table has it. While it is open the socket lives on without its worker: connections
/// would be accepted by the kernel and answered by nobody, and the table's entry would not go when the worker dies.
#[derive(Debug)]
pub struct Listener {
    pub fd: OwnedFd,
    pub address: SocketAddr,
    /// An IPv6 socket that takes no IPv4 connections (IPV6_V6ONLY).
    pub ipv6_only: bool,
    /// Whose socket it is: the worker's first process or a descendant.
    pub pid: u32,
}

impl Listener {
    /// Whether an IPv4 connection can be given to it. The kernel judges by the family alone, not by the bound address.
    pub fn takes_ipv4(&self) -> bool {
        self.address.is_ipv4() || !self.ipv6_only
    }

    pub fn takes_ipv6(&self) -> bool {
        self.address.is_ipv6()
    }
}

#[derive(Debug, thiserror::Error)]
pub enum FindError {
    #[error(
        "homing may not look into process {pid} of the worker, which runs as another user or changed its user; \
             grant homing CAP_SYS_PTRACE (setcap, or AmbientCapabilities in its systemd unit), or run it as root"
    )]
    Privilege { pid: u32 },
    #[error(
        "the sockets of process {pid} cannot be read: {source}; is /proc mounted, and the limit of open files \
             (ulimit -n) high enough?"
    )]
    Io { pid: u32, source: io::Error },
}

/// All TCP sockets of the worker's processes that listen on `port`, each once however many processes share it. Empty
/// while it does not listen, when someone else does, and when the worker is gone.
pub fn find(process: &Process, port: u16) -> Result<Vec<Listener>, FindError> {
    search(process, Some(port))
}

/// What the worker listens on, whatever the port; nothing where that cannot be seen.
pub fn addresses(process: &Process) -> Vec<SocketAddr> {
    let mut addresses: Vec<SocketAddr> =
        search(process, None).unwrap_or_default().iter().map(|listener| listener.address).collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

fn search(process: &Process, port: Option<u16>) -> Result<Vec<Listener>, FindError> {
    let io_error = |source| FindError::Io { pid: process.pid(), source };
    let members = process.stats().map_err(io_error)?;
    let mut wanted = listening_inodes(&members, port).map_err(io_error)?;
    let mut found = Vec::new();
    let mut refused = None;
    for member in members {
        if wanted.is_empty() {
            break;
        }
        match take_from(member, port, &mut wanted, &mut found) {
            Ok(()) => {}
            // Another process of the worker may hold the same socket and be readable.
            Err(FindError::Privilege { pid }) => refused = refused.or(Some(pid)),
            Err(error) => return Err(error),
        }
    }
    match refused {
        Some(pid) if found.is_empty() => Err(FindError::Privilege { pid }),
        _ => Ok(found),
    }
}

/// Inodes of the sockets that listen on the port, or on any, in the worker's network namespace, whoever's they are.
fn listening_inodes(members: &[Stat], port: Option<u16>) -> io::Result<HashSet<u64>> {
    let mut inodes = HashSet::new();
    for table in ["tcp", "tcp6"] {
        // All members share a namespace; the first that is still there is as good as any.
        for member in members {
            match File::open(format!("/proc/{}/net/{table}", member.pid)) {
                Ok(file) => {
                    read_table(BufReader::new(file), port, &mut inodes)?;
                    break;
                }
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(inodes)
}

/// A row of /proc/net/tcp.
struct Row<'l> {
    /// Of the local address.
    port: Option<u16>,
    state: &'l str,
    /// 0: nobody has accepted it.
    inode: Option<u64>,
}

impl<'l> Row<'l> {
    /// `None` for what is no row.
    fn parse(line: &'l str) -> Option<Self> {
        let mut fields = line.split_ascii_whitespace();
        let (local, state) = (fields.nth(1)?, fields.nth(1)?);
        let port = local.rsplit_once(':').and_then(|(_, digits)| u16::from_str_radix(digits, 16).ok());
        Some(Self { port, state, inode: fields.nth(5)?.parse().ok() })
    }
}

/// Stops at the first socket that does not listen: the kernel lists those that do before all others
/// (Documentation/networking/proc_net_tcp.rst), and the others may be a hundred thousand.
fn read_table(table: impl BufRead, port: Option<u16>, inodes: &mut HashSet<u64>) -> io::Result<()> {
    for line in table.lines().skip(1) {
        let line = match line {
            Ok(line) => line,
            Err(error) if is_gone(&error) => return Ok(()),
            Err(error) => return Err(error),
        };
        let Some(row) = Row::parse(&line) else { continue };
        if row.state != STATE_LISTEN {
            return Ok(());
        }
        if port.is_none() || row.port == port {
            inodes.extend(row.inode);
        }
    }
    Ok(())
}

/// How many connections on these ports of its network namespace the worker has, at most: also those that nobody has accepted
/// yet, whoever's they are.
///
/// # Errors
/// When /proc cannot be read.
pub fn connections(process: &Process, ports: &[u16]) -> io::Result<u64> {
    /// Neither open nor being closed by both sides: SYN_RECV, TIME_WAIT, CLOSE, LISTEN.
    const NOT_OPEN: [&str; 4] = ["03", "06", "07", STATE_LISTEN];
    let members = process.stats()?;
    let (mut inodes, mut unaccepted) = (HashSet::new(), 0);
    for table in ["tcp", "tcp6"] {
        let file = match File::open(format!("/proc/{}/net/{table}", process.pid())) {
            Ok(file) => file,
            Err(error) if is_gone(&error) => return Ok(0),
            Err(error) => return Err(error),
        };
        for line in BufReader::new(file).lines().skip(1) {
            let line = line?;
            let Some(row) = Row::parse(&line) else { continue };
            if NOT_OPEN.contains(&row.state) || !row.port.is_some_and(|port| ports.contains(&port)) {
                continue;
            }
            match row.inode {
                Some(0) | None => unaccepted += 1,
                Some(inode) => drop(inodes.insert(inode)),
            }
        }
    }
    for member in members {
        let own = match open_sockets(member.pid) {
            Ok(own) => own,
            Err(error) if is_gone(&error) => continue,
            Err(error) => return Err(error),
        };
        unaccepted += own.into_iter().filter(|(_, inode)| inodes.remove(inode)).count() as u64;
    }
    Ok(unaccepted)
}

/// Duplicates those wanted sockets that this process has open, and takes them off the list.
fn take_from(
    member: Stat,
    port: Option<u16>,
    wanted: &mut HashSet<u64>,
    found: &mut Vec<Listener>,
) -> Result<(), FindError> {
    let pid = member.pid;
    let failed = |error: io::Error| match Errno::from_io_error(&error) {
        Some(Errno::PERM | Errno::ACCESS) => Err(FindError::Privilege { pid }),
        _ if is_gone(&error) => Ok(()),
        _ => Err(FindError::Io { pid, source: error }),
    };
    let pidfd = match open_verified(pid, member.start_time) {
        Ok(Some(pidfd)) => pidfd,
        Ok(None) => return Ok(()),
        Err(error) => return failed(error),
    };
    let sockets = match open_sockets(pid) {
        Ok(sockets) => sockets,
        Err(error) => return failed(error),
    };
    for (number, inode) in sockets {
        if !wanted.contains(&inode) {
            continue;
        }
        match rustix::process::pidfd_getfd(&pidfd, number, PidfdGetfdFlags::empty()) {
            Ok(fd) => {
                if let Some(listener) = verified(fd, port, pid) {
                    wanted.remove(&inode);
                    found.push(listener);
                }
            }
            // Closed since the look.
            Err(Errno::BADF) => {}
            Err(error) => return failed(error.into()),
        }
    }
    Ok(())
}

/// Descriptor numbers and inodes of the sockets that a process has open.
fn open_sockets(pid: u32) -> io::Result<Vec<(RawFd, u64)>> {
    let mut sockets = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let entry = entry?;
        let Ok(target) = fs::read_link(entry.path()) else { continue };
        let inode = target.to_str().and_then(|text| text.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
        let number = entry.file_name().to_str().and_then(|name| name.parse().ok());
        sockets.extend(number.zip(inode));
    }
    Ok(sockets)
}

/// The number may have come to mean another file since it was read: asks the duplicate itself what it is.
fn verified(fd: OwnedFd, port: Option<u16>, pid: u32) -> Option<Listener> {
    let socket = SockRef::from(&fd);
    let address = socket.local_addr().ok()?.as_socket()?;
    if !socket.is_listener().ok()? || port.is_some_and(|port| address.port() != port) {
        return None;
    }
    let ipv6_only = address.is_ipv6() && socket.only_v6().ok()?;
    Some(Listener { fd, address, ipv6_only, pid })
}

/// The process ended while it was looked at.
fn is_gone(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NOENT | Errno::SRCH | Errno::INVAL))
}

#[cfg(test)]
mod tests;
