//! What is behind each listen address, made from the configuration: for the HTTP path, and for the kernel's services.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use lb_common::abi::{PROTO_TCP, PROTO_UDP, SERVICE_SOCKETS, SERVICE_SYNCOOKIES, Service, ServiceKey};

use super::certificates::Certificates;
use super::fixed;
use super::runner::{Kernel, Runner};
use crate::config::App;
use crate::routing::Door;
use crate::tls;

/// By listen address.
pub(super) type Fronts = Arc<BTreeMap<SocketAddr, Arc<Door>>>;

/// `apps`: each with its number. `has_kernel`: the kernel's programs know whose a connection to an app's own address is.
fn fronts<'a>(apps: impl Iterator<Item = (u32, &'a App)>, certificates: &Certificates, has_kernel: bool) -> Fronts {
    let mut behind: BTreeMap<SocketAddr, Vec<(u32, &App)>> = BTreeMap::new();
    for (id, app) in apps {
        for &address in &app.listen {
            behind.entry(address).or_default().push((id, app));
        }
    }
    let door = |apps: Vec<(u32, &App)>| {
        let own: Vec<_> = apps.iter().filter_map(|(_, app)| certificates.of(app)).collect();
        let tls = (!own.is_empty()).then(|| tls::server(&own, &certificates.tickets));
        let routes = apps.iter().map(|(id, app)| (*id, &app.route));
        let h2c = apps.iter().any(|(_, app)| app.h2c);
        let proxy_protocol = apps.iter().any(|(_, app)| app.proxy_protocol);
        Door::new(routes, !has_kernel).with_tls(tls).with_proxy_protocol(proxy_protocol).with_h2c(h2c)
    };
    Arc::new(behind.into_iter().map(|(address, apps)| (address, Arc::new(door(apps)))).collect())
}

impl Runner {
    /// After every change of the configuration, before the next snapshot.
    pub(super) fn look_at_fronts(&mut self) {
        let has_kernel = matches!(self.kernel, Kernel::On(_));
        let apps = self.fixed.iter().map(|fixed| fixed.service.app).zip(&self.config.apps);
        self.fronts = fronts(apps, &self.certificates, has_kernel);
    }

    /// Whether one app alone is on this address. The kernel cannot tell several apart, and leaves them alone.
    pub(super) fn is_of_one(&self, address: SocketAddr) -> bool {
        self.fronts.get(&address).is_some_and(|door| door.sole().is_some())
    }

    /// Before the services, which refer to it.
    pub(super) fn publish_protection(&mut self) -> anyhow::Result<()> {
        let Some(datapath) = self.kernel.datapath() else { return Ok(()) };
        let numbered = self.state.apps.iter().map(|app| app.spec.id).zip(&self.config.apps);
        let protection = numbered.map(|(id, app)| {
            let (lists, limits) = fixed::protection(id, app);
            (lists, (id, limits))
        });
        let (lists, limits): (Vec<_>, Vec<_>) = protection.unzip();
        datapath.publish_lists(&lists.concat())?;
        datapath.publish_limits(&limits)?;
        Ok(())
    }

    pub(super) fn publish_services(&mut self) -> anyhow::Result<()> {
        // Interfaces that the configuration names are vouched for.
        let is_vouched = !self.config.homing.interfaces.is_empty();
        let answers = self.kernel.datapath().is_some_and(|datapath| is_vouched || datapath.answers_arrive());
        let cookies = if answers { SERVICE_SYNCOOKIES } else { 0 };
        let services: Vec<_> = self
            .config
            .apps
            .iter()
            .zip(self.fixed.iter().zip(&self.sockets))
            .flat_map(|(app, (fixed, &has_sockets))| {
                let sockets = if has_sockets { SERVICE_SOCKETS } else { 0 };
                let service = Service { flags: fixed.service.flags | sockets | cookies, ..fixed.service };
                let key = |at: &SocketAddr, protocol| ServiceKey::new(at.ip().into(), at.port(), protocol);
                let own = app.listen.iter().filter(|at| self.is_of_one(**at));
                let tcp = own.map(move |at| key(at, PROTO_TCP));
                let udp = app.listen_udp.iter().map(move |at| key(at, PROTO_UDP));
                tcp.chain(udp).map(move |key| (key, service))
            })
            .collect();
        if let Some(datapath) = self.kernel.datapath() {
            datapath.publish_services(&services)?;
        }
        Ok(())
    }
}
