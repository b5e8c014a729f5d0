//! UDP, which the kernel does not count by socket: flows, and answers of name
//! servers. Attached only for the options that need them, for these programs run
//! once per packet that is sent or received.

use crate::{
    OFFSETS, OPTIONS,
    socket::{address4, addresses, current_owner, namespace_of},
};
use agent_common::{
    Unsent,
    network::{Asked, DNS_LEN, Dns, Ends, Flow, FlowKey, Query, family, kind},
};
use agent_ebpf::{
    admit::{account, admit, note, now},
    constant,
    memory::{Memory as _, Probed, Typed, add, increment},
    ring::{reserve, submit},
};
use aya_ebpf::{
    helpers::generated::{bpf_get_current_uid_gid, bpf_probe_read_kernel},
    macros::{btf_tracepoint, map},
    maps::{HashMap, LruHashMap, PerCpuArray},
    programs::BtfTracePointContext,
};

/// Emptied by the user side. The loader sets the size from the configuration.
#[map]
static FLOWS: HashMap<FlowKey, Flow> = HashMap::with_max_entries(1, 0);

/// Packets that found no place in [`FLOWS`].
#[map]
static FLOWS_LOST: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// Questions that were sent to name servers.
#[map]
static QUERIES: LruHashMap<Query, Asked> = LruHashMap::with_max_entries(4096, 0);

/// The packet that this CPU has counted last.
#[map]
static LAST: PerCpuArray<Last> = PerCpuArray::with_max_entries(1, 0);

/// `IPPROTO_UDP`
const UDP: u8 = 17;
/// Port of name servers.
const DOMAIN: u16 = 53;
/// Length of a UDP header.
const UDP_HEADER: u16 = 8;

/// A packet on its way down: a device on top of another hands the same one to it.
#[repr(C)]
#[derive(Clone, Copy)]
struct Last {
    packet: u64,
    device: u32,
    /// Checksum and length of its UDP header.
    udp: u32,
}

/// A UDP packet, from its headers.
struct Packet {
    source: [u8; 16],
    destination: [u8; 16],
    source_port: u16,
    destination_port: u16,
    family: u16,
    /// Bytes of payload.
    bytes: u16,
    /// Length and checksum, as they stand in the header.
    udp: u32,
    /// Where the payload begins.
    payload: *const u8,
    /// Bytes of it that are there, and not in fragments elsewhere.
    linear: u64,
}

/// A process has received something (6.3); the task is the receiver. Who sent it
/// is known for a connected socket only.
#[btf_tracepoint(function = "sock_recv_length")]
pub fn receive_btf(ctx: BtfTracePointContext) -> i32 {
    /// `MSG_PEEK`: it will be received again.
    const PEEK: u32 = 2;
    let (sock, length, flags): (*const u8, i32, u32) = (ctx.arg(0), ctx.arg(1), ctx.arg(2));
    let protocol: Option<u8> = unsafe { Typed::read(sock, constant!(OFFSETS.sock_protocol)) };
    if protocol != Some(UDP) || length < 0 || flags & PEEK != 0 {
        return 0;
    }
    if let Some(ends) = unsafe { addresses::<Typed>(sock) } {
        count(ends, length as u64, false, unsafe { namespace_of::<Typed>(sock) });
    }
    0
}

/// A socket has something to read (6.3). In softirq: the task is a stranger.
#[btf_tracepoint(function = "sk_data_ready")]
pub fn answer_btf(ctx: BtfTracePointContext) -> i32 {
    let sock: *const u8 = ctx.arg(0);
    let protocol: Option<u8> = unsafe { Typed::read(sock, constant!(OFFSETS.sock_protocol)) };
    let waiting: Option<u32> = unsafe { Typed::read(sock, constant!(OFFSETS.sock_queued)) };
    if protocol != Some(UDP) || waiting.is_none_or(|waiting| waiting == 0) {
        return 0;
    }
    let Some(last) = (unsafe { Typed::read::<*const u8>(sock, constant!(OFFSETS.sock_last_packet)) }) else {
        return 0;
    };
    match unsafe { parse(last) } {
        Some(packet) if packet.source_port == DOMAIN => {
            if constant!(OPTIONS.dns_events) != 0 {
                account(answer(&packet))
            } else {
                note(answer(&packet))
            }
        }
        _ => 0,
    }
}

/// A packet goes to a device: the task is the sender, unless it was queued before (2.6.32).
#[btf_tracepoint(function = "net_dev_queue")]
pub fn send_btf(ctx: BtfTracePointContext) -> i32 {
    let skb: *const u8 = ctx.arg(0);
    // What is forwarded has no socket.
    if protocol(skb) != Some(UDP) {
        return 0;
    }
    let Some(packet) = (unsafe { parse(skb) }) else {
        return 0;
    };
    if unsafe { is_counted(skb, &packet) } {
        return 0;
    }
    if constant!(OPTIONS.udp_flows) != 0 {
        let sock: Option<*const u8> = unsafe { Typed::read(skb, constant!(OFFSETS.packet_sock)) };
        let namespace = sock.map_or(0, |sock| unsafe { namespace_of::<Typed>(sock) });
        count(packet.ends(true), packet.bytes.into(), true, namespace);
    }
    if constant!(OPTIONS.dns_events) != 0 && packet.destination_port == DOMAIN {
        let id = unsafe { Probed::read::<u16>(packet.payload, 0) }.unwrap_or(0);
        let query = Query { server: packet.destination, port: packet.source_port, id, reserved: 0 };
        let _ = QUERIES.insert(query, Asked { time_ns: now(), owner: current_owner::<Typed>(current_uid()) }, 0);
    }
    0
}

/// Protocol of the packet's socket, if it has one.
#[inline(always)]
fn protocol(skb: *const u8) -> Option<u8> {
    unsafe {
        let sock: *const u8 = Typed::read(skb, constant!(OFFSETS.packet_sock))?;
        Typed::read(sock, constant!(OFFSETS.sock_protocol))
    }
}

/// `None` if the packet is no first fragment of UDP over IP.
#[inline(always)]
unsafe fn parse(skb: *const u8) -> Option<Packet> {
    unsafe {
        let head: *const u8 = Typed::read(skb, constant!(OFFSETS.packet_head))?;
        let network: u16 = Typed::read(skb, constant!(OFFSETS.packet_network))?;
        let transport: u16 = Typed::read(skb, constant!(OFFSETS.packet_transport))?;
        let ip = head.wrapping_add(usize::from(network));
        let (family, source, destination) = match Probed::read::<u8>(ip, 0)? >> 4 {
            4 => {
                let header: [u32; 5] = Probed::read(ip, 0)?;
                let [_, fragment, protocol, source, destination] = header;
                // Offset of the fragment, and the protocol, in network byte order.
                if u32::from_be(fragment) & 0x1fff != 0 || (u32::from_be(protocol) >> 16) as u8 != UDP {
                    return None;
                }
                (family::INET, address4(source), address4(destination))
            }
            6 => {
                // Extension headers are not followed.
                if Probed::read::<u8>(ip, 6)? != UDP {
                    return None;
                }
                (family::INET6, Probed::read(ip, 8)?, Probed::read(ip, 24)?)
            }
            _ => return None,
        };
        let udp = head.wrapping_add(usize::from(transport));
        let payload = udp.wrapping_add(usize::from(UDP_HEADER));
        let data: u64 = Typed::read(skb, constant!(OFFSETS.packet_data))?;
        let all: u32 = Typed::read(skb, constant!(OFFSETS.packet_length))?;
        let elsewhere: u32 = Typed::read(skb, constant!(OFFSETS.packet_fragments))?;
        let end = data.wrapping_add(u64::from(all.wrapping_sub(elsewhere)));
        let [source_port, destination_port, length, checksum]: [u16; 4] = Probed::read(udp, 0)?;
        Some(Packet {
            source: core::mem::transmute::<[u64; 2], [u8; 16]>(source),
            destination: core::mem::transmute::<[u64; 2], [u8; 16]>(destination),
            source_port: u16::from_be(source_port),
            destination_port: u16::from_be(destination_port),
            family,
            bytes: u16::from_be(length).saturating_sub(UDP_HEADER),
            udp: u32::from(length) << 16 | u32::from(checksum),
            payload,
            linear: end.saturating_sub(payload as u64),
        })
    }
}

/// Whether this very packet came by on the device above.
#[inline(always)]
unsafe fn is_counted(skb: *const u8, packet: &Packet) -> bool {
    let Some(last) = LAST.get_ptr_mut(0) else {
        return false;
    };
    unsafe {
        let device: Option<*const u8> = Typed::read(skb, constant!(OFFSETS.packet_device));
        let device = device.and_then(|device| Typed::read(device, constant!(OFFSETS.device_index))).unwrap_or(0);
        let before = *last;
        // A pointer is no number to the verifier until it was in a map.
        core::ptr::write_volatile((&raw mut (*last).packet).cast::<*const u8>(), skb);
        let address = core::ptr::read_volatile(&raw const (*last).packet);
        (*last).device = device;
        (*last).udp = packet.udp;
        before.packet == address && before.udp == packet.udp && before.device != device
    }
}

#[inline(always)]
fn current_uid() -> u32 {
    // SAFETY: no arguments, no side effect.
    (unsafe { bpf_get_current_uid_gid() }) as u32
}

#[inline(always)]
fn count(ends: Ends, bytes: u64, is_sent: bool, namespace: u32) {
    let owner = current_owner::<Typed>(current_uid());
    let key = FlowKey { pid: owner.pid, reserved: 0, ends };
    let time = now();
    let known = match FLOWS.get_ptr_mut(key) {
        Some(known) => known,
        None => {
            let new = Flow { owner, begin_ns: time, namespace, sent_first: u32::from(is_sent), ..Flow::default() };
            // Another CPU may have been faster.
            let _ = FLOWS.insert(key, new, 1);
            match FLOWS.get_ptr_mut(key) {
                Some(known) => known,
                None => {
                    if let Some(lost) = FLOWS_LOST.get_ptr_mut(0) {
                        // SAFETY: this CPU's slot of the map.
                        unsafe { increment(lost) };
                    }
                    return;
                }
            }
        }
    };
    // SAFETY: an entry of the map.
    unsafe {
        (*known).last_ns = time;
        let (packets, total) = match is_sent {
            true => (&raw mut (*known).sent_packets, &raw mut (*known).sent_bytes),
            false => (&raw mut (*known).received_packets, &raw mut (*known).received_bytes),
        };
        increment(packets);
        add(total, bytes);
    }
}

impl Packet {
    /// Seen from the process that sends or receives it.
    #[inline(always)]
    fn ends(&self, is_sent: bool) -> Ends {
        let Packet { family, source, destination, source_port, destination_port, .. } = *self;
        match is_sent {
            true => Ends {
                family,
                local_port: source_port,
                remote_port: destination_port,
                reserved: 0,
                local: source,
                remote: destination,
            },
            false => Ends {
                family,
                local_port: destination_port,
                remote_port: source_port,
                reserved: 0,
                local: destination,
                remote: source,
            },
        }
    }
}

/// Sends an answer of a name server to the user side, which reads it.
#[inline(always)]
fn answer(packet: &Packet) -> Result<(), Unsent> {
    let time = now();
    let mut asked = Asked::default();
    if constant!(OPTIONS.dns_events) != 0 {
        let id = unsafe { Probed::read::<u16>(packet.payload, 0) }.unwrap_or(0);
        let query = Query { server: packet.source, port: packet.destination_port, id, reserved: 0 };
        // SAFETY: an entry of the map is copied.
        if let Some(known) = unsafe { QUERIES.get(query) } {
            asked = *known;
        }
        admit(asked.owner.pid, asked.owner.filtered_uid(), &asked.owner.comm, time)?;
    }
    let mut record = reserve::<Dns>()?;
    let out = record.as_mut_ptr();
    // SAFETY: a reserved record of this size; every field is written.
    unsafe {
        (*out).kind = kind::DNS;
        (*out).time_ns = time;
        (*out).asked = asked;
        (*out).ends = packet.ends(false);
        let len = if u64::from(packet.bytes) > packet.linear { packet.linear } else { packet.bytes.into() };
        let len = if len > DNS_LEN as u64 { DNS_LEN } else { len as usize };
        let copied = bpf_probe_read_kernel((&raw mut (*out).payload).cast(), len as u32, packet.payload.cast());
        (*out).len = if copied == 0 { len as u32 } else { 0 };
    }
    submit(record);
    Ok(())
}
