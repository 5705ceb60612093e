//! Prometheus' text format, version 0.0.4: what every scraper reads.

use std::fmt::{Display, Write as _};

use super::families::Family;
use crate::routing::{BOUNDS, Observed};

/// What to say of the format in `Content-Type`.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Name and value.
pub(super) type Label<'a> = (&'a str, &'a str);

/// An exposition as it grows.
#[derive(Default)]
pub(super) struct Text(String);

/// Where samples of one family go.
pub(super) struct Samples<'a> {
    text: &'a mut String,
    name: &'a str,
}

impl Text {
    /// Begins a family; its samples stand together.
    pub(super) fn family(&mut self, family: &Family) -> Samples<'_> {
        self.named(family.name, family.kind, family.help)
    }

    pub(super) fn named<'a>(&'a mut self, name: &'a str, kind: &str, help: &str) -> Samples<'a> {
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        put(&mut self.0, format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
        Samples { text: &mut self.0, name }
    }

    pub(super) fn finish(self) -> String {
        self.0
    }
}

impl Samples<'_> {
    pub(super) fn add(&mut self, labels: &[Label<'_>], value: impl Display) {
        self.line("", labels, None, value);
    }

    pub(super) fn histogram(&mut self, labels: &[Label<'_>], observed: &Observed) {
        for (bound, up_to) in BOUNDS.iter().zip(&observed.up_to) {
            self.line("_bucket", labels, Some(&bound.as_secs_f64().to_string()), up_to);
        }
        let total = observed.up_to[BOUNDS.len()];
        self.line("_bucket", labels, Some("+Inf"), total);
        self.line("_sum", labels, None, observed.sum.as_secs_f64());
        self.line("_count", labels, None, total);
    }

    fn line(&mut self, suffix: &str, labels: &[Label<'_>], bound: Option<&str>, value: impl Display) {
        put(self.text, format_args!("{}{suffix}", self.name));
        let mut separator = '{';
        for (name, value) in labels.iter().copied().chain(bound.map(|bound| ("le", bound))) {
            put(self.text, format_args!("{separator}{name}=\""));
            value.chars().for_each(|char| match char {
                '\\' => self.text.push_str("\\\\"),
                '"' => self.text.push_str("\\\""),
                '\n' => self.text.push_str("\\n"),
                other => self.text.push(other),
            });
            self.text.push('"');
            separator = ',';
        }
        put(self.text, format_args!("{} {value}\n", if separator == ',' { "}" } else { "" }));
    }
}

fn put(text: &mut String, what: std::fmt::Arguments<'_>) {
    // A string takes everything.
    let _ = text.write_fmt(what);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::routing::Histogram;

    #[test]
    fn what_comes_from_elsewhere_is_escaped() {
        let mut text = Text::default();
        let mut samples = text.named("a_total", "counter", "Back\\slash\nand line.");
        samples.add(&[("app", "a\"b\\c\nd"), ("path", "")], 7);
        samples.add(&[], 0.5);
        assert_eq!(
            text.finish(),
            "# HELP a_total Back\\\\slash\\nand line.\n# TYPE a_total counter\n\
             a_total{app=\"a\\\"b\\\\c\\nd\",path=\"\"} 7\na_total 0.5\n"
        );
    }

    #[test]
    fn a_histogram_counts_upwards_in_seconds() {
        let histogram = Histogram::default();
        histogram.observe(Duration::from_millis(3));
        histogram.observe(Duration::from_secs(600));
        let mut text = Text::default();
        text.named("t_seconds", "histogram", "Times.").histogram(&[("app", "a")], &histogram.now());
        let text = text.finish();
        for line in [
            "t_seconds_bucket{app=\"a\",le=\"0.0025\"} 0\n",
            "t_seconds_bucket{app=\"a\",le=\"0.005\"} 1\n",
            "t_seconds_bucket{app=\"a\",le=\"120\"} 1\n",
            "t_seconds_bucket{app=\"a\",le=\"+Inf\"} 2\n",
            "t_seconds_sum{app=\"a\"} 600.003\n",
            "t_seconds_count{app=\"a\"} 2\n",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }
}
