//! Debian's kernels for virtual machines: fetched with an apt of our own, kept by version and checked by sha256, unpacked to
//! the kernel and the modules that tests need. Nothing is installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};

use crate::run::{has, run, target_dir};

/// A series of kernels and where Debian has its newest.
pub struct Series {
    pub name: &'static str,
    /// Below the mirror.
    archive: &'static str,
    suite: &'static str,
    /// Whether homing's programs load; where not, homing must say so.
    pub has_kernel_path: bool,
    /// How the names of its packages begin, the kernel's first. They end alike.
    packages: &'static [&'static str],
}

/// Oldest first. Why the first has no kernel path says docs/decisions/0023.
pub static SERIES: [Series; 5] = [
    Series {
        name: "5.10",
        archive: "debian-security",
        suite: "bullseye-security",
        has_kernel_path: false,
        packages: &["linux-image-5.10.0-"],
    },
    Series {
        name: "6.1",
        archive: "debian-security",
        suite: "bookworm-security",
        has_kernel_path: true,
        packages: &["linux-image-6.1.0-"],
    },
    Series {
        name: "6.12",
        archive: "debian-security",
        suite: "bookworm-security",
        has_kernel_path: true,
        packages: &["linux-image-6.12."],
    },
    Series {
        name: "6.18",
        archive: "debian",
        suite: "trixie-backports",
        has_kernel_path: true,
        packages: &["linux-image-6.18."],
    },
    Series {
        name: "7.2",
        archive: "debian",
        suite: "forky",
        has_kernel_path: true,
        packages: &["linux-binary-7.2.", "linux-modules-7.2.", "linux-base-7.2."],
    },
];

const MIRROR: &str = "http://deb.debian.org";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const FLAVOUR: &str = "-cloud-amd64";

/// What tests need that these kernels have as modules, in the order of loading. Dependencies are loaded by themselves.
pub const MODULES: [&str; 15] = [
    "veth",
    "bridge",
    "8021q",
    "bonding",
    "dummy",
    "tunnel4",
    "ipip",
    "sit",
    "ip6_tunnel",
    "fou",
    "fou6",
    "sch_netem",
    "nf_tables",
    "sch_ingress",
    "cls_bpf",
];

/// What costs are measured with beside those.
pub const COST_MODULES: [&str; 16] = [
    "veth",
    "pktgen",
    "sch_ingress",
    "cls_matchall",
    "act_gact",
    "ip_vs",
    "ip_vs_rr",
    "nf_tables",
    "nf_conntrack",
    "nf_nat",
    "nft_chain_nat",
    "nft_nat",
    "nft_redir",
    "nft_ct",
    "nft_hash",
    "nf_defrag_ipv4",
];

/// A kernel that can be booted.
pub struct Kernel {
    /// As `uname -r` says it.
    pub release: String,
    pub image: PathBuf,
    /// A tree with `lib/modules`.
    pub modules: PathBuf,
}

impl Series {
    /// The kernel of this series that was fetched before, or the newest one; `update` looks for a newer one in any case.
    pub fn kernel(&self, update: bool) -> anyhow::Result<Kernel> {
        let dir = target_dir().join("kernels").join(self.name);
        fs::create_dir_all(&dir)?;
        if update || !dir.join("SHA256SUMS").exists() {
            self.fetch(&dir)?;
        }
        let check = Command::new("sha256sum").args(["--check", "--status", "SHA256SUMS"]).current_dir(&dir).status()?;
        if !check.success() {
            let _ = fs::remove_file(dir.join("SHA256SUMS"));
            bail!("a package in {} is not what Debian signed; the next run fetches it anew", dir.display());
        }
        unpacked(&dir)
    }

    /// The newest packages of the series, checked by apt against Debian's signature, in place of those before.
    fn fetch(&self, dir: &Path) -> anyhow::Result<()> {
        if !has("apt-get") || !Path::new(KEYRING).exists() {
            bail!("its kernels are Debian's: apt-get and {KEYRING} are needed");
        }
        println!("vm: looking for Debian's newest kernel {}", self.name);
        let apt = Apt::new(dir, &format!("deb [signed-by={KEYRING}] {MIRROR}/{} {} main", self.archive, self.suite))?;
        apt.run(&["apt-get", "update", "-qq"])?;
        let names = apt.output(&["apt-cache", "pkgnames", self.packages[0]])?;
        let newest = names
            .lines()
            .filter_map(|name| name.strip_prefix(self.packages[0])?.strip_suffix(FLAVOUR))
            .max_by_key(|version| numbers(version))
            .with_context(|| format!("{} has no {}*{FLAVOUR} any more", self.suite, self.packages[0]))?;
        let packages: Vec<String> = self.packages.iter().map(|package| format!("{package}{newest}{FLAVOUR}")).collect();
        let old = debs(dir)?;
        let fresh = dir.join("fresh");
        let _ = fs::remove_dir_all(&fresh);
        fs::create_dir(&fresh)?;
        let words: Vec<&str> =
            ["apt-get", "download", "-qq"].into_iter().chain(packages.iter().map(String::as_str)).collect();
        apt.run_in(&words, &fresh)?;
        let mut sums = Command::new("sha256sum");
        for deb in debs(&fresh)? {
            sums.arg(deb.file_name().context("a package has a name")?);
        }
        let sums = sums.current_dir(&fresh).output()?;
        // Only now are those before of no use.
        old.iter().try_for_each(fs::remove_file)?;
        for deb in debs(&fresh)? {
            fs::rename(&deb, dir.join(deb.file_name().context("a package has a name")?))?;
        }
        fs::write(dir.join("SHA256SUMS"), sums.stdout)?;
        let _ = fs::remove_dir_all(dir.join("unpacked"));
        Ok(fs::remove_dir_all(&fresh)?)
    }
}

/// An apt with lists and caches of its own: nothing of the machine's is read but how to reach a mirror.
struct Apt {
    config: PathBuf,
}

impl Apt {
    fn new(dir: &Path, source: &str) -> anyhow::Result<Self> {
        let root = dir.join("apt");
        for part in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(root.join(part))?;
        }
        fs::write(root.join("sources.list"), format!("{source}\n"))?;
        let config = root.join("apt.conf");
        let root = root.display();
        fs::write(
            &config,
            format!(
                "Dir::Etc::sourcelist \"{root}/sources.list\";\nDir::Etc::sourceparts \"/dev/null\";\n\
                 Dir::State::lists \"{root}/lists\";\nDir::Cache \"{root}/cache\";\nAcquire::Languages \"none\";\n\
                 Acquire::Retries \"2\";\nAcquire::http::Timeout \"20\";\nAPT::Update::Error-Mode \"any\";\n\
                 APT::Sandbox::User \"\";\nAPT::Architecture \"amd64\";\n"
            ),
        )?;
        Ok(Self { config })
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).env("APT_CONFIG", &self.config);
        command
    }

    fn run(&self, words: &[&str]) -> anyhow::Result<()> {
        run(&mut self.command(words))
    }

    fn run_in(&self, words: &[&str], dir: &Path) -> anyhow::Result<()> {
        run(self.command(words).current_dir(dir))
    }

    fn output(&self, words: &[&str]) -> anyhow::Result<String> {
        let output = self.command(words).output()?;
        Ok(String::from_utf8(output.stdout)?)
    }
}

/// A version's numbers, so that versions can be compared.
fn numbers(version: &str) -> Vec<u64> {
    version.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
}

fn debs(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir)?.filter_map(|entry| Some(entry.ok()?.path()));
    Ok(entries.filter(|path| path.extension().is_some_and(|extension| extension == "deb")).collect())
}

/// The kernel and the modules that tests need, from the packages in `dir`, unless they are there.
fn unpacked(dir: &Path) -> anyhow::Result<Kernel> {
    let whole = dir.join("unpacked");
    let all_modules: Vec<&str> = MODULES.into_iter().chain(COST_MODULES).collect();
    let wanted = all_modules.join("\n");
    if fs::read_to_string(whole.join("wanted")).is_ok_and(|made| made == wanted) {
        return kernel(&whole);
    }
    let _ = fs::remove_dir_all(&whole);
    let all = dir.join("all");
    let _ = fs::remove_dir_all(&all);
    fs::create_dir_all(&all)?;
    for deb in debs(dir)? {
        run(Command::new("dpkg-deb").arg("--extract").args([&deb, &all]))?;
    }
    // Debian has moved these below /usr.
    if !all.join("lib").exists() {
        fs::rename(all.join("usr/lib"), all.join("lib"))?;
    }
    let release = only_entry(&all.join("lib/modules"))?;
    let release = release.to_str().context("a release is text")?;
    run(Command::new("depmod").arg("-b").arg(&all).arg(release))?;
    let modules = whole.join("modules");
    let (from, to) = (all.join("lib/modules").join(release), modules.join("lib/modules").join(release));
    fs::create_dir_all(&to)?;
    for list in ["modules.builtin", "modules.builtin.modinfo", "modules.order"] {
        fs::copy(from.join(list), to.join(list)).with_context(|| list.to_owned())?;
    }
    let depends = Command::new("modprobe")
        .arg("-d")
        .arg(&all)
        .args(["-S", release, "--show-depends", "--all"])
        .args(&all_modules)
        .stderr(Stdio::inherit())
        .output()?;
    for line in String::from_utf8_lossy(&depends.stdout).lines() {
        // Options of this machine's may follow.
        let Some(module) = line.strip_prefix("insmod ").and_then(|rest| rest.split_whitespace().next()) else {
            continue;
        };
        let module = Path::new(module);
        let below =
            module.to_str().and_then(|path| path.split_once(&format!("/{release}/"))).context("a module's path")?.1;
        let file = to.join(below);
        fs::create_dir_all(file.parent().context("a module lies in a folder")?)?;
        fs::copy(module, &file).with_context(|| module.display().to_string())?;
        if file.extension().is_some_and(|extension| extension == "xz") {
            run(Command::new("xz").args(["--decompress", "--force"]).arg(&file))?;
        }
    }
    run(Command::new("depmod").arg("-b").arg(&modules).arg(release))?;
    let in_boot = all.join(format!("boot/vmlinuz-{release}"));
    let image = if in_boot.exists() { in_boot } else { from.join("vmlinuz") };
    fs::copy(&image, whole.join("vmlinuz")).with_context(|| image.display().to_string())?;
    fs::remove_dir_all(&all)?;
    fs::write(whole.join("wanted"), wanted)?;
    kernel(&whole)
}

fn kernel(whole: &Path) -> anyhow::Result<Kernel> {
    let modules = whole.join("modules");
    let release = only_entry(&modules.join("lib/modules"))?.to_string_lossy().into_owned();
    Ok(Kernel { release, image: whole.join("vmlinuz"), modules })
}

fn only_entry(dir: &Path) -> anyhow::Result<std::ffi::OsString> {
    let entry = fs::read_dir(dir).with_context(|| dir.display().to_string())?.next();
    Ok(entry.with_context(|| format!("{} is empty", dir.display()))??.file_name())
}

#[cfg(test)]
mod tests {
    use super::numbers;

    #[test]
    fn the_newest_is_not_the_last_in_the_alphabet() {
        assert!(numbers("6.12.107+deb12") > numbers("6.12.99+deb12"));
        assert!(numbers("10") > numbers("9"));
        assert!(numbers("7.2.12+deb14") > numbers("7.2.12+deb13"));
    }
}
