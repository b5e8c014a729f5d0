//! What went wrong, counted in the kernel by what, where and who: rare things
//! by themselves, and when they are not, a storm costs a counter.

use crate::{
    OFFSETS,
    socket::{Socket, addresses, namespace_of},
    table::find,
};
use agent_common::{
    ABSENT,
    network::{Connection, Ends, Owner, Trouble, TroubleKey, state, trouble},
};
use agent_ebpf::{
    constant,
    memory::{Probed, Typed, add},
};
use aya_ebpf::{
    macros::{btf_tracepoint, map, raw_tracepoint},
    maps::{HashMap, PerCpuArray},
    programs::{BtfTracePointContext, RawTracePointContext},
};

/// Emptied by the user side. The loader sets the size.
#[map]
static TROUBLES: HashMap<TroubleKey, Trouble> = HashMap::with_max_entries(1, 0);

/// Things that found no place in [`TROUBLES`].
#[map]
static TROUBLES_LOST: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// A TCP packet is sent again (4.16).
#[btf_tracepoint(function = "tcp_retransmit_skb")]
pub fn retransmit_btf(ctx: BtfTracePointContext) -> i32 {
    let failed = retransmit_has_error() && ctx.arg::<i32>(2) != 0;
    retransmitted::<Typed>(ctx.arg(0), ctx.arg(1), failed)
}

#[raw_tracepoint(tracepoint = "tcp_retransmit_skb")]
pub fn retransmit_raw(ctx: RawTracePointContext) -> i32 {
    let failed = retransmit_has_error() && ctx.arg::<i32>(2) != 0;
    retransmitted::<Probed>(ctx.arg(0), ctx.arg(1), failed)
}

/// Whether the tracepoint tells of attempts that failed, too, and says so.
#[inline(always)]
fn retransmit_has_error() -> bool {
    /// The tracepoint's own data, socket, packet and error.
    const WITH_ERROR: u32 = 4;
    let arguments = constant!(OFFSETS.retransmit_arguments);
    arguments != ABSENT && arguments >= WITH_ERROR
}

#[inline(always)]
fn retransmitted<M: Socket>(sock: *const u8, packet: *const u8, failed: bool) -> i32 {
    if failed || M::tcp(sock).is_null() {
        return 0;
    }
    // One that a device will cut into segments is as many (`tcp_skb_pcount`).
    let (control, at) = (constant!(OFFSETS.packet_control), constant!(OFFSETS.control_segments));
    let segments: Option<u16> = match control == ABSENT || at == ABSENT {
        true => None,
        false => unsafe { M::read(packet, control + at) },
    };
    let segments = u64::from(segments.unwrap_or(1));
    let interface = unsafe { interface_of_socket::<M>(sock) };
    count::<M>(trouble::RETRANSMIT, 0, 0, Amount::of(segments), &interface, sock, &Owner::default());
    let key = M::key(sock);
    let entry = find(key);
    // SAFETY: an entry of the table, if there is one.
    let who = unsafe { M::identity(key, entry) };
    count::<M>(trouble::RETRANSMIT, 0, who, Amount::of(segments), &interface, sock, &owner(entry));
    0
}

/// A reset is sent; without a socket where nobody listens (4.16).
#[btf_tracepoint(function = "tcp_send_reset")]
pub fn reset_btf(ctx: BtfTracePointContext) -> i32 {
    reset_sent::<Typed>(ctx.arg(0), ctx.arg(1))
}

#[raw_tracepoint(tracepoint = "tcp_send_reset")]
pub fn reset_raw(ctx: RawTracePointContext) -> i32 {
    reset_sent::<Probed>(ctx.arg(0), ctx.arg(1))
}

#[inline(always)]
fn reset_sent<M: Socket>(sock: *const u8, packet: *const u8) -> i32 {
    let interface = unsafe {
        let device: Option<*const u8> = M::read(packet, constant!(OFFSETS.packet_device));
        match device {
            Some(device) if !device.is_null() => interface_of::<M>(device),
            _ => interface_of_socket::<M>(sock),
        }
    };
    count::<M>(trouble::RESET_SENT, 0, 0, Amount::of(1), &interface, core::ptr::null(), &Owner::default());
    0
}

/// An error is reported to a socket: a reset, a timeout, an ICMP message (5.15).
#[btf_tracepoint(function = "inet_sk_error_report")]
pub fn error_btf(ctx: BtfTracePointContext) -> i32 {
    reported::<Typed>(ctx.arg(0))
}

#[raw_tracepoint(tracepoint = "inet_sk_error_report")]
pub fn error_raw(ctx: RawTracePointContext) -> i32 {
    reported::<Probed>(ctx.arg(0))
}

#[inline(always)]
fn reported<M: Socket>(sock: *const u8) -> i32 {
    let error: i32 = unsafe { M::read(sock, constant!(OFFSETS.sock_err)) }.unwrap_or(0);
    if error == 0 {
        return 0;
    }
    let now_state: u8 = unsafe { M::read(sock, constant!(OFFSETS.common_state)) }.unwrap_or(0);
    // One that has ended was counted by its last change of state, with its owner.
    if now_state == state::CLOSE && !M::tcp(sock).is_null() {
        return 0;
    }
    count_error::<M>(error, sock, &owner(find(M::key(sock))));
    0
}

/// The ends are an example: the errors of one process are counted together.
#[inline(always)]
pub fn count_error<M: Socket>(error: i32, sock: *const u8, owner: &Owner) {
    let interface = unsafe { interface_of_socket::<M>(sock) };
    count::<M>(trouble::SOCKET_ERROR, error as u32, u64::from(owner.pid), Amount::of(1), &interface, sock, owner);
}

/// A packet is dropped, since the socket's receive queue is full (3.0).
#[btf_tracepoint(function = "sock_rcvqueue_full")]
pub fn queue_btf(ctx: BtfTracePointContext) -> i32 {
    queue_full::<Typed>(ctx.arg(0))
}

#[raw_tracepoint(tracepoint = "sock_rcvqueue_full")]
pub fn queue_raw(ctx: RawTracePointContext) -> i32 {
    queue_full::<Probed>(ctx.arg(0))
}

#[inline(always)]
fn queue_full<M: Socket>(sock: *const u8) -> i32 {
    let port: u16 = unsafe { M::read(sock, constant!(OFFSETS.common_local_port)) }.unwrap_or(0);
    let interface = unsafe { interface_of_socket::<M>(sock) };
    count::<M>(trouble::QUEUE_FULL, 0, u64::from(port), Amount::of(1), &interface, sock, &Owner::default());
    0
}

/// A packet is dropped; the kernel says why since 5.17.
#[btf_tracepoint(function = "kfree_skb")]
pub fn drop_btf(ctx: BtfTracePointContext) -> i32 {
    match drop_has_reason() {
        true => dropped::<Typed>(ctx.arg(0), ctx.arg(2)),
        false => 0,
    }
}

#[raw_tracepoint(tracepoint = "kfree_skb")]
pub fn drop_raw(ctx: RawTracePointContext) -> i32 {
    match drop_has_reason() {
        true => dropped::<Probed>(ctx.arg(0), ctx.arg(2)),
        false => 0,
    }
}

#[inline(always)]
fn drop_has_reason() -> bool {
    /// The tracepoint's own data, packet, place and reason.
    const WITH_REASON: u32 = 4;
    let arguments = constant!(OFFSETS.drop_arguments);
    arguments != ABSENT && arguments >= WITH_REASON
}

#[inline(always)]
fn dropped<M: Socket>(packet: *const u8, reason: u32) -> i32 {
    let interface = unsafe {
        match M::read(packet, constant!(OFFSETS.packet_device)) {
            Some(device) => interface_of::<M>(device),
            None => Interface::default(),
        }
    };
    count::<M>(trouble::DROP, reason, 0, Amount::of(1), &interface, core::ptr::null(), &Owner::default());
    0
}

/// How often it happened, and how long that took in all.
#[derive(Clone, Copy)]
pub struct Amount {
    pub times: u64,
    pub time_ns: u64,
}

impl Amount {
    /// What takes no time.
    const fn of(times: u64) -> Self {
        Self { times, time_ns: 0 }
    }
}

/// Where something happened.
#[derive(Clone, Copy, Default)]
pub struct Interface {
    namespace: u32,
    index: u32,
    name: [u8; 16],
}

/// The interface that a socket's packets leave by.
#[inline(always)]
pub unsafe fn interface_of_socket<M: Socket>(sock: *const u8) -> Interface {
    unsafe {
        let route: Option<*const u8> = M::read(sock, constant!(OFFSETS.sock_route));
        let device: Option<*const u8> = match route {
            Some(route) => M::read(route, constant!(OFFSETS.route_device)),
            None => None,
        };
        match device {
            Some(device) if !device.is_null() => interface_of::<M>(device),
            _ => Interface { namespace: namespace_of::<M>(sock), index: 0, name: [0; 16] },
        }
    }
}

#[inline(always)]
unsafe fn interface_of<M: Socket>(device: *const u8) -> Interface {
    unsafe {
        let net: Option<*const u8> = M::read(device, constant!(OFFSETS.device_net));
        let name: Option<[u64; 2]> = M::read(device, constant!(OFFSETS.device_name));
        Interface {
            namespace: net.and_then(|net| M::read(net, constant!(OFFSETS.net_inum))).unwrap_or(0),
            index: M::read(device, constant!(OFFSETS.device_index)).unwrap_or(0),
            name: core::mem::transmute::<[u64; 2], [u8; 16]>(name.unwrap_or([0; 2])),
        }
    }
}

#[inline(always)]
fn owner(entry: Option<*mut Connection>) -> Owner {
    match entry {
        // SAFETY: an array's value lives as long as the map.
        Some(entry) => unsafe { (*entry).owner },
        None => Owner::default(),
    }
}

#[inline(always)]
pub fn count<M: Socket>(
    what: u32,
    code: u32,
    who: u64,
    amount: Amount,
    at: &Interface,
    sock: *const u8,
    owner: &Owner,
) {
    let key = TroubleKey { what, code, namespace: at.namespace, interface: at.index, who };
    if let Some(known) = TROUBLES.get_ptr_mut(key) {
        // SAFETY: an entry of the map.
        unsafe {
            add(&raw mut (*known).count, amount.times);
            if amount.time_ns != 0 {
                add(&raw mut (*known).time_ns, amount.time_ns);
            }
            // Of an accepted connection the owner is found after a while.
            if (*known).owner.pid == 0 && owner.pid != 0 {
                (*known).owner = *owner;
            }
        }
        return;
    }
    let ends = if sock.is_null() { Ends::default() } else { unsafe { addresses::<M>(sock) }.unwrap_or_default() };
    let new = Trouble { count: amount.times, time_ns: amount.time_ns, owner: *owner, ends, interface: at.name };
    if TROUBLES.insert(key, new, 0).is_err() {
        if let Some(lost) = TROUBLES_LOST.get_ptr_mut(0) {
            // SAFETY: this CPU's slot of the map.
            unsafe { add(lost, amount.times) };
        }
        return;
    }
    // A TCP socket that has ended has given its port back. Here, since the stack is full above.
    if !sock.is_null()
        && new.ends.local_port == 0
        && let Some(known) = TROUBLES.get_ptr_mut(key)
    {
        let port: Option<u16> = unsafe { M::read(M::tcp(sock), constant!(OFFSETS.tcp_local_port)) };
        // SAFETY: an entry of the map.
        unsafe { (*known).ends.local_port = u16::from_be(port.unwrap_or(0)) };
    }
}
