//! Which compiler and which linker can build eBPF here. Reads the machine, changes nothing.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The LLVM that `bpf-linker` is built with. The linker reads the compiler's bitcode, so both must be of one major
/// version: rustc 1.95 to 1.98 carry this one.
pub const LLVM_MAJOR: u32 = 22;

/// Where `cargo xtask setup` installs tools, below the workspace's root.
pub const TOOLS_DIR: &str = "target/tools";

/// A compiler with the standard library's sources, and a linker that understands its output.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Toolchain {
    pub rustc: PathBuf,
    pub cargo: PathBuf,
    pub linker: PathBuf,
    /// `1.95.0 (the default toolchain)`, for messages.
    pub description: String,
}

/// One thing that is not on this machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Need {
    /// No compiler qualifies; each one looked at, with the reason.
    RustSource { tried: Vec<String> },
    /// No `bpf-linker` in any of these folders.
    BpfLinker { looked_in: Vec<PathBuf> },
}

/// Why eBPF cannot be built here: everything that is missing at once.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Missing(pub Vec<Need>);

impl Missing {
    pub fn rust_source(&self) -> bool {
        self.0.iter().any(|need| matches!(need, Need::RustSource { .. }))
    }

    pub fn bpf_linker(&self) -> bool {
        self.0.iter().any(|need| matches!(need, Need::BpfLinker { .. }))
    }
}

impl std::error::Error for Missing {}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "the kernel programs (lb-ebpf) cannot be built on this machine; missing:")?;
        for need in &self.0 {
            match need {
                Need::RustSource { tried } => {
                    writeln!(f, "  - a Rust compiler with the standard library's sources and LLVM {LLVM_MAJOR}:")?;
                    for reason in tried {
                        writeln!(f, "      {reason}")?;
                    }
                }
                Need::BpfLinker { looked_in } => {
                    let folders: Vec<_> = looked_in.iter().map(|folder| folder.display().to_string()).collect();
                    writeln!(f, "  - bpf-linker; looked in {}", folders.join(", "))?;
                }
            }
        }
        write!(f, "run `cargo xtask setup`: it installs what is missing and says what it does")
    }
}

/// Finds what `build` needs, in order of preference: the default toolchain, another toolchain of rustup, Debian's
/// rustc-web packages.
pub fn discover(workspace_root: &Path) -> Result<Toolchain, Missing> {
    let mut needs = Vec::new();
    let compiler = find_compiler().map_err(|tried| needs.push(Need::RustSource { tried }));
    let linker = find_linker(workspace_root).map_err(|looked_in| needs.push(Need::BpfLinker { looked_in }));
    match (compiler, linker) {
        (Ok(Compiler { rustc, cargo, description }), Ok(linker)) => Ok(Toolchain { rustc, cargo, linker, description }),
        _ => Err(Missing(needs)),
    }
}

struct Compiler {
    rustc: PathBuf,
    cargo: PathBuf,
    description: String,
}

fn find_compiler() -> Result<Compiler, Vec<String>> {
    let mut tried = Vec::new();
    let mut seen_sysroots = Vec::new();
    let mut consider = |rustc: &Path, origin: &str| {
        let found = inspect(rustc, origin, &mut seen_sysroots);
        found.map_err(|reason| tried.extend(reason.map(|reason| format!("{origin}: {reason}")))).ok()
    };

    // Inside a build script cargo names its own compiler; elsewhere the one on PATH is the default.
    let default = std::env::var_os("RUSTC").map_or_else(|| PathBuf::from("rustc"), PathBuf::from);
    if let Some(compiler) = consider(&default, "the default toolchain") {
        return Ok(compiler);
    }
    for (name, rustc) in rustup_toolchains() {
        if let Some(compiler) = consider(&rustc, &format!("rustup's {name}")) {
            return Ok(compiler);
        }
    }
    consider(Path::new("/usr/bin/rustc"), "Debian's /usr/bin/rustc").ok_or(tried)
}

/// `Err(None)` for a sysroot that was looked at before under another name.
fn inspect(rustc: &Path, origin: &str, seen_sysroots: &mut Vec<PathBuf>) -> Result<Compiler, Option<String>> {
    let sysroot = output(rustc, &["--print", "sysroot"]).ok_or_else(|| Some("not installed".to_owned()))?;
    let sysroot = std::fs::canonicalize(sysroot.trim()).map_err(|e| Some(format!("its sysroot: {e}")))?;
    if seen_sysroots.contains(&sysroot) {
        return Err(None);
    }
    seen_sysroots.push(sysroot.clone());

    let version = output(rustc, &["-vV"]).ok_or_else(|| Some("`rustc -vV` failed".to_owned()))?;
    let release = field(&version, "release").unwrap_or("of unknown version").to_owned();
    match llvm_major(&version) {
        Some(LLVM_MAJOR) => {}
        Some(other) => return Err(Some(format!("{release} carries LLVM {other}"))),
        None => return Err(Some(format!("{release} does not say which LLVM it carries"))),
    }
    let library = sysroot.join("lib/rustlib/src/rust/library");
    if !library.join("core/src/lib.rs").is_file() {
        return Err(Some(format!("{release} has no sources in {}", library.display())));
    }
    // The binaries themselves, not rustup's proxies: those would pick a toolchain again, by other rules.
    let own = |name: &str| Some(sysroot.join("bin").join(name)).filter(|path| path.is_file());
    Ok(Compiler {
        rustc: own("rustc").unwrap_or_else(|| rustc.to_owned()),
        cargo: own("cargo").unwrap_or_else(|| PathBuf::from("cargo")),
        description: format!("{release} ({origin})"),
    })
}

/// Every toolchain that rustup has, by name and compiler, releases before nightlies.
fn rustup_toolchains() -> Vec<(String, PathBuf)> {
    let Some(list) = output(Path::new("rustup"), &["toolchain", "list", "--verbose"]) else { return Vec::new() };
    let mut toolchains = parse_toolchain_list(&list);
    // A stable sort: within each kind rustup's own order stays.
    toolchains.sort_by_key(|(name, _)| !name.starts_with(|c: char| c.is_ascii_digit()) && !name.starts_with("stable"));
    toolchains
}

/// Lines of `rustup toolchain list --verbose`: `stable-x86_64-unknown-linux-gnu (active, default) /path/of/it`.
fn parse_toolchain_list(list: &str) -> Vec<(String, PathBuf)> {
    let parse = |line: &str| {
        let name = line.split_whitespace().next()?;
        let path = &line[line.find(" /").or_else(|| line.find("\t/"))? + 1..];
        Some((name.to_owned(), Path::new(path.trim()).join("bin/rustc")))
    };
    list.lines().filter_map(parse).collect()
}

fn find_linker(workspace_root: &Path) -> Result<PathBuf, Vec<PathBuf>> {
    let mut folders: Vec<PathBuf> = vec![workspace_root.join(TOOLS_DIR).join("bin")];
    folders.extend(std::env::var_os("PATH").iter().flat_map(std::env::split_paths));
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let cargo_home = std::env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| home.map(|home| home.join(".cargo")));
    folders.extend(cargo_home.map(|folder| folder.join("bin")));
    let found = folders.iter().map(|folder| folder.join("bpf-linker")).find(|path| runs(path));
    let mut looked_in = Vec::new();
    for folder in folders {
        if !looked_in.contains(&folder) {
            looked_in.push(folder);
        }
    }
    found.ok_or(looked_in)
}

/// A linker whose LLVM library was removed is there and yet useless: only one that starts counts.
fn runs(linker: &Path) -> bool {
    linker.is_file() && output(linker, &["--version"]).is_some()
}

fn llvm_major(version: &str) -> Option<u32> {
    field(version, "LLVM version")?.split('.').next()?.parse().ok()
}

fn field<'a>(version: &'a str, name: &str) -> Option<&'a str> {
    version.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

fn output(program: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_llvm_of_a_compiler_is_read_from_its_verbose_version() {
        let version = "rustc 1.95.0 (59807616e 2026-04-14)\nrelease: 1.95.0\nLLVM version: 22.1.2\n";
        assert_eq!(llvm_major(version), Some(22));
        assert_eq!(field(version, "release"), Some("1.95.0"));
        assert_eq!(llvm_major("rustc 1.95.0\n"), None);
    }

    #[test]
    fn toolchains_are_read_with_and_without_their_marks() {
        let list = "stable-x86_64-unknown-linux-gnu (active, default) /home/r/.rustup/toolchains/stable\n\
                    nightly-x86_64-unknown-linux-gnu\t/opt/rust up/nightly\n\
                    no installed toolchains\n";
        let expected = [
            ("stable-x86_64-unknown-linux-gnu", "/home/r/.rustup/toolchains/stable/bin/rustc"),
            ("nightly-x86_64-unknown-linux-gnu", "/opt/rust up/nightly/bin/rustc"),
        ];
        assert_eq!(parse_toolchain_list(list), expected.map(|(name, path)| (name.to_owned(), PathBuf::from(path))));
    }

    #[test]
    fn what_is_missing_is_said_all_at_once_with_the_command_that_helps() {
        let missing = Missing(vec![
            Need::RustSource { tried: vec!["the default toolchain: 1.95.0 has no sources in /lib".to_owned()] },
            Need::BpfLinker { looked_in: vec![PathBuf::from("/usr/bin")] },
        ]);
        let text = missing.to_string();
        for part in
            ["the default toolchain: 1.95.0 has no sources", "bpf-linker; looked in /usr/bin", "cargo xtask setup"]
        {
            assert!(text.contains(part), "{part:?} is not in: {text}");
        }
    }
}
