//! `homing logs`: what workers have written, and what they write from now on. It reads their files itself, so that it
//! works as well when homing does not.

mod print;

use std::io::{self, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

#[cfg(test)]
pub(crate) use self::print::LogLine;
use self::print::{Form, Printer};
use super::{DONE, FAILED, Socket, UNREACHABLE, USAGE, block_on, fail};
use crate::admin::client::{self, AskError};
use crate::admin::report::OutputFile;
use crate::config;
use crate::output::stream::{Place, View};

pub(super) const EXAMPLES: &str = "Examples:\n  homing logs sales            the last 100 lines of each worker\n  \
    homing logs sales/0 -f       and all that follows, until Ctrl-C\n  \
    homing logs sales/0 -n all   everything that is kept\n  \
    homing logs sales --json | jq -r 'select(.line | test(\"Error\")) | .worker'\n  \
    homing logs sales --config /etc/homing/homing.toml   while homing does not run";

/// Between looks for more, while there is none.
const LOOK: Duration = Duration::from_millis(100);
/// Read at once.
const CHUNK: usize = 64 << 10;

#[derive(clap::Args)]
pub(super) struct Options {
    /// APP, or APP/N as `homing status` shows it.
    #[arg(value_name = "APP[/WORKER]")]
    worker: String,
    /// Go on with what is written from now on, over rotations and restarts, until Ctrl-C.
    #[arg(short, long)]
    follow: bool,
    /// How many of each worker's last lines to begin with; `all`: all that are kept.
    #[arg(short = 'n', long, value_name = "N", default_value = "100", value_parser = lines)]
    lines: Lines,
    /// Take the place of the files from this configuration; homing is not asked.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// As JSON, an object a line.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: Socket,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Lines {
    All,
    Last(u64),
}

fn lines(text: &str) -> Result<Lines, String> {
    match text {
        "all" => Ok(Lines::All),
        _ => text.parse().map(Lines::Last).map_err(|_| "give a number, or all".to_owned()),
    }
}

pub(super) fn logs(options: &Options) -> u8 {
    let files = match &options.config {
        Some(path) => by_configuration(path, &options.worker),
        None => by_homing(&options.socket.control_socket, &options.worker),
    };
    match files.map(|files| show(options, files)) {
        Ok(Ok(())) => DONE,
        // Who read it has seen enough.
        Ok(Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => DONE,
        Ok(Err(error)) => fail(FAILED, &error),
        Err(code) => code,
    }
}

/// The code to end with where there are no files has its reason told.
fn by_configuration(path: &Path, worker: &str) -> Result<Vec<OutputFile>, u8> {
    let config = config::file::load(path).map_err(|errors| {
        eprint!("{errors}");
        USAGE
    })?;
    let files = crate::output::files(&config, worker).map_err(|error| fail(FAILED, &error))?;
    eprintln!("homing: output in {}, as {} says", config.homing.log_dir.display(), path.display());
    Ok(files)
}

fn by_homing(socket: &Path, worker: &str) -> Result<Vec<OutputFile>, u8> {
    #[derive(serde::Serialize)]
    struct Query<'a> {
        worker: &'a str,
    }
    let query = serde_urlencoded::to_string(Query { worker }).expect("a name");
    let asked = block_on(client::get::<Vec<OutputFile>>(socket, &format!("/v1/output?{query}")));
    let files = asked.map_err(|error| match error {
        AskError::Unreachable { .. } => {
            fail(UNREACHABLE, &format!("{error}\nWithout it: homing logs {worker} --config FILE"))
        }
        other => fail(FAILED, &other),
    })?;
    if let Some(dir) = files.first().and_then(|file| file.path.parent()) {
        eprintln!("homing: output in {}, as the running homing says", dir.display());
    }
    Ok(files)
}

fn show(options: &Options, files: Vec<OutputFile>) -> io::Result<()> {
    let stdout = io::stdout();
    let form = if options.json {
        Form::Json
    } else if stdout.is_terminal() {
        Form::Terminal { has_colour: super::wants_colour() }
    } else {
        Form::Text
    };
    let ids: Vec<&str> = files.iter().map(|file| file.id.as_str()).collect();
    let mut printer = Printer::new(stdout.lock(), &ids, form);
    let mut tails: Vec<Tail> = files.into_iter().map(Tail::new).collect();
    for (number, tail) in tails.iter_mut().enumerate() {
        tail.begin(number, options, &mut printer)?;
    }
    if !options.follow {
        return Ok(());
    }
    loop {
        let mut has_more = false;
        for (number, tail) in tails.iter_mut().enumerate() {
            let read = tail.step(None, |bytes| printer.take(number, bytes))?;
            has_more |= read;
            if !read {
                printer.pause(number)?;
            }
        }
        printer.flush()?;
        if !has_more {
            std::thread::sleep(LOOK);
        }
    }
}

/// One worker's output, as far as it was shown.
struct Tail {
    file: OutputFile,
    /// The next byte; `None` while there is no file.
    place: Option<Place>,
    /// Of the file that the place is in.
    identity: (u64, u64),
    buffer: Vec<u8>,
}

impl Tail {
    fn new(file: OutputFile) -> Self {
        Self { file, place: None, identity: (0, 0), buffer: vec![0; CHUNK] }
    }

    fn view(&self) -> io::Result<Option<View>> {
        View::open(&self.file.path).map_err(|error| {
            let remedy = match error.kind() {
                io::ErrorKind::PermissionDenied => "; run this as root, or as the user that homing runs as",
                _ => "",
            };
            io::Error::new(error.kind(), format!("cannot read {}: {error}{remedy}", self.file.path.display()))
        })
    }

    /// What there is now.
    fn begin(&mut self, number: usize, options: &Options, printer: &mut Printer<impl io::Write>) -> io::Result<()> {
        let (view, from) = loop {
            let Some(view) = self.view()? else { break (None, 0) };
            let from = match options.lines {
                Lines::All => Ok(view.start()),
                Lines::Last(count) => view.last_lines(count),
            };
            match from {
                // It was rotated meanwhile.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                from => break (Some(view), from?),
            }
        };
        let Some(view) = view else {
            if !options.follow {
                eprintln!("homing: {} has written nothing: there is no {}", self.file.id, self.file.path.display());
            }
            return Ok(());
        };
        (self.place, self.identity) = (Some(from), view.identity()?);
        // It may write faster than this is read.
        let until = view.end();
        drop(view);
        while self.step(Some(until), |bytes| printer.take(number, bytes))? {}
        if options.follow {
            printer.pause(number)?;
        } else {
            printer.end(number)?;
        }
        printer.flush()
    }

    /// Reads on, up to `until`; says whether there was anything.
    fn step(&mut self, until: Option<Place>, take: impl FnOnce(&[u8]) -> io::Result<()>) -> io::Result<bool> {
        let Some(view) = self.view()? else { return Ok(false) };
        let identity = view.identity()?;
        let (start, end) = (view.start(), view.end());
        let place = match self.place {
            Some(place) if identity == self.identity && place <= end => place,
            // A file made anew, or emptied.
            _ => 0.max(start),
        };
        if place < start {
            eprintln!("homing: {}: {} bytes were rotated away before they could be shown", self.file.id, start - place);
        }
        let place = place.max(start);
        let room = until.map_or(CHUNK, |until| CHUNK.min(usize::try_from(until - place).unwrap_or(0)));
        let read = match view.read(place, &mut self.buffer[..room]) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(true),
            read => read?,
        };
        // While it is printed, which may take as long as somebody looks at it, the files are free.
        drop(view);
        (self.place, self.identity) = (Some(place + read as Place), identity);
        take(&self.buffer[..read])?;
        Ok(read > 0)
    }
}
