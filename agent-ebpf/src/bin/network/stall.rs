//! Sends and receives that block. When a task enters a system call that may
//! block on a socket, the time is noted; when the socket has ended what it was
//! asked for, the time since then is known. Attached only for the option that
//! needs them, for one of these programs runs once per system call of the node.

use crate::{
    OFFSETS, OPTIONS,
    socket::{Socket as _, current_owner, uid},
    trouble::{Amount, count, interface_of_socket},
};
use agent_common::network::{CALLS, family, trouble};
use agent_ebpf::{
    admit::now,
    constant,
    memory::{Memory as _, Typed},
};
use aya_ebpf::{
    helpers::generated::bpf_get_current_pid_tgid,
    macros::{btf_tracepoint, fexit, map},
    maps::LruHashMap,
    programs::{BtfTracePointContext, FExitContext},
};

/// Since when a thread is in its system call, boot clock, ns; 0: in one that
/// says nothing of how long a socket takes. The loader sets the size.
#[map]
static IN_CALL: LruHashMap<u32, u64> = LruHashMap::with_max_entries(1, 0);

/// `io_uring_enter`, the same number everywhere: what it does to sockets does not block.
const IO_URING_ENTER: u64 = 426;
/// `MSG_DONTWAIT`
const DONT_WAIT: u32 = 0x40;

/// A task enters a system call (2.6.32).
#[btf_tracepoint(function = "sys_enter")]
pub fn enter_btf(ctx: BtfTracePointContext) -> i32 {
    let number: u64 = ctx.arg(1);
    if number >= CALLS as u64 {
        return 0;
    }
    // SAFETY: below the number of bits that there are.
    let calls = unsafe { core::ptr::read_volatile((&raw const OPTIONS.calls).cast::<u64>().add(number as usize / 64)) };
    if calls >> (number % 64) & 1 == 0 {
        return 0;
    }
    let does_not_block = number == IO_URING_ENTER || number == u64::from(constant!(OPTIONS.io_submit));
    let since = if does_not_block { 0 } else { now() };
    let thread = thread();
    match IN_CALL.get_ptr_mut(thread) {
        // SAFETY: an entry of the map; one that was given to another thread has a wrong time at worst.
        Some(known) => unsafe { core::ptr::write_volatile(known, since) },
        None => {
            let _ = IN_CALL.insert(thread, since, 0);
        }
    }
    0
}

/// A socket has sent, or failed to (6.3).
#[btf_tracepoint(function = "sock_send_length")]
pub fn stall_send_btf(ctx: BtfTracePointContext) -> i32 {
    ended(ctx.arg(0), trouble::SENDING)
}

/// A socket has received, or failed to (6.3).
#[btf_tracepoint(function = "sock_recv_length")]
pub fn stall_receive_btf(ctx: BtfTracePointContext) -> i32 {
    match ctx.arg::<u32>(2) & DONT_WAIT {
        0 => ended(ctx.arg(0), trouble::RECEIVING),
        _ => 0,
    }
}

/// The same for TCP where there is no such tracepoint.
#[fexit(function = "tcp_sendmsg")]
pub fn stall_send_exit(ctx: FExitContext) -> i32 {
    ended(ctx.arg(0), trouble::SENDING)
}

/// The same for TCP where there is no such tracepoint. The argument is `flags` since
/// 5.19, and `nonblock` before, which is that bit of them.
#[fexit(function = "tcp_recvmsg")]
pub fn stall_receive_exit(ctx: FExitContext) -> i32 {
    match ctx.arg::<u32>(3) & DONT_WAIT {
        0 => ended(ctx.arg(0), trouble::RECEIVING),
        _ => 0,
    }
}

#[inline(always)]
fn ended(sock: *const u8, direction: u32) -> i32 {
    let Some(known) = IN_CALL.get_ptr_mut(thread()) else {
        return 0;
    };
    let now = now();
    // SAFETY: an entry of the map; one that was given to another thread has a wrong time at worst.
    let since = unsafe { core::ptr::read_volatile(known) };
    if since == 0 {
        return 0;
    }
    // The call may go on to the next packet.
    // SAFETY: as above.
    unsafe { core::ptr::write_volatile(known, now) };
    let lasted = now.wrapping_sub(since);
    if lasted < constant!(OPTIONS.stall_ns) {
        return 0;
    }
    let address_family: Option<u16> = unsafe { Typed::read(sock, constant!(OFFSETS.common_family)) };
    if address_family == Some(family::INET) || address_family == Some(family::INET6) {
        let interface = unsafe { interface_of_socket::<Typed>(sock) };
        let amount = Amount { times: 1, time_ns: lasted };
        let owner = current_owner::<Typed>(uid::<Typed>(sock));
        count::<Typed>(trouble::STALL, direction, Typed::key(sock), amount, &interface, sock, &owner);
    }
    0
}

#[inline(always)]
fn thread() -> u32 {
    // SAFETY: no arguments, no side effect.
    (unsafe { bpf_get_current_pid_tgid() }) as u32
}
