//! Addresses as the datapath compares them: 128 bits, IPv4 as IPv4-mapped IPv6 (RFC 4291 section 2.5.5.2).

use core::net::IpAddr;

/// An address in two big-endian halves, so that masks and hashes are two 64-bit operations.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Addr {
    /// Bits 127 to 64.
    pub high: u64,
    /// Bits 63 to 0.
    pub low: u64,
}

const V4_MAPPED: u64 = 0x0000_ffff_0000_0000;

impl Addr {
    /// `0.0.0.0`: the IPv4 wildcard of a listen address.
    pub const ANY_V4: Self = Self { high: 0, low: V4_MAPPED };
    /// `::`: the IPv6 wildcard of a listen address.
    pub const ANY_V6: Self = Self { high: 0, low: 0 };

    #[inline(always)]
    pub const fn v4(octets: [u8; 4]) -> Self {
        Self::of_v4(u32::from_be_bytes(octets))
    }

    /// An IPv4 address as a number.
    #[inline(always)]
    pub const fn of_v4(bits: u32) -> Self {
        Self { high: 0, low: V4_MAPPED | bits as u64 }
    }

    #[inline(always)]
    pub const fn v6(octets: [u8; 16]) -> Self {
        let bits = u128::from_be_bytes(octets);
        Self { high: (bits >> 64) as u64, low: bits as u64 }
    }

    #[inline(always)]
    pub const fn is_v4(self) -> bool {
        self.high == 0 && self.low >> 32 == V4_MAPPED >> 32
    }

    /// The wildcard of this address's family.
    #[inline(always)]
    pub const fn any(self) -> Self {
        if self.is_v4() { Self::ANY_V4 } else { Self::ANY_V6 }
    }

    /// Keeps the first `bits` (0 to 128, counted on the mapped form: an IPv4 /24 is 96 + 24) and clears the rest.
    #[inline(always)]
    pub const fn mask(self, bits: u32) -> Self {
        if bits >= 128 {
            self
        } else if bits > 64 {
            Self { high: self.high, low: self.low & (u64::MAX << (128 - bits)) }
        } else if bits == 64 {
            Self { high: self.high, low: 0 }
        } else if bits == 0 {
            Self { high: 0, low: 0 }
        } else {
            Self { high: self.high & (u64::MAX << (64 - bits)), low: 0 }
        }
    }
}

impl From<IpAddr> for Addr {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => Self::v4(v4.octets()),
            IpAddr::V6(v6) => Self::v6(v6.octets()),
        }
    }
}

impl From<Addr> for IpAddr {
    fn from(address: Addr) -> Self {
        if address.is_v4() {
            Self::V4((address.low as u32).to_be_bytes().into())
        } else {
            Self::V6(((u128::from(address.high) << 64) | u128::from(address.low)).to_be_bytes().into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_address_survives_the_round_trip(address: IpAddr) {
            let expected = match address {
                // A mapped IPv6 address and its IPv4 address are one client.
                IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(address, IpAddr::V4),
                IpAddr::V4(_) => address,
            };
            prop_assert_eq!(IpAddr::from(Addr::from(address)), expected);
        }

        #[test]
        fn masking_keeps_exactly_the_prefix(high: u64, low: u64, bits in 0_u32..=128) {
            let whole = (u128::from(high) << 64) | u128::from(low);
            let expected = if bits == 0 { 0 } else { whole & (u128::MAX << (128 - bits)) };
            let masked = Addr { high, low }.mask(bits);
            prop_assert_eq!((u128::from(masked.high) << 64) | u128::from(masked.low), expected);
        }
    }
}
