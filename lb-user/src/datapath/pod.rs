//! The one place where map bytes and ABI types meet.
#![allow(unsafe_code)]

use lb_common::abi::{
    Backend, BackendId, Binding, BindingKey, FragmentKey, Limits, Live, Owner, Promotion, Route, Service, ServiceKey,
    Slot, SocketKey,
};
use lb_common::tap::{Decision, TapCounts, Taps};

/// An ABI value as map bytes.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct Wire<T: Copy>(pub T);

impl<T: Copy> Wire<T>
where
    Self: aya::Pod,
{
    /// As the map holds them.
    pub fn bytes(&self) -> Vec<u8> {
        let start: *const u8 = (&raw const self.0).cast();
        // SAFETY: `Pod` says that the value is its bytes, without padding; they are copied while it is borrowed.
        unsafe { std::slice::from_raw_parts(start, size_of::<T>()) }.to_vec()
    }

    /// From bytes as a map or a ring buffer holds them; `None`: there are too few.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        // SAFETY: so many bytes are there, aligned or not, and to `Pod` all of them are a value.
        (bytes.len() >= size_of::<T>()).then(|| Self(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() }))
    }
}

macro_rules! plain_bytes {
    ($($type:ty),+ $(,)?) => {
        $(
            // SAFETY: `repr(C)` integers without padding (a test in lb-common asserts the sizes), so that every bit
            // pattern is a value and every value is its bytes; `Wire` is transparent.
            unsafe impl aya::Pod for Wire<$type> {}
        )+
    };
}

plain_bytes!(
    Backend,
    BackendId,
    Binding,
    BindingKey,
    Decision,
    FragmentKey,
    Limits,
    Live,
    Owner,
    Promotion,
    Route,
    Service,
    ServiceKey,
    Slot,
    SocketKey,
    TapCounts,
    Taps
);
