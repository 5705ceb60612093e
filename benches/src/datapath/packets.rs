//! The packets that are measured: whole frames, TCP, without data.

/// The service's address.
pub const SERVICE_V4: [u8; 4] = [192, 0, 2, 1];
const SERVICE_V6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const CLIENT_V6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];
const SYN: u8 = 0x02;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const TCP: u8 = 6;
const TCP_LEN: u8 = 20;

pub fn ack(port: u16) -> Vec<u8> {
    ipv4(port, ACK)
}

pub fn syn(port: u16) -> Vec<u8> {
    ipv4(port, SYN)
}

/// As if it carried data: what matters is the flag.
pub fn data(port: u16) -> Vec<u8> {
    ipv4(port, ACK | PSH)
}

fn ipv4(port: u16, flags: u8) -> Vec<u8> {
    let mut frame = link([0x08, 0x00]);
    frame.extend([0x45, 0, 0, 20 + TCP_LEN, 0, 1, 0x40, 0, 64, TCP, 0, 0, 10, 0, 0, 1]);
    frame.extend(SERVICE_V4);
    frame.extend(tcp(port, flags));
    frame
}

pub fn ack_v6(port: u16) -> Vec<u8> {
    let mut frame = link([0x86, 0xdd]);
    frame.extend([0x60, 0, 0, 0, 0, TCP_LEN, TCP, 64]);
    frame.extend(CLIENT_V6);
    frame.extend(SERVICE_V6);
    frame.extend(tcp(port, ACK));
    frame
}

fn link(ethertype: [u8; 2]) -> Vec<u8> {
    [&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2][..], &ethertype].concat()
}

fn tcp(port: u16, flags: u8) -> Vec<u8> {
    [&[0x9c, 0x40][..], &port.to_be_bytes(), &[0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]].concat()
}
