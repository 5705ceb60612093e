//! Packet bytes under XDP: every read is preceded by the bounds check that the verifier wants to see.

use core::arch::asm;

use aya_ebpf::programs::XdpContext;
use lb_common::parse::Packet;

/// Offsets past this are not read: the verifier needs a bound, and no header we follow reaches it
/// (Ethernet 14 + 2 VLAN tags 8 + IPv6 40 + 6 extension headers of at most 2,048 + TCP).
const OFFSET_MAX: usize = 0x3fff;

pub struct XdpPacket {
    data: usize,
    end: usize,
}

impl XdpPacket {
    #[inline(always)]
    pub fn new(ctx: &XdpContext) -> Self {
        Self { data: ctx.data(), end: ctx.data_end() }
    }
}

impl XdpPacket {
    /// Bytes of the frame.
    #[inline(always)]
    pub fn len(&self) -> usize {
        let mut len = self.end - self.data;
        // The compiler may not narrow the subtraction to 32 bits: the verifier allows none of these on pointers.
        // SAFETY: moves a register to itself.
        unsafe { asm!("{0} = {0}", inout(reg) len, options(nomem, nostack, preserves_flags, pure)) };
        len
    }

    /// `None`: the frame ends before.
    #[inline(always)]
    pub fn write<const N: usize>(&self, offset: usize, bytes: [u8; N]) -> Option<()> {
        let start: *mut [u8; N] = self.place::<N>(offset)? as *mut [u8; N];
        // SAFETY: as for `read`; nothing else refers to the packet.
        unsafe { *start = bytes };
        Some(())
    }

    /// Both link addresses, in three stores: byte by byte, as the compiler writes arrays, takes twelve.
    #[inline(always)]
    pub fn write_link(&self, [first, second, third]: [u32; 3]) -> Option<()> {
        let start = self.place::<12>(0)?;
        // SAFETY: twelve bytes that are all in the frame; the kernel allows such stores wherever the machine does them at
        // any address, and frames begin at a multiple of four in any case.
        unsafe {
            asm!(
                "*(u32 *)({0} + 0) = {1}",
                "*(u32 *)({0} + 4) = {2}",
                "*(u32 *)({0} + 8) = {3}",
                in(reg) start,
                in(wreg) first,
                in(wreg) second,
                in(wreg) third,
                options(nostack, preserves_flags)
            );
        }
        Some(())
    }

    /// The address of `N` bytes that are all in the frame.
    #[inline(always)]
    pub fn place<const N: usize>(&self, offset: usize) -> Option<usize> {
        if offset > OFFSET_MAX {
            return None;
        }
        let mut start = self.data + offset;
        // The verifier follows one register: it must see the check and the access on the same one, so the compiler may
        // not work the address out a second time.
        // SAFETY: moves a register to itself (an empty template would leave line info that the kernel refuses).
        unsafe { asm!("{0} = {0}", inout(reg) start, options(nomem, nostack, preserves_flags, pure)) };
        if start + N > self.end {
            return None;
        }
        Some(start)
    }
}

impl Packet for XdpPacket {
    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let start = self.place::<N>(offset)? as *const [u8; N];
        // SAFETY: `start..start + N` lies between the packet's data and data_end, checked by `place` and by the
        // verifier; a byte array has no alignment.
        Some(unsafe { *start })
    }
}
