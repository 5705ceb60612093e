//! What workers write: one file each, which the worker itself appends to, and old files beside it.
//!
//! Workers' output is one stream of bytes; a file holds a stretch of it. A place in the stream stays the same when the
//! stretch that holds it moves from the worker's file to an old one (docs/decisions/0009).

mod keeper;
pub mod last;
pub mod name;
mod rotate;
pub mod stream;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

pub use keeper::Keeper;

use crate::admin::report::OutputFile;
use crate::admin::unknown_app;
use crate::config::Config;

/// What is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Of one file, in bytes.
    pub size_max: u64,
    /// A file holds the output of so long at most.
    pub age_max: Duration,
    /// Old files of one worker.
    pub keep: u32,
}

impl Limits {
    /// After this long without a byte a file of a worker that is no more goes, as all of a living one's would have gone.
    fn retention(&self) -> Duration {
        self.age_max.saturating_mul(self.keep + 1)
    }
}

/// Whose output is kept, where, and how much of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    pub dir: PathBuf,
    pub limits: Limits,
    /// Apps by name, with how many workers they may have.
    pub apps: BTreeMap<String, u32>,
}

impl Policy {
    pub fn of(config: &Config) -> Self {
        let apps = config.apps.iter().map(|app| (app.name.clone(), app.workers.max)).collect();
        Self { dir: config.homing.log_dir.clone(), limits: config.homing.output, apps }
    }

    /// There is a worker with this number.
    pub fn know(&mut self, app: &str, number: u32) {
        let workers = self.apps.entry(app.to_owned()).or_default();
        *workers = (*workers).max(number + 1);
    }

    fn knows(&self, name: &name::Name<'_>) -> bool {
        self.apps.get(name.app).is_some_and(|&workers| name.number < workers)
    }
}

/// The files of what `APP` or `APP/N` names.
///
/// # Errors
/// Why there are none, with what there is.
pub fn files(config: &Config, name: &str) -> Result<Vec<OutputFile>, String> {
    let (app_name, number) = name.split_once('/').map_or((name, None), |(app, number)| (app, Some(number)));
    let Some(app) = config.apps.iter().find(|app| app.name == app_name) else {
        return Err(unknown_app(app_name, config.apps.iter().map(|app| app.name.as_str())));
    };
    // A restart gives numbers beyond.
    let workers = app.workers.max.max(name::numbers(&config.homing.log_dir, app_name));
    if app.workers.max == 0 {
        return Err(format!("{app_name} has no workers on this machine: its backends write elsewhere"));
    }
    let numbers = match number.map(|text| (text, text.parse::<u32>())) {
        None => 0..workers,
        Some((_, Ok(number))) if number < workers => number..number + 1,
        Some((text, _)) if workers == 1 => {
            return Err(format!("{app_name} has no worker {text:?}; there is {app_name}/0"));
        }
        Some((text, _)) => {
            return Err(format!(
                "{app_name} has no worker {text:?}; there are {app_name}/0 to {app_name}/{}",
                workers - 1
            ));
        }
    };
    let dir = &config.homing.log_dir;
    let file = |number| OutputFile { id: format!("{app_name}/{number}"), path: name::live(dir, app_name, number) };
    Ok(numbers.map(file).collect())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn what_is_no_file_of_a_worker_is_not_read() {
        let refused = stream::View::open(Path::new("/dev/null")).err().expect("it is a device");
        assert_eq!(refused.to_string(), "it is not a regular file");
    }

    #[test]
    fn files_are_named_by_app_or_worker_and_what_is_not_there_is_told_with_what_is() {
        let text = "[homing]\nlog_dir = \"/logs\"\n\
                    [[app]]\nname = \"sales\"\nlisten = [\"127.0.0.1:1\"]\ncommand = [\"sh\"]\nworkers.max = 3\n\
                    [[app]]\nname = \"one\"\nlisten = [\"127.0.0.1:2\"]\ncommand = [\"sh\"]\nworkers.max = 1\n\
                    [[app]]\nname = \"far\"\nlisten = [\"127.0.0.1:3\"]\n\
                    backends = [{ address = \"10.0.0.1:3\", forward = \"http\" }]\n";
        let config = crate::config::file::parse(text, "homing.toml", Path::new("/")).expect("it is right");
        let ids = |name: &str| -> Result<Vec<String>, String> {
            Ok(files(&config, name)?.into_iter().map(|file| format!("{} {}", file.id, file.path.display())).collect())
        };
        assert_eq!(ids("sales/2"), Ok(vec!["sales/2 /logs/sales-2.log".to_owned()]));
        assert_eq!(ids("sales").map(|ids| ids.len()), Ok(3));
        for (name, error) in [
            ("other", "no app is called \"other\"; there are: sales, one, far"),
            ("sales/3", "sales has no worker \"3\"; there are sales/0 to sales/2"),
            ("sales/", "sales has no worker \"\"; there are sales/0 to sales/2"),
            ("one/x", "one has no worker \"x\"; there is one/0"),
            ("far", "far has no workers on this machine: its backends write elsewhere"),
        ] {
            assert_eq!(ids(name), Err(error.to_owned()));
        }
    }
}
