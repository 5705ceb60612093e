//! Packets of clients to a service with remote backends, built byte by byte with right checksums, and what must become
//! of them.

pub const SERVICE_V4: [u8; 4] = [10, 9, 0, 100];
pub const SERVICE_V6: [u8; 16] = [0xfd, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];
pub const PORT: u16 = 8080;
const CLIENT_PORT: u16 = 40_000;
const HOPS: u8 = 61;
const TRAFFIC_CLASS: u8 = 0xb8;
const ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xfe];
const OUR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x11];

/// What the client sends.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// Flags.
    Tcp(u8),
    /// Flags, bytes of data.
    TcpData(u8, usize),
    /// Bytes of data.
    Udp(usize),
    /// About a packet of the service's.
    IcmpError,
}

/// A client's packet.
#[derive(Clone, Debug)]
pub struct Inner {
    pub name: String,
    pub is_v4: bool,
    /// VLAN tags around it.
    pub vlans: usize,
    pub kind: Kind,
    /// Words of IPv4 options.
    pub options: usize,
    pub hops: u8,
    /// (identification, offset in bytes, whether more follow).
    pub fragment: Option<(u16, u16, bool)>,
    /// The last byte of its address.
    pub client: u8,
    /// In place of the usual IPv4 address.
    pub client_v4: Option<[u8; 4]>,
}

impl Default for Inner {
    fn default() -> Self {
        Self {
            name: String::new(),
            is_v4: true,
            vlans: 0,
            kind: Kind::Tcp(0x02),
            options: 0,
            hops: HOPS,
            fragment: None,
            client: 7,
            client_v4: None,
        }
    }
}

impl Inner {
    pub fn ethertype(&self) -> [u8; 2] {
        if self.is_v4 { [0x08, 0x00] } else { [0x86, 0xdd] }
    }

    pub fn frame(&self) -> Vec<u8> {
        let mut frame = [OUR_MAC, ROUTER_MAC].concat();
        for tag in 0..self.vlans {
            frame.extend(if tag + 1 < self.vlans { [0x88, 0xa8] } else { [0x81, 0x00] });
            frame.extend([0, 5 + tag as u8]);
        }
        frame.extend(self.ethertype());
        frame.extend(self.packet(self.hops));
        frame
    }

    /// The IP packet with one hop less and a right checksum.
    pub fn packet_after_hop(&self) -> Vec<u8> {
        self.packet(self.hops - 1)
    }

    fn client_v4(&self) -> [u8; 4] {
        self.client_v4.unwrap_or([198, 51, 100, self.client])
    }

    fn client_v6(&self) -> [u8; 16] {
        [0x20, 1, 0xd, 0xb8, 0, 0, 0, self.client, 0, 0, 0, 0, 0, 0, 0, 9]
    }

    fn packet(&self, hops: u8) -> Vec<u8> {
        let (protocol, payload) = self.payload();
        if self.is_v4 { self.ipv4(hops, protocol, &payload) } else { self.ipv6(hops, protocol, &payload) }
    }

    fn ipv4(&self, hops: u8, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let header_len = 20 + 4 * self.options;
        let (id, place) = match self.fragment {
            Some((id, offset, more)) => (id, (u16::from(more) << 13) | (offset / 8)),
            None => (0x1234, 0x4000),
        };
        let mut packet = vec![0x40 | (header_len / 4) as u8, TRAFFIC_CLASS];
        packet.extend(((header_len + payload.len()) as u16).to_be_bytes());
        packet.extend(id.to_be_bytes());
        packet.extend(place.to_be_bytes());
        packet.extend([hops, protocol, 0, 0]);
        packet.extend(self.client_v4());
        packet.extend(SERVICE_V4);
        packet.extend(vec![1; 4 * self.options]);
        let checksum = internet_checksum(&packet);
        packet[10..12].copy_from_slice(&checksum.to_be_bytes());
        packet.extend(payload);
        packet
    }

    fn ipv6(&self, hops: u8, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let fragment = self.fragment.map(|(id, offset, more)| {
            [&[protocol, 0][..], &(offset | u16::from(more)).to_be_bytes(), &u32::from(id).to_be_bytes()].concat()
        });
        let fragment = fragment.unwrap_or_default();
        let mut packet = vec![0x60 | (TRAFFIC_CLASS >> 4), TRAFFIC_CLASS << 4, 0, 0];
        packet.extend(((fragment.len() + payload.len()) as u16).to_be_bytes());
        packet.extend([if fragment.is_empty() { protocol } else { 44 }, hops]);
        packet.extend(self.client_v6());
        packet.extend(SERVICE_V6);
        packet.extend(fragment);
        packet.extend(payload);
        packet
    }

    /// Protocol, and header with data.
    fn payload(&self) -> (u8, Vec<u8>) {
        let ports = [CLIENT_PORT.to_be_bytes(), PORT.to_be_bytes()].concat();
        let tcp = |flags: u8, data: usize| {
            [&ports[..], &[0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0xab, 0xcd, 0, 0], &vec![0x41; data]]
                .concat()
        };
        match self.kind {
            Kind::Tcp(flags) => (6, tcp(flags, 0)),
            Kind::TcpData(flags, data) => (6, tcp(flags, data)),
            Kind::Udp(data) => {
                let len = (8 + data) as u16;
                (17, [&ports[..], &len.to_be_bytes(), &[0xab, 0xcd], &vec![0x42; data]].concat())
            }
            Kind::IcmpError if self.is_v4 => {
                let quoted =
                    [&[0x45, 0, 0, 40, 0, 9, 0x40, 0, 64, 6, 0, 0], &SERVICE_V4[..], &self.client_v4()].concat();
                (1, [&[3, 4, 0, 0, 0, 0, 5, 0], &quoted[..], &answer_ports()].concat())
            }
            Kind::IcmpError => {
                let quoted = [&[0x60, 0, 0, 0, 0, 20, 6, 64], &SERVICE_V6[..], &self.client_v6()].concat();
                (58, [&[2, 0, 0, 0, 0, 0, 5, 0], &quoted[..], &answer_ports()].concat())
            }
        }
    }
}

/// The first 8 bytes of the service's TCP header.
fn answer_ports() -> Vec<u8> {
    [&PORT.to_be_bytes()[..], &CLIENT_PORT.to_be_bytes(), &[0, 0, 0, 1]].concat()
}

/// RFC 1071 over whole bytes: over a header with its checksum it gives 0.
pub fn internet_checksum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0))).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) + (sum >> 16)) as u16
}

/// `frame` must tell the client of `big` that its packets may have `mtu` bytes (RFC 1191, RFC 4443 section 3.2).
pub fn assert_answers_too_big(big: &Inner, frame: &[u8], mtu: usize) {
    assert_eq!((&frame[..6], &frame[6..12]), (&ROUTER_MAC[..], &OUR_MAC[..]), "back to where it came from");
    let sent = big.frame();
    let network = 14 + 4 * big.vlans;
    assert_eq!(frame[12..network], sent[12..network], "tags as they were");
    let packet = &frame[network..];
    // The hop was counted before its size was.
    let quoted = big.packet_after_hop();
    let icmp = if big.is_v4 {
        assert_eq!(internet_checksum(&packet[..20]), 0);
        assert_eq!((packet[9], &packet[12..16], &packet[16..20]), (1, &SERVICE_V4[..], &big.client_v4()[..]));
        assert_eq!(usize::from(u16::from_be_bytes([packet[2], packet[3]])), packet.len());
        assert_eq!(packet[20..22], [3, 4]);
        assert_eq!(internet_checksum(&packet[20..]), 0);
        &packet[20..]
    } else {
        assert_eq!((packet[6], &packet[8..24], &packet[24..40]), (58, &SERVICE_V6[..], &big.client_v6()[..]));
        assert_eq!(usize::from(u16::from_be_bytes([packet[4], packet[5]])), packet.len() - 40);
        assert_eq!(packet[40..42], [2, 0]);
        let pseudo = [&packet[8..40], &((packet.len() - 40) as u32).to_be_bytes(), &[0, 0, 0, 58]].concat();
        assert_eq!(internet_checksum(&[&pseudo[..], &packet[40..]].concat()), 0);
        &packet[40..]
    };
    assert_eq!(usize::from(u16::from_be_bytes([icmp[6], icmp[7]])), mtu);
    assert!(quoted.starts_with(&icmp[8..]) && icmp.len() >= 8 + 28, "quotes the packet's beginning");
}
