//! Running other programs: loudly, and with the error that names them.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

/// The workspace's root.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace")
}

pub fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

pub fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout.trim_ascii() == b"0")
}

/// Runs it to its end.
pub fn run(command: &mut Command) -> anyhow::Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let status = command.status().with_context(|| format!("{name} cannot be run; is it installed?"))?;
    if !status.success() {
        let arguments: Vec<_> = command.get_args().map(OsStr::to_string_lossy).collect();
        bail!("{name} {}: {status}", arguments.join(" "));
    }
    Ok(())
}

/// Runs it to its end; what it prints.
pub fn output(command: &mut Command) -> anyhow::Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("{name} cannot be run; is it installed?"))?;
    if !output.status.success() {
        bail!("{name}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr).trim_end());
    }
    String::from_utf8(output.stdout).with_context(|| format!("{name} prints no text"))
}

/// The command, run from the workspace's root.
pub fn at_root(program: &str, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(root());
    // What cargo says of xtask itself is not for what xtask runs: build scripts that look at it (ring's) would run again
    // whenever one and the same thing is built by xtask and by hand in turn.
    let is_of_xtask = |name: &OsStr| {
        let prefixes: [&[u8]; 2] = [b"CARGO_PKG_", b"CARGO_MANIFEST_"];
        prefixes.iter().any(|prefix| name.as_encoded_bytes().starts_with(prefix))
    };
    for (name, _) in std::env::vars_os().filter(|(name, _)| is_of_xtask(name)) {
        command.env_remove(name);
    }
    command
}

pub fn cargo(arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> anyhow::Result<()> {
    run(&mut at_root("cargo", arguments))
}

/// The release binary, built.
pub fn build_homing() -> anyhow::Result<PathBuf> {
    cargo(["build", "--release", "--package", "homing"])?;
    Ok(target_dir().join("release/homing"))
}

/// What the compiler builds for when nobody says.
pub fn host() -> anyhow::Result<String> {
    let version = Command::new("rustc").arg("-vV").output().context("rustc cannot be run")?;
    let text = String::from_utf8_lossy(&version.stdout).into_owned();
    let host = text.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc -vV names its host")?;
    Ok(host.to_owned())
}

/// Becomes the program: signals and the exit code are its own.
pub fn replace(command: &mut Command) -> anyhow::Result<()> {
    use std::os::unix::process::CommandExt as _;
    let error = command.exec();
    bail!("{} cannot be run: {error}", command.get_program().to_string_lossy())
}

/// Whether the program is on PATH.
pub fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}
