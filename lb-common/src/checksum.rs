//! The Internet checksum (RFC 1071), whole and incremental (RFC 1624).

/// Adds up 16-bit words in network byte order; an odd last byte counts as if a zero followed.
#[inline(always)]
pub const fn sum<const N: usize>(bytes: &[u8; N]) -> u32 {
    let mut total = 0;
    let mut at = 0;
    while at + 1 < N {
        total += u16::from_be_bytes([bytes[at], bytes[at + 1]]) as u32;
        at += 2;
    }
    if at < N { total + ((bytes[at] as u32) << 8) } else { total }
}

/// Folds a sum into the checksum field's value, in host byte order.
#[inline(always)]
pub const fn finish(sum: u32) -> u16 {
    // Two folds suffice for sums of up to 65,535 words.
    let once = (sum & 0xffff) + (sum >> 16);
    let twice = (once & 0xffff) + (once >> 16);
    !(twice as u16)
}

/// As [`finish`], for a sum of a few 32-bit words, which are two of 16 bits each to it.
#[inline(always)]
pub const fn finish_words(sum: u64) -> u16 {
    let once = (sum & 0xffff) + ((sum >> 16) & 0xffff) + (sum >> 32);
    finish(once as u32)
}

/// An IPv4 header's after its time to live became one less (RFC 1624): the word that holds it lost 256, so the checksum gains that.
#[inline(always)]
pub const fn one_hop_less(checksum: u16) -> u16 {
    let sum = checksum as u32 + 0x0100;
    // Of the two zeroes the one that a whole sum comes to.
    (sum + (sum >= 0xffff) as u32) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_example_of_rfc_1071() {
        assert_eq!(finish(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7])), !0xddf2);
    }

    proptest! {
        #[test]
        fn one_hop_less_equals_a_full_sum(mut header: [u8; 20], ttl in 1_u8..) {
            header[10..12].fill(0);
            header[0] = 0x45;
            header[8] = ttl;
            let before = finish(sum(&header));
            header[8] -= 1;
            prop_assert_eq!(one_hop_less(before), finish(sum(&header)));
        }
    }
}
