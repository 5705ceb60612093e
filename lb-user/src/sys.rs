//! What the compiler cannot check: steps between fork and exec, and handing a pidfd to the runtime. It decides nothing and
//! knows nothing of workers; who calls it needs no `unsafe`.
#![allow(unsafe_code)]

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read as _, Write as _};
use std::net::TcpListener;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::ptr;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Gid, Resource, Rlimit, Uid};
use rustix::thread::CapabilitySet;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::privileges;

/// Descriptors from here on are not for the new program: 0, 1 and 2 are its input and outputs.
const FIRST_PRIVATE_FD: libc::c_uint = 3;

/// The number under which a program finds the socket that it is passed (sd_listen_fds(3)).
pub(crate) const PASSED_FD: RawFd = FIRST_PRIVATE_FD.cast_signed();

/// Whom a program runs as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) uid: Uid,
    pub(crate) gid: Gid,
    /// All groups, the supplementary ones too.
    pub(crate) groups: Vec<Gid>,
}

/// What a program is given and denied before it starts.
#[derive(Debug)]
pub(crate) struct Confinement {
    /// homing's own where absent.
    pub(crate) identity: Option<Identity>,
    /// The `cgroup.procs` of each control group that it is to be in, open for writing.
    pub(crate) groups: Vec<File>,
    pub(crate) limits: Vec<(Resource, Rlimit)>,
    pub(crate) umask: u32,
    /// All that it and whatever it runs may ever have; where absent, what homing was started with.
    pub(crate) capabilities: Option<CapabilitySet>,
    /// Takes back what protects homing itself from the kernel's choice when memory runs out.
    pub(crate) expendable: bool,
}

/// What was being done for a program when it could not be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Detach,
    JoinGroups,
    /// The limit of this place in [`Confinement::limits`].
    Limit(usize),
    Identity,
    Privileges,
}

/// Says how far a child came that could not become its program.
pub(crate) struct Progress {
    reader: PipeReader,
}

impl Progress {
    /// The step that failed; nothing when all succeeded, so that it was the program itself. To be asked once, after the
    /// command was dropped, which holds the pipe's other end.
    pub(crate) fn failed_step(mut self) -> Option<Step> {
        let mut step = [0];
        self.reader.read_exact(&mut step).ok()?;
        Some(match step[0] {
            0 => Step::Detach,
            1 => Step::JoinGroups,
            2 => Step::Identity,
            3 => Step::Privileges,
            limit => Step::Limit(usize::from(limit - FIRST_LIMIT)),
        })
    }
}

const FIRST_LIMIT: u8 = 4;

impl Step {
    fn code(self) -> u8 {
        match self {
            Self::Detach => 0,
            Self::JoinGroups => 1,
            Self::Identity => 2,
            Self::Privileges => 3,
            Self::Limit(number) => FIRST_LIMIT + number as u8,
        }
    }
}

/// Makes the program start as the leader of a session of its own, confined as said, with every signal as it is at birth,
/// no capabilities lent to homing by its service manager and no descriptors but the standard three.
pub(crate) fn detach(command: &mut Command, confinement: Confinement) -> io::Result<Progress> {
    let (reader, writer) = io::pipe()?;
    let prepare = move || {
        confine(&confinement).map_err(|(step, errno)| {
            say_step(&writer, step);
            io::Error::from(errno)
        })
    };
    // SAFETY: between fork and exec only async-signal-safe calls are allowed. `prepare` makes plain system calls on data
    // that was allocated before the fork; it allocates nothing, takes no lock, and its errors are bare numbers. That the
    // identity calls change one thread only is no concern: the child has only this one.
    unsafe {
        command.pre_exec(prepare);
    }
    Ok(Progress { reader })
}

fn say_step(writer: &PipeWriter, step: Step) {
    // The error itself goes another way; without its step it is only less clear.
    let _ = rustix::io::write(writer, &[step.code()]);
}

/// Runs in the child.
fn confine(confinement: &Confinement) -> Result<(), (Step, Errno)> {
    let at = |step| move |errno| (step, errno);
    // Before anything else, so that nothing that the child does or starts is ever outside.
    for group in &confinement.groups {
        // 0 stands for the writer.
        rustix::io::write(group, b"0").map_err(at(Step::JoinGroups))?;
    }
    reset_signals();
    rustix::process::setsid().map_err(at(Step::Detach))?;
    close_private_fds_on_exec().map_err(at(Step::Detach))?;
    clear_ambient_capabilities().map_err(at(Step::Detach))?;
    if confinement.expendable {
        become_expendable().map_err(at(Step::Detach))?;
    }
    rustix::process::umask(Mode::from_raw_mode(confinement.umask));
    // As root, who alone may raise them.
    for (number, (resource, limit)) in confinement.limits.iter().enumerate() {
        rustix::process::setrlimit(*resource, *limit).map_err(at(Step::Limit(number)))?;
    }
    if let Some(keep) = confinement.capabilities {
        // As root, too.
        privileges::bound(keep).map_err(at(Step::Privileges))?;
    }
    if let Some(identity) = &confinement.identity {
        // The user last: whoever is no longer root can change no groups.
        rustix::thread::set_thread_groups(&identity.groups).map_err(at(Step::Identity))?;
        rustix::thread::set_thread_res_gid(identity.gid, identity.gid, identity.gid).map_err(at(Step::Identity))?;
        rustix::thread::set_thread_res_uid(identity.uid, identity.uid, identity.uid).map_err(at(Step::Identity))?;
    }
    privileges::restrict(confinement.capabilities.unwrap_or(CapabilitySet::all())).map_err(at(Step::Privileges))?;
    if confinement.capabilities.is_some() {
        rustix::thread::set_no_new_privs(true).map_err(at(Step::Privileges))?;
    }
    Ok(())
}

fn become_expendable() -> Result<(), Errno> {
    let file = rustix::fs::open(c"/proc/self/oom_score_adj", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, b"0").map(drop)
}

/// Signals that homing's own parent ignored (nohup, a shell's background job) or blocked stay so over an exec, and the
/// program could not be asked to end.
fn reset_signals() {
    /// At least `struct sigaction` as the kernel has it, on any machine: the default for a signal is all zeros.
    const DEFAULT: [usize; 4] = [0; 4];
    const SIGNAL_MAX: usize = 64;
    const SET_BYTES: usize = SIGNAL_MAX / 8;
    let (default, none) = (DEFAULT, [0_u8; SET_BYTES]);
    let nowhere = std::ptr::null_mut::<libc::c_void>();
    for number in 1..=SIGNAL_MAX {
        // Not the C library's function, which leaves out two that it keeps for itself.
        // SAFETY: sets the default disposition, no handler, from a whole structure that outlives the call; the kernel
        // refuses, without effect, the signals that cannot be set. A plain system call, so async-signal-safe.
        unsafe {
            libc::syscall(libc::SYS_rt_sigaction, number, &raw const default, nowhere, SET_BYTES);
        }
    }
    // SAFETY: the set has the size that is given and outlives the call. A plain system call, so async-signal-safe.
    unsafe {
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const none, nowhere, SET_BYTES);
    }
}

/// Makes the program start with `socket` as descriptor 3 and LISTEN_PID as its process id. What else is to happen between
/// fork and exec must be registered before: this step is the exec, because the id is known only then and a `Command` makes
/// its environment before the fork. Of that environment the program gets what was set on `command`, nothing inherited.
pub(crate) fn pass_socket(command: &mut Command, arg0: &str, socket: BorrowedFd<'_>) -> io::Result<()> {
    let mut image = Image::of(command, arg0)?;
    // Of the two copies one may get the very number. As long as it is taken, the pipe through which std tells of an exec
    // that failed cannot get it.
    let socket = rustix::io::fcntl_dupfd_cloexec(socket, PASSED_FD)?;
    let spare = rustix::io::fcntl_dupfd_cloexec(&socket, PASSED_FD)?;
    let execute = move || {
        let _open_until_now = &spare;
        if socket.as_raw_fd() == PASSED_FD {
            rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::empty())?;
        } else {
            // SAFETY: takes integers only. Whose descriptor is replaced has no more use for it: this process, in which
            // one thread lives, becomes the new program or ends.
            let answer = unsafe { libc::dup2(socket.as_raw_fd(), PASSED_FD) };
            if answer < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        image.execute()
    };
    // SAFETY: as in `detach`. `execute` makes system calls on what was allocated before the fork, writes a number into a
    // buffer of its own, and executes the program as std would have done next.
    unsafe {
        command.pre_exec(execute);
    }
    Ok(())
}

/// The socket that this process was passed, as sd_listen_fds(3) has it; `None` if it was not. To be asked once.
pub(crate) fn passed_socket() -> Option<TcpListener> {
    let is = |name: &str, expected: u32| std::env::var(name).is_ok_and(|value| value == expected.to_string());
    if !is("LISTEN_PID", std::process::id()) || !is("LISTEN_FDS", 1) {
        return None;
    }
    // SAFETY: by the convention the descriptor was open when this process began and is for whoever asks, which happens
    // once; nobody else knows it.
    Some(unsafe { TcpListener::from_raw_fd(PASSED_FD) })
}

/// A program with its arguments and environment, ready to be executed.
struct Image {
    program: CString,
    /// What the pointers point to.
    _texts: Vec<CString>,
    argv: Vec<*const libc::c_char>,
    /// The first is LISTEN_PID's.
    envp: Vec<*const libc::c_char>,
    listen_pid: Vec<u8>,
}

// SAFETY: the pointers are to texts that it owns and never changes, and is only read through.
unsafe impl Send for Image {}
// SAFETY: as above.
unsafe impl Sync for Image {}

impl Image {
    const LISTEN_PID: &[u8] = b"LISTEN_PID=";
    /// Digits of the largest number, and the end of the text.
    const PID_BYTES_MAX: usize = 11;

    fn of(command: &Command, arg0: &str) -> io::Result<Self> {
        let text = |text: &[u8]| CString::new(text).map_err(io::Error::other);
        let arguments = command.get_args().map(OsStr::as_bytes);
        let arguments: Vec<CString> =
            [arg0.as_bytes()].into_iter().chain(arguments).map(text).collect::<Result<_, _>>()?;
        let variables =
            command.get_envs().filter_map(|(name, value)| Some([name.as_bytes(), value?.as_bytes()].join(&b'=')));
        let variables: Vec<CString> = variables.map(|variable| text(&variable)).collect::<Result<_, _>>()?;
        let pointers = |texts: &[CString]| texts.iter().map(|text| text.as_ptr()).collect::<Vec<_>>();
        Ok(Self {
            program: text(command.get_program().as_bytes())?,
            argv: [pointers(&arguments), vec![ptr::null()]].concat(),
            envp: [vec![ptr::null()], pointers(&variables), vec![ptr::null()]].concat(),
            listen_pid: [Self::LISTEN_PID, &[0; Self::PID_BYTES_MAX]].concat(),
            // Moved, not copied: the texts themselves stay where they are.
            _texts: arguments.into_iter().chain(variables).collect(),
        })
    }

    /// Becomes the program; returns only when that failed.
    fn execute(&mut self) -> io::Result<()> {
        write!(&mut self.listen_pid[Self::LISTEN_PID.len()..], "{}\0", std::process::id())?;
        self.envp[0] = self.listen_pid.as_ptr().cast();
        // SAFETY: both lists end with a null pointer, every text in them with a NUL; all outlive the call.
        unsafe {
            libc::execvpe(self.program.as_ptr(), self.argv.as_ptr(), self.envp.as_ptr());
        }
        Err(io::Error::last_os_error())
    }
}

/// Registers a descriptor with the runtime, which will say when it can be read.
pub(crate) fn watch_readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` always names the same open descriptor, and is closed only after `AsyncFd` deregistered it.
    let registered = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
    registered.map_err(|error| error.into_parts().1)
}

/// The driver of a network interface, as `ethtool -i` names it.
pub(crate) fn driver_of(interface: &str) -> io::Result<String> {
    /// `struct ethtool_drvinfo` and `ETHTOOL_GDRVINFO` (Linux: include/uapi/linux/ethtool.h).
    #[repr(C)]
    struct DriverInfo {
        command: u32,
        driver: [u8; 32],
        rest: [u8; 160],
    }
    const GET_DRIVER_INFO: u32 = 3;
    let mut info = DriverInfo { command: GET_DRIVER_INFO, driver: [0; 32], rest: [0; 160] };
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_data: (&raw mut info).cast() },
    };
    if interface.len() >= libc::IFNAMSIZ {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from.cast_signed();
    }
    let socket = std::net::UdpSocket::bind("127.0.0.1:0")?;
    // SAFETY: the request is whole and points to a structure of the size that the command fills; both outlive the call.
    let answer = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as libc::Ioctl, &raw mut request) };
    if answer != 0 {
        return Err(io::Error::last_os_error());
    }
    let name = info.driver.split(|&byte| byte == 0).next().unwrap_or_default();
    Ok(String::from_utf8_lossy(name).into_owned())
}

/// Writes values 0, 1, 2 … of an array map in one call (Linux 5.6).
pub(crate) fn fill_array<V: aya::Pod>(map: BorrowedFd<'_>, values: &[V]) -> io::Result<()> {
    /// `batch` of `union bpf_attr` (Linux: include/uapi/linux/bpf.h).
    #[repr(C)]
    struct Batch {
        in_batch: u64,
        out_batch: u64,
        keys: u64,
        values: u64,
        count: u32,
        map: RawFd,
        element_flags: u64,
        flags: u64,
    }
    const BPF_MAP_UPDATE_BATCH: libc::c_long = 26;
    let count = u32::try_from(values.len()).map_err(io::Error::other)?;
    let keys: Vec<u32> = (0..count).collect();
    let mut batch = Batch {
        in_batch: 0,
        out_batch: 0,
        keys: keys.as_ptr() as u64,
        values: values.as_ptr() as u64,
        count,
        map: map.as_raw_fd(),
        element_flags: 0,
        flags: 0,
    };
    // SAFETY: as many keys and values as are counted, all plain data, which the kernel only reads; the map's value is as
    // large as `V`, or it would not be this array. All outlive the call.
    let answer = unsafe { libc::syscall(libc::SYS_bpf, BPF_MAP_UPDATE_BATCH, &raw mut batch, size_of::<Batch>()) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Ids of the programs that socket lookups of a network namespace run, in their order.
pub(crate) fn lookup_programs(namespace: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    const BPF_SK_LOOKUP: u32 = 36;
    attached_programs(namespace.as_raw_fd().cast_unsigned(), BPF_SK_LOOKUP)
}

/// Which way packets go past programs that are attached to an interface without a queueing discipline.
#[derive(Clone, Copy, Debug)]
pub(crate) enum TcxSide {
    Ingress = 46,
    Egress = 47,
}

/// Ids of those (Linux 6.6).
pub(crate) fn tcx_programs(interface: u32, side: TcxSide) -> io::Result<Vec<u32>> {
    attached_programs(interface, side as u32)
}

/// `target`: a descriptor or the index of an interface, as the type of attachment has it. Needs CAP_NET_ADMIN.
fn attached_programs(target: u32, attach_type: u32) -> io::Result<Vec<u32>> {
    /// `union bpf_attr` for `BPF_PROG_QUERY` (Linux: include/uapi/linux/bpf.h), with all that the kernel may write into.
    #[repr(C)]
    struct Query {
        target: u32,
        attach_type: u32,
        query_flags: u32,
        attach_flags: u32,
        ids: u64,
        count: u32,
        reserved: u32,
        program_flags: u64,
        link_ids: u64,
        link_flags: u64,
        revision: u64,
    }
    const BPF_PROG_QUERY: libc::c_long = 16;
    /// The kernel allows as many programs in one place (`BPF_CGROUP_MAX_PROGS`, `BPF_MPROG_MAX`).
    const PROGRAMS_MAX: u32 = 64;
    let mut ids = [0_u32; PROGRAMS_MAX as usize];
    let mut query = Query {
        target,
        attach_type,
        query_flags: 0,
        attach_flags: 0,
        ids: (&raw mut ids) as u64,
        count: PROGRAMS_MAX,
        reserved: 0,
        program_flags: 0,
        link_ids: 0,
        link_flags: 0,
        revision: 0,
    };
    // SAFETY: the query is whole and names room for as many ids as it says; both outlive the call.
    let answer = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_QUERY, &raw mut query, size_of::<Query>()) };
    if answer != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(ids.into_iter().take(query.count as usize).collect())
}

/// A descriptor that homing itself was started with, by someone who forgot O_CLOEXEC, must not reach the workers.
fn close_private_fds_on_exec() -> Result<(), Errno> {
    // SAFETY: takes integers only, and marks descriptors rather than closing them, so nobody's descriptor goes away here.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            FIRST_PRIVATE_FD,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC as libc::c_uint,
        )
    };
    if answer == 0 {
        return Ok(());
    }
    match io::Error::last_os_error().raw_os_error() {
        // Linux before 5.11 (no such flag) or before 5.9 (no such call): homing's own descriptors carry O_CLOEXEC anyway.
        Some(libc::ENOSYS | libc::EINVAL) | None => Ok(()),
        Some(number) => Err(Errno::from_raw_os_error(number)),
    }
}

fn clear_ambient_capabilities() -> Result<(), Errno> {
    match rustix::thread::clear_ambient_capability_set() {
        // Kernels before 4.3 have none to clear.
        Ok(()) | Err(Errno::INVAL) => Ok(()),
        Err(error) => Err(error),
    }
}
