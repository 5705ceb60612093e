//! The guest's first file system, which is its only one: process 1, homing, the suites, the programs that they call, every
//! shared library of these, and one kernel's modules.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};
use serde_json::Value;

use crate::run::{at_root, cargo, run, target_dir};

use super::kernels::Kernel;

/// What the suites and the kernel call.
pub const PROGRAMS: [&str; 12] =
    ["cat", "env", "ethtool", "ip", "modprobe", "nft", "nsenter", "setpriv", "sh", "sleep", "sysctl", "tc"];
/// Where programs are looked for; root's PATH may lack some of them.
const PROGRAM_DIRS: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];

/// A test program of the host's, for the guest too.
pub struct Suite {
    pub name: String,
    pub program: PathBuf,
    pub tests: Vec<String>,
}

impl Suite {
    /// As a file, and where the guest has it.
    pub fn file(&self) -> (PathBuf, PathBuf) {
        (self.program.clone(), Path::new("tests").join(&self.name))
    }
}

/// Builds these suites; their tests, in the harness' order.
pub fn suites(names: &[&str]) -> anyhow::Result<Vec<Suite>> {
    let mut build = at_root("cargo", ["test", "--no-run", "--package", "homing-tests", "--features", "libbpf"]);
    build.arg("--message-format=json-render-diagnostics");
    build.args(names.iter().flat_map(|name| ["--test", name]));
    let output = build.stderr(Stdio::inherit()).output().context("cargo cannot be run")?;
    if !output.status.success() {
        bail!("the suites cannot be built");
    }
    let built: Vec<Value> =
        output.stdout.split(|&byte| byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect();
    let suite = |&name: &&str| {
        let is_it = |message: &&Value| message["target"]["name"] == name && message["executable"].is_string();
        let message = built.iter().rev().find(is_it).with_context(|| format!("cargo built no suite {name}"))?;
        let program = PathBuf::from(message["executable"].as_str().context("checked above")?);
        let listed = Command::new(&program).args(["--list", "--format", "terse"]).output()?;
        let listed = String::from_utf8(listed.stdout)?;
        let tests = listed.lines().filter_map(|line| Some(line.strip_suffix(": test")?.to_owned())).collect();
        Ok(Suite { name: name.to_owned(), program, tests })
    };
    names.iter().map(suite).collect()
}

/// Everything but a kernel's modules, as an archive that the kernel unpacks.
pub struct Base {
    archive: PathBuf,
}

impl Base {
    /// With homing, these programs of the host's, and files of it by where they are to be. Also builds process 1.
    pub fn build(homing: &Path, programs: &[&str], files: &[(PathBuf, PathBuf)]) -> anyhow::Result<Self> {
        cargo(["build", "--package", "homing-vm-tests"])?;
        let init = target_dir().join("debug/vm-init");
        let root = fresh("root")?;
        for dir in ["bin", "sbin", "dev", "etc", "proc", "run", "sys", "tests", "tmp", "var"] {
            fs::create_dir_all(root.join(dir))?;
        }
        for (file, text) in [
            ("etc/passwd", "root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n"),
            ("etc/group", "root:x:0:\nnogroup:x:65534:\n"),
            ("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"),
            ("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files\n"),
        ] {
            fs::write(root.join(file), text)?;
        }
        let mut libraries = BTreeSet::new();
        let mut put = |from: &Path, to: PathBuf| -> anyhow::Result<()> {
            // What is only for debuggers is most of them. A program without any is copied.
            let stripped = Command::new("strip").arg("-o").args([&to, from]).stderr(Stdio::null()).status();
            if !stripped.is_ok_and(|status| status.success()) {
                fs::copy(from, &to).with_context(|| from.display().to_string())?;
            }
            libraries.extend(libraries_of(from)?);
            Ok(())
        };
        put(&init, root.join("init"))?;
        put(homing, root.join("bin/homing"))?;
        for &program in programs {
            // The kernel calls /sbin/modprobe.
            let dir = if program == "modprobe" { "sbin" } else { "bin" };
            put(&find(program)?, root.join(dir).join(program))?;
        }
        for (from, to) in files {
            let to = root.join(to);
            fs::create_dir_all(to.parent().context("a file lies in a folder")?)?;
            put(from, to)?;
        }
        for library in libraries {
            let to = root.join(library.strip_prefix("/").context("libraries have whole paths")?);
            fs::create_dir_all(to.parent().context("a library lies in a folder")?)?;
            fs::copy(&library, &to).with_context(|| library.display().to_string())?;
        }
        let archive = root.with_extension("cpio");
        pack(&root, &archive)?;
        fs::remove_dir_all(&root)?;
        Ok(Self { archive })
    }

    /// The whole for one kernel, what to load into it, and this plan. The kernel unpacks archives one after another.
    pub fn with(&self, kernel: &Kernel, modules: &[&str], plan: &str) -> anyhow::Result<PathBuf> {
        let root = fresh(&format!("more-{}", kernel.release))?;
        fs::write(root.join("plan"), plan)?;
        fs::write(root.join("modules"), modules.join("\n"))?;
        run(Command::new("cp").arg("-r").args([&kernel.modules.join("lib"), &root]))?;
        let archive = dir().join(format!("more-{}.cpio", kernel.release));
        pack(&root, &archive)?;
        fs::remove_dir_all(&root)?;
        let whole = dir().join(format!("initrd-{}", kernel.release));
        let mut out = File::create(&whole)?;
        for part in [&self.archive, &archive] {
            std::io::copy(&mut File::open(part)?, &mut out)?;
        }
        fs::remove_file(&archive)?;
        Ok(whole)
    }
}

impl Drop for Base {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(dir());
    }
}

/// Of this process: another may put guests together at the same time.
fn dir() -> PathBuf {
    target_dir().join(format!("vm/{}", std::process::id()))
}

/// An empty folder.
fn fresh(name: &str) -> anyhow::Result<PathBuf> {
    let dir = dir().join(name);
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir)?;
    Ok(dir)
}

fn pack(root: &Path, archive: &Path) -> anyhow::Result<()> {
    let mut find = Command::new("find")
        .args([".", "-mindepth", "1", "-print0"])
        .current_dir(root)
        .stdout(Stdio::piped())
        .spawn()?;
    let names = find.stdout.take().context("it is piped")?;
    let mut cpio = Command::new("cpio");
    cpio.args(["--null", "--create", "--format=newc", "--owner=0:0", "--quiet"]).current_dir(root);
    run(cpio.stdin(names).stdout(File::create(archive)?))?;
    if !find.wait()?.success() {
        bail!("find could not list {}", root.display());
    }
    Ok(())
}

fn find(program: &str) -> anyhow::Result<PathBuf> {
    let found = PROGRAM_DIRS.iter().map(|dir| Path::new(dir).join(program)).find(|path| path.exists());
    found.with_context(|| format!("{program} is not installed"))
}

/// The shared libraries of a program, and what loads them; none of a static one.
fn libraries_of(program: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("ldd cannot be run")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let path = |line: &str| {
        let path = line.split_once("=> ").map_or(line, |(_, path)| path).trim().split(" (").next()?;
        path.starts_with('/').then(|| PathBuf::from(path))
    };
    Ok(text.lines().filter_map(path).collect())
}
