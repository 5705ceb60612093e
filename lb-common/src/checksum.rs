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

/// The checksum after one 16-bit word changed from `old` to `new` (RFC 1624, equation 3).
#[inline(always)]
pub const fn update(checksum: u16, old: u16, new: u16) -> u16 {
    finish(!checksum as u32 + !old as u32 + new as u32)
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
        fn an_incremental_checksum_equals_a_full_one(mut header: [u8; 20], word in 0_usize..5, new: u16) {
            // Words 0 to 4; the checksum is word 5 of an IPv4 header.
            header[10..12].fill(0);
            // A header is never all zeroes but for the checksum: it has a version.
            header[12] = 0x45;
            let before = finish(sum(&header));
            let old = u16::from_be_bytes([header[2 * word], header[2 * word + 1]]);
            header[2 * word..2 * word + 2].copy_from_slice(&new.to_be_bytes());
            prop_assert_eq!(update(before, old, new), finish(sum(&header)));
        }
    }
}
