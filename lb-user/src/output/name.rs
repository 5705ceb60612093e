//! Names of output files: `APP-N.log`, which worker `APP/N` appends to, and `APP-N.log.1`, `.2` …, the old ones.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Of a file that is being made.
const PART: &str = ".part";

/// A file name, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name<'a> {
    pub app: &'a str,
    pub number: u32,
    pub kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The worker appends to it.
    Live,
    /// 1 is the newest.
    Old(u32),
    /// Half-made when homing was killed.
    Part,
}

/// Where a worker's output goes.
pub fn live(dir: &Path, app: &str, number: u32) -> PathBuf {
    dir.join(format!("{app}-{number}.log"))
}

/// An old file of the same worker.
pub fn old(live: &Path, age: u32) -> PathBuf {
    with(live, &format!(".{age}"))
}

/// What becomes an old file.
pub(super) fn part(live: &Path) -> PathBuf {
    with(live, PART)
}

/// One more than the highest number of the app that has a file of its own.
pub fn numbers(dir: &Path, app: &str) -> u32 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
    let number = |entry: std::fs::DirEntry| {
        let file = entry.file_name();
        let name = Name::parse(file.to_str()?)?;
        (name.app == app && name.kind == Kind::Live).then_some(name.number + 1)
    };
    entries.filter_map(number).max().unwrap_or(0)
}

fn with(path: &Path, ending: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(ending);
    name.into()
}

impl<'a> Name<'a> {
    /// `None` for names that homing does not give.
    pub fn parse(text: &'a str) -> Option<Self> {
        let (app, rest) = text.rsplit_once('-')?;
        let (number, ending) = rest.split_once(".log")?;
        let kind = match ending {
            "" => Kind::Live,
            PART => Kind::Part,
            _ => Kind::Old(whole(ending.strip_prefix('.')?).filter(|&age| age > 0)?),
        };
        let is_app = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-';
        let number = whole(number)?;
        (!app.is_empty() && app.chars().all(is_app)).then_some(Self { app, number, kind })
    }
}

/// As homing writes numbers: no sign, no leading zero.
fn whole(text: &str) -> Option<u32> {
    text.parse().ok().filter(|number: &u32| number.to_string() == text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_homing_names_is_known_again_and_nothing_else() {
        let dir = Path::new("/var/log/homing");
        let path = live(dir, "a-1_b", 12);
        let text = |path: PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
        for (path, kind) in [(path.clone(), Kind::Live), (old(&path, 3), Kind::Old(3)), (part(&path), Kind::Part)] {
            assert_eq!(Name::parse(&text(path)), Some(Name { app: "a-1_b", number: 12, kind }));
        }
        for other in [
            "sales.log",
            "sales-.log",
            "-1.log",
            "sales-01.log",
            "sales-+1.log",
            "sales-1.log.gz",
            "sales-1.log.0",
            "sales-1.log.01",
            "sales-1.log.1.part",
            "Sales-1.log",
            "sales-1.logs",
            "sales-1",
            "sales-99999999999.log",
            "../x-1.log",
            "",
            "homing.log",
        ] {
            assert_eq!(Name::parse(other), None, "{other}");
        }
    }
}
