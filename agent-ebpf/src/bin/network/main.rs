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
    memory::{Memory as _, Typed},
    ring::{reserve, submit},
};
use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use socket::{cookie, current_owner, describe, own, tcp_sock, uid};
use table::{find, insert};

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
    let (before, after) = (ctx.arg::<i32>(1) as u8, ctx.arg::<i32>(2) as u8);
    let sock: *const u8 = ctx.arg(0);
    match (before, after) {
        (_, state::SYN_SENT) => connecting(sock),
        (state::SYN_SENT | state::SYN_RECV, state::ESTABLISHED) => established(sock, before),
        (_, state::FIN_WAIT1 | state::LAST_ACK) => closing(sock),
        // Never a connection.
        (state::LISTEN | state::SYN_RECV, state::CLOSE) => 0,
        (_, state::CLOSE) => closed(sock, before),
        _ => 0,
    }
}

#[inline(always)]
fn connecting(sock: *const u8) -> i32 {
    if tcp_sock(sock).is_null() {
        return 0;
    }
    if let Some(entry) = insert(cookie(sock)) {
        // SAFETY: an array's value lives as long as the map.
        unsafe {
            (*entry).begin_ns = now();
            (*entry).role = u32::from(role::CLIENT);
            (*entry).owner = current_owner(uid(sock));
        }
    }
    0
}

#[inline(always)]
fn established(sock: *const u8, before: u8) -> i32 {
    let tcp = tcp_sock(sock);
    if tcp.is_null() {
        return 0;
    }
    let (now, key) = (now(), cookie(sock));
    let entry = match find(key) {
        Some(entry) => Some(entry),
        None if before == state::SYN_RECV => insert(key),
        None => None,
    };
    if let Some(entry) = entry {
        // SAFETY: an array's value lives as long as the map.
        unsafe {
            (*entry).established_ns = now;
            if (*entry).role == u32::from(role::UNKNOWN) {
                (*entry).begin_ns = now;
                (*entry).role = u32::from(role::SERVER);
                (*entry).owner.uid = uid(sock);
            }
        }
    }
    account(tell(kind::OPENED, sock, tcp, key, entry, before, now))
}

/// The task closes its end: it is the owner, whoever connected or accepted.
#[inline(always)]
fn closing(sock: *const u8) -> i32 {
    if tcp_sock(sock).is_null() {
        return 0;
    }
    if let Some(entry) = find(cookie(sock)) {
        own(sock, entry);
    }
    0
}

#[inline(always)]
fn closed(sock: *const u8, before: u8) -> i32 {
    let tcp = tcp_sock(sock);
    // A socket that was never connected has nothing to tell.
    if tcp.is_null() || before == state::CLOSE {
        return 0;
    }
    let key = cookie(sock);
    let entry = find(key);
    let error: i32 = unsafe { Typed::read(sock, constant!(OFFSETS.sock_err)) }.unwrap_or(0);
    if let Some(entry) = entry
        && error == 0
        && matches!(before, state::ESTABLISHED | state::CLOSE_WAIT)
    {
        // Closed with a reset, by the task itself.
        own(sock, entry);
    }
    if error != 0 {
        // The socket is told of it only when its entry is gone.
        trouble::count_error(error, sock, &owner_in(entry, sock));
    }
    let result = account(tell(kind::CLOSED, sock, tcp, key, entry, before, now()));
    if let Some(entry) = entry {
        // SAFETY: an array's value lives as long as the map. Free from here on.
        unsafe { core::ptr::write_volatile(&raw mut (*entry).key, 0) };
    }
    result
}

/// The owner that the table knows; without an entry only the user is known.
#[inline(always)]
fn owner_in(entry: Option<*mut Connection>, sock: *const u8) -> Owner {
    match entry {
        // SAFETY: an array's value lives as long as the map.
        Some(entry) => unsafe { (*entry).owner },
        None => Owner { uid: uid(sock), ..Owner::default() },
    }
}

/// Sends a record, unless filtered or over the rate.
#[inline(always)]
fn tell(
    kind: u32,
    sock: *const u8,
    tcp: *const u8,
    key: u64,
    entry: Option<*mut Connection>,
    before: u8,
    now: u64,
) -> Result<(), Unsent> {
    let owner = owner_in(entry, sock);
    admit(owner.pid, owner.uid, &owner.comm, now)?;
    let mut record = reserve::<Tcp>()?;
    // SAFETY: a reserved record of this size; `describe` writes every field.
    unsafe { describe(record.as_mut_ptr(), kind, sock, tcp, key, entry, &owner, before, now) };
    submit(record);
    Ok(())
}

/// The programs use GPL-only helpers.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
pub static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
