//! Two ways to read a field of a kernel struct at an offset that the loader
//! found: a plain load through a pointer that the verifier knows the type of,
//! or a checked copy through any address.

use agent_common::ABSENT;
use aya_ebpf::helpers::generated::bpf_probe_read_kernel;
use core::{
    intrinsics::{AtomicOrdering, atomic_xadd},
    mem::MaybeUninit,
};

/// How a program reads kernel structs. `None`: the kernel has no such field,
/// or a typed pointer is null.
pub trait Memory {
    unsafe fn read<T: Copy>(base: *const u8, offset: u32) -> Option<T>;
}

/// For a pointer of known type (a BTF tracepoint's argument and what is
/// reached from it): one load instruction, a fault reads as zero.
pub struct Typed;

/// For an address of unknown type: `bpf_probe_read_kernel`.
pub struct Probed;

impl Memory for Typed {
    #[inline(always)]
    unsafe fn read<T: Copy>(base: *const u8, offset: u32) -> Option<T> {
        if offset == ABSENT || base.is_null() {
            return None;
        }
        // SAFETY: the verifier checks type and offset; the load has an exception handler.
        Some(unsafe { core::ptr::read_volatile(base.add(offset as usize).cast()) })
    }
}

impl Memory for Probed {
    /// What cannot be read is zero, as for [`Typed`]: a branch for it would double what the
    /// verifier has to follow, read by read.
    #[inline(always)]
    unsafe fn read<T: Copy>(base: *const u8, offset: u32) -> Option<T> {
        if offset == ABSENT {
            return None;
        }
        // What a branch does not use, the compiler may read all the same, and verifiers
        // before 6.3 refuse to read stack that nothing was written to.
        let mut value = MaybeUninit::<T>::zeroed();
        let from = base.wrapping_add(offset as usize).cast();
        // SAFETY: the helper checks the address, and writes zeros if it is none.
        unsafe {
            bpf_probe_read_kernel(value.as_mut_ptr().cast(), size_of::<T>() as u32, from);
            Some(value.assume_init())
        }
    }
}

/// Adds to a counter in a map: programs on other CPUs, and this one's that it
/// was preempted by, may do the same.
#[inline(always)]
pub unsafe fn add(counter: *mut u64, more: u64) {
    // SAFETY: an aligned u64 of the map; the result is unused, so this is one `lock add`.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(counter, more) };
}

/// Adds one.
#[inline(always)]
pub unsafe fn increment(counter: *mut u64) {
    unsafe { add(counter, 1) };
}

/// One field of a read-only global that the loader filled: a constant to the verifier.
#[macro_export]
macro_rules! constant {
    ($global:ident . $field:ident) => {
        // SAFETY: the global is initialised and never written by a program.
        unsafe { core::ptr::read_volatile(&raw const $global.$field) }
    };
}
