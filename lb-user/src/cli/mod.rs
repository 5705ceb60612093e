//! The command line: one definition of every command, one file for what each does.

pub(crate) mod backend_setup;
pub(crate) mod check;
mod demo;
mod guard;
mod live;
pub(crate) mod logs;
mod man;
mod orders;
mod plain;
pub(crate) mod progress;
mod run;
mod status;
mod takeover;
mod top;
mod trace;

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory as _, Parser, Subcommand};

use crate::admin::client::AskError;
use crate::demo::app::{self, Place};

/// Done.
const DONE: u8 = 0;
/// The request failed.
const FAILED: u8 = 1;
/// Wrong usage or configuration.
const USAGE: u8 = 2;
/// Cannot reach the running homing.
const UNREACHABLE: u8 = 3;

/// Brings every client back to the worker that holds its session, and decides it in the kernel.
#[derive(Parser)]
#[command(
    name = "homing",
    version,
    max_term_width = 100,
    after_help = "Exit codes: 0 done, 1 the request failed, 2 wrong usage or configuration, 3 cannot reach homing.\n\n\
                  Start here:\n  homing demo                     see it work, nothing else needed\n  \
                  homing check --config FILE      is my configuration right, and which path does each app get?\n  \
                  homing run --config FILE        serve"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve until told to stop; logs go to stderr.
    ///
    /// Prints a line that begins with "homing: ready" when all listeners are up. SIGTERM and SIGINT drain and stop;
    /// a second one stops at once. After kill -9, clients go on reaching their workers in the kernel, and the next
    /// `homing run` with the same directories takes both over.
    #[command(
        after_help = "Examples:\n  homing run --config /etc/homing/homing.toml\n  homing run --replace            \
                      take over from the one that runs: a new version, nobody notices"
    )]
    Run {
        #[command(flatten)]
        file: ConfigFile,
        /// Take over from the homing that runs: its sockets, workers and clients. It serves what is open until it ends.
        #[arg(long)]
        replace: bool,
        /// Serve in a process of its own, which goes on when this one is ended: for systemd, whose restart then ends nothing.
        #[arg(long)]
        guarded: bool,
        /// The process that waits for this one.
        #[arg(long, hide = true, value_name = "PID")]
        guarded_by: Option<u32>,
    },
    /// Watch it work: a stateful app built in, 4 workers, clients from several addresses.
    #[command(
        after_help = "Examples:\n  homing demo             a live picture, then the app stays up for your browser\n  \
                            homing demo --once      exit 0 only if every client kept its worker"
    )]
    Demo(demo::Options),
    /// Check a configuration: all errors at once, or each app with its path and why.
    #[command(after_help = "Examples:\n  homing check --config config/shiny-python.toml\n  \
                      homing check --json | jq -r '.errors[] | \"line \\(.line): \\(.message)\"'")]
    Check(check::Options),
    /// Apps, workers, clients and connections of the running homing.
    #[command(after_help = "Examples:\n  homing status\n  homing status --json | jq '.apps[].workers[].state'")]
    Status {
        #[command(flatten)]
        socket: Socket,
        /// As JSON, with the counters.
        #[arg(long)]
        json: bool,
    },
    /// The same, live: sort, filter, drain and restart from the keyboard.
    #[command(after_help = top::EXAMPLES)]
    Top(top::Options),
    /// Where a client goes, which rule decided, and what would change it; or, live, what is decided now.
    #[command(after_help = trace::EXAMPLES)]
    Trace(trace::Options),
    /// What workers have written, and write.
    ///
    /// Reads their files, old ones too: where they are says the running homing, or with --config the configuration, for
    /// which homing need not run. On a terminal control characters are shown, not obeyed.
    #[command(after_help = logs::EXAMPLES)]
    Logs(logs::Options),
    /// Drain and stop the running homing and its workers.
    #[command(
        after_help = "Examples:\n  homing stop          sessions may end by themselves, up to each app's timeouts.drain\n  \
                            homing stop --now    end them"
    )]
    Stop {
        #[command(flatten)]
        to: orders::To,
        /// Do not wait for sessions to end.
        #[arg(long)]
        now: bool,
    },
    /// Give a worker, or all of an app, no new clients; those who are bound to it stay.
    ///
    /// A process ends when its last connection is gone, or after the app's timeouts.drain, and is not started again until
    /// `homing undrain`. A remote host keeps its bound clients until then.
    #[command(
        after_help = "Examples:\n  homing drain sales/2\n  homing drain sales --wait      and wait until nobody is connected"
    )]
    Drain(orders::Drain),
    /// Take a drain back.
    #[command(after_help = "Example:\n  homing undrain sales/2")]
    Undrain(orders::Undrain),
    /// Change how many workers an app may have, without a change in the configuration.
    ///
    /// Lasts until `homing reload` or the next start. Workers beyond the new maximum drain: their clients stay until they
    /// leave, or until the app's timeouts.drain.
    #[command(
        after_help = "Examples:\n  homing scale sales 8        eight, always\n  homing scale sales 1..8     as many as are needed"
    )]
    Scale(orders::Scale),
    /// Give an app new workers: these first, then the old ones drain. Nobody loses a session before timeouts.drain.
    ///
    /// If a new worker does not get ready the restart stops there, and the old workers go on. Touching `restart.txt` in the
    /// app's directory does the same as --rolling.
    #[command(after_help = "Examples:\n  homing restart sales --rolling\n  homing restart sales")]
    Restart(orders::Restart),
    /// Read the configuration again and apply the difference; or refuse it whole, and say why.
    ///
    /// Apps and listen addresses come and go, limits change at once, and workers whose command, directory, user or
    /// environment changed are replaced one by one. SIGHUP does the same.
    #[command(after_help = "Example:\n  homing check && homing reload")]
    Reload(orders::To),
    /// The keys that cookies are sealed with.
    #[command(subcommand, after_help = "Example:\n  homing keys rotate")]
    Keys(orders::Keys),
    /// Print, or run, what a Linux host needs to be a remote backend of `l2`, `ipip` or `gue`.
    #[command(after_help = backend_setup::EXAMPLES)]
    BackendSetup(backend_setup::Options),
    /// Remove the pinned programs and maps that an unclean end left: clients are steered no more.
    #[command(after_help = "Example:\n  homing detach --pin-dir /sys/fs/bpf/homing")]
    Detach {
        /// Where they are pinned.
        #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf/homing")]
        pin_dir: PathBuf,
        /// As JSON, an object a line.
        #[arg(long)]
        json: bool,
    },
    /// Print the completions of a shell.
    #[command(after_help = "Example:\n  homing completions bash > /etc/bash_completion.d/homing")]
    Completions { shell: clap_complete::Shell },
    /// Print the manual page, or write one for each command.
    #[command(after_help = "Examples:\n  homing man | man -l -                        read it\n  \
                      homing man --dir /usr/local/share/man/man1   then: man homing-run")]
    Man {
        /// Write the pages of all commands into this folder instead.
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
    /// One worker of the demo.
    #[command(hide = true)]
    DemoWorker {
        /// Absent: on the socket at --socket, or on one that is passed (LISTEN_FDS).
        #[arg(long)]
        port: Option<u16>,
        #[arg(long, default_value = "127.0.0.1")]
        host: IpAddr,
        #[arg(long, conflicts_with = "port")]
        socket: Option<PathBuf>,
    },
}

#[derive(Args)]
struct ConfigFile {
    /// The configuration (TOML).
    #[arg(long, value_name = "FILE", env = "HOMING_CONFIG", default_value = "/etc/homing/homing.toml")]
    config: PathBuf,
}

#[derive(Args)]
struct Socket {
    /// The running homing's control socket.
    #[arg(long, value_name = "PATH", env = "HOMING_CONTROL_SOCKET", default_value = "/run/homing/control.sock")]
    control_socket: PathBuf,
}

/// Runs the command line; returns the exit code.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version come this way too, on stdout and with 0.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { USAGE } else { DONE });
        }
    };
    ExitCode::from(match cli.command {
        Command::Run { guarded: true, .. } => guard::guard(),
        Command::Run { file, replace, guarded_by, .. } => run::run(&file.config, replace, guarded_by),
        Command::Demo(options) => demo::demo(&options),
        Command::Check(options) => check::check(&options),
        Command::Status { socket, json } => ask(status::status(socket.control_socket, json)),
        Command::Top(options) => top::top(&options),
        Command::Trace(options) => ask(trace::trace(options)),
        Command::Logs(options) => logs::logs(&options),
        Command::Stop { to, now } => ask(orders::stop(to, now)),
        Command::Drain(options) => ask(orders::drain(options)),
        Command::Undrain(options) => ask(orders::undrain(options)),
        Command::Scale(options) => ask(orders::scale(options)),
        Command::Restart(options) => ask(orders::restart(options)),
        Command::Reload(to) => ask(orders::reload(to)),
        Command::Keys(command) => ask(orders::keys(command)),
        Command::BackendSetup(options) => backend_setup::run(&options),
        Command::Detach { pin_dir, json } => detach(&pin_dir, json),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "homing", &mut std::io::stdout());
            DONE
        }
        Command::Man { dir: None } => match man::print(Cli::command(), &mut std::io::stdout()) {
            Ok(()) => DONE,
            Err(error) => fail(FAILED, &error),
        },
        Command::Man { dir: Some(dir) } => match man::write_all(Cli::command(), &dir) {
            Ok(count) => {
                println!("{count} pages are in {}.", dir.display());
                DONE
            }
            Err(error) => fail(FAILED, &format!("cannot write manual pages to {}: {error}", dir.display())),
        },
        Command::DemoWorker { port, host, socket } => {
            let port = port.map(|port| Place::Port((host, port).into()));
            match block_on(app::serve(port.or(socket.map(Place::Socket)).unwrap_or(Place::Passed))) {
                Ok(()) => DONE,
                Err(error) => fail(FAILED, &format!("{error:#}")),
            }
        }
    })
}

/// A multi-threaded runtime for the length of one future.
fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("the kernel gives a process its first threads and epoll")
        .block_on(future)
}

/// Runs a question to homing, and turns its failure into the exit code.
fn ask(question: impl Future<Output = Result<(), AskError>>) -> u8 {
    match block_on(question) {
        Ok(()) => DONE,
        Err(error @ (AskError::Unreachable { .. } | AskError::Silent { .. })) => fail(UNREACHABLE, &error),
        Err(error) => fail(FAILED, &error),
    }
}

fn fail(code: u8, error: &dyn std::fmt::Display) -> u8 {
    say(&format_args!("homing: {error}"));
    code
}

/// On stderr, where somebody may have stopped reading.
fn say(text: &dyn std::fmt::Display) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Whether a terminal is shown colours (<https://no-color.org>).
fn wants_colour() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

fn detach(pin_dir: &std::path::Path, json: bool) -> u8 {
    let said = if pin_dir.exists() {
        if let Err(error) = crate::datapath::detach(pin_dir) {
            return fail(FAILED, &error);
        }
        format!("Removed the programs and maps pinned in {}.", pin_dir.display())
    } else {
        format!("Nothing is pinned in {}.", pin_dir.display())
    };
    progress::Progress::new(json).end(&said, None);
    DONE
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every command that is shown, those of commands too, by its whole name.
    fn shown(command: &clap::Command, before: &str, found: &mut Vec<(String, clap::Command)>) {
        let name = format!("{before}{}", command.get_name());
        for below in command.get_subcommands().filter(|below| !below.is_hide_set() && below.get_name() != "help") {
            shown(below, &format!("{name} "), found);
        }
        found.push((name, command.clone()));
    }

    #[test]
    fn every_help_has_an_example_and_fits_a_terminal() {
        let mut all = Vec::new();
        shown(&Cli::command(), "", &mut all);
        assert!(all.len() > 15, "{}", all.len());
        for (name, command) in all {
            let help = command.term_width(100).render_long_help().to_string();
            assert!(help.contains("Example") || help.contains("Start here:"), "{name} --help has no example");
            let widest = help.lines().max_by_key(|line| line.chars().count()).unwrap_or_default();
            assert!(widest.chars().count() <= 100, "{name} --help: {widest}");
        }
    }

    #[test]
    fn what_a_command_says_can_be_had_as_json() {
        // These serve, show a picture or print a file.
        const WITHOUT: [&str; 5] = ["homing run", "homing demo", "homing top", "homing completions", "homing man"];
        let mut all = Vec::new();
        shown(&Cli::command(), "", &mut all);
        let says = |(name, command): &&(String, clap::Command)| {
            !command.has_subcommands() && !WITHOUT.contains(&name.as_str())
        };
        for (name, command) in all.iter().filter(says) {
            assert!(command.get_arguments().any(|argument| argument.get_id() == "json"), "{name} has no --json");
        }
    }

    #[test]
    fn each_command_has_its_manual_page() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let count = man::write_all(Cli::command(), dir.path()).expect("written");
        let page = |name: &str| std::fs::read_to_string(dir.path().join(name)).expect(name);
        assert_eq!(count, std::fs::read_dir(dir.path()).expect("a folder").count());
        assert!(page("homing.1").contains("homing\\-run(1)"));
        assert!(page("homing-keys-rotate.1").contains(".SH EXAMPLE\n.nf\nhoming keys rotate\n"));
        assert!(!dir.path().join("homing-demo-worker.1").exists(), "hidden");
        assert!(!dir.path().join("homing-help.1").exists());
    }
}
