//! `cargo xtask dist`: what is handed to users. A package for Debian and its kin, an archive with a static program for
//! all others, what is in them (SBOM), and checksums. Why there are two programs: docs/decisions/0024.

mod bill;
mod manual;
mod tree;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

use crate::run::{at_root, cargo, has, output, root, run, target_dir};
use crate::setup;

/// The package's own files.
const PACKAGING: &str = "packaging";
/// homing's version; all packages of the workspace share it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

#[derive(clap::Args)]
pub struct Options {
    /// Where the packages go.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// The package's revision of this version of homing.
    #[arg(long, value_name = "N", default_value_t = 1)]
    revision: u32,
    /// Package this program, and build none: for tests, which a debug build serves as well.
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// The same for the archive's program; without it --binary makes no archive.
    #[arg(long, value_name = "FILE", requires = "binary")]
    static_binary: Option<PathBuf>,
}

pub fn dist(options: &Options) -> anyhow::Result<()> {
    let machine = machine()?;
    for (program, package) in [("dpkg-deb", "dpkg"), ("dpkg-shlibdeps", "dpkg-dev"), ("objcopy", "binutils")] {
        if !has(program) {
            bail!("{program} is missing, which makes the package: apt install {package}");
        }
    }
    let out = options.out.clone().unwrap_or_else(|| target_dir().join("packages"));
    fs::create_dir_all(&out).with_context(|| format!("{} cannot be made", out.display()))?;
    let out = out.canonicalize()?;
    let epoch = epoch()?;
    let gnu = format!("{machine}-unknown-linux-gnu");
    let bill = bill::Bill::collect(&gnu)?;

    let mut made = vec![out.join(format!("homing-{VERSION}.cdx.json"))];
    fs::write(&made[0], bill.cyclonedx()?)?;
    let binary = match &options.binary {
        Some(binary) => binary.canonicalize().with_context(|| binary.display().to_string())?,
        None => build(&gnu)?,
    };
    let work = out.join("work");
    let _ = fs::remove_dir_all(&work);
    fs::create_dir_all(&work)?;
    made.push(deb(&binary, &bill, &work, &out, options, epoch)?);
    let fixed = match (&options.static_binary, &options.binary) {
        (Some(fixed), _) => Some(fixed.canonicalize().with_context(|| fixed.display().to_string())?),
        (None, Some(_)) => None,
        (None, None) => {
            setup::musl(&machine)?;
            Some(build(&format!("{machine}-unknown-linux-musl"))?)
        }
    };
    if let Some(fixed) = fixed {
        made.push(archive(&fixed, &binary, &bill, &work, &out, epoch)?);
    }
    fs::remove_dir_all(&work)?;
    sums(&made, &out)?;
    for path in made {
        println!("{:>12} {}", fs::metadata(&path)?.len(), path.display());
    }
    Ok(())
}

/// The processor's name in Rust's targets.
fn machine() -> anyhow::Result<String> {
    let version = output(&mut at_root("rustc", ["-vV"]))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc -vV names no host")?;
    Ok(host.split('-').next().unwrap_or(host).to_owned())
}

/// The time that all files bear, in seconds since 1970: the same commit makes the same packages.
fn epoch() -> anyhow::Result<u64> {
    let text = match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(given) => given,
        Err(_) => output(&mut at_root("git", ["log", "-1", "--format=%ct"]))?,
    };
    text.trim().parse().with_context(|| format!("SOURCE_DATE_EPOCH: `{}` is no number of seconds", text.trim()))
}

/// The program as it is shipped; this takes some minutes. Paths of this machine do not get into it.
fn build(target: &str) -> anyhow::Result<PathBuf> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(std::env::home_dir()?.join(".cargo"))).context("no CARGO_HOME and no HOME")?;
    let mut flags = vec![format!("--remap-path-prefix={}=homing", root().display())];
    for registry in fs::read_dir(home.join("registry/src")).into_iter().flatten().flatten() {
        flags.push(format!("--remap-path-prefix={}=crates", registry.path().display()));
    }
    let arguments = ["build", "--locked", "--profile", "dist", "--package", "homing", "--target", target];
    run(at_root("cargo", arguments).env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}")))?;
    Ok(target_dir().join(target).join("dist/homing"))
}

fn deb(
    binary: &Path,
    bill: &bill::Bill,
    work: &Path,
    out: &Path,
    options: &Options,
    epoch: u64,
) -> anyhow::Result<PathBuf> {
    let architecture = output(&mut at_root("dpkg", ["--print-architecture"]))?.trim().to_owned();
    let version = format!("{VERSION}-{}", options.revision);
    let maintainer = maintainer();
    let stage = work.join("deb");
    tree::lay_out(&stage, binary, binary, bill)?;
    tree::debian(&stage)?;
    let news = format!(
        "homing ({version}) unstable; urgency=medium\n\n  * See changelog.gz.\n\n -- {maintainer}  {}\n",
        output(&mut at_root("date", ["-u", "-R", "-d", &format!("@{epoch}")]))?.trim()
    );
    tree::packed(&stage.join("usr/share/doc/homing/changelog.Debian"), &news)?;
    tree::permissions(&stage)?;

    // Debian's tool looks for the source's own control file, and for libraries that the program names.
    let source = work.join("source/debian");
    fs::create_dir_all(&source)?;
    fs::write(source.join("control"), "Source: homing\n\nPackage: homing\nArchitecture: any\n")?;
    let libraries = output(
        Command::new("dpkg-shlibdeps")
            .args(["-O", "-e"])
            .arg(stage.join("usr/bin/homing"))
            .current_dir(work.join("source")),
    )?;
    let libraries = libraries.trim().strip_prefix("shlibs:Depends=").unwrap_or_default().to_owned();
    let packaging = root().join(PACKAGING).join("debian");
    let control = fs::read_to_string(packaging.join("control"))?
        .replace("{version}", &version)
        .replace("{architecture}", &architecture)
        .replace("{maintainer}", &maintainer)
        .replace("{size}", &tree::kibibytes(&stage)?.to_string())
        .replace("{libraries}, ", &if libraries.is_empty() { String::new() } else { format!("{libraries}, ") });
    let sums = output(
        Command::new("sh")
            .args(["-c", "find etc usr -type f -print0 | sort -z | xargs -0 md5sum"])
            .env("LC_ALL", "C")
            .current_dir(&stage),
    )?;
    let meta = stage.join("DEBIAN");
    fs::create_dir(&meta)?;
    tree::put(&meta.join("control"), control, 0o644)?;
    tree::put(&meta.join("md5sums"), sums, 0o644)?;
    tree::put(&meta.join("conffiles"), fs::read(packaging.join("conffiles"))?, 0o644)?;
    for script in ["postinst", "prerm", "postrm"] {
        tree::put(&meta.join(script), fs::read(packaging.join(script))?, 0o755)?;
    }
    tree::permissions(&stage)?;
    let package = out.join(format!("homing_{version}_{architecture}.deb"));
    // What is not shipped need not be small.
    let effort = if options.binary.is_none() { "-z6" } else { "-z0" };
    let arguments = ["--build", "--root-owner-group", "-Zxz", effort];
    let mut make = Command::new("dpkg-deb");
    output(make.args(arguments).arg(&stage).arg(&package).env("SOURCE_DATE_EPOCH", epoch.to_string()))?;
    Ok(package)
}

/// As Debian's own tools are told it.
fn maintainer() -> String {
    let word = |name: &str, otherwise: &str| std::env::var(name).unwrap_or_else(|_| otherwise.to_owned());
    format!("{} <{}>", word("DEBFULLNAME", "The homing authors"), word("DEBEMAIL", "homing@localhost"))
}

/// The same without /etc, to be unpacked at `/` again for each version: the first configuration lies among the examples.
fn archive(
    fixed: &Path,
    speaks: &Path,
    bill: &bill::Bill,
    work: &Path,
    out: &Path,
    epoch: u64,
) -> anyhow::Result<PathBuf> {
    let stage = work.join("archive");
    tree::lay_out(&stage, fixed, speaks, bill)?;
    tree::permissions(&stage)?;
    let archive = out.join(format!("homing-{VERSION}-{}-linux-static.tar.xz", machine()?));
    let mut tar = Command::new("tar");
    tar.args(["--create", "--xz", "--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--format=gnu"]);
    run(tar.arg(format!("--mtime=@{epoch}")).arg("--file").arg(&archive).arg("--directory").arg(&stage).arg("usr"))?;
    Ok(archive)
}

fn sums(files: &[PathBuf], out: &Path) -> anyhow::Result<()> {
    let names = files.iter().filter_map(|file| file.file_name());
    let sums = output(Command::new("sha256sum").args(names).current_dir(out))?;
    Ok(fs::write(out.join("SHA256SUMS"), sums)?)
}

/// Fetches nothing and builds nothing but what the lock file says.
fn metadata(target: &str) -> anyhow::Result<serde_json::Value> {
    cargo(["fetch", "--quiet", "--locked"])?;
    let arguments = ["metadata", "--format-version=1", "--locked", "--offline", "--filter-platform", target];
    Ok(serde_json::from_str(&output(&mut at_root("cargo", arguments))?)?)
}
