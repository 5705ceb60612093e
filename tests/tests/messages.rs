//! What homing says where it refuses, and the exit code that goes with it: 1 the request failed, 2 wrong usage or
//! configuration, 3 nobody is there. Needs root.

use std::fs::OpenOptions;
use std::process::{Command, Output, Stdio};

use aya::maps::{Array, Map, MapData};
use homing_tests::instance::{Homing, binary, demo_app, edit, free_address, wait_for};
use homing_tests::session::Client;
use serde_json::{Value, json};

/// Exit code and everything that was said.
fn said(output: &Output) -> (Option<i32>, String) {
    let text = [&output.stderr[..], &output.stdout[..]].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

fn homing(arguments: &[&str]) -> (Option<i32>, String) {
    said(&Command::new(binary()).args(arguments).output().expect("homing can be run"))
}

#[test]
fn what_needs_no_homing_is_refused_with_its_remedy_and_an_exit_code() {
    let full = tempfile::tempdir().expect("a temporary directory");
    std::fs::create_dir(full.path().join("a-folder")).expect("a folder");
    let full = full.path().to_str().expect("text");
    for (arguments, code, words) in [
        (&["stauts"][..], 2, "similar subcommands exist: 'restart', 'status'"),
        (&["logs", "sales", "-n", "many"], 2, "give a number, or all"),
        (&["scale", "sales", "many"], 2, "give a number of workers, or MIN..MAX such as 1..8"),
        (&["top", "-d", "0"], 2, "give seconds from 0.2 to 60"),
        (&["demo", "--port", "65535"], 1, "--port is at most 65534: the next one is needed too"),
        (&["demo-worker"], 1, "no socket was passed (LISTEN_FDS, LISTEN_PID)"),
        (&["man", "--dir", "/proc/nowhere"], 1, "cannot write manual pages to /proc/nowhere"),
        (&["detach", "--pin-dir", full], 1, "cannot remove the pin"),
        (&["status", "--control-socket", "/nowhere"], 3, "cannot reach homing on /nowhere"),
        (&["drain", "sales", "--control-socket", "/nowhere"], 3, "is it running?"),
        (&["check", "--config", "/nowhere"], 2, "/nowhere"),
        (&["run", "--config", "/nowhere"], 2, "/nowhere"),
    ] {
        let (is, text) = homing(arguments);
        assert!(is == Some(code) && text.contains(words), "{arguments:?} ended with {is:?}, not {code}: {text}");
    }
}

#[test]
fn what_a_running_homing_refuses_ends_with_1_and_says_what_to_do() {
    let homing = Homing::start(&demo_app("demo", &[free_address()], "127.0.0.1", 1, ""));
    for (arguments, words) in [
        (&["drain", "dmo"][..], "no app is called \"dmo\"; did you mean demo? There are: demo"),
        (&["trace", "weather", "10.0.0.1"], "no app is called \"weather\"; there are: demo"),
        (&["drain", "demo/7"], "demo has no worker \"7\"; there are demo/0"),
        (&["restart", "demo/0"], "workers are restarted by app: homing restart demo"),
        (&["scale", "demo/0", "2"], "apps are scaled, not workers: homing scale demo N"),
        (&["scale", "demo", "3..2"], "the bounds must be MIN..MAX"),
        (&["scale", "demo", "5000"], "may run more than 4096 workers together"),
    ] {
        let (code, text) = said(&homing.ask(arguments));
        assert!(code == Some(1) && text.contains(words), "{arguments:?} ended with {code:?}: {text}");
    }
}

#[test]
fn drain_and_stop_say_what_they_wait_for_and_how_long_that_may_take() {
    let address = free_address();
    let mut homing = Homing::start(&demo_app("demo", &[address], "127.0.0.1", 2, ""));
    homing.wait_for_workers(0, 2);
    let client = Client { namespace: None, from: [127, 0, 0, 1].into(), target: address };
    let session = client.open();
    let worker = &session.hello.worker;
    homing.wait_until("its connection is counted", |status| status["apps"][0]["connections"] == 1);
    let (code, text) = said(&homing.ask(&["drain", worker]));
    assert!(code == Some(0) && text.contains("1 connection on 1 draining worker, for 9 m 5"), "{text}");
    let status = homing.status();
    let drained = status["apps"][0]["workers"].as_array().and_then(|all| all.iter().find(|it| it["id"] == **worker));
    let within = drained.and_then(|worker| worker["ends_within_seconds"].as_u64());
    assert!(within.is_some_and(|seconds| (500..=600).contains(&seconds)), "{status:#}");
    let waiting = homing.ask_meanwhile(&["drain", worker, "--wait"]);
    let stopping = homing.ask_meanwhile(&["stop"]);
    homing.wait_until("it stops", |status| status["apps"][0]["state"] == "stopping");
    let (code, text) = said(&homing.ask(&["reload"]));
    assert!(code == Some(1) && text.contains("homing is stopping"), "{text}");
    drop(session);
    assert!(homing.wait_for_end().success());
    let (code, text) = said(&stopping.wait_with_output().expect("it can be waited for"));
    assert!(code == Some(0) && text.contains("draining: 1 connection on "), "{text}");
    assert!(text.ends_with("homing has stopped.\n"), "{text}");
    // It saw the worker end, or homing.
    let (_, text) = said(&waiting.wait_with_output().expect("it can be waited for"));
    assert!(text.contains("1 connection on 1 draining worker"), "{text}");
}

/// The objects that were printed, a line each, all of them as the published schema has it.
fn objects(output: &Output, schema: &str) -> Vec<Value> {
    assert!(output.status.success(), "{}", said(output).1);
    let file = format!("{}/../docs/schema/{schema}.json", env!("CARGO_MANIFEST_DIR"));
    let schema: Value = serde_json::from_slice(&std::fs::read(&file).expect(&file)).expect("JSON");
    let text = String::from_utf8_lossy(&output.stdout);
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")));
    let all: Vec<Value> = lines.collect();
    for object in &all {
        let fields = object.as_object().expect("an object");
        let properties = schema["properties"].as_object().expect("by name");
        assert!(fields.keys().all(|field| properties.contains_key(field)), "{object}");
        let required = schema["required"].as_array().expect("names");
        assert!(required.iter().filter_map(Value::as_str).all(|field| fields.contains_key(field)), "{object}");
    }
    all
}

#[test]
fn orders_say_as_json_what_they_say_in_words() {
    let address = free_address();
    let mut homing = Homing::start(&demo_app("demo", &[address], "127.0.0.1", 2, ""));
    homing.wait_for_workers(0, 2);
    let client = Client { namespace: None, from: [127, 0, 0, 1].into(), target: address };
    let session = client.open();
    let worker = session.hello.worker.as_str();
    homing.wait_until("its connection is counted", |status| status["apps"][0]["connections"] == 1);
    let order = |arguments: &[&str]| objects(&homing.ask(&[arguments, &["--json"]].concat()), "order");
    let stages = |lines: &[Value]| -> Vec<String> {
        lines.iter().map(|line| line["stage"].as_str().expect("a word").to_owned()).collect()
    };
    let drained = order(&["drain", worker]);
    assert_eq!(stages(&drained), ["accepted", "done"]);
    let left = &drained[1]["left"];
    assert_eq!((&left["draining"], &left["connections"]), (&1.into(), &1.into()), "{left}");
    assert!(left["ends_within_seconds"].as_u64().is_some_and(|seconds| (500..=600).contains(&seconds)), "{left}");
    let undrained = order(&["undrain", worker]);
    assert_eq!(stages(&undrained), ["done"]);
    assert!(undrained[0]["left"].is_null() && undrained[0]["said"].as_str().is_some_and(|said| said.contains(worker)));
    let scaled = order(&["scale", "demo", "2..3"]);
    assert_eq!(stages(&scaled), ["accepted", "done"]);
    assert_eq!((&scaled[1]["left"]["draining"], &scaled[1]["said"]), (&0.into(), &"".into()));
    for arguments in [&["reload"][..], &["keys", "rotate"]] {
        assert_eq!(stages(&order(arguments)), ["done"], "{arguments:?}");
    }
    // Waited for, by the very command.
    let restarted = order(&["restart", "demo"]);
    let passed = stages(&restarted);
    assert_eq!(
        (passed.first().map(String::as_str), passed.last().map(String::as_str)),
        (Some("accepted"), Some("done"))
    );
    assert!(passed.iter().any(|stage| stage == "waiting"), "{restarted:?}");
    // What is refused is told in words and by the exit code: stdout is for objects alone.
    let refused = homing.ask(&["drain", "nobody", "--json"]);
    assert!(refused.status.code() == Some(1) && refused.stdout.is_empty(), "{refused:?}");
    drop(session);
    let stopping = homing.ask_meanwhile(&["stop", "--json"]);
    assert!(homing.wait_for_end().success());
    let stopped = objects(&stopping.wait_with_output().expect("it can be waited for"), "order");
    assert_eq!(stopped.last().map(|line| &line["said"]), Some(&"homing has stopped.".into()));
}

#[test]
fn what_is_printed_of_files_and_commands_is_had_as_json() {
    let writes = format!("printf 'one\\ntwo'; exec {} demo-worker --port $PORT", binary().display());
    let homing = Homing::start(&format!(
        "[[app]]\nname = \"demo\"\nlisten = [\"{}\"]\naffinity = \"ip\"\ncommand = [\"sh\", \"-c\", {writes:?}]\n",
        free_address()
    ));
    homing.wait_for_workers(0, 1);
    let file = homing.dir().join("homing.toml");
    let kept = wait_for("the worker has written", || {
        let kept = objects(&homing.ask(&["logs", "demo", "-n", "all", "--json"]), "logs");
        (kept.len() == 2).then_some(kept)
    });
    let line = |line: &str, complete| json!({ "worker": "demo/0", "line": line, "complete": complete });
    assert_eq!(kept, [line("one", true), line("two", false)]);
    let file = file.to_str().expect("text");
    let run = |arguments: &[&str]| Command::new(binary()).args(arguments).output().expect("homing can be run");
    let without = run(&["logs", "demo", "-n", "1", "--config", file, "--json"]);
    assert_eq!(objects(&without, "logs"), [line("two", false)]);
    let setup = objects(&run(&["backend-setup", "ipip", "10.0.0.100", "--json"]), "backend-setup");
    assert!(setup.iter().any(|step| step["command"] == "ip link set tunl0 up"), "{setup:?}");
    let detached = objects(&run(&["detach", "--pin-dir", "/sys/fs/bpf/nowhere", "--json"]), "order");
    assert_eq!(detached[0]["said"], "Nothing is pinned in /sys/fs/bpf/nowhere.");
}

#[test]
fn where_the_kernel_path_is_required_and_cannot_be_had_homing_does_not_start() {
    let homing =
        Homing::configured(&[], "kernel_path = \"required\"", &demo_app("demo", &[free_address()], "::", 1, ""));
    let pins = format!("pin_dir = {:?}", homing.pin_dir());
    // The BPF file system takes no name with a dot in it.
    let dotted = pins.replace("homing-test", "homing.test");
    edit(&homing, &pins, &dotted);
    let (code, text) = said(&homing.run_to_its_end());
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("kernel_path = \"required\", but cannot make the pin directory"), "{text}");
    edit(&homing, &dotted, "pin_dir = \"pins\"");
    let (code, text) = said(&homing.run_to_its_end());
    assert_eq!(code, Some(1), "{text}");
    assert!(
        text.contains("is not on a BPF file system") && text.contains("homing only mounts /sys/fs/bpf by itself"),
        "{text}"
    );
}

#[test]
fn pins_of_another_version_are_refused_and_not_touched() {
    let mut homing = Homing::start_under(
        &[],
        "kernel_path = \"required\"",
        &demo_app("demo", &[free_address()], "127.0.0.1", 1, ""),
    );
    homing.wait_for_workers(0, 1);
    homing.kill();
    let pin = homing.pin_dir().join("META");
    let mut meta: Array<_, u32> =
        Array::try_from(Map::Array(MapData::from_pin(&pin).expect("it is pinned"))).expect("its type");
    let own = meta.get(&0, 0).expect("the version");
    meta.set(0, 99, 0).expect("in the array");
    let (code, text) = said(&homing.run_to_its_end());
    let is_untouched = meta.get(&0, 0).expect("the version") == 99;
    meta.set(0, own, 0).expect("in the array");
    assert!(code == Some(1) && is_untouched, "{text}");
    assert!(text.contains("are of ABI version 99") && text.contains("homing detach"), "{text}");
    // As after every unclean end.
    homing.start_again();
}

#[test]
fn who_follows_decisions_onto_a_full_disk_is_told() {
    let address = free_address();
    let homing = Homing::start_under(&[], "kernel_path = \"off\"", &demo_app("demo", &[address], "127.0.0.1", 1, ""));
    homing.wait_for_workers(0, 1);
    let full = OpenOptions::new().write(true).open("/dev/full").expect("it is there");
    let mut following = Command::new(binary())
        .args(["trace", "--live", "--json", "--control-socket"])
        .arg(homing.dir().join("control.sock"))
        .stdout(full)
        .stderr(Stdio::piped())
        .spawn()
        .expect("homing can be run");
    let client = Client { namespace: None, from: [127, 0, 0, 1].into(), target: address };
    wait_for("it has ended", || {
        client.get("/health").expect("an answer");
        following.try_wait().expect("it can be waited for")
    });
    let (code, text) = said(&following.wait_with_output().expect("it has ended"));
    assert!(code == Some(1) && text.contains("cannot write the decisions: No space left"), "{text}");
}

#[test]
fn check_says_as_json_what_it_says_in_words() {
    let homing = Homing::configured(&[], "", &demo_app("demo", &[free_address()], "127.0.0.1", 1, "affinty = 1"));
    let file = homing.dir().join("homing.toml");
    let check = |json: &[&str]| {
        let output = Command::new(binary()).arg("check").arg("--config").arg(&file).args(json).output();
        output.expect("homing can be run")
    };
    let (in_words, json) = (check(&[]), check(&["--json"]));
    assert_eq!((in_words.status.code(), json.status.code()), (Some(2), Some(2)));
    let told: Value = serde_json::from_slice(&json.stdout).expect("JSON");
    let error = &told["errors"][0];
    let place =
        format!("homing.toml:{}:{}: {}", error["line"], error["column"], error["message"].as_str().unwrap_or(""));
    let words = String::from_utf8_lossy(&in_words.stderr).into_owned();
    assert!(
        told["ok"] == false && place.contains("did you mean `affinity`?") && words.contains(&place),
        "{told} {words}"
    );
    edit(&homing, "affinty = 1", "");
    let told: Value = serde_json::from_slice(&check(&["--json"]).stdout).expect("JSON");
    assert_eq!((&told["ok"], &told["apps"][0]["name"], &told["errors"]), (&true.into(), &"demo".into(), &json!([])));
    assert!(told["apps"][0]["why"].as_str().is_some_and(|why| !why.is_empty()), "{told}");
}
