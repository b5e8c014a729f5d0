//! Network room: a TCP connection from its first state to its last, and a look
//! at those that live long.
//!
//! The kernel counts bytes, packets, round trips and retransmits in the socket
//! already; the programs read them there, once, when the connection ends.
//! What the socket does not know (who, since when, which end) is in a table of
//! ours, a plain array that is found by the socket's cookie.
#![no_std]
#![no_main]
#![allow(unused_unsafe, reason = "`constant!` stands in unsafe and in safe code")]

use agent_common::{
    Unsent,
    network::{
        Bucket, Connection, Counts, Look, Offsets, Options, Owner, SLOTS, Tcp, kind, look, missing, role, state,
    },
};
use agent_ebpf::{
    admit::{account, admit, now},
    constant,
    memory::{Memory as _, Typed},
    ring::{reserve, submit},
};
use aya_ebpf::{
    bindings::seq_file,
    helpers::generated::{
        bpf_get_current_task_btf, bpf_get_socket_cookie, bpf_seq_write, bpf_skc_to_tcp_sock, bpf_sock_from_file,
    },
    macros::{btf_tracepoint, map},
    maps::Array,
    programs::BtfTracePointContext,
};
use core::mem::MaybeUninit;

/// Filled by the loader.
#[unsafe(no_mangle)]
static OFFSETS: Offsets = Offsets::ABSENT;

/// Filled by the loader.
#[unsafe(no_mangle)]
static OPTIONS: Options = Options { bucket_mask: 0 };

/// The loader sets the size from the configuration.
#[map]
static CONNECTIONS: Array<Bucket> = Array::with_max_entries(1, 0);

/// One word: what the next look is for.
#[map]
static LOOK: Array<Look> = Array::with_max_entries(1, 0);

/// `AF_INET`
const INET: u16 = 2;
/// `PF_KTHREAD`, include/linux/sched.h
const KERNEL_THREAD: u32 = 0x0020_0000;

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
            (*entry).owner = current_owner(sock);
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
    let result = account(tell(kind::CLOSED, sock, tcp, key, entry, before, now()));
    if let Some(entry) = entry {
        // SAFETY: an array's value lives as long as the map. Free from here on.
        unsafe { core::ptr::write_volatile(&raw mut (*entry).key, 0) };
    }
    result
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
    let owner = match entry {
        // SAFETY: an array's value lives as long as the map.
        Some(entry) => unsafe { (*entry).owner },
        None => Owner { start_ns: 0, pid: 0, uid: uid(sock), comm: [0; 16] },
    };
    admit(owner.pid, owner.uid, &owner.comm, now)?;
    let mut record = reserve::<Tcp>()?;
    // SAFETY: a reserved record of this size; `describe` writes every field.
    unsafe { describe(record.as_mut_ptr(), kind, sock, tcp, key, entry, &owner, before, now) };
    submit(record);
    Ok(())
}

/// Writes every field of a record.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "inlined; a struct of them would go over the stack")]
unsafe fn describe(
    out: *mut Tcp,
    kind: u32,
    sock: *const u8,
    tcp: *const u8,
    key: u64,
    entry: Option<*mut Connection>,
    owner: &Owner,
    before: u8,
    now: u64,
) {
    let mut absent = 0;
    unsafe {
        (*out).kind = kind;
        (*out).time_ns = now;
        (*out).key = key;
        (*out).owner = *owner;
        (*out).state = before;
        match entry {
            Some(entry) => {
                (*out).begin_ns = (*entry).begin_ns;
                (*out).established_ns = (*entry).established_ns;
                (*out).reported = (*entry).reported;
                (*out).role = (*entry).role as u8;
            }
            None => {
                absent |= missing::ENTRY;
                (*out).begin_ns = 0;
                (*out).established_ns = 0;
                (*out).reported = Counts::default();
                (*out).role = role::UNKNOWN;
            }
        }
        absent |= fill_addresses(out, sock, tcp);
        let net: Option<*const u8> = Typed::read(sock, constant!(OFFSETS.common_net));
        (*out).namespace = net.and_then(|net| Typed::read(net, constant!(OFFSETS.net_inum))).unwrap_or(0);
        (*out).interface = Typed::read(sock, constant!(OFFSETS.sock_interface)).unwrap_or(0);
        (*out).error = Typed::read(sock, constant!(OFFSETS.sock_err)).unwrap_or(0);
        match cgroup_id(sock) {
            Some(id) => (*out).cgroup_id = id,
            None => {
                absent |= missing::CGROUP;
                (*out).cgroup_id = 0;
            }
        }
        (*out).counts = match counts(sock, tcp) {
            Some(counts) => counts,
            None => {
                absent |= missing::COUNTS;
                (*out).reported
            }
        };
        (*out).sent_data_packets = Typed::read(tcp, constant!(OFFSETS.tcp_data_segs_out)).unwrap_or(0);
        let srtt: Option<u32> = Typed::read(tcp, constant!(OFFSETS.tcp_srtt));
        let smallest: Option<u32> = match constant!(OFFSETS.tcp_rtt_min) {
            agent_common::ABSENT => None,
            // The value of the first sample.
            offset => Typed::read(tcp, offset + 4),
        };
        if srtt.is_none() || smallest.is_none() {
            absent |= missing::RTT;
        }
        (*out).srtt_us = srtt.unwrap_or(0) >> 3;
        (*out).rtt_min_us = smallest.unwrap_or(0);
        (*out).missing = absent;
    }
}

/// Returns the bits of what is missing.
#[inline(always)]
unsafe fn fill_addresses(out: *mut Tcp, sock: *const u8, tcp: *const u8) -> u32 {
    unsafe {
        let family: Option<u16> = Typed::read(sock, constant!(OFFSETS.common_family));
        // Not `skc_num`, which is taken back before the last change of state is told.
        let local_port: Option<u16> = Typed::read(tcp, constant!(OFFSETS.tcp_local_port));
        let remote_port: Option<u16> = Typed::read(sock, constant!(OFFSETS.common_remote_port));
        (*out).family = family.unwrap_or(0);
        (*out).local_port = u16::from_be(local_port.unwrap_or(0));
        (*out).remote_port = u16::from_be(remote_port.unwrap_or(0));
        let (local, remote) = if family == Some(INET) {
            (
                address4(Typed::read(sock, constant!(OFFSETS.common_local4))),
                address4(Typed::read(sock, constant!(OFFSETS.common_remote4))),
            )
        } else {
            (Typed::read(sock, constant!(OFFSETS.common_local6)), Typed::read(sock, constant!(OFFSETS.common_remote6)))
        };
        let words: *mut [u64; 2] = (&raw mut (*out).local).cast();
        *words = local.unwrap_or([0; 2]);
        let words: *mut [u64; 2] = (&raw mut (*out).remote).cast();
        *words = remote.unwrap_or([0; 2]);
        let known = local_port.is_some() && remote_port.is_some() && local.is_some() && remote.is_some();
        if known { 0 } else { missing::ADDRESSES }
    }
}

/// An IPv4 address as the first four of sixteen bytes.
#[inline(always)]
fn address4(address: Option<u32>) -> Option<[u64; 2]> {
    address.map(|address| [u64::from(address), 0])
}

#[inline(always)]
unsafe fn counts(sock: *const u8, tcp: *const u8) -> Option<Counts> {
    unsafe {
        // The peer's FIN takes a sequence number, and so counts as a byte (`tcp_fin`).
        let flags: u64 = Typed::read(sock, constant!(OFFSETS.common_flags))?;
        let end = flags >> (constant!(OFFSETS.sock_done) & 63) & 1;
        let sent: u64 = Typed::read(tcp, constant!(OFFSETS.tcp_bytes_sent))?;
        let again: u64 = Typed::read(tcp, constant!(OFFSETS.tcp_bytes_retrans))?;
        Some(Counts {
            sent_bytes: sent - again,
            received_bytes: Typed::read::<u64>(tcp, constant!(OFFSETS.tcp_bytes_received))? - end,
            sent_packets: Typed::read(tcp, constant!(OFFSETS.tcp_segs_out))?,
            received_packets: Typed::read(tcp, constant!(OFFSETS.tcp_segs_in))?,
            retransmits: Typed::read(tcp, constant!(OFFSETS.tcp_total_retrans))?,
            reserved: 0,
        })
    }
}

#[inline(always)]
unsafe fn cgroup_id(sock: *const u8) -> Option<u64> {
    unsafe {
        let cgroup: *const u8 = Typed::read(sock, constant!(OFFSETS.sock_cgroup))?;
        let kn: *const u8 = Typed::read(cgroup, constant!(OFFSETS.cgroup_kn))?;
        Typed::read(kn, constant!(OFFSETS.kernfs_id))
    }
}

/// Makes the current task the owner, unless it is one of the kernel's: such a
/// thread closes for others.
#[inline(always)]
fn own(sock: *const u8, entry: *mut Connection) {
    let owner = current_owner(sock);
    // SAFETY: an array's value lives as long as the map.
    unsafe {
        if owner.pid != 0 {
            (*entry).owner = owner;
        }
    }
}

/// The process of the current task; pid 0 for a thread of the kernel's.
#[inline(always)]
fn current_owner(sock: *const u8) -> Owner {
    // SAFETY: no arguments, no side effect.
    let task = unsafe { bpf_get_current_task_btf() } as *const u8;
    owner_of(task, uid(sock))
}

#[inline(always)]
fn owner_of(task: *const u8, uid: u32) -> Owner {
    let mut owner = Owner { start_ns: 0, pid: 0, uid, comm: [0; 16] };
    unsafe {
        let flags: u32 = Typed::read(task, constant!(OFFSETS.task_flags)).unwrap_or(0);
        if flags & KERNEL_THREAD != 0 {
            return owner;
        }
        owner.pid = Typed::read(task, constant!(OFFSETS.task_tgid)).unwrap_or(0);
        let leader: Option<*const u8> = Typed::read(task, constant!(OFFSETS.task_group_leader));
        if let Some(leader) = leader {
            owner.start_ns = Typed::read(leader, constant!(OFFSETS.task_start)).unwrap_or(0);
            if let Some(comm) = Typed::read::<[u64; 2]>(leader, constant!(OFFSETS.task_comm)) {
                owner.comm = core::mem::transmute::<[u64; 2], [u8; 16]>(comm);
            }
        }
    }
    owner
}

#[inline(always)]
fn uid(sock: *const u8) -> u32 {
    unsafe { Typed::read(sock, constant!(OFFSETS.sock_uid)) }.unwrap_or(0)
}

/// The socket as a TCP socket; null if it is none.
#[inline(always)]
fn tcp_sock(sock: *const u8) -> *const u8 {
    // SAFETY: the verifier checks the type.
    (unsafe { bpf_skc_to_tcp_sock(sock.cast_mut().cast()) }) as *const u8
}

/// A number that no other socket of this boot has (5.12 for tracing programs).
#[inline(always)]
fn cookie(sock: *const u8) -> u64 {
    // SAFETY: the verifier checks the type.
    unsafe { bpf_get_socket_cookie(sock.cast_mut().cast()) }
}

/// Cookies are given in runs, so that neighbours fill a bucket in turn.
#[inline(always)]
fn first_bucket(key: u64) -> u32 {
    (key / SLOTS as u64) as u32 & constant!(OPTIONS.bucket_mask)
}

/// Where a connection goes whose first bucket is full (Fibonacci hashing).
#[inline(always)]
fn second_bucket(key: u64) -> u32 {
    (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u32 & constant!(OPTIONS.bucket_mask)
}

#[inline(always)]
fn find(key: u64) -> Option<*mut Connection> {
    let bucket = CONNECTIONS.get_ptr_mut(first_bucket(key))?;
    // SAFETY: an array's value lives as long as the map.
    unsafe {
        let usual = usual_slot(bucket, key);
        if (*usual).key == key {
            return Some(usual);
        }
        if let Some(entry) = scan(bucket, key) {
            return Some(entry);
        }
        scan(CONNECTIONS.get_ptr_mut(second_bucket(key))?, key)
    }
}

/// A new entry, all 0 but for its key; `None` if both buckets are full.
#[inline(always)]
fn insert(key: u64) -> Option<*mut Connection> {
    let bucket = CONNECTIONS.get_ptr_mut(first_bucket(key))?;
    // SAFETY: an array's value lives as long as the map. Two CPUs that take
    // the same entry: the later one has it, the other is not held.
    unsafe {
        let usual = usual_slot(bucket, key);
        let entry = if (*usual).key == 0 {
            usual
        } else if let Some(entry) = scan(bucket, 0) {
            entry
        } else {
            scan(CONNECTIONS.get_ptr_mut(second_bucket(key))?, 0)?
        };
        core::ptr::write_bytes(entry.cast::<u8>(), 0, size_of::<Connection>());
        (*entry).key = key;
        Some(entry)
    }
}

#[inline(always)]
unsafe fn usual_slot(bucket: *mut Bucket, key: u64) -> *mut Connection {
    let slot = (key as usize) & (SLOTS - 1);
    // SAFETY: the slot is in the array.
    unsafe { (&raw mut (*bucket).slots).cast::<Connection>().add(slot) }
}

/// The first entry of this key.
#[inline(always)]
unsafe fn scan(bucket: *mut Bucket, key: u64) -> Option<*mut Connection> {
    let slots: *mut Connection = (unsafe { &raw mut (*bucket).slots }).cast();
    let mut slot = 0;
    while slot < SLOTS {
        // SAFETY: the slot is in the array.
        let entry = unsafe { slots.add(slot) };
        if unsafe { (*entry).key } == key {
            return Some(entry);
        }
        slot += 1;
    }
    None
}

/// `struct bpf_iter__task_file`: each pointer takes 8 bytes.
#[repr(C)]
pub struct TaskFile {
    meta: *const *mut seq_file,
    task: *const u8,
    fd: u64,
    file: *const u8,
}

/// A look at every open file of every process, in every namespace: finds
/// connections with their owners. Runs when the user side reads its file.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
pub extern "C" fn look(ctx: *const TaskFile) -> i32 {
    let _ = try_look(ctx);
    0
}

#[inline(always)]
fn try_look(ctx: *const TaskFile) -> Option<()> {
    // SAFETY: the verifier knows the context's type.
    let (meta, task, file) = unsafe {
        (
            core::ptr::read_volatile(&raw const (*ctx).meta),
            core::ptr::read_volatile(&raw const (*ctx).task),
            core::ptr::read_volatile(&raw const (*ctx).file),
        )
    };
    // After the last file there is none.
    if file.is_null() || task.is_null() {
        return None;
    }
    let socket = unsafe { bpf_sock_from_file(file.cast_mut().cast()) } as *const u8;
    let sock: *const u8 = unsafe { Typed::read(socket, constant!(OFFSETS.socket_sock)) }?;
    let tcp = tcp_sock(sock);
    if tcp.is_null() {
        return None;
    }
    let now_state: u8 = unsafe { Typed::read(tcp, constant!(OFFSETS.common_state)) }?;
    let asked = LOOK.get(0)?;
    if now_state == state::LISTEN && asked.what != look::OWNERS {
        let owner = owner_of(task, uid(tcp));
        // SAFETY: as below. A socket of several processes is told several times.
        unsafe { write(meta, tcp, 0, None, &owner, now_state) }?;
        return Some(());
    }
    if !matches!(now_state, state::ESTABLISHED | state::CLOSE_WAIT | state::FIN_WAIT1 | state::FIN_WAIT2) {
        return None;
    }
    let key = cookie(tcp);
    let known = find(key);
    let entry = match known {
        Some(entry) => entry,
        None => insert(key)?,
    };
    let holder = owner_of(task, uid(tcp));
    // SAFETY: an array's value lives as long as the map.
    unsafe {
        let mut owner = (*entry).owner;
        let had_owner = owner.pid != 0;
        // The owner stays, unless a whole look went by without finding it.
        if !had_owner || (*entry).owner_look + 1 < asked.number {
            owner = holder;
        }
        let wanted = match asked.what {
            look::OWNERS => !had_owner,
            _ => asked.parts == 0 || key % u64::from(asked.parts) == u64::from(asked.part),
        };
        if wanted && (*entry).look != asked.number {
            let counts = write(meta, tcp, key, Some(entry), &owner, now_state)?;
            (*entry).look = asked.number;
            if asked.what != look::OWNERS && (*entry).begin_ns <= asked.before_ns {
                (*entry).reported = counts;
            }
        }
        (*entry).owner = owner;
        if owner.pid == holder.pid {
            (*entry).owner_look = asked.number;
        }
    }
    Some(())
}

/// Hands a record to the reader of the look's file. `None`: no space is left,
/// and the kernel will call again with the same file and an empty page.
#[inline(always)]
unsafe fn write(
    meta: *const *mut seq_file,
    tcp: *const u8,
    key: u64,
    entry: Option<*mut Connection>,
    owner: &Owner,
    now_state: u8,
) -> Option<Counts> {
    let mut record = MaybeUninit::<Tcp>::uninit();
    let out = record.as_mut_ptr();
    unsafe {
        describe(out, kind::ALIVE, tcp, tcp, key, entry, owner, now_state, now());
        let file = core::ptr::read_volatile(meta);
        let written = bpf_seq_write(file, out.cast_const().cast(), size_of::<Tcp>() as u32);
        (written == 0).then(|| (*out).counts)
    }
}

/// The programs use GPL-only helpers.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
pub static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
