"""Takes clients' packets out of those that came in IP or in GUE, where the kernel has no tunnel devices for it: they come
out of a TUN device, as from the kernel's own. A packet that its receivers would not take ends the process, so that a test
sees its host fall silent. Says "ready" once it is.
"""

import fcntl
import os
import selectors
import socket
import struct
import subprocess

# Linux: include/uapi/linux/if_tun.h, udp.h, asm-generic/socket.h.
TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
UDP_NO_CHECK6_RX = 102
SO_RCVBUFFORCE = 33

GUE_PORT = 6080
BUFFER_BYTES = 4 * 1024 * 1024
# What a protocol number says is inside: an IP version.
INSIDE = {4: 4, 41: 6}


def device(name):
    tun = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    # Clients are not reached by way of it; the stricter of the two settings counts.
    for where in ("all", name):
        with open(f"/proc/sys/net/ipv4/conf/{where}/rp_filter", "w") as setting:
            setting.write("0")
    subprocess.run(["ip", "link", "set", name, "up"], check=True)
    return tun


def whole(protocol, packet):
    """The packet, if it is what its protocol number says and as long as its own header says."""
    if packet[0] >> 4 != INSIDE[protocol]:
        raise ValueError(f"protocol {protocol} with a packet of version {packet[0] >> 4}")
    length = struct.unpack_from("!H", packet, 2)[0] if protocol == 4 else 40 + struct.unpack_from("!H", packet, 4)[0]
    if length != len(packet):
        raise ValueError(f"a packet of {length} bytes in {len(packet)}")
    return packet


def after_ipv4(packet):
    """A raw socket of IPv4 gives the header along; what it says is inside."""
    return packet[(packet[0] & 0x0F) * 4:]


def in_gue(payload):
    # Variant 0, no options, no flags, data (draft-ietf-intarea-gue-09, section 3.1).
    first, protocol, flags = struct.unpack_from("!BBH", payload)
    if (first, flags) != (0, 0):
        raise ValueError(f"a GUE header of {payload[:4].hex()}")
    return whole(protocol, payload[4:])


def sockets():
    """Each with what takes a client's packet out of what it receives."""
    for protocol in INSIDE:
        over_v4 = socket.socket(socket.AF_INET, socket.SOCK_RAW, protocol)
        yield over_v4, lambda packet, protocol=protocol: whole(protocol, after_ipv4(packet))
        over_v6 = socket.socket(socket.AF_INET6, socket.SOCK_RAW, protocol)
        yield over_v6, lambda packet, protocol=protocol: whole(protocol, packet)
    over_v4 = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    over_v4.bind(("", GUE_PORT))
    yield over_v4, in_gue
    over_v6 = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    over_v6.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    # As the kernel's own receiver does: the checksum may be zero (RFC 6935).
    over_v6.setsockopt(socket.IPPROTO_UDP, UDP_NO_CHECK6_RX, 1)
    over_v6.bind(("", GUE_PORT))
    yield over_v6, in_gue


tun = device("unpack")
selector = selectors.DefaultSelector()
for receiver, take_out in sockets():
    receiver.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
    selector.register(receiver, selectors.EVENT_READ, take_out)
print("ready", flush=True)
while True:
    for key, _ in selector.select():
        os.write(tun, key.data(key.fileobj.recv(65536)))
