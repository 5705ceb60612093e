//! The door for `cargo xtask fuzz`: for each of homing's readers a function of bytes that panics where what it promises
//! does not hold. Each stands beside what it asks, as that module's `fuzz`; those of `lb_common` stand here.
//!
//! What was once found lies in `fuzz/corpus/TARGET` and is asked again by an ordinary test, without a fuzzer.

mod choose;
mod packets;

/// A reader, and what is asked of it.
pub struct Target {
    /// Also the name of its folder in `fuzz/corpus`.
    pub name: &'static str,
    pub run: fn(&[u8]),
}

pub const TARGETS: [Target; 10] = [
    Target { name: "choose", run: choose::choose },
    Target { name: "config", run: crate::config::file::fuzz::config },
    Target { name: "control", run: crate::admin::server::fuzz::control },
    Target { name: "cookie", run: crate::proxy::fuzzing::cookie },
    Target { name: "door", run: crate::routing::fuzz::door },
    Target { name: "gate", run: crate::proxy::fuzzing::gate },
    Target { name: "learn", run: crate::proxy::fuzzing::learn },
    Target { name: "packets", run: packets::packets },
    Target { name: "proxied", run: crate::proxy::fuzzing::proxied },
    Target { name: "state", run: crate::control::persist::fuzz::state },
];

/// Bytes that are made into something with a shape: zeros where they have ended.
pub(crate) struct Input<'a>(pub(crate) &'a [u8]);

impl<'a> Input<'a> {
    pub(crate) fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or_default()
    }

    pub(crate) fn number(&mut self) -> u32 {
        self.take(4).iter().fold(0, |number, &byte| number << 8 | u32::from(byte))
    }

    /// As many as there are, at most `count`.
    pub(crate) fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    pub(crate) fn pick<'t, T>(&mut self, from: &'t [T]) -> &'t T {
        &from[usize::from(self.byte()) % from.len()]
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    use super::TARGETS;

    #[test]
    fn whatever_the_fuzzer_once_found_stays_mended() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
        let folders = fs::read_dir(&corpus).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let names = TARGETS.iter().map(|target| target.name.to_owned());
        assert_eq!(folders.collect::<BTreeSet<_>>(), names.collect(), "a folder for each target");
        for target in &TARGETS {
            let files: Vec<_> =
                fs::read_dir(corpus.join(target.name)).unwrap().map(|file| file.unwrap().path()).collect();
            assert!(!files.is_empty(), "{} has no seed", target.name);
            for file in files {
                // Shown if it fails.
                println!("{}", file.display());
                (target.run)(&fs::read(&file).unwrap());
            }
            (target.run)(b"");
        }
    }
}
