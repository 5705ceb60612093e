//! A Debian machine of the test's own: this one's files below a layer in memory, with namespaces of its own. What is
//! installed there, and whatever runs there, is gone with the value.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// `$1`: a folder to work in, in which `give` is.
const SET_UP: &str = r#"
set -e
cd "$1"
mkdir layers
mount -t tmpfs tmpfs layers
mkdir layers/upper layers/work layers/root
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/layers/upper,workdir=$1/layers/work" layers/root
cd layers/root
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t bpf bpf sys/fs/bpf
mount --rbind /dev dev
mount -t tmpfs tmpfs run
cp -r "$1/give" run/given
rm -f usr/sbin/policy-rc.d
ip link set lo up
# Said from within: until then commands would find the machine below.
exec chroot . sh -c 'echo ready; exec sleep infinity'
"#;

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a machine is connected to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// Nothing but itself.
    Own,
    /// What the machine below is, with its addresses and ports.
    Below,
}

pub struct Machine {
    holder: Child,
    /// Of the machine's first process.
    pid: String,
    network: Network,
    dir: tempfile::TempDir,
}

impl Network {
    fn namespaces(self) -> &'static [&'static str] {
        match self {
            Self::Own => &["--mount", "--pid", "--ipc", "--uts", "--net"],
            Self::Below => &["--mount", "--pid", "--ipc", "--uts"],
        }
    }
}

impl Machine {
    /// Boots it, so to say; what is in `give` is in its /run/given. `Err`: why there can be none here.
    pub fn start(give: &[PathBuf], network: Network) -> Result<Self, String> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        fs::create_dir(dir.path().join("give")).expect("made");
        for file in give {
            fs::copy(file, dir.path().join("give").join(file.file_name().expect("a name"))).expect("copied");
        }
        let mut unshare = Command::new("unshare");
        unshare
            .args(network.namespaces())
            .args(["--fork", "--kill-child"])
            .args(["sh", "-c", SET_UP, "sh"])
            .arg(dir.path());
        let spawned = unshare.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut holder = spawned.map_err(|error| format!("unshare cannot be run: {error}"))?;
        let mut line = String::new();
        let output = holder.stdout.as_mut().expect("piped");
        BufReader::new(output).read_line(&mut line).expect("it speaks");
        if line != "ready\n" {
            let said = holder.wait_with_output().expect("it ends").stderr;
            return Err(format!("no layer above this machine's files: {}", String::from_utf8_lossy(&said).trim()));
        }
        let children = format!("/proc/{0}/task/{0}/children", holder.id());
        let pid = fs::read_to_string(children).expect("unshare has a child").trim().to_owned();
        Ok(Self { holder, pid, network, dir })
    }

    /// A command that is run there, as root.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.pid]).args(self.network.namespaces());
        command
            .args(["--root", "--wd", "--"])
            .args(words)
            .env_clear()
            .env("PATH", PATH)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .env("LC_ALL", "C.UTF-8");
        command
    }

    pub fn run(&self, words: &[&str]) -> Output {
        self.command(words).output().expect("nsenter is there")
    }

    /// What a command prints there, which must succeed.
    pub fn ask(&self, words: &[&str]) -> String {
        let output = self.run(words);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{words:?}: {said}{}", String::from_utf8_lossy(&output.stderr));
        said
    }

    /// Whether there is such a file there, or a link that leads nowhere.
    pub fn has(&self, path: &str) -> bool {
        self.run(&["sh", "-c", "[ -e \"$1\" ] || [ -L \"$1\" ]", "sh", path]).status.success()
    }

    /// All but folders that is other than on the machine below: changed, new or removed.
    pub fn changes(&self) -> Vec<PathBuf> {
        let upper = self.dir.path().join("layers/upper");
        let find = ["--target", &self.pid, "--mount", "--", "find"];
        let found =
            Command::new("nsenter").args(find).arg(&upper).args(["!", "-type", "d"]).output().expect("find is there");
        assert!(found.status.success(), "{}", String::from_utf8_lossy(&found.stderr));
        let lines = String::from_utf8(found.stdout).expect("names");
        let mut changes: Vec<PathBuf> = lines
            .lines()
            .map(|line| Path::new("/").join(Path::new(line).strip_prefix(&upper).expect("below it")))
            .collect();
        changes.sort();
        changes
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
