//! Where the program of a `command` is: the same answer for `homing check` and for the spawn of a worker.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// PATH for workers when homing has none itself.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why a program cannot be run. The messages are whole clauses, to be put after the name of the app.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProgramError {
    #[error("command `{program}` was not found on PATH ({path}); install it, or give its full path in `command`")]
    NotOnPath { program: String, path: String },
    #[error("command `{}` does not exist; install it, or correct `command`", .0.display())]
    Absent(PathBuf),
    #[error("command `{path}` is not an executable file; make it one (chmod +x {path}), or correct `command`",
            path = .0.display())]
    NotExecutable(PathBuf),
}

/// The program's absolute path. One with a slash is taken from `directory`, any other is looked up on `search_path`.
pub fn resolve(program: &str, directory: &Path, search_path: &str) -> Result<PathBuf, ProgramError> {
    if program.contains('/') {
        let path = directory.join(program);
        return match look_at(&path) {
            Found::Executable => Ok(path),
            Found::Other => Err(ProgramError::NotExecutable(path)),
            Found::Nothing => Err(ProgramError::Absent(path)),
        };
    }
    let mut other = None;
    for folder in env::split_paths(search_path).filter(|folder| !folder.as_os_str().is_empty()) {
        let path = directory.join(folder).join(program);
        match look_at(&path) {
            Found::Executable => return Ok(path),
            Found::Other if !path.is_dir() => other = other.or(Some(path)),
            Found::Other | Found::Nothing => {}
        }
    }
    Err(match other {
        Some(path) => ProgramError::NotExecutable(path),
        None => ProgramError::NotOnPath { program: program.to_owned(), path: search_path.to_owned() },
    })
}

/// The PATH that a worker gets: from the app's `env`, else homing's own.
pub fn search_path(env: &BTreeMap<String, String>) -> String {
    env.get("PATH").cloned().or_else(|| env::var("PATH").ok()).unwrap_or_else(|| DEFAULT_PATH.to_owned())
}

enum Found {
    Executable,
    Other,
    Nothing,
}

fn look_at(path: &Path) -> Found {
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_file() && metadata.permissions().mode() & 0o111 != 0 => Found::Executable,
        Ok(_) => Found::Other,
        Err(_) => Found::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_name_is_found_on_the_path() {
        let found = resolve("sh", Path::new("/"), "/nowhere:/usr/bin:/bin").expect("every machine has a shell");
        assert!(found.is_absolute() && found.ends_with("sh"), "{found:?}");
    }

    #[test]
    fn a_name_with_a_slash_is_taken_from_the_directory_and_never_from_the_path() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let script = folder.path().join("run");
        fs::write(&script, "#!/bin/sh\n").expect("written");
        assert_eq!(resolve("./run", folder.path(), ""), Err(ProgramError::NotExecutable(folder.path().join("./run"))));
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("changed");
        assert_eq!(resolve("./run", folder.path(), ""), Ok(folder.path().join("./run")));
        assert_eq!(resolve("./sh", folder.path(), "/bin"), Err(ProgramError::Absent(folder.path().join("./sh"))));
    }

    #[test]
    fn a_name_nobody_has_is_reported_with_the_path_that_was_searched() {
        let error =
            resolve("uvicorn-of-nobody", Path::new("/"), "/usr/bin:/bin").expect_err("there is no such program");
        assert_eq!(
            error.to_string(),
            "command `uvicorn-of-nobody` was not found on PATH (/usr/bin:/bin); install it, or give its full path in `command`"
        );
    }
}
