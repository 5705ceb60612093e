//! Who may connect, and how often, as the kernel's programs read it.

use std::collections::HashSet;

use aya::maps::lpm_trie::Key;
use ipnet::IpNet;
use lb_common::abi::{ACCESS_BITS_APP, Limits, access_data};
use lb_common::addr::Addr;

use super::pod::Wire;
use super::{Datapath, InMap, TableError};

/// A prefix on an app's lists.
#[derive(Clone, Copy, Debug)]
pub struct Listed {
    pub app: u32,
    pub net: IpNet,
    /// `LISTED_*`.
    pub what: u32,
}

impl Listed {
    /// As the map has it.
    pub fn key(&self) -> Key<[u32; 5]> {
        // IPv4 addresses are compared in their IPv4-mapped form.
        let before = if self.net.addr().is_ipv4() { 96 } else { 0 };
        let bits = ACCESS_BITS_APP + before + u32::from(self.net.prefix_len());
        Key::new(bits, access_data(self.app, Addr::from(self.net.addr())))
    }
}

impl Datapath {
    /// Makes the lists exactly these.
    pub fn publish_lists(&mut self, lists: &[Listed]) -> Result<(), TableError> {
        let mut wanted = HashSet::new();
        for listed in lists {
            let key = listed.key();
            self.access.insert(&key, listed.what, 0).in_map("ACCESS")?;
            wanted.insert((key.prefix_len(), key.data()));
        }
        let is_stale = |key: &Key<[u32; 5]>| !wanted.contains(&(key.prefix_len(), key.data()));
        let stale: Vec<_> = self.access.keys().filter_map(Result::ok).filter(is_stale).collect();
        stale.iter().try_for_each(|key| self.access.remove(key).in_map("ACCESS"))
    }

    /// The rates of these apps, each by its number.
    pub fn publish_limits(&mut self, limits: &[(u32, Limits)]) -> Result<(), TableError> {
        limits.iter().try_for_each(|&(app, limits)| self.limits.set(app, Wire(limits), 0).in_map("LIMITS"))
    }
}
