//! Which requests on its addresses are an app's own: for some hosts, below some path.

use std::fmt;

/// As it is configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Empty: any host.
    pub hosts: Vec<Host>,
    /// `/`, or segments without a slash at the end: `/sales`.
    pub path: String,
    /// Workers see what follows `path`.
    pub strip_path: bool,
}

impl Default for Route {
    fn default() -> Self {
        Self { hosts: Vec::new(), path: "/".to_owned(), strip_path: true }
    }
}

impl Route {
    /// The hosts, or nothing for any.
    pub fn patterns(&self) -> impl Iterator<Item = Option<&Host>> {
        let any = self.hosts.is_empty().then_some(None);
        self.hosts.iter().map(Some).chain(any)
    }
}

/// The name in a URL, in lower case and without a dot at its end.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Host {
    /// This one.
    Exact(String),
    /// `*.` and this: all names that end so, with one label more or several.
    Below(String),
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => f.write_str(name),
            Self::Below(name) => write!(f, "*.{name}"),
        }
    }
}
