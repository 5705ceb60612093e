//! What an app's workers may use and reach: whom they run as, and their limits.

/// Group, limits and signals of an app's workers. The user is [`super::App::user`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Isolation {
    /// Primary group in place of the user's own.
    pub group: Option<String>,
    /// Permissions that files made by workers do not have.
    pub umask: u32,
    pub limits: Limits,
    /// Programs that workers start gain nothing by setuid bits or file capabilities.
    pub no_new_privileges: bool,
    /// Asks a worker to end.
    pub stop_signal: StopSignal,
    /// Bytes that all processes of one worker may use together.
    pub memory_max: Option<u64>,
    /// 1 to 10,000; 100 is an ordinary share.
    pub cpu_weight: Option<u32>,
}

/// Limits of each process of a worker (setrlimit).
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Limits {
    /// homing's own where absent.
    pub open_files: Option<u32>,
    /// Processes and threads of the user, in all; homing's own where absent.
    pub processes: Option<u32>,
    /// Bytes of a core dump; `None` for any size.
    pub core: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopSignal {
    Term,
    Int,
    Quit,
    Hup,
}

impl StopSignal {
    pub fn name(self) -> &'static str {
        match self {
            Self::Term => "TERM",
            Self::Int => "INT",
            Self::Quit => "QUIT",
            Self::Hup => "HUP",
        }
    }
}

impl Default for Isolation {
    fn default() -> Self {
        Self {
            group: None,
            umask: 0o027,
            limits: Limits { open_files: None, processes: None, core: Some(0) },
            no_new_privileges: true,
            stop_signal: StopSignal::Term,
            memory_max: None,
            cpu_weight: None,
        }
    }
}

/// Binary and decimal units of sizes, the largest first.
pub(super) const SIZE_UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("TB", 1_000_000_000_000),
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("KB", 1_000),
    ("B", 1),
];

/// A size as people write it: in the largest unit that leaves no fraction.
pub fn size_in_words(bytes: u64) -> String {
    let fitting = SIZE_UNITS.into_iter().find(|(_, scale)| bytes != 0 && bytes.is_multiple_of(*scale));
    fitting.map_or_else(|| "0".to_owned(), |(unit, scale)| format!("{} {unit}", bytes / scale))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_said_as_they_were_written() {
        for (bytes, words) in
            [(2 << 30, "2 GiB"), (512_000_000, "512 MB"), (1 << 20, "1 MiB"), (0, "0"), (1_000_001, "1000001 B")]
        {
            assert_eq!(size_in_words(bytes), words);
        }
    }
}
