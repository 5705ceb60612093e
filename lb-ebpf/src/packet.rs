//! Packet bytes under XDP: every read is preceded by the bounds check that the verifier wants to see.

use core::arch::asm;

use aya_ebpf::programs::XdpContext;
use lb_common::parse::{Head, Packet};

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

    /// `N` bytes that are all in the frame, to be read and written in one piece.
    #[inline(always)]
    pub fn span<const N: usize>(&self, offset: usize) -> Option<Span<N>> {
        Some(Span { start: self.place::<N>(offset)? })
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

    #[inline(always)]
    fn head(&self) -> Option<Head> {
        let bytes = self.span::<{ Head::LEN }>(0)?;
        Some(Head {
            ethertype: u16::from_be(bytes.short::<{ Head::ETHERTYPE }>()),
            version_and_len: bytes.byte::<{ Head::VERSION }>(),
            fragment: u16::from_be(bytes.short::<{ Head::FRAGMENT }>()),
            protocol: bytes.byte::<{ Head::PROTOCOL }>(),
            source: u32::from_be(bytes.word::<{ Head::SOURCE }>()),
            destination: u32::from_be(bytes.word::<{ Head::DESTINATION }>()),
            source_port: u16::from_be(bytes.short::<{ Head::SOURCE_PORT }>()),
            destination_port: u16::from_be(bytes.short::<{ Head::DESTINATION_PORT }>()),
            flags: bytes.byte::<{ Head::FLAGS }>(),
        })
    }
}

/// `N` bytes of a frame as numbers of this machine, in one load or store each: as arrays of bytes, which may stand
/// anywhere, the compiler takes them byte by byte. The kernel allows such loads wherever the machine does them at any
/// address.
#[derive(Clone, Copy)]
pub struct Span<const N: usize> {
    start: usize,
}

macro_rules! load {
    ($name:ident, $kind:ty, $size:literal) => {
        #[inline(always)]
        pub fn $name<const AT: usize>(&self) -> $kind {
            const { assert!(AT + size_of::<$kind>() <= N) };
            let value: u32;
            // SAFETY: bytes that `place` has checked.
            unsafe {
                asm!(
                    concat!("{1} = *(u", $size, " *)({0} + {2})"),
                    in(reg) self.start,
                    lateout(wreg) value,
                    const AT,
                    options(nostack, preserves_flags, pure, readonly)
                );
            }
            value as $kind
        }
    };
}

impl<const N: usize> Span<N> {
    load!(byte, u8, "8");
    load!(short, u16, "16");
    load!(word, u32, "32");

    /// `LEN` of these bytes, from the one numbered `AT` on.
    #[inline(always)]
    pub fn part<const AT: usize, const LEN: usize>(&self) -> Span<LEN> {
        const { assert!(AT + LEN <= N) };
        Span { start: self.start + AT }
    }

    /// For helpers that read packets.
    #[inline(always)]
    pub fn as_ptr<T>(&self) -> *mut T {
        self.start as *mut T
    }

    #[inline(always)]
    pub fn put_byte<const AT: usize>(&self, value: u8) {
        const { assert!(AT < N) };
        // SAFETY: bytes that `place` has checked, and nothing else refers to the packet.
        unsafe {
            asm!("*(u8 *)({0} + {2}) = {1}", in(reg) self.start, in(wreg) u32::from(value), const AT,
                options(nostack, preserves_flags));
        }
    }

    #[inline(always)]
    pub fn put_short<const AT: usize>(&self, value: u16) {
        const { assert!(AT + 2 <= N) };
        // SAFETY: as above.
        unsafe {
            asm!("*(u16 *)({0} + {2}) = {1}", in(reg) self.start, in(wreg) u32::from(value), const AT,
                options(nostack, preserves_flags));
        }
    }

    #[inline(always)]
    pub fn put_word<const AT: usize>(&self, value: u32) {
        const { assert!(AT + 4 <= N) };
        // SAFETY: as above.
        unsafe {
            asm!("*(u32 *)({0} + {2}) = {1}", in(reg) self.start, in(wreg) value, const AT,
                options(nostack, preserves_flags));
        }
    }
}
