//! What XDP looks at by port, before it looks anything up.

use lb_common::abi::{PORT_EVERY, PORT_OPENING, PROTO_TCP, Ports, SERVICE_REMOTE, Service, ServiceKey};

/// Over these services.
pub fn ports<'a>(services: impl IntoIterator<Item = &'a (ServiceKey, Service)>) -> Box<Ports> {
    let mut ports = Box::new([0; size_of::<Ports>()]);
    for (key, service) in services {
        let is_local = key.proto() == PROTO_TCP && service.flags & SERVICE_REMOTE == 0;
        let port = &mut ports[usize::from(key.port())];
        *port = (*port).max(if is_local { PORT_OPENING } else { PORT_EVERY });
    }
    ports
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_common::addr::Addr;

    #[test]
    fn the_service_that_sees_more_decides_for_its_port() {
        let local = Service::default();
        let remote = Service { flags: SERVICE_REMOTE, ..local };
        let at = |port| ServiceKey::tcp(Addr::ANY_V4, port);
        let ports = ports(&[(at(80), remote), (at(80), local), (at(65_535), local)]);
        assert_eq!((ports[80], ports[65_535], ports[81]), (PORT_EVERY, PORT_OPENING, 0));
    }
}
