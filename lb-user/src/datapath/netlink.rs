//! What the kernel tells of links, addresses and routes (rtnetlink): that something changed, whose programs are where, and
//! over what a host is reached.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::link::{LinkAttribute, LinkInfo, LinkMessage, LinkXdp};
use netlink_packet_route::route::{RouteAttribute, RouteMessage};
use netlink_packet_route::tc::{TcAttribute, TcMessage};
use netlink_packet_route::{AddressFamily as RouteFamily, RouteNetlinkMessage};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink::SocketAddrNetlink};
use tokio::io::unix::AsyncFd;

/// Links, IPv4 addresses and IPv6 addresses (Linux: include/uapi/linux/rtnetlink.h, `RTMGRP_*`).
const GROUPS: u32 = 0x1 | 0x10 | 0x100;
/// Larger than the kernel's answer about one link.
const ANSWER_BYTES: usize = 32 * 1024;

/// News of links and addresses of this network namespace.
pub struct Changes(AsyncFd<OwnedFd>);

impl Changes {
    /// # Errors
    /// When the kernel gives no such socket.
    pub fn watch() -> io::Result<Self> {
        Ok(Self(crate::sys::watch_readable(open(GROUPS, SocketFlags::NONBLOCK)?)?))
    }

    /// Waits until something has changed. What, is for the caller to look at. Dropped before it is done, it has taken
    /// nothing away.
    ///
    /// # Errors
    /// When the socket broke.
    pub async fn next(&self) -> io::Result<()> {
        let mut ready = self.0.readable().await?;
        let mut news = [0; 4_096];
        loop {
            match rustix::net::recv(self.0.get_ref(), &mut news, RecvFlags::DONTWAIT) {
                // Too much news at once is news too.
                Ok(_) | Err(Errno::NOBUFS | Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(error.into()),
            }
        }
        ready.clear_ready();
        Ok(())
    }
}

fn open(groups: u32, flags: SocketFlags) -> io::Result<OwnedFd> {
    let flags = flags | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
    rustix::net::bind(&socket, &SocketAddrNetlink::new(0, groups))?;
    Ok(socket)
}

/// Asks the kernel, and gives what it answers until it is done.
fn ask(message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
    let socket = open(0, SocketFlags::empty())?;
    let mut request = NetlinkMessage::from(message);
    request.header.flags = NLM_F_REQUEST | flags;
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    rustix::net::send(&socket, &bytes, SendFlags::empty())?;
    let mut answers = Vec::new();
    loop {
        let mut buffer = vec![0; ANSWER_BYTES];
        let (len, _) = rustix::net::recv(socket.as_fd(), &mut buffer[..], RecvFlags::empty())?;
        let mut rest = &buffer[..len];
        while !rest.is_empty() {
            let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
            rest = rest.get((answer.header.length as usize).next_multiple_of(4)..).unwrap_or_default();
            match answer.payload {
                NetlinkPayload::InnerMessage(answer) => answers.push(answer),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                _ => return Ok(answers),
            }
        }
        if flags & NLM_F_DUMP == 0 {
            return Ok(answers);
        }
    }
}

/// What the kernel tells of this interface.
fn link(interface: u32) -> io::Result<Vec<LinkAttribute>> {
    let mut link = LinkMessage::default();
    link.header.index = interface;
    let attributes = ask(RouteNetlinkMessage::GetLink(link), 0)?.into_iter().find_map(|answer| match answer {
        RouteNetlinkMessage::NewLink(link) => Some(link.attributes),
        _ => None,
    });
    Ok(attributes.unwrap_or_default())
}

/// The id of the XDP program on this interface, if there is one.
///
/// # Errors
/// When the kernel does not answer.
pub(super) fn xdp_program(interface: u32) -> io::Result<Option<u32>> {
    let id = |attribute: &LinkXdp| match attribute {
        LinkXdp::ProgId(id) => Some(*id),
        _ => None,
    };
    Ok(link(interface)?.into_iter().find_map(|attribute| match attribute {
        LinkAttribute::Xdp(xdp) => xdp.iter().find_map(id),
        _ => None,
    }))
}

/// What kind of software device this interface is (`vlan`, `bridge`, `veth` …); `None` for hardware.
///
/// # Errors
/// When the kernel does not answer.
pub(super) fn kind(interface: u32) -> io::Result<Option<String>> {
    let kind = |info: &LinkInfo| match info {
        LinkInfo::Kind(kind) => Some(kind.to_string()),
        _ => None,
    };
    Ok(link(interface)?.into_iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => infos.iter().find_map(kind),
        _ => None,
    }))
}

/// The interface on the way to this host, if there is a way.
///
/// # Errors
/// When the kernel does not answer, or knows no way.
pub(super) fn interface_towards(host: IpAddr) -> io::Result<Option<u32>> {
    let mut route = RouteMessage::default();
    (route.header.address_family, route.header.destination_prefix_length) =
        if host.is_ipv4() { (RouteFamily::Inet, 32) } else { (RouteFamily::Inet6, 128) };
    route.attributes.push(RouteAttribute::Destination(host.into()));
    let interface = |attribute| match attribute {
        RouteAttribute::Oif(interface) => Some(interface),
        _ => None,
    };
    Ok(ask(RouteNetlinkMessage::GetRoute(route), 0)?.into_iter().find_map(|answer| match answer {
        RouteNetlinkMessage::NewRoute(route) => route.attributes.into_iter().find_map(interface),
        _ => None,
    }))
}

/// The kinds of queueing disciplines on this interface.
///
/// # Errors
/// When the kernel does not answer.
pub(super) fn queueing_disciplines(interface: u32) -> io::Result<Vec<String>> {
    let index = interface.cast_signed();
    let mut wanted = TcMessage::default();
    wanted.header.index = index;
    // The kernel tells those of all interfaces.
    let answers = ask(RouteNetlinkMessage::GetQueueDiscipline(wanted), NLM_F_DUMP)?;
    let of_interface = answers.into_iter().filter_map(|answer| match answer {
        RouteNetlinkMessage::NewQueueDiscipline(found) if found.header.index == index => Some(found.attributes),
        _ => None,
    });
    let kind = |attribute| match attribute {
        TcAttribute::Kind(kind) => Some(kind),
        _ => None,
    };
    Ok(of_interface.flatten().filter_map(kind).collect())
}
