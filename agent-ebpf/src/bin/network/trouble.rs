//! What went wrong, counted in the kernel by what, where and who: rare things
//! by themselves, and when they are not, a storm costs a counter.

use crate::{
    OFFSETS,
    socket::{addresses, cookie, namespace_of, tcp_sock},
    table::find,
};
use agent_common::{
    ABSENT,
    network::{Ends, Owner, Trouble, TroubleKey, state, trouble},
};
use agent_ebpf::{
    constant,
    memory::{Memory as _, Typed, add},
};
use aya_ebpf::{
    macros::{btf_tracepoint, map},
    maps::{HashMap, PerCpuArray},
    programs::BtfTracePointContext,
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
    /// The tracepoint's own data, socket, packet and error.
    const WITH_ERROR: u32 = 4;
    let (sock, packet): (*const u8, *const u8) = (ctx.arg(0), ctx.arg(1));
    let arguments = constant!(OFFSETS.retransmit_arguments);
    let failed = arguments != ABSENT && arguments >= WITH_ERROR && ctx.arg::<i32>(2) != 0;
    if failed || tcp_sock(sock).is_null() {
        return 0;
    }
    // One that a device will cut into segments is as many (`tcp_skb_pcount`).
    let (control, at) = (constant!(OFFSETS.packet_control), constant!(OFFSETS.control_segments));
    let segments: Option<u16> = match control == ABSENT || at == ABSENT {
        true => None,
        false => unsafe { Typed::read(packet, control + at) },
    };
    let segments = u64::from(segments.unwrap_or(1));
    let interface = unsafe { interface_of_socket(sock) };
    count(trouble::RETRANSMIT, 0, 0, Amount::of(segments), &interface, sock, &Owner::default());
    let key = cookie(sock);
    count(trouble::RETRANSMIT, 0, key, Amount::of(segments), &interface, sock, &owner(key));
    0
}

/// A reset is sent; without a socket where nobody listens (4.16).
#[btf_tracepoint(function = "tcp_send_reset")]
pub fn reset_btf(ctx: BtfTracePointContext) -> i32 {
    let (sock, packet): (*const u8, *const u8) = (ctx.arg(0), ctx.arg(1));
    let interface = unsafe {
        let device = Typed::read(packet, constant!(OFFSETS.packet_device));
        match device {
            Some(device) => interface_of(device),
            None => interface_of_socket(sock),
        }
    };
    count(trouble::RESET_SENT, 0, 0, Amount::of(1), &interface, core::ptr::null(), &Owner::default());
    0
}

/// An error is reported to a socket: a reset, a timeout, an ICMP message (5.15).
#[btf_tracepoint(function = "inet_sk_error_report")]
pub fn error_btf(ctx: BtfTracePointContext) -> i32 {
    let sock: *const u8 = ctx.arg(0);
    let error: i32 = unsafe { Typed::read(sock, constant!(OFFSETS.sock_err)) }.unwrap_or(0);
    if error == 0 {
        return 0;
    }
    let now_state: u8 = unsafe { Typed::read(sock, constant!(OFFSETS.common_state)) }.unwrap_or(0);
    // One that has ended was counted by its last change of state, with its owner.
    if now_state == state::CLOSE && !tcp_sock(sock).is_null() {
        return 0;
    }
    count_error(error, sock, &owner(cookie(sock)));
    0
}

/// The ends are an example: the errors of one process are counted together.
#[inline(always)]
pub fn count_error(error: i32, sock: *const u8, owner: &Owner) {
    let interface = unsafe { interface_of_socket(sock) };
    count(trouble::SOCKET_ERROR, error as u32, u64::from(owner.pid), Amount::of(1), &interface, sock, owner);
}

/// A packet is dropped, since the socket's receive queue is full (3.0).
#[btf_tracepoint(function = "sock_rcvqueue_full")]
pub fn queue_btf(ctx: BtfTracePointContext) -> i32 {
    let sock: *const u8 = ctx.arg(0);
    let port: u16 = unsafe { Typed::read(sock, constant!(OFFSETS.common_local_port)) }.unwrap_or(0);
    let interface = unsafe { interface_of_socket(sock) };
    count(trouble::QUEUE_FULL, 0, u64::from(port), Amount::of(1), &interface, sock, &Owner::default());
    0
}

/// A packet is dropped; the kernel says why since 5.17.
#[btf_tracepoint(function = "kfree_skb")]
pub fn drop_btf(ctx: BtfTracePointContext) -> i32 {
    /// The tracepoint's own data, packet, place and reason.
    const WITH_REASON: u32 = 4;
    let arguments = constant!(OFFSETS.drop_arguments);
    if arguments == ABSENT || arguments < WITH_REASON {
        return 0;
    }
    let packet: *const u8 = ctx.arg(0);
    let reason = ctx.arg::<u32>(2);
    let interface = unsafe {
        match Typed::read(packet, constant!(OFFSETS.packet_device)) {
            Some(device) => interface_of(device),
            None => Interface::default(),
        }
    };
    count(trouble::DROP, reason, 0, Amount::of(1), &interface, core::ptr::null(), &Owner::default());
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
pub unsafe fn interface_of_socket(sock: *const u8) -> Interface {
    unsafe {
        let route: Option<*const u8> = Typed::read(sock, constant!(OFFSETS.sock_route));
        let device: Option<*const u8> = match route {
            Some(route) => Typed::read(route, constant!(OFFSETS.route_device)),
            None => None,
        };
        match device {
            Some(device) if !device.is_null() => interface_of(device),
            _ => Interface { namespace: namespace_of(sock), index: 0, name: [0; 16] },
        }
    }
}

#[inline(always)]
unsafe fn interface_of(device: *const u8) -> Interface {
    unsafe {
        let net: Option<*const u8> = Typed::read(device, constant!(OFFSETS.device_net));
        let name: Option<[u64; 2]> = Typed::read(device, constant!(OFFSETS.device_name));
        Interface {
            namespace: net.and_then(|net| Typed::read(net, constant!(OFFSETS.net_inum))).unwrap_or(0),
            index: Typed::read(device, constant!(OFFSETS.device_index)).unwrap_or(0),
            name: core::mem::transmute::<[u64; 2], [u8; 16]>(name.unwrap_or([0; 2])),
        }
    }
}

#[inline(always)]
fn owner(key: u64) -> Owner {
    match find(key) {
        // SAFETY: an array's value lives as long as the map.
        Some(entry) => unsafe { (*entry).owner },
        None => Owner::default(),
    }
}

#[inline(always)]
pub fn count(what: u32, code: u32, who: u64, amount: Amount, at: &Interface, sock: *const u8, owner: &Owner) {
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
    let ends = if sock.is_null() { Ends::default() } else { unsafe { addresses(sock) }.unwrap_or_default() };
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
        let port: Option<u16> = unsafe { Typed::read(tcp_sock(sock), constant!(OFFSETS.tcp_local_port)) };
        // SAFETY: an entry of the map.
        unsafe { (*known).ends.local_port = u16::from_be(port.unwrap_or(0)) };
    }
}
