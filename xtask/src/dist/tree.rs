//! The files of a package, at their places.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};

use super::bill::Bill;
use super::{PACKAGING, VERSION, manual};
use crate::run::{output, root, run};

const DOC: &str = "usr/share/doc/homing";

/// Everything below /usr. `speaks` is the same program as `binary`, one that runs here: it writes its own manual.
pub fn lay_out(stage: &Path, binary: &Path, speaks: &Path, bill: &Bill) -> anyhow::Result<()> {
    let program = stage.join("usr/bin/homing");
    fs::create_dir_all(stage.join("usr/bin"))?;
    run(Command::new("strip").args(["--strip-all", "-o"]).arg(&program).arg(binary))?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    copy("config/systemd/homing.service", stage, "usr/lib/systemd/system/homing.service")?;
    copy(&format!("{PACKAGING}/sysusers.conf"), stage, "usr/lib/sysusers.d/homing.conf")?;

    let pages = stage.join("usr/share/man/man1");
    output(Command::new(speaks).args(["man", "--dir"]).arg(&pages))?;
    for page in fs::read_dir(&pages)? {
        let page = page?.path();
        let text = fs::read_to_string(&page)?;
        fs::remove_file(&page)?;
        packed(&page, &text)?;
    }
    let guide = fs::read_to_string(root().join("docs/operations.md"))?;
    packed(&stage.join("usr/share/man/man5/homing.toml.5"), &manual::options(&guide, VERSION)?)?;
    for (shell, place) in [
        ("bash", "usr/share/bash-completion/completions/homing"),
        ("zsh", "usr/share/zsh/vendor-completions/_homing"),
        ("fish", "usr/share/fish/vendor_completions.d/homing.fish"),
    ] {
        put(&stage.join(place), output(Command::new(speaks).args(["completions", shell]))?, 0o644)?;
    }

    for tracked in output(Command::new("git").args(["ls-files", "docs", "config"]).current_dir(root()))?.lines() {
        let place = match tracked.strip_prefix("config/") {
            Some(example) if example.starts_with("systemd/") => continue,
            Some(example) => format!("{DOC}/examples/{example}"),
            None => format!("{DOC}/{tracked}"),
        };
        copy(tracked, stage, &place)?;
    }
    copy(&format!("{PACKAGING}/homing.toml"), stage, &format!("{DOC}/examples/homing.toml"))?;
    // What the pages link to above docs/.
    for page in ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"] {
        copy(page, stage, &format!("{DOC}/{page}"))?;
    }
    copy(&format!("{PACKAGING}/debian/copyright"), stage, &format!("{DOC}/copyright"))?;
    packed(&stage.join(DOC).join("changelog"), &fs::read_to_string(root().join("CHANGELOG.md"))?)?;
    packed(&stage.join(DOC).join("THIRD-PARTY"), &bill.licences()?)
}

/// What only Debian's package has: what is an administrator's own once it is there, and words for Debian's judge.
pub fn debian(stage: &Path) -> anyhow::Result<()> {
    copy(&format!("{PACKAGING}/homing.toml"), stage, "etc/homing/homing.toml")?;
    copy(&format!("{PACKAGING}/logrotate"), stage, "etc/logrotate.d/homing")?;
    copy(&format!("{PACKAGING}/debian/lintian-overrides"), stage, "usr/share/lintian/overrides/homing")
}

fn copy(from: &str, stage: &Path, to: &str) -> anyhow::Result<()> {
    let bytes = fs::read(root().join(from)).with_context(|| from.to_owned())?;
    put(&stage.join(to), bytes, 0o644)
}

/// Writes a file, and makes its folder.
pub fn put(path: &Path, bytes: impl AsRef<[u8]>, mode: u32) -> anyhow::Result<()> {
    fs::create_dir_all(path.parent().expect("it lies in the package"))?;
    fs::write(path, bytes).with_context(|| path.display().to_string())?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(mode))?)
}

/// Writes `path` and `.gz`, the same bytes for the same text.
pub fn packed(path: &Path, text: &str) -> anyhow::Result<()> {
    let mut gzip = Command::new("gzip").args(["-9", "-n"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut input = gzip.stdin.take().context("stdin is piped")?;
    let text = text.to_owned();
    let writer = std::thread::spawn(move || input.write_all(text.as_bytes()));
    let packed = gzip.wait_with_output()?;
    writer.join().expect("it only writes")?;
    if !packed.status.success() {
        bail!("gzip: {}", packed.status);
    }
    let name = format!("{}.gz", path.file_name().unwrap_or_default().to_string_lossy());
    put(&path.with_file_name(name), packed.stdout, 0o644)
}

/// Folders are everybody's to read, whatever this user's umask is.
pub fn permissions(stage: &Path) -> anyhow::Result<()> {
    for folder in walk(stage)?.into_iter().filter(|path| path.is_dir()) {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

/// As Debian counts what a package takes: each file in whole KiB, each folder as one.
pub fn kibibytes(stage: &Path) -> anyhow::Result<u64> {
    let sizes = walk(stage)?.into_iter().map(|path| match fs::metadata(&path) {
        Ok(about) if about.is_file() => Ok(about.len().div_ceil(1024)),
        other => other.map(|_| 1),
    });
    Ok(sizes.sum::<Result<u64, _>>()?)
}

/// The folder and all below it.
fn walk(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = vec![folder.to_owned()];
    let mut next = 0;
    while let Some(path) = found.get(next).cloned() {
        next += 1;
        if path.is_dir() {
            for entry in fs::read_dir(&path)? {
                found.push(entry?.path());
            }
        }
    }
    Ok(found)
}
