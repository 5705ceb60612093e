//! What is behind each listen address, made from the configuration: for the HTTP path, and for the kernel's services.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use super::runner::{Kernel, Runner};
use crate::config::App;
use crate::routing::Door;

/// By listen address.
pub(super) type Fronts = Arc<BTreeMap<SocketAddr, Arc<Door>>>;

/// `apps`: each with its number. `has_kernel`: the kernel's programs know whose a connection to an app's own address is.
fn fronts<'a>(apps: impl Iterator<Item = (u32, &'a App)>, has_kernel: bool) -> Fronts {
    let mut behind: BTreeMap<SocketAddr, Vec<(u32, &App)>> = BTreeMap::new();
    for (id, app) in apps {
        for &address in &app.listen {
            behind.entry(address).or_default().push((id, app));
        }
    }
    let door = |apps: Vec<(u32, &App)>| Door::new(apps.iter().map(|(id, app)| (*id, &app.route)), !has_kernel);
    Arc::new(behind.into_iter().map(|(address, apps)| (address, Arc::new(door(apps)))).collect())
}

impl Runner {
    /// After every change of the configuration, before the next snapshot.
    pub(super) fn look_at_fronts(&mut self) {
        let has_kernel = matches!(self.kernel, Kernel::On(_));
        let apps = self.fixed.iter().map(|fixed| fixed.service.app).zip(&self.config.apps);
        self.fronts = fronts(apps, has_kernel);
    }

    /// Whether one app alone is on this address. The kernel cannot tell several apart, and leaves them alone.
    pub(super) fn is_of_one(&self, address: SocketAddr) -> bool {
        self.fronts.get(&address).is_some_and(|door| door.sole().is_some())
    }
}
