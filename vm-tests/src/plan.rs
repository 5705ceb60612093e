//! What the host asks for: files that it puts into the guest's first file system.

use std::fmt;
use std::fs;
use std::time::Duration;

use anyhow::{Context as _, bail};

/// Seconds that a test may take, then a line `SUITE TEST` for each; or `run` and a program with its arguments.
pub const PLAN: &str = "/plan";
/// Modules that tests need, one in a line.
pub const MODULES: &str = "/modules";
/// Where the suites are: programs of Rust's test harness.
pub const TESTS: &str = "/tests";

#[derive(Debug, PartialEq)]
pub enum Plan {
    Tests {
        /// What one of them may take.
        limit: Duration,
        tests: Vec<Test>,
    },
    /// A program that says itself what became of it.
    Program(Vec<String>),
}

/// One test of a suite.
#[derive(Debug, PartialEq)]
pub struct Test {
    pub suite: String,
    pub name: String,
}

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.suite, self.name)
    }
}

impl Plan {
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let mut lines = text.lines();
        let first = lines.next().unwrap_or_default();
        if let Some(words) = first.strip_prefix("run ") {
            return Ok(Self::Program(words.split(' ').map(str::to_owned).collect()));
        }
        let limit = first;
        let limit = limit.parse().with_context(|| format!("{PLAN}: {limit:?} is no number of seconds"))?;
        let test = |line: &str| {
            let Some((suite, name)) = line.split_once(' ') else { bail!("{PLAN}: {line:?} is not SUITE TEST") };
            Ok(Test { suite: suite.to_owned(), name: name.to_owned() })
        };
        Ok(Self::Tests { limit: Duration::from_secs(limit), tests: lines.map(test).collect::<anyhow::Result<_>>()? })
    }
}

pub fn read(path: &str) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_a_limit_and_tests() {
        let plan = Plan::parse("90\nkernel every_fixture\n").expect("a plan");
        let test = Test { suite: "kernel".to_owned(), name: "every_fixture".to_owned() };
        assert_eq!(plan, Plan::Tests { limit: Duration::from_secs(90), tests: vec![test] });
        assert!(Plan::parse("soon\n").is_err());
        assert!(Plan::parse("90\nkernel\n").is_err());
    }

    #[test]
    fn a_plan_is_a_program() {
        let plan = Plan::parse("run homing-bench cost\n").expect("a plan");
        assert_eq!(plan, Plan::Program(vec!["homing-bench".to_owned(), "cost".to_owned()]));
    }
}
