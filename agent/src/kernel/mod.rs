//! What speaks to the kernel. Only here and in agent-ebpf is `unsafe` allowed.
#![allow(unsafe_code)]

pub mod attach;
pub mod btf;
pub mod features;
pub mod load;
pub mod privileges;
pub mod programs;
pub mod refusal;
pub mod ring;
pub mod support;

/// Gives freed memory back to the kernel: the type information read at start
/// is larger than all that follows.
pub fn give_back_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes a number, has no other precondition (malloc_trim(3)).
    unsafe {
        libc::malloc_trim(0);
    }
}
