//! `homing top` as an operator sees it: on a terminal of 80 by 24, with keys pressed and the screen read.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::num::NonZeroU16;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use homing_tests::instance::{Homing, binary, demo_app, free_address, wait_for};
use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

const ROWS: NonZeroU16 = NonZeroU16::new(24).expect("not zero");
const COLUMNS: NonZeroU16 = NonZeroU16::new(80).expect("not zero");

/// A program on a terminal of its own.
struct Terminal {
    child: Child,
    keyboard: File,
    screen: Arc<Mutex<vt100::Parser>>,
}

impl Terminal {
    fn run(command: &mut Command) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
        grantpt(&master).and_then(|()| unlockpt(&master)).expect("its other side");
        let name = ptsname(&master, Vec::new()).expect("its name");
        let flags = OFlags::RDWR | OFlags::NOCTTY;
        let slave: OwnedFd = rustix::fs::open(&name, flags, Mode::empty()).expect("its other side");
        tcsetwinsize(&slave, Winsize { ws_row: ROWS.get(), ws_col: COLUMNS.get(), ws_xpixel: 0, ws_ypixel: 0 })
            .expect("its size");
        let side = || Stdio::from(slave.try_clone().expect("a descriptor"));
        let child = command.env("TERM", "xterm-256color").stdin(side()).stdout(side()).stderr(side()).spawn();
        let screen = Arc::new(Mutex::new(vt100::Parser::new(ROWS, COLUMNS, 0)));
        let (mut output, drawn) = (File::from(master.try_clone().expect("a descriptor")), Arc::clone(&screen));
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            // An error: the program has ended.
            while let Ok(read @ 1..) = output.read(&mut bytes) {
                drawn.lock().unwrap_or_else(PoisonError::into_inner).process(&bytes[..read]);
            }
        });
        Self { child: child.expect("it can be run"), keyboard: File::from(master), screen }
    }

    fn text(&self) -> String {
        self.screen.lock().unwrap_or_else(PoisonError::into_inner).screen().contents()
    }

    fn shows(&self, what: &str) {
        wait_for(&format!("the screen shows {what:?}"), || self.text().contains(what).then_some(()));
    }

    fn press(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).expect("a key is pressed");
    }

    fn is_on_another_screen(&self) -> bool {
        self.screen.lock().unwrap_or_else(PoisonError::into_inner).screen().alternate_screen()
    }

    fn ends_with(mut self, code: i32) {
        let status = wait_for("the end of it", || self.child.try_wait().expect("it can be waited for"));
        assert_eq!(status.code(), Some(code), "{}", self.text());
        assert!(!self.is_on_another_screen(), "the terminal is as it was");
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn an_operator_watches_drains_and_ends() {
    let homing = Homing::start(&demo_app("sales", &[free_address()], "127.0.0.1", 2, ""));
    let mut top = Terminal::run(
        Command::new(binary()).args(["top", "-d", "0.2", "--control-socket"]).arg(homing.dir().join("control.sock")),
    );
    top.shows("sales/0");
    top.shows("ready");
    assert!(top.is_on_another_screen(), "what was on the screen comes back afterwards");
    top.press("jjd");
    top.shows("Drain sales/1: no new clients");
    top.press("y");
    // Nobody is there: it is told to end at once.
    wait_for("the worker is gone", || {
        let screen = top.text();
        let line = screen.lines().find(|line| line.contains("sales/1"))?;
        line.contains("stopped").then_some(())
    });
    top.press("u");
    top.shows("Let sales/1 have new clients again");
    top.press("y");
    wait_for("the worker is back", || {
        let screen = top.text();
        screen.lines().find(|line| line.contains("sales/1"))?.contains("ready").then_some(())
    });
    top.press("\r");
    top.shows("requests so far");
    top.press("q");
    top.ends_with(0);
}

#[test]
fn a_homing_that_ends_is_told_and_the_last_picture_stays() {
    let mut homing = Homing::start(&demo_app("sales", &[free_address()], "127.0.0.1", 1, ""));
    let mut top = Terminal::run(
        Command::new(binary()).args(["top", "-d", "0.2", "--control-socket"]).arg(homing.dir().join("control.sock")),
    );
    top.shows("sales/0");
    homing.kill();
    top.shows("No answer, this is what was");
    top.shows("sales/0");
    homing.start_again();
    wait_for("the new one is seen", || (!top.text().contains("No answer")).then_some(()));
    top.press("\x03");
    top.ends_with(0);
}

#[test]
fn without_a_terminal_or_a_homing_it_says_so() {
    let told = Command::new(binary()).arg("top").stdin(Stdio::null()).output().expect("it can be run");
    assert_eq!(told.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&told.stderr).contains("homing status prints the same once"));
    let top = Terminal::run(Command::new(binary()).args(["top", "--control-socket", "/nowhere/control.sock"]));
    top.shows("cannot reach homing on /nowhere/control.sock");
    top.ends_with(3);
}
