//! What the kernel tells of links and addresses (rtnetlink): that something changed, and whose XDP program is where.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use netlink_packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage, LinkXdp};
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

/// The id of the XDP program on this interface, if there is one.
///
/// # Errors
/// When the kernel does not answer.
pub(super) fn xdp_program(interface: u32) -> io::Result<Option<u32>> {
    let socket = open(0, SocketFlags::empty())?;
    let mut link = LinkMessage::default();
    link.header.index = interface;
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetLink(link));
    request.header.flags = NLM_F_REQUEST;
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    rustix::net::send(&socket, &bytes, SendFlags::empty())?;
    let mut answer = vec![0; ANSWER_BYTES];
    let (len, _) = rustix::net::recv(socket.as_fd(), &mut answer[..], RecvFlags::empty())?;
    let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer[..len]).map_err(io::Error::other)?;
    let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) = answer.payload else { return Ok(None) };
    let xdp = link.attributes.into_iter().find_map(|attribute| match attribute {
        LinkAttribute::Xdp(xdp) => Some(xdp),
        _ => None,
    });
    let id = |attribute: &LinkXdp| match attribute {
        LinkXdp::ProgId(id) => Some(*id),
        _ => None,
    };
    Ok(xdp.and_then(|xdp| xdp.iter().find_map(id)))
}
