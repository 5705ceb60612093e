//! Scenarios of `spawn`.

use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::worker::testing::spec;
use crate::worker::{Exit, Process};

/// Runs the command to its end and returns what it wrote.
async fn output_of(spec: &Spec) -> String {
    let process = Process::new(spawn(spec, None).expect("it starts")).expect("it is watched");
    let exit = process.exited().await;
    let output = fs::read_to_string(&spec.log).expect("there is a log");
    assert_eq!(exit, Exit::Code(0), "{output}");
    output
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

/// One that every user can enter; `None`, and a word, where workers cannot be started as another user.
fn folder_for_others() -> Option<tempfile::TempDir> {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: only root can start workers as another user");
        return None;
    }
    let folder = folder();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("changed");
    Some(folder)
}

fn port_of(spec: &Spec) -> u16 {
    spec.entrance.address().port().expect("a port")
}

fn refusal(spec: &Spec) -> String {
    spawn(spec, None).expect_err("it must not start").to_string()
}

/// Runs in a process of its own, whose environment has more than a worker may see, whoever runs the tests.
#[tokio::test]
async fn the_environment_is_clean() {
    const MORE: &str = "HOMING_TEST_SECRET";
    if env::var_os(MORE).is_none() {
        let mut again = Command::new(env::current_exe().expect("these tests are a program"));
        let output = again.args(["--exact", "worker::spawn::tests::the_environment_is_clean"]).env(MORE, "1").output();
        let output = output.expect("it can be run again");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
        return;
    }
    let folder = folder();
    let mut spec = spec(folder.path(), &["/usr/bin/env"]);
    spec.env =
        BTreeMap::from([("R_MAX_VSIZE".to_owned(), "2GB".to_owned()), ("HOMING_APP".to_owned(), "a lie".to_owned())]);
    let output = output_of(&spec).await;
    let names: Vec<&str> = {
        let mut names: Vec<&str> = output.lines().filter_map(|line| Some(line.split_once('=')?.0)).collect();
        names.sort_unstable();
        names
    };
    assert_eq!(names, ["HOME", "HOMING_APP", "HOMING_WORKER", "LANG", "PATH", "PORT", "R_MAX_VSIZE", "USER"]);
    for line in ["HOMING_APP=sales", "HOMING_WORKER=sales/2", "R_MAX_VSIZE=2GB", &format!("PORT={}", port_of(&spec))] {
        assert!(output.lines().any(|seen| seen == line), "no {line} in\n{output}");
    }
}

#[tokio::test]
async fn the_port_is_put_into_arguments() {
    let folder = folder();
    let spec = spec(folder.path(), &["echo", "--port", "{port}", "--url=http://x:{port}/{port}", "{other}"]);
    let port = port_of(&spec);
    assert_eq!(output_of(&spec).await, format!("--port {port} --url=http://x:{port}/{port} {{other}}\n"));
}

#[tokio::test]
async fn output_and_errors_are_appended_to_the_log() {
    let folder = folder();
    let spec = spec(folder.path(), &["sh", "-c", "echo out; echo err >&2"]);
    fs::write(&spec.log, "before\n").expect("written");
    output_of(&spec).await;
    assert_eq!(output_of(&spec).await, "before\nout\nerr\nout\nerr\n");
}

#[tokio::test]
async fn it_runs_in_its_directory_and_leads_a_session_of_its_own() {
    let folder = folder();
    let script = "pwd -P; echo $$; cut -d' ' -f6 /proc/$$/stat";
    let output = output_of(&spec(folder.path(), &["sh", "-c", script])).await;
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(Path::new(lines[0]), folder.path().canonicalize().expect("it is there"));
    assert_eq!(lines[1], lines[2], "session {} of process {}", lines[2], lines[1]);
}

#[tokio::test]
async fn a_descriptor_that_somebody_forgot_to_close_is_not_inherited() {
    let folder = folder();
    let leaked = File::open("/dev/null").expect("it is there");
    rustix::io::fcntl_setfd(&leaked, rustix::io::FdFlags::empty()).expect("no longer closed on exec");
    let output = output_of(&spec(folder.path(), &["sh", "-c", "ls /proc/$$/fd; readlink /proc/$$/fd/0"])).await;
    // A shell may keep its script's end at 10 or above; what homing had open would come right after 2.
    assert_eq!(output, "0\n1\n2\n/dev/null\n");
}

#[tokio::test]
async fn another_user_is_taken_on_with_its_groups_and_nothing_of_root() {
    let Some(folder) = folder_for_others() else { return };
    let script = "id -un; id -Gn; echo $HOME $USER; grep -E 'CapEff|CapAmb' /proc/$$/status";
    let mut spec = spec(folder.path(), &["sh", "-c", script]);
    spec.user = Some("nobody".to_owned());
    let output = output_of(&spec).await;
    let lines: Vec<&str> = output.lines().collect();
    let nobody = User::from_name("nobody").expect("looked up").expect("every Linux has one");
    assert_eq!(lines[0], "nobody");
    assert!(!lines[1].split(' ').any(|group| group == "root"), "{output}");
    assert_eq!(lines[2], format!("{} nobody", nobody.dir.display()));
    for line in &lines[3..] {
        assert!(line.ends_with("\t0000000000000000"), "{output}");
    }
}

#[test]
fn an_unknown_user_is_named() {
    let folder = folder();
    let mut spec = spec(folder.path(), &["true"]);
    spec.user = Some("shiny-of-nobody".to_owned());
    assert_eq!(
        refusal(&spec),
        "app `sales`: there is no user `shiny-of-nobody` on this machine; create it, or correct `user`"
    );
}

#[test]
fn a_command_that_is_not_there_is_named_with_where_it_was_looked_for() {
    let folder = folder();
    let mut spec = spec(folder.path(), &["uvicorn-of-nobody", "app:app"]);
    spec.env = BTreeMap::from([("PATH".to_owned(), "/usr/bin:/bin".to_owned())]);
    assert_eq!(
        refusal(&spec),
        "app `sales`: command `uvicorn-of-nobody` was not found on PATH (/usr/bin:/bin); \
         install it, or give its full path in `command`"
    );
    spec.command = vec!["/srv/nowhere/run".to_owned()];
    assert_eq!(
        refusal(&spec),
        "app `sales`: command `/srv/nowhere/run` does not exist; install it, or correct `command`"
    );
}

#[test]
fn a_file_that_is_not_executable_is_named_with_the_remedy() {
    let folder = folder();
    let path = folder.path().join("run.sh");
    fs::write(&path, "#!/bin/sh\n").expect("written");
    let shown = path.display();
    assert_eq!(
        refusal(&spec(folder.path(), &[&shown.to_string()])),
        format!(
            "app `sales`: command `{shown}` is not an executable file; \
                 make it one (chmod +x {shown}), or correct `command`"
        )
    );
}

#[test]
fn a_script_whose_interpreter_is_missing_is_told_from_a_missing_script() {
    let folder = folder();
    let path = folder.path().join("run.sh");
    fs::write(&path, "#!/usr/bin/python-of-nobody\n").expect("written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("changed");
    assert!(matches!(spawn(&spec(folder.path(), &["./run.sh"]), None), Err(SpawnError::Interpreter { .. })));
}

#[test]
fn a_directory_that_is_not_there_is_named() {
    let folder = folder();
    let mut spec = spec(folder.path(), &["true"]);
    spec.directory = PathBuf::from("/srv/nowhere");
    assert_eq!(
        refusal(&spec),
        "app `sales`: directory `/srv/nowhere` cannot be used: No such file or directory (os error 2); \
         create it, or correct `directory`"
    );
    spec.directory = PathBuf::from("/etc/passwd");
    assert!(refusal(&spec).contains("Not a directory"), "{}", refusal(&spec));
}

#[test]
fn a_log_that_cannot_be_written_is_named() {
    let folder = folder();
    let mut spec = spec(folder.path(), &["true"]);
    spec.log = PathBuf::from("/nowhere/sales-2.log");
    assert!(matches!(spawn(&spec, None), Err(SpawnError::Log { path, .. }) if path == spec.log));
}

#[test]
fn an_empty_command_is_refused() {
    let folder = folder();
    assert!(matches!(spawn(&spec(folder.path(), &[]), None), Err(SpawnError::NoCommand { .. })));
}

#[tokio::test]
async fn a_socket_path_is_put_into_arguments_and_environment_and_its_directory_is_made_for_the_user() {
    let folder = folder();
    let script = "echo $A $HOMING_SOCKET ${PORT-none} ${LISTEN_FDS-none}; stat -c '%a %u' $(dirname {socket})";
    let mut spec = spec(folder.path(), &["sh", "-c", script]);
    let path = socket::path(&folder.path().join("run"), "sales", 2, 7 << 32);
    spec.entrance = Entrance::Socket(path.clone());
    spec.env = BTreeMap::from([("A".to_owned(), "unix:{socket}".to_owned())]);
    let shown = path.display();
    let uid = nix::unistd::geteuid();
    assert_eq!(output_of(&spec).await, format!("unix:{shown} {shown} none none\n700 {uid}\n"));
}

#[test]
fn a_start_that_fails_leaves_no_directory_of_a_socket() {
    let folder = folder();
    let script = folder.path().join("run.sh");
    fs::write(&script, "#!/usr/bin/python-of-nobody\n").expect("written");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("changed");
    let mut spec = spec(folder.path(), &["./run.sh"]);
    let path = socket::path(&folder.path().join("run"), "sales", 2, 7 << 32);
    spec.entrance = Entrance::Socket(path.clone());
    assert!(matches!(spawn(&spec, None), Err(SpawnError::Interpreter { .. })));
    assert!(!path.parent().expect("its directory").exists());
}

/// A spec that is passed a socket.
fn passed(folder: &Path, command: &[&str]) -> Spec {
    let entrance = crate::worker::port::listen(&std::collections::BTreeSet::new()).expect("a port is free");
    Spec { entrance, ..spec(folder, command) }
}

#[tokio::test]
async fn a_passed_socket_is_descriptor_3_and_the_environment_says_so_to_this_very_process() {
    let folder = folder();
    let script = "import os, socket; s = socket.socket(fileno={fd}); e = os.environ\n\
        print(s.getsockname()[1], s.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN), s.getblocking())\n\
        print(e['LISTEN_PID'] == str(os.getpid()), e['LISTEN_FDS'], e['LISTEN_FDNAMES'], 'PORT' in e, sorted(os.listdir('/proc/self/fd'))[:4])";
    let spec = passed(folder.path(), &["python3", "-c", script]);
    let port = port_of(&spec);
    assert_eq!(output_of(&spec).await, format!("{port} 1 True\nTrue 1 homing False ['0', '1', '2', '3']\n"));
}

#[tokio::test]
async fn nothing_but_the_socket_is_passed_and_arguments_arrive_as_they_are() {
    let folder = folder();
    let script = "printf '%s|' \"$0\" \"$@\"; ls /proc/$$/fd; env | cut -d= -f1 | sort | tr '\\n' ' '";
    let mut spec = passed(folder.path(), &["sh", "-c", script, "zero", "", "a b", "--fd={fd}"]);
    spec.env = BTreeMap::from([("A".to_owned(), "fd://{fd}".to_owned())]);
    assert_eq!(
        output_of(&spec).await,
        "zero||a b|--fd=3|0\n1\n2\n3\n\
         A HOME HOMING_APP HOMING_WORKER LANG LISTEN_FDNAMES LISTEN_FDS LISTEN_PID PATH PWD USER "
    );
}

#[tokio::test]
async fn a_worker_of_another_user_is_passed_a_socket_too() {
    let Some(folder) = folder_for_others() else { return };
    let script = "id -un; test $LISTEN_PID = $$ && readlink /proc/$$/fd/3 | cut -d: -f1";
    let mut spec = passed(folder.path(), &["sh", "-c", script]);
    spec.user = Some("nobody".to_owned());
    assert_eq!(output_of(&spec).await, "nobody\nsocket\n");
}

#[test]
fn a_program_that_cannot_be_executed_is_named_also_when_it_is_passed_a_socket() {
    let folder = folder();
    let script = folder.path().join("run.sh");
    fs::write(&script, "#!/usr/bin/python-of-nobody\n").expect("written");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("changed");
    assert!(matches!(spawn(&passed(folder.path(), &["./run.sh"]), None), Err(SpawnError::Interpreter { .. })));
}

#[tokio::test]
async fn homing_keeps_no_copy_of_a_socket_that_it_passed() {
    let folder = folder();
    let spec = passed(folder.path(), &["sleep", "1000"]);
    let address = spec.entrance.address();
    let process = Process::new(spawn(&spec, None).expect("it starts")).expect("it is watched");
    drop(spec);
    assert!(address.is_listening(), "the kernel accepts for the worker");
    process.kill_tree(crate::worker::Signal::KILL).expect("killed");
    process.exited().await;
    assert!(!address.is_listening(), "with the worker its socket is gone");
}

#[tokio::test]
async fn a_worker_that_nobody_looks_after_is_found_by_its_app() {
    let folder = folder();
    let mut spec = spec(folder.path(), &["sleep", "1000"]);
    spec.app = format!("left-{}", std::process::id());
    let process = Process::new(spawn(&spec, None).expect("it starts")).expect("it is watched");
    let found = crate::worker::leftovers(&["other", &spec.app], folder.path());
    assert_eq!(found, [(process.pid(), format!("{}/2", spec.app))]);
    assert_eq!(crate::worker::leftovers(&["other"], folder.path()), []);
    assert_eq!(crate::worker::leftovers(&[&spec.app], Path::new("/var/empty")), []);
    process.kill_tree(crate::worker::Signal::KILL).expect("killed");
    process.exited().await;
    assert_eq!(crate::worker::leftovers(&[&spec.app], folder.path()), []);
}
