//! Where a client goes, and why: the decision of this moment, step by step, in words.

use std::net::IpAddr;
use std::sync::Arc;

use lb_common::abi::{BackendId, Binding, BindingKey, SERVICE_AUTO};
use lb_common::addr::Addr;
use lb_common::affinity::{self, Choice};

use super::runner::Runner;
use crate::admin::report::{BindingReport, Trace};
use crate::admin::unknown_app;
use crate::config::{self, Affinity, Forward, Rate};

impl Runner {
    /// Where this address goes now, decided by the datapath's own function over the tables of this moment.
    pub(super) fn trace(&mut self, name: &str, address: IpAddr) -> Result<Trace, String> {
        let Some(app) = self.config.apps.iter().position(|app| app.name == name) else {
            return Err(unknown_app(name, self.config.apps.iter().map(|app| app.name.as_str())));
        };
        let route = Arc::clone(&self.snapshot().apps[&self.state.apps[app].spec.id]);
        let service = self.fixed[app].service;
        let client = affinity::client_of(&service, Addr::from(address));
        let slot_number = affinity::slot_of(&service, client);
        let slot = route.ring[slot_number as usize];
        let key = BindingKey { client, app: service.app, reserved: 0 };
        let binding = self.bindings.get(&key);
        let by_cookie = self.config.apps[app].affinity == Affinity::Cookie;
        let promotion = self.bindings.promotion(&key).filter(|_| route.affinity == Affinity::Auto);
        let choice = match promotion {
            _ if by_cookie => Choice::HttpOnly,
            Some(_) => Choice::Promoted,
            None => route.choose(&*self.bindings, address),
        };
        let worker = choice.backend().and_then(|backend| self.id(backend));
        let takes_family = choice.backend().is_some_and(|backend| self.takes_directly(backend, address));
        let is_denied = self.config.apps[app].protect.is_denied(address);
        let has_kernel_path = self.config.apps[app].has_kernel_path();
        let by_kernel = self.kernel_status.active && takes_family && has_kernel_path;
        let prefix = prefix(&self.config.apps[app].client, client);
        let mut steps = vec![format!("client: {address} counts as {prefix}")];
        steps.extend(self.guard_in_words(app, is_denied));
        let mut would_change = Vec::new();
        if is_denied {
            would_change.push("protect.allow and protect.deny in the app's configuration".to_owned());
        } else if let Some(promotion) = promotion {
            let ago = self.bindings.now_s().wrapping_sub(promotion.seen_s);
            steps.push(format!(
                "promoted: more than {} connections at once; the HTTP path tells its users apart by cookie, one of them was \
                 seen {ago} s ago",
                service.promote_above
            ));
            let by_address = route.choose(&*self.bindings, address).backend().and_then(|backend| self.id(backend));
            let by_address = by_address.unwrap_or_else(|| "nobody".to_owned());
            steps
                .push(format!("a request without a cookie that asks for no page goes by the address: to {by_address}"));
            would_change.push("none of its users is seen for timeouts.affinity".to_owned());
        } else if by_cookie {
            steps.push("affinity is by cookie: the HTTP path decides, an address does not".to_owned());
            would_change.push("affinity = \"ip\" in the app's configuration".to_owned());
        } else {
            if service.flags & SERVICE_AUTO != 0 {
                let at_once = binding.map_or(0, |binding| binding.connections);
                steps.push(format!(
                    "not promoted: {at_once} connections on the kernel path; more than {} at once make it many people",
                    service.promote_above
                ));
            }
            let owner = self.id(slot.current).unwrap_or_else(|| "nobody".to_owned());
            steps.push(format!("ring: slot {slot_number} of {}, owned by {owner}", route.ring.len()));
            if slot.previous.is_none() {
                steps.push("the slot is stable: bindings are not asked".to_owned());
            } else {
                steps.push("the slot is in transition: a live binding goes before the ring".to_owned());
            }
            steps.push(match &binding {
                Some(binding) => self.binding_in_words(binding),
                None => "binding: none".to_owned(),
            });
            steps.push(self.delivery(choice, by_kernel, worker.as_deref()));
            steps.extend(choice.backend().and_then(|backend| self.worker_in_words(backend)));
            would_change.push(match choice {
                Choice::Bound(_) => {
                    "the bound worker ends, or the client stays away beyond timeouts.affinity".to_owned()
                }
                Choice::Ring(_) => "the worker ends or is drained; the client then keeps its next worker".to_owned(),
                Choice::NoWorker | Choice::HttpOnly | Choice::Promoted => "a worker becomes ready".to_owned(),
            });
            if !by_kernel && choice.backend().is_some() {
                would_change.push(
                    if self.kernel_status.active && self.config.apps[app].has_workers_on_unix_sockets() {
                        "workers on ports, `{port}` in place of `{socket}`, are reached by the kernel path".to_owned()
                    } else if self.kernel_status.active && !has_kernel_path {
                        "an address of the app's own, without `hosts`, `path` and `tls`, has the kernel path".to_owned()
                    } else if self.kernel_status.active {
                        "a worker that listens on this address family too goes by the kernel path".to_owned()
                    } else {
                        format!("the kernel path: {}", self.kernel_status.reason.as_deref().unwrap_or("off"))
                    },
                );
            }
        }
        Ok(Trace {
            app: name.to_owned(),
            address,
            client: prefix,
            path: if is_denied {
                "none"
            } else if by_kernel {
                "kernel"
            } else {
                "http"
            }
            .to_owned(),
            rule: match choice {
                _ if is_denied => "denied",
                Choice::Ring(_) => "ring",
                Choice::Bound(_) => "bound",
                Choice::HttpOnly => "cookie",
                Choice::Promoted => "promoted",
                Choice::NoWorker => "no_worker",
            }
            .to_owned(),
            worker: worker.filter(|_| !is_denied),
            slot: (!by_cookie && promotion.is_none()).then_some(slot_number),
            ring_len: route.ring.len() as u32,
            in_transition: !slot.previous.is_none(),
            binding: binding.map(|binding| BindingReport {
                worker: self.id(binding.backend),
                connections: binding.connections,
                seen_seconds_ago: binding.unseen_s(self.bindings.now_s()),
                live: route.worker(binding.backend).is_some(),
            }),
            steps,
            would_change,
        })
    }

    /// What protection says of the address, where the app has any.
    fn guard_in_words(&self, app: usize, is_denied: bool) -> Vec<String> {
        let protect = &self.config.apps[app].protect;
        let mut steps = Vec::new();
        if is_denied {
            steps.push("lists: denied; its new connections are refused".to_owned());
        } else if !(protect.allow.is_empty() && protect.deny.is_empty()) {
            steps.push("lists: not denied".to_owned());
        }
        for (whose, rate) in [("this client", &protect.client), ("all clients together", &protect.app)] {
            if let Some(Rate { per_second, burst }) = rate.as_ref().filter(|_| !is_denied) {
                steps.push(format!("rate: {per_second} new connections a second of {whose}, {burst} at once"));
            }
        }
        steps
    }

    /// The worker as it is now.
    fn worker_in_words(&mut self, backend: BackendId) -> Option<String> {
        let (app, worker) = self.state.worker(backend)?;
        let (state, is_process, max) =
            (worker.state_name(), worker.is_process(), self.state.apps[app].spec.max_connections);
        let name = self.id(backend)?;
        let (_, connections) = self.connections(backend);
        let room = if is_process { format!(" of {max}") } else { String::new() };
        Some(format!("worker: {name} is {state}, {connections} connections{room}"))
    }

    fn binding_in_words(&self, binding: &Binding) -> String {
        let ago = binding.unseen_s(self.bindings.now_s());
        match self.id(binding.backend) {
            Some(worker) => format!("binding: {worker}, {} connections, last seen {ago} s ago", binding.connections),
            None => format!("binding: a worker that is gone, last seen {ago} s ago; it does not count"),
        }
    }

    fn delivery(&self, choice: Choice, by_kernel: bool, worker: Option<&str>) -> String {
        match (choice.backend(), by_kernel) {
            (Some(backend), true) => match self.remotes.get(&backend) {
                Some(remote) => format!(
                    "delivery: XDP forwards every packet to {} at {} ({})",
                    worker.unwrap_or("the backend"),
                    remote.address,
                    remote.forward.name()
                ),
                None => format!("delivery: the kernel hands the connection to {}", worker.unwrap_or("the worker")),
            },
            (Some(backend), false) if self.remotes.contains_key(&backend) => {
                format!("delivery: the HTTP path forwards to {}", worker.unwrap_or("the backend"))
            }
            (Some(backend), false) if self.is_on_unix_socket(backend) => format!(
                "delivery: {} listens on a unix socket, so the HTTP path forwards to it",
                worker.unwrap_or("the worker")
            ),
            (Some(backend), false) if self.is_http_only(backend) => format!(
                "delivery: the HTTP path forwards to {}; it ends TLS, or reads whose a request is",
                worker.unwrap_or("the worker")
            ),
            (Some(_), false) if self.kernel_status.active => format!(
                "delivery: {} does not listen on this address family, so the HTTP path forwards to it",
                worker.unwrap_or("the worker")
            ),
            (Some(_), false) => format!("delivery: the HTTP path forwards to {}", worker.unwrap_or("the worker")),
            (None, _) => "delivery: the HTTP path holds the request until a worker is ready".to_owned(),
        }
    }

    /// Whether the kernel can bring a connection from this address to the backend.
    fn takes_directly(&self, backend: BackendId, address: IpAddr) -> bool {
        if let Some(remote) = self.remotes.get(&backend) {
            return remote.forward != Forward::Http;
        }
        self.running.get(&backend).is_some_and(|running| {
            let (v4, v6) = running.families;
            if Addr::from(address).is_v4() { v4 } else { v6 }
        })
    }

    fn is_http_only(&self, backend: BackendId) -> bool {
        self.state.worker(backend).is_some_and(|(app, _)| self.config.apps[app].http_only().is_some())
    }

    fn is_on_unix_socket(&self, backend: BackendId) -> bool {
        self.running.get(&backend).is_some_and(|running| running.address.port().is_none())
    }
}

fn prefix(config: &config::Client, client: Addr) -> String {
    let bits = if client.is_v4() { config.ipv4 } else { config.ipv6 };
    format!("{}/{bits}", IpAddr::from(client))
}
