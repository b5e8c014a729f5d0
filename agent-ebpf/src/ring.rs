//! The room's ring and the way a record goes into it: without a wakeup while
//! the reader looks by itself, with one when it sleeps or the ring fills.

use crate::{admit::SETTINGS, constant};
use agent_common::Unsent;
use aya_ebpf::{
    bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    macros::map,
    maps::{Array, RingBuf, ring_buf::RingBufEntry},
};

/// The loader sets the size from the configuration.
#[map]
pub static RING: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

/// One word: not 0 while the reader sleeps and wants to be woken.
#[map]
pub static SLEEPING: Array<u32> = Array::with_max_entries(1, 0);

/// Space for one record.
#[inline(always)]
pub fn reserve<T: 'static>() -> Result<RingBufEntry<T>, Unsent> {
    RING.reserve::<T>(0).ok_or(Unsent::RingFull)
}

/// Hands a filled record to the reader.
#[inline(always)]
pub fn submit<T>(entry: RingBufEntry<T>) {
    let mut flags = u64::from(BPF_RB_NO_WAKEUP);
    if let Some(sleeping) = SLEEPING.get_ptr_mut(0) {
        // SAFETY: an array's value lives as long as the map; a lost race costs one spare wakeup.
        if unsafe { core::ptr::read_volatile(sleeping) } != 0 {
            unsafe { core::ptr::write_volatile(sleeping, 0) };
            flags = u64::from(BPF_RB_FORCE_WAKEUP);
        } else if RING.query(u64::from(BPF_RB_AVAIL_DATA)) > u64::from(constant!(SETTINGS.wake_bytes)) {
            flags = u64::from(BPF_RB_FORCE_WAKEUP);
        }
    }
    entry.submit(flags);
}
