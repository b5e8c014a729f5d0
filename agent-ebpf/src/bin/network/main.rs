//! Network room: a TCP connection from its first state to its last, and a look
//! at those that live long.
//!
//! The kernel counts bytes, packets, round trips and retransmits in the socket
//! already; the programs read them there, once, when the connection ends.
//! What the socket does not know (who, since when, which end) is in a table of ours.
#![no_std]
#![no_main]
#![allow(unused_unsafe, reason = "`constant!` stands in unsafe and in safe code")]

mod datagram;
mod look;
mod socket;
mod stall;
mod table;
mod trouble;

use agent_common::{
    Unsent,
    network::{Connection, Offsets, Options, Owner, Tcp, kind, role, state},
};
use agent_ebpf::{
    admit::{account, admit, now},
    constant,
    memory::{Memory as _, Probed, Typed},
    ring::{reserve, submit},
};
use aya_ebpf::{
    EbpfContext as _,
    macros::{btf_tracepoint, fentry, kprobe, raw_tracepoint, tracepoint},
    programs::{BtfTracePointContext, FEntryContext, ProbeContext, RawTracePointContext, TracePointContext},
};
use socket::{Socket, current_owner, describe, own, uid};
use table::{begin, find, forget};

/// Filled by the loader.
#[unsafe(no_mangle)]
static OFFSETS: Offsets = Offsets::ABSENT;

/// Filled by the loader.
#[unsafe(no_mangle)]
static OPTIONS: Options = Options::NOTHING;

/// A TCP socket changes its state, on either end, in any namespace.
///
/// Only four changes tell anything that the last one does not tell too: a
/// connect (the task is its owner), the end of a handshake (in softirq: the
/// task is a stranger), a close by this end (the task is the owner), the end.
#[btf_tracepoint(function = "inet_sock_set_state")]
pub fn state_btf(ctx: BtfTracePointContext) -> i32 {
    changed::<Typed>(ctx.arg(0), ctx.arg::<i32>(1) as u8, ctx.arg::<i32>(2) as u8)
}

#[raw_tracepoint(tracepoint = "inet_sock_set_state")]
pub fn state_raw(ctx: RawTracePointContext) -> i32 {
    changed::<Probed>(ctx.arg(0), ctx.arg::<i32>(1) as u8, ctx.arg::<i32>(2) as u8)
}

#[tracepoint(category = "sock", name = "inet_sock_set_state")]
pub fn state_classic(ctx: TracePointContext) -> i32 {
    let field = |offset| unsafe { Probed::read::<i32>(ctx.as_ptr().cast_const().cast(), offset) };
    let before = field(constant!(OFFSETS.tp_state_before));
    let after = field(constant!(OFFSETS.tp_state_after));
    let sock = unsafe { Probed::read(ctx.as_ptr().cast_const().cast(), constant!(OFFSETS.tp_state_socket)) };
    match (sock, before, after) {
        (Some(sock), Some(before), Some(after)) => changed::<Probed>(sock, before as u8, after as u8),
        _ => 0,
    }
}

/// The function behind every change but those of sockets that listen, or are made
/// for a SYN, which tell nothing. It has the old state still.
#[fentry(function = "tcp_set_state")]
pub fn state_entry(ctx: FEntryContext) -> i32 {
    let sock: *const u8 = ctx.arg(0);
    let before: u8 = unsafe { Typed::read(sock, constant!(OFFSETS.common_state)) }.unwrap_or(0);
    changed::<Typed>(sock, before, ctx.arg::<i32>(1) as u8)
}

#[kprobe(function = "tcp_set_state")]
pub fn state_probe(ctx: ProbeContext) -> u32 {
    let (Some(sock), Some(after)) = (ctx.arg::<*const u8>(0), ctx.arg::<i32>(1)) else {
        return 0;
    };
    let before: u8 = unsafe { Probed::read(sock, constant!(OFFSETS.common_state)) }.unwrap_or(0);
    changed::<Probed>(sock, before, after as u8);
    0
}

#[inline(always)]
fn changed<M: Socket>(sock: *const u8, before: u8, after: u8) -> i32 {
    match (before, after) {
        (_, state::SYN_SENT) => connecting::<M>(sock),
        (state::SYN_SENT | state::SYN_RECV, state::ESTABLISHED) => established::<M>(sock, before),
        (_, state::FIN_WAIT1 | state::LAST_ACK) => closing::<M>(sock),
        // Never a connection.
        (state::SYN_RECV, state::CLOSE) if M::KEYS_COME_AGAIN => {
            if let Some(entry) = find(M::key(sock)) {
                forget(entry);
            }
            0
        }
        (state::LISTEN | state::SYN_RECV, state::CLOSE) => 0,
        (_, state::CLOSE) => closed::<M>(sock, before),
        _ => 0,
    }
}

#[inline(always)]
fn connecting<M: Socket>(sock: *const u8) -> i32 {
    if M::tcp(sock).is_null() {
        return 0;
    }
    if let Some(entry) = begin::<M>(M::key(sock)) {
        // SAFETY: an array's value lives as long as the map.
        unsafe {
            (*entry).begin_ns = now();
            (*entry).role = u32::from(role::CLIENT);
            (*entry).owner = current_owner::<M>(uid::<M>(sock));
        }
    }
    0
}

#[inline(always)]
fn established<M: Socket>(sock: *const u8, before: u8) -> i32 {
    let tcp = M::tcp(sock);
    if tcp.is_null() {
        return 0;
    }
    let (now, key) = (now(), M::key(sock));
    let known = if M::KEYS_COME_AGAIN && before == state::SYN_RECV { None } else { find(key) };
    let entry = match known {
        Some(entry) => Some(entry),
        None if before == state::SYN_RECV => begin::<M>(key),
        None => None,
    };
    if let Some(entry) = entry {
        // SAFETY: an array's value lives as long as the map.
        unsafe {
            (*entry).established_ns = now;
            if (*entry).role == u32::from(role::UNKNOWN) {
                (*entry).begin_ns = now;
                (*entry).role = u32::from(role::SERVER);
                (*entry).owner.uid = uid::<M>(sock);
            }
        }
    }
    account(tell::<M>(kind::OPENED, sock, tcp, key, entry, before, now))
}

/// The task closes its end: it is the owner, whoever connected or accepted.
#[inline(always)]
fn closing<M: Socket>(sock: *const u8) -> i32 {
    if M::tcp(sock).is_null() {
        return 0;
    }
    if let Some(entry) = find(M::key(sock)) {
        own::<M>(sock, entry);
    }
    0
}

#[inline(always)]
fn closed<M: Socket>(sock: *const u8, before: u8) -> i32 {
    let tcp = M::tcp(sock);
    // A socket that was never connected has nothing to tell.
    if tcp.is_null() || before == state::CLOSE {
        return 0;
    }
    let key = M::key(sock);
    let entry = find(key);
    let error: i32 = unsafe { M::read(sock, constant!(OFFSETS.sock_err)) }.unwrap_or(0);
    if let Some(entry) = entry
        && error == 0
        && matches!(before, state::ESTABLISHED | state::CLOSE_WAIT)
    {
        // Closed with a reset, by the task itself.
        own::<M>(sock, entry);
    }
    if error != 0 {
        // The socket is told of it only when its entry is gone.
        trouble::count_error::<M>(error, sock, &owner_in::<M>(entry, sock));
    }
    let result = account(tell::<M>(kind::CLOSED, sock, tcp, key, entry, before, now()));
    if let Some(entry) = entry {
        forget(entry);
    }
    result
}

/// The owner that the table knows; without an entry only the user is known.
#[inline(always)]
fn owner_in<M: Socket>(entry: Option<*mut Connection>, sock: *const u8) -> Owner {
    match entry {
        // SAFETY: an array's value lives as long as the map.
        Some(entry) => unsafe { (*entry).owner },
        None => Owner { uid: uid::<M>(sock), ..Owner::default() },
    }
}

/// Sends a record, unless filtered or over the rate.
#[inline(always)]
fn tell<M: Socket>(
    kind: u32,
    sock: *const u8,
    tcp: *const u8,
    key: u64,
    entry: Option<*mut Connection>,
    before: u8,
    now: u64,
) -> Result<(), Unsent> {
    let owner = owner_in::<M>(entry, sock);
    admit(owner.pid, owner.uid, &owner.comm, now)?;
    let mut record = reserve::<Tcp>()?;
    // SAFETY: a reserved record of this size; `describe` writes every field.
    unsafe { describe::<M>(record.as_mut_ptr(), kind, sock, tcp, key, entry, &owner, before, now) };
    submit(record);
    Ok(())
}

/// The programs use GPL-only helpers.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
pub static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
