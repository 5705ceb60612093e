//! A homing of the test's own: in this network namespace or another, ended with all it made even after a failure.

use std::io::{BufRead as _, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, prlimit};
use serde_json::Value;

/// Longer than anything here takes on a busy machine.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// The binary under test.
pub fn binary() -> PathBuf {
    let named = std::env::var_os("HOMING_BIN").expect("HOMING_BIN names the homing binary; use cargo xtask test");
    PathBuf::from(named)
}

/// An address that nobody listens on.
pub fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a loopback port")
}

/// Waits until `look` finds something.
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    wait_seeing(what, || look().ok_or_else(String::new))
}

/// The same, where `look` says what there is in place of it: told when the wait was in vain.
pub fn wait_seeing<T>(what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    let start = Instant::now();
    loop {
        match look() {
            Ok(found) => return found,
            Err(seen) => assert!(start.elapsed() < DEADLINE, "not so after {} s: {what}\n{seen}", DEADLINE.as_secs()),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The `[[app]]` table of the built-in stateful app, under this binary; `more` are further lines of it.
pub fn demo_app(name: &str, listen: &[SocketAddr], host: &str, workers: u32, more: &str) -> String {
    let listen: Vec<String> = listen.iter().map(|address| format!("{:?}", address.to_string())).collect();
    format!(
        "[[app]]\nname = {name:?}\nlisten = [{}]\naffinity = \"ip\"\n\
         command = [{:?}, \"demo-worker\", \"--port\", \"{{port}}\", \"--host\", {host:?}]\n{more}\n\
         [app.workers]\nmin = {workers}\nmax = {workers}\n",
        listen.join(", "),
        binary()
    )
}

/// A homing. Dropping it ends it, its workers and its pins.
pub struct Homing {
    child: Option<Child>,
    /// Everything it has said on stderr, over all its runs.
    said: Arc<Mutex<String>>,
    dir: tempfile::TempDir,
    pin_dir: PathBuf,
    /// The file it is started from.
    program: PathBuf,
    /// Runs it there: a program and its first arguments.
    wrapper: Vec<String>,
}

impl Homing {
    /// Starts it on `apps`, the `[[app]]` tables of a configuration.
    pub fn start(apps: &str) -> Self {
        Self::start_under(&[], "", apps)
    }

    /// Starts it by way of another program: `nsenter …` or `setpriv …`; `settings` are lines of its `[homing]`.
    pub fn start_under(wrapper: &[&str], settings: &str, apps: &str) -> Self {
        let mut homing = Self::configured(wrapper, settings, apps);
        homing.start_again();
        homing
    }

    /// Everything but the start.
    pub fn configured(wrapper: &[&str], settings: &str, apps: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let dir = tempfile::tempdir().expect("a temporary directory");
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let pin_dir = PathBuf::from(format!("/sys/fs/bpf/homing-test-{}-{number}", std::process::id()));
        let config = format!(
            "[homing]\ncontrol_socket = \"control.sock\"\nstate_dir = \"state\"\nrun_dir = \"run\"\nlog_dir = \"log\"\npin_dir = {pin_dir:?}\n{settings}\n{apps}"
        );
        std::fs::write(dir.path().join("homing.toml"), config).expect("the configuration is written");
        let wrapper = wrapper.iter().map(|&word| word.to_owned()).collect();
        Self { child: None, said: Arc::default(), dir, pin_dir, program: binary(), wrapper }
    }

    /// Starts it and waits until it is ready; again after it was killed.
    pub fn start_again(&mut self) {
        let child = self.spawn(&[]);
        self.child = Some(self.when_ready(child));
    }

    /// Starts another one that takes over from it; see [`Self::succeeded_by`].
    pub fn replace(&self) -> Child {
        let child = self.spawn(&["--replace"]);
        self.when_ready(child)
    }

    /// Starts another one that is expected to refuse to take over; waits for its end.
    pub fn replace_in_vain(&self) -> Output {
        self.spawn(&["--replace"]).wait_with_output().expect("homing can be waited for")
    }

    /// From now on it is this one. The former.
    pub fn now(&mut self, successor: Child) -> Child {
        self.child.replace(successor).expect("homing runs")
    }

    /// From now on it is this one. Waits for the end of the former.
    pub fn succeeded_by(&mut self, successor: Child) -> ExitStatus {
        let mut former = self.now(successor);
        wait_for("the former homing has ended", || former.try_wait().expect("it can be waited for"))
    }

    fn when_ready(&self, mut child: Child) -> Child {
        let mut stderr = BufReader::new(child.stderr.take().expect("stderr is piped"));
        let said = Arc::clone(&self.said);
        let is_ready = Arc::new(AtomicBool::new(false));
        let ready = Arc::clone(&is_ready);
        // Reads on for as long as it runs: what it says later must not fill the pipe.
        std::thread::spawn(move || {
            let mut line = String::new();
            while stderr.read_line(&mut line).is_ok_and(|read| read > 0) {
                ready.fetch_or(line.starts_with("homing: ready"), Ordering::Relaxed);
                said.lock().unwrap_or_else(PoisonError::into_inner).push_str(&std::mem::take(&mut line));
            }
        });
        wait_seeing("homing is ready", || {
            if is_ready.load(Ordering::Relaxed) {
                return Ok(());
            }
            let ended = child.try_wait().ok().flatten();
            assert!(ended.is_none(), "homing ended ({ended:?}) before it was ready:\n{}", self.said());
            Err(self.said())
        });
        child
    }

    /// Starts it, and stops listening to it once it is ready: its next line goes nowhere.
    pub fn start_unheard(&mut self) {
        let mut child = self.spawn(&[]);
        let stderr = BufReader::new(child.stderr.take().expect("stderr is piped"));
        let is_ready = stderr.lines().map_while(Result::ok).any(|line| line.starts_with("homing: ready"));
        self.child = Some(child);
        assert!(is_ready, "homing ended before it was ready");
    }

    fn spawn(&self, options: &[&str]) -> Child {
        self.command(&["run", "--config"])
            .arg(self.dir.path().join("homing.toml"))
            .args(options)
            .stderr(Stdio::piped())
            .spawn()
            .expect("homing can be run")
    }

    /// Runs it where it is expected to refuse; waits for its end.
    pub fn run_to_its_end(&self) -> Output {
        self.spawn(&[]).wait_with_output().expect("homing can be waited for")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut words = self.wrapper.iter().map(PathBuf::from).chain([self.program.clone()]);
        let mut command = Command::new(words.next().expect("at least the binary"));
        command.args(words).args(arguments);
        command
    }

    /// SIGKILL: nothing is cleaned up.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("homing runs");
        child.kill().expect("it can be killed");
        child.wait().expect("it was killed");
    }

    /// It does nothing until what this returns is dropped, as on a machine that is too busy for it.
    pub fn pause(&self) -> Paused {
        let pid = i32::try_from(self.child.as_ref().expect("homing runs").id()).expect("process ids are small");
        signal(pid, rustix::process::Signal::STOP);
        Paused(pid)
    }

    /// It gets no descriptor beside those that it has until what this returns is dropped.
    pub fn starve(&self) -> Starved {
        let pid = rustix::process::Pid::from_raw(self.pid().cast_signed());
        let few = Rlimit { current: Some(8), maximum: getrlimit(Resource::Nofile).maximum };
        Starved(pid, prlimit(pid, Resource::Nofile, few).expect("homing runs"))
    }

    /// From now on it is started from another file, as after an upgrade.
    pub fn replace_program(&mut self) {
        let program = self.dir.path().join("homing");
        std::fs::copy(binary(), &program).expect("the program is copied");
        self.program = program;
    }

    /// Waits until it has ended by itself.
    pub fn wait_for_end(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("homing runs");
        wait_for("homing has ended", || child.try_wait().expect("it can be waited for"))
    }

    /// Tells it to end now, and waits until it has, in order.
    pub fn stop_at_once(&mut self) {
        let told = self.ask(&["stop", "--now"]);
        assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
        let ended = self.wait_for_end();
        assert!(ended.success(), "{ended}: {}", self.said());
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("homing runs").id()
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.as_mut().is_none_or(|child| child.try_wait().is_ok_and(|status| status.is_some()))
    }

    /// Everything it has said on stderr.
    pub fn said(&self) -> String {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn pin_dir(&self) -> &Path {
        &self.pin_dir
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn status(&self) -> Value {
        self.json(&["status", "--json"])
    }

    pub fn trace(&self, app: &str, client: &str) -> Value {
        self.json(&["trace", app, client, "--json"])
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let output = self.ask(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("--json prints JSON")
    }

    /// Waits until the status is as described.
    pub fn wait_until(&self, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        wait_seeing(what, || {
            let status = self.status();
            if is_so(&status) { Ok(status) } else { Err(format!("{status:#}")) }
        })
    }

    /// Waits until this many workers of the app are ready; the status then.
    pub fn wait_for_workers(&self, app: usize, count: usize) -> Value {
        self.wait_until(&format!("{count} workers are ready"), |status| {
            let workers = status["apps"][app]["workers"].as_array().cloned().unwrap_or_default();
            workers.iter().filter(|worker| worker["state"] == "ready").count() == count
        })
    }

    /// The workers' own addresses, by number.
    pub fn worker_addresses(&self, app: usize) -> Vec<SocketAddr> {
        workers(&self.status(), app).iter().filter_map(|worker| worker["address"].as_str()?.parse().ok()).collect()
    }

    /// The workers' processes, by number.
    pub fn pids(&self, app: usize) -> Vec<i32> {
        workers(&self.status(), app).iter().filter_map(|worker| worker["pid"].as_i64()).map(|pid| pid as i32).collect()
    }

    /// Runs a command that talks to it, to its end.
    pub fn ask(&self, arguments: &[&str]) -> Output {
        self.ask_meanwhile(arguments).wait_with_output().expect("homing can be waited for")
    }

    /// What `homing check` says of its configuration, to its end.
    pub fn check(&self) -> Output {
        let file = self.dir.path().join("homing.toml");
        let arguments = ["check".as_ref(), "--config".as_ref(), file.as_os_str()];
        self.command(&[]).args(arguments).output().expect("homing can be run")
    }

    /// Runs a command that talks to it, while the test goes on.
    pub fn ask_meanwhile(&self, arguments: &[&str]) -> Child {
        Command::new(binary())
            .args(arguments)
            .arg("--control-socket")
            .arg(self.dir.path().join("control.sock"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("homing can be run")
    }
}

impl Drop for Homing {
    fn drop(&mut self) {
        // After a kill its workers live on: the next run adopts them, and ends them when it is told to stop.
        let has_state = ["state.json", "state.json.next", "state.json.syncing"]
            .iter()
            .any(|name| self.dir.path().join("state").join(name).exists());
        if self.child.is_none() && has_state {
            let restarted = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.start_again()));
            drop(restarted);
        }
        self.ask(&["stop", "--now"]);
        if let Some(mut child) = self.child.take() {
            let start = Instant::now();
            while start.elapsed() < DEADLINE && child.try_wait().is_ok_and(|status| status.is_none()) {
                std::thread::sleep(Duration::from_millis(10));
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = Command::new(binary()).args(["detach", "--pin-dir"]).arg(&self.pin_dir).output();
    }
}

/// A homing that is stopped; see [`Homing::pause`].
#[must_use]
pub struct Paused(i32);

impl Drop for Paused {
    fn drop(&mut self) {
        signal(self.0, rustix::process::Signal::CONT);
    }
}

/// A homing without descriptors.
pub struct Starved(Option<rustix::process::Pid>, Rlimit);

impl Drop for Starved {
    fn drop(&mut self) {
        // It may have ended.
        let _ = prlimit(self.0, Resource::Nofile, self.1);
    }
}

/// The workers of an app in a status.
pub fn workers(status: &Value, app: usize) -> Vec<Value> {
    status["apps"][app]["workers"].as_array().cloned().unwrap_or_default()
}

/// How many workers are in this state.
pub fn count(status: &Value, app: usize, state: &str) -> usize {
    workers(status, app).iter().filter(|worker| worker["state"] == state).count()
}

/// A command that talks to homing, which must succeed; what it prints.
pub fn ask(homing: &Homing, arguments: &[&str]) -> String {
    let output = homing.ask(arguments);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{arguments:?}: {out}{err}");
    out.into_owned()
}

/// Puts something else into the configuration.
pub fn edit(homing: &Homing, from: &str, to: &str) {
    let file = homing.dir().join("homing.toml");
    let text = std::fs::read_to_string(&file).expect("the configuration");
    assert!(text.contains(from), "{from:?} in {text}");
    std::fs::write(file, text.replace(from, to)).expect("it is written");
}

/// Sends a signal to a process of the test's own.
pub fn signal(pid: i32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid).expect("a process id");
    rustix::process::kill_process(pid, signal).expect("the process is there");
}

/// Whether any thread of the process is there and no zombie: the last one closes the sockets, not the first.
pub fn is_alive(pid: i32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let stats = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("stat")).ok());
    stats.into_iter().any(|stat| stat.rsplit(')').next().is_some_and(|rest| !rest.trim_start().starts_with(['Z', 'X'])))
}
