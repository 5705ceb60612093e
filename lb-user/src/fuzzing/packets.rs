//! What the packet parser promises of any frame: one reading, at first glance and at second, that a longer frame does
//! not change.

use lb_common::parse::{FragmentId, Frame, Glance, Segment, glance, parse};

pub fn packets(frame: &[u8]) {
    let parsed = parse(frame);
    if let Some(Glance { destination_port, protocol, flags }) = glance(frame) {
        let (Frame::Tcp(segment) | Frame::Udp(segment)) = parsed else { panic!("{parsed:?} at second glance") };
        let said = (segment.destination_port, segment.protocol, segment.flags, segment.fragment);
        assert_eq!(said, (destination_port, protocol, flags, FragmentId::NONE));
    }
    // A tag before the network header moves it, and changes nothing else.
    if let Some((addresses, rest)) = frame.split_at_checked(12) {
        let is_tagged = matches!(rest, [0x81, 0x00, ..] | [0x88, 0xa8, ..]);
        if !is_tagged && rest.len() >= 2 {
            let tagged = [addresses, &[0x81, 0x00, 0x00, 0x07], rest].concat();
            assert_eq!(parse(tagged.as_slice()), moved(parsed, 4), "behind a VLAN tag");
        }
    }
    let longer = [frame, &[0xff; 64]].concat();
    match parsed {
        Frame::Truncated => {}
        // A first fragment may end before TCP's flags.
        Frame::Tcp(segment) if segment.fragment != FragmentId::NONE => {
            let Frame::Tcp(whole) = parse(longer.as_slice()) else { panic!("{parsed:?} with more behind it") };
            assert_eq!(Segment { flags: 0, ..whole }, Segment { flags: 0, ..segment });
        }
        _ => assert_eq!(parse(longer.as_slice()), parsed, "with more behind it"),
    }
    for end in 0..frame.len() {
        let shorter = parse(&frame[..end]);
        let is_first_fragment = matches!(shorter, Frame::Tcp(segment) if segment.fragment != FragmentId::NONE);
        assert!(shorter == Frame::Truncated || shorter == parsed || is_first_fragment, "{shorter:?} of {parsed:?}");
    }
}

/// With its network header so many bytes later.
fn moved(frame: Frame, by: u16) -> Frame {
    let later = |segment: Segment| Segment { network: segment.network + by, ..segment };
    match frame {
        Frame::Tcp(segment) => Frame::Tcp(later(segment)),
        Frame::Udp(segment) => Frame::Udp(later(segment)),
        Frame::IcmpError(segment) => Frame::IcmpError(later(segment)),
        Frame::LaterFragment(mut fragment) => {
            fragment.network += by;
            Frame::LaterFragment(fragment)
        }
        Frame::Other | Frame::Truncated => frame,
    }
}
