//! What every room's eBPF programs share: the ring, the ledger, the filters,
//! the token bucket and the two ways to read a kernel struct.
//!
//! Each `src/bin/<room>.rs` becomes one object with its own copy of these maps.
#![no_std]
// The BPF target has no compare-and-swap before v3, so core's atomics offer no fetch_add there.
#![feature(core_intrinsics)]
#![allow(internal_features)]
#![allow(unused_unsafe, reason = "`constant!` stands in unsafe and in safe code")]
#![allow(clippy::missing_safety_doc)]

pub mod admit;
pub mod memory;
pub mod ring;

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
