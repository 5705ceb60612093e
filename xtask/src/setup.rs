//! Installs what is missing, and says what and why. What is there already costs nothing.

use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, bail};

use crate::run::{at_root, has, is_root, output, root, run, target_dir};

/// bpf-linker reads LLVM's bitcode: its LLVM must be rustc's major version, 22 for Rust 1.95 to 1.98.
const BPF_LINKER: &str = "0.13.0";
const LLVM: &str = "22";
const CARGO_DENY: &str = "0.20.2";
const FAUCET: &str = "2.1.0";

#[derive(clap::Args)]
pub struct Options {
    /// Also what the tests of namespaces and browsers need.
    #[arg(long)]
    tests: bool,
    /// Also what the example apps need: Python environments, and R with Shiny.
    #[arg(long)]
    apps: bool,
}

pub fn setup(options: &Options) -> anyhow::Result<()> {
    build_tools()?;
    if options.tests {
        test_tools()?;
    }
    if options.apps {
        python_apps()?;
        shiny_r()?;
    }
    println!("Nothing is missing.");
    Ok(())
}

/// What a build needs: the kernel programs are Rust for the BPF target, which has no prebuilt standard library.
pub fn build_tools() -> anyhow::Result<()> {
    let Err(missing) = ebpf_toolchain::discover(root()) else { return Ok(()) };
    if missing.rust_source() {
        step("the sources of Rust's standard library: the BPF target has no prebuilt one", || {
            let added = run(&mut at_root("rustup", ["component", "add", "rust-src"]));
            added.or_else(|refused| {
                println!("  rustup could not ({refused}); Debian's own Rust has them too");
                apt(&["rustc-web", "cargo-web", "rust-web-src", "libstd-rust-web-dev"])
            })
        })?;
    }
    if missing.bpf_linker() {
        let llvm = format!("/usr/lib/llvm-{LLVM}");
        step("LLVM's libraries, for bpf-linker", || {
            if PathBuf::from(&llvm).join("bin/llvm-config").exists() {
                return Ok(());
            }
            apt(&[&format!("llvm-{LLVM}-dev"), "zlib1g-dev", "libzstd-dev"])
        })?;
        step("bpf-linker, which links Rust into a BPF object (half a minute)", || {
            let features = format!("llvm-{LLVM}");
            run(tool("bpf-linker", BPF_LINKER).args(["--features", &features]).env("LLVM_PREFIX", &llvm))
        })?;
    }
    ebpf_toolchain::discover(root()).map(drop).map_err(|missing| anyhow::anyhow!("{missing}"))
}

/// What the static program takes: the standard library for musl, and a C compiler for it, since ring has C.
pub fn musl(machine: &str) -> anyhow::Result<()> {
    let target = format!("{machine}-unknown-linux-musl");
    let library = output(&mut at_root("rustc", ["--print", "target-libdir", "--target", &target]))?;
    if !PathBuf::from(library.trim()).is_dir() {
        step("Rust's standard library for musl, for the static program", || {
            run(&mut at_root("rustup", ["target", "add", &target]))
        })?;
    }
    if !has("musl-gcc") {
        step("a C compiler for musl, for the static program", || apt(&["musl-tools"]))?;
    }
    Ok(())
}

/// Judges the dependency tree: licences, sources, duplicates.
pub fn deny() -> anyhow::Result<PathBuf> {
    let tools = root().join(ebpf_toolchain::TOOLS_DIR);
    let deny = tools.join("bin/cargo-deny");
    if !deny.is_file() {
        step("cargo-deny, which judges licences and sources of dependencies (a minute)", || {
            run(&mut tool("cargo-deny", CARGO_DENY))
        })?;
    }
    Ok(deny)
}

/// Builds a tool into the project's own folder. Not optimised, and without anything for debuggers: it runs for seconds, and would be
/// built for minutes.
fn tool(name: &str, version: &str) -> Command {
    let arguments = ["install", name, "--locked", "--debug", "--version", version, "--no-default-features", "--root"];
    let mut install = at_root("cargo", arguments);
    install.arg(root().join(ebpf_toolchain::TOOLS_DIR)).env("CARGO_PROFILE_DEV_DEBUG", "0");
    install
}

/// Namespaces, packet devices, a browser.
pub fn test_tools() -> anyhow::Result<()> {
    let wanted = [("ip", "iproute2"), ("ethtool", "ethtool"), ("nsenter", "util-linux"), ("setpriv", "util-linux")];
    let missing: Vec<&str> =
        wanted.into_iter().filter(|(program, _)| !has(program)).map(|(_, package)| package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    step("tools for network namespaces", || apt(&missing))
}

/// libFuzzer is C++.
pub fn cpp_compiler() -> anyhow::Result<()> {
    if has("c++") {
        return Ok(());
    }
    step("a C++ compiler, for libFuzzer", || apt(&["g++"]))
}

/// Neither in PATH nor where root's PATH may not look.
fn is_missing(program: &str) -> bool {
    !has(program) && !PathBuf::from("/usr/sbin").join(program).exists()
}

/// What boots other kernels, and what unpacks them.
pub fn vm_tools() -> anyhow::Result<()> {
    test_tools()?;
    libbpf_headers()?;
    let wanted = [
        ("qemu-system-x86_64", "qemu-system-x86"),
        ("modprobe", "kmod"),
        ("cpio", "cpio"),
        ("xz", "xz-utils"),
        ("sysctl", "procps"),
        ("strip", "binutils"),
        ("nft", "nftables"),
    ];
    let missing: Vec<&str> =
        wanted.into_iter().filter(|(program, _)| is_missing(program)).map(|(_, package)| package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    step("QEMU, and tools to put a guest together", || apt(&missing))
}

/// What costs are counted beside. None of these is started.
pub fn cost_peers() -> anyhow::Result<()> {
    peers()?;
    let mut missing = Vec::new();
    if is_missing("ipvsadm") {
        missing.push("ipvsadm");
    }
    if !PathBuf::from("/usr/lib/nginx/modules/ngx_stream_module.so").exists() {
        missing.push("libnginx-mod-stream");
    }
    if missing.is_empty() {
        return Ok(());
    }
    step("balancers of the kernel's, to be counted beside", || apt(&missing))
}

/// Headers for building libbpf, the second loader that tests load the kernel programs with.
pub fn libbpf_headers() -> anyhow::Result<()> {
    let needed = [("libelf.h", "libelf-dev"), ("zlib.h", "zlib1g-dev")];
    let is_missing = |header: &str| !PathBuf::from("/usr/include").join(header).exists();
    let mut missing: Vec<&str> =
        needed.iter().filter(|(header, _)| is_missing(header)).map(|(_, package)| *package).collect();
    if !has("pkg-config") {
        missing.push("pkg-config");
    }
    if missing.is_empty() {
        return Ok(());
    }
    step("headers for libbpf, a second loader for the kernel programs", || apt(&missing))
}

/// Where [`promtool`] puts it.
pub fn promtool_path() -> PathBuf {
    root().join(ebpf_toolchain::TOOLS_DIR).join("bin/promtool")
}

/// Judges metrics and alert rules. Debian's package would start a Prometheus as well: only this file is taken from it. Where it
/// cannot be had, its tests are skipped and say so.
pub fn promtool() {
    let promtool = promtool_path();
    if has("promtool") || promtool.is_file() {
        return;
    }
    let taken = step("promtool, which judges metrics and alert rules", || {
        let dir = promtool.with_file_name("promtool.part");
        std::fs::create_dir_all(&dir)?;
        let script =
            "apt-get -qq download prometheus && dpkg-deb --fsys-tarfile prometheus_*.deb | tar -x ./usr/bin/promtool";
        run(Command::new("sh").args(["-c", script]).current_dir(&dir))?;
        std::fs::rename(dir.join("usr/bin/promtool"), &promtool)?;
        Ok(std::fs::remove_dir_all(&dir)?)
    });
    if let Err(error) = taken {
        println!("  {error:#}; going on without it");
    }
}

/// A browser to look at the apps with.
pub fn browser() -> anyhow::Result<()> {
    if has("chromium") && has("chromedriver") {
        return Ok(());
    }
    step("a browser, for the tests of real pages", || apt(&["chromium", "chromium-driver"]))
}

/// What is measured beside homing. Debian starts the proxies as services: these are stopped.
pub fn peers() -> anyhow::Result<()> {
    let needed = [
        ("/usr/sbin/nginx", "nginx-light"),
        ("/usr/lib/nginx/modules/ngx_stream_module.so", "libnginx-mod-stream"),
        ("/usr/sbin/haproxy", "haproxy"),
        ("/usr/bin/caddy", "caddy"),
        ("/usr/sbin/nft", "nftables"),
    ];
    let missing: Vec<&str> =
        needed.iter().filter(|(file, _)| !PathBuf::from(file).exists()).map(|(_, package)| *package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    step("what homing is measured beside", || apt(&missing))?;
    for service in ["nginx", "haproxy", "caddy"] {
        // Where there is no service manager nothing was started.
        let _ = Command::new("systemctl").args(["disable", "--now", service]).output();
    }
    Ok(())
}

/// Where [`load_tools`] puts the generator for WebSockets.
pub fn loadtest_path() -> PathBuf {
    root().join(ebpf_toolchain::TOOLS_DIR).join("load/node_modules/.bin/loadtest")
}

/// Load generators: h2load for HTTP/2, loadtest for WebSockets. Where one cannot be had, its tests are skipped and say so.
pub fn load_tools() {
    if !has("h2load")
        && let Err(error) = step("h2load, which loads servers by HTTP/2", || apt(&["nghttp2-client"]))
    {
        println!("  {error:#}; going on without it");
    }
    if !loadtest_path().exists()
        && let Err(error) = step("loadtest, which loads servers by WebSocket", loadtest)
    {
        println!("  {error:#}; going on without it");
    }
}

/// The packages whose sums are in tests/load. None of them runs a script when it is installed.
fn loadtest() -> anyhow::Result<()> {
    if !has("npm") {
        bail!("it needs npm");
    }
    let dir = root().join(ebpf_toolchain::TOOLS_DIR).join("load");
    std::fs::create_dir_all(&dir)?;
    for file in ["package.json", "package-lock.json"] {
        std::fs::copy(root().join("tests/load").join(file), dir.join(file))?;
    }
    let arguments = ["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"];
    run(Command::new("npm").args(arguments).current_dir(&dir).stdout(std::process::Stdio::null()))
}

/// Where [`faucet`] puts it.
pub fn faucet_path() -> PathBuf {
    root().join(ebpf_toolchain::TOOLS_DIR).join("bin/faucet")
}

/// The nearest peer, which nobody packages. Where it cannot be built, it is not measured, and that is said.
pub fn faucet() {
    if faucet_path().is_file() {
        return;
    }
    let built = step("faucet, which homing is measured beside (some minutes)", || {
        let arguments =
            ["install", "faucet-server", "--locked", "--version", FAUCET, "--root", ebpf_toolchain::TOOLS_DIR];
        run(&mut at_root("cargo", arguments))
    });
    if let Err(error) = built {
        println!("  {error:#}; going on without it");
    }
}

/// R with Shiny, as Debian has it.
pub fn shiny_r() -> anyhow::Result<()> {
    let loads = |command: &mut Command| command.output().is_ok_and(|output| output.status.success());
    if has("Rscript") && loads(Command::new("Rscript").args(["-e", "library(shiny)"])) {
        return Ok(());
    }
    step("R with Shiny, for the tests of an app in R", || apt(&["r-cran-shiny"]))
}

/// Where the examples' Python environments are, by the app's name in config/apps.
pub fn venvs() -> PathBuf {
    target_dir().join("venv")
}

/// Those of the Python examples.
pub fn python_apps() -> anyhow::Result<()> {
    for (name, what) in [("shiny-python", "Shiny for Python"), ("streamlit", "Streamlit"), ("dash", "Dash")] {
        venv(name, what)?;
    }
    Ok(())
}

fn venv(name: &str, what: &str) -> anyhow::Result<()> {
    let venv = venvs().join(name);
    let requirements = root().join("config/apps").join(name).join("requirements.txt");
    let stamp = venv.join("requirements.txt");
    let wanted = std::fs::read(&requirements).with_context(|| requirements.display().to_string())?;
    if std::fs::read(&stamp).is_ok_and(|made| made == wanted) {
        return Ok(());
    }
    step(&format!("{what} in an environment of its own (target/venv/{name})"), || {
        if run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv)).is_err() {
            apt(&["python3-venv"])?;
            run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv))?;
        }
        let pip = venv.join("bin/pip");
        run(Command::new(pip).args(["install", "--quiet", "--disable-pip-version-check", "-r"]).arg(&requirements))?;
        Ok(std::fs::write(&stamp, &wanted)?)
    })
}

fn step(what: &str, install: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
    println!("setup: {what}");
    let start = Instant::now();
    install().with_context(|| format!("setup of {what}"))?;
    println!("setup: done in {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}

fn apt(packages: &[&str]) -> anyhow::Result<()> {
    let install = format!("apt-get install -y --no-install-recommends {}", packages.join(" "));
    if !has("apt-get") {
        bail!("install by your system's means: {}", packages.join(" "));
    }
    let quiet = |command: &mut Command| {
        command.env("DEBIAN_FRONTEND", "noninteractive").stdout(std::process::Stdio::null());
        run(command)
    };
    if !is_root() {
        bail!("this needs root: sudo {install}");
    }
    // A foreign source that does not answer must not stop what the others have.
    if let Err(error) = quiet(Command::new("apt-get").args(["update", "-qq"])) {
        println!("  {error}; going on with the lists that are there");
    }
    quiet(Command::new("apt-get").args(["install", "-y", "-qq", "--no-install-recommends"]).args(packages))
}
