//! Wire structs of the network room: one record when a TCP connection opens,
//! one when it ends, and one per look at a connection that lives long; the
//! entry of the kernel's connection table.

use crate::{COMM_LEN, Source, fields::offsets};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What a record is: its first four bytes.
pub mod kind {
    /// [`super::Tcp`]: the handshake is done.
    pub const OPENED: u32 = 1;
    /// [`super::Tcp`]: the socket reached `TCP_CLOSE`.
    pub const CLOSED: u32 = 2;
    /// [`super::Tcp`]: a look found the connection open.
    pub const ALIVE: u32 = 3;
    /// [`super::Dns`]
    pub const DNS: u32 = 4;
}

/// `enum` of include/net/tcp_states.h, part of the kernel's interface to user space.
pub mod state {
    /// Both ends may send.
    pub const ESTABLISHED: u8 = 1;
    /// A connect is on its way.
    pub const SYN_SENT: u8 = 2;
    /// A handshake is on its way, seen by the accepting end.
    pub const SYN_RECV: u8 = 3;
    /// We have closed first.
    pub const FIN_WAIT1: u8 = 4;
    /// And the peer has acknowledged.
    pub const FIN_WAIT2: u8 = 5;
    /// Both ends are done, old packets may come.
    pub const TIME_WAIT: u8 = 6;
    /// No connection, or no more.
    pub const CLOSE: u8 = 7;
    /// The peer has closed first.
    pub const CLOSE_WAIT: u8 = 8;
    /// And we have, too.
    pub const LAST_ACK: u8 = 9;
    /// Waits for connections.
    pub const LISTEN: u8 = 10;
    /// Both ends closed at the same time.
    pub const CLOSING: u8 = 11;
    /// A request that is no socket yet.
    pub const NEW_SYN_RECV: u8 = 12;
}

/// Address families, as in `<sys/socket.h>`.
pub mod family {
    /// `AF_INET`
    pub const INET: u16 = 2;
    /// `AF_INET6`
    pub const INET6: u16 = 10;
}

/// Which end of a connection a socket is.
pub mod role {
    /// The table did not hold the connection, or it is older than the agent.
    pub const UNKNOWN: u8 = 0;
    /// It called connect().
    pub const CLIENT: u8 = 1;
    /// It came out of a listening socket.
    pub const SERVER: u8 = 2;
}

/// Bits of [`Tcp::missing`]: what this kernel, or the table, could not tell.
pub mod missing {
    /// The table had no entry: begin, owner and role are unknown.
    pub const ENTRY: u32 = 1;
    /// Byte and packet counts.
    pub const COUNTS: u32 = 1 << 1;
    /// Smoothed and smallest round-trip time.
    pub const RTT: u32 = 1 << 2;
    /// `cgroup_id`
    pub const CGROUP: u32 = 1 << 3;
    /// Addresses or ports.
    pub const ADDRESSES: u32 = 1 << 4;
    /// How it ended: it was there at one look and not at the next.
    pub const END: u32 = 1 << 5;
}

/// Longest answer of a name server that is kept, in bytes: what EDNS lets pass
/// without fragments (RFC 6891 and the 1232 of DNS flag day 2020), and some.
pub const DNS_LEN: usize = 1400;
/// Connections in one [`Bucket`].
pub const SLOTS: usize = 8;

/// The process that uses a socket; all 0 if it is not known.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Owner {
    /// Boot clock, ns: start of the process.
    pub start_ns: u64,
    /// Thread group id, in the initial pid namespace.
    pub pid: u32,
    /// `sk->sk_uid`: the user of who made the socket, in the initial user namespace.
    pub uid: u32,
    /// Command name of the process, NUL-terminated.
    pub comm: [u8; COMM_LEN],
}

impl Owner {
    /// Itself, if it is a process.
    #[inline(always)]
    #[must_use]
    pub fn known(&self) -> Option<&Self> {
        if self.pid == 0 { None } else { Some(self) }
    }

    /// The user to ask a filter for: nobody's is not excluded.
    #[inline(always)]
    #[must_use]
    pub fn filtered_uid(&self) -> u32 {
        if self.pid == 0 { u32::MAX } else { self.uid }
    }
}

/// What went over a connection, as its socket counts.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Counts {
    /// Payload sent, each byte once: `bytes_sent - bytes_retrans`.
    pub sent_bytes: u64,
    /// Payload received: `bytes_received`, less the one that stands for the peer's FIN.
    pub received_bytes: u64,
    /// `segs_out`
    pub sent_packets: u32,
    /// `segs_in`
    pub received_packets: u32,
    /// `total_retrans`
    pub retransmits: u32,
    /// Always 0.
    pub reserved: u32,
}

/// A connection in the table.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Connection {
    /// The socket's cookie or, on rungs without typed pointers, its address, mixed; 0 is a free entry.
    pub key: u64,
    /// Boot clock, ns: connect(), or the end of the handshake of an accepted one; 0: unknown.
    pub begin_ns: u64,
    /// Boot clock, ns: the end of the handshake; 0: not yet, or unknown.
    pub established_ns: u64,
    /// Who uses it.
    pub owner: Owner,
    /// What looks have told already.
    pub reported: Counts,
    /// The look that last told of it.
    pub look: u32,
    /// The look that last found it with its owner.
    pub owner_look: u32,
    /// One of [`role`].
    pub role: u32,
    /// Always 0.
    pub reserved: u32,
}

/// A part of the table: a connection is in the bucket that its key says, or in its second.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Bucket {
    /// In any order.
    pub slots: [Connection; SLOTS],
}

/// The two ends of a connection, seen from one.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Ends {
    /// One of [`family`].
    pub family: u16,
    /// Host byte order.
    pub local_port: u16,
    /// Host byte order.
    pub remote_port: u16,
    /// Always 0.
    pub reserved: u16,
    /// Four bytes for IPv4, the rest 0.
    pub local: [u8; 16],
    /// Four bytes for IPv4, the rest 0.
    pub remote: [u8; 16],
}

/// What a record tells of a TCP connection, at the moment it tells it.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Tcp {
    /// One of [`kind`].
    pub kind: u32,
    /// Bits of [`missing`].
    pub missing: u32,
    /// Boot clock, ns.
    pub time_ns: u64,
    /// The socket's cookie or, on rungs without typed pointers, its address mixed with `begin_ns`.
    pub key: u64,
    /// See [`Connection`].
    pub begin_ns: u64,
    /// See [`Connection`].
    pub established_ns: u64,
    /// See [`Connection`].
    pub owner: Owner,
    /// `sk->sk_cgrp_data.cgroup->kn->id`: of whom made the socket, in cgroup v2.
    pub cgroup_id: u64,
    /// Inode number of the network namespace.
    pub namespace: u32,
    /// Index of the interface on which its packets come; 0: none yet.
    pub interface: u32,
    /// Addresses and ports.
    pub ends: Ends,
    /// Up to now.
    pub counts: Counts,
    /// Up to what looks have told.
    pub reported: Counts,
    /// Smoothed round-trip time, µs (`srtt_us >> 3`).
    pub srtt_us: u32,
    /// Smallest round-trip time of the last minutes, µs (`rtt_min`).
    pub rtt_min_us: u32,
    /// `sk->sk_err`: errno of what ended it.
    pub error: i32,
    /// State before; the present one for [`kind::ALIVE`].
    pub state: u8,
    /// One of [`role`].
    pub role: u8,
    /// Always 0.
    pub reserved: u16,
}

/// An answer of a name server, as it came to a socket: a UDP payload from port 53.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Dns {
    /// [`kind::DNS`]
    pub kind: u32,
    /// Bytes used of `payload`.
    pub len: u32,
    /// Boot clock, ns.
    pub time_ns: u64,
    /// All 0 if the question was not seen.
    pub asked: Asked,
    /// Remote is the name server.
    pub ends: Ends,
    /// The message (RFC 1035), cut at [`DNS_LEN`].
    pub payload: [u8; DNS_LEN],
}

/// Who has asked a name server.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Asked {
    /// Boot clock, ns.
    pub time_ns: u64,
    /// `uid` is the process's own.
    pub owner: Owner,
}

/// A question on its way.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Query {
    /// Address of the name server.
    pub server: [u8; 16],
    /// Port that asks.
    pub port: u16,
    /// As it stands in the message.
    pub id: u16,
    /// Always 0.
    pub reserved: u32,
}

/// Who exchanges UDP packets with whom.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct FlowKey {
    /// Thread group id of the process; 0: the kernel.
    pub pid: u32,
    /// Always 0.
    pub reserved: u32,
    /// Seen from the process.
    pub ends: Ends,
}

/// What went over a UDP flow.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Flow {
    /// The process; `uid` is its own.
    pub owner: Owner,
    /// Boot clock, ns: the first packet.
    pub begin_ns: u64,
    /// Boot clock, ns: the last packet.
    pub last_ns: u64,
    /// Payload sent.
    pub sent_bytes: u64,
    /// Payload received.
    pub received_bytes: u64,
    /// Packets sent; one that is cut into segments later is one.
    pub sent_packets: u64,
    /// Packets received.
    pub received_packets: u64,
    /// Inode number of the network namespace.
    pub namespace: u32,
    /// Not 0: the first packet that was seen was sent.
    pub sent_first: u32,
}

/// What went wrong, where and by whom: the key under which it is counted.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct TroubleKey {
    /// One of [`trouble`].
    pub what: u32,
    /// errno of [`trouble::SOCKET_ERROR`], `enum skb_drop_reason` of [`trouble::DROP`], direction of a
    /// [`trouble::STALL`], else 0.
    pub code: u32,
    /// Inode number of the network namespace.
    pub namespace: u32,
    /// Index of the interface; 0: not known.
    pub interface: u32,
    /// Cookie of the socket, or pid of a socket's error, or local port of a full queue; 0: counted by interface.
    pub who: u64,
}

/// What is counted, see [`TroubleKey::what`].
pub mod trouble {
    /// A TCP packet was sent again; by interface and by connection.
    pub const RETRANSMIT: u32 = 1;
    /// A reset was sent.
    pub const RESET_SENT: u32 = 2;
    /// An error was reported to a socket.
    pub const SOCKET_ERROR: u32 = 3;
    /// A packet found the receive queue of its socket full.
    pub const QUEUE_FULL: u32 = 4;
    /// A packet was dropped.
    pub const DROP: u32 = 5;
    /// A send or a receive has blocked for longer than the threshold.
    pub const STALL: u32 = 6;
    /// Kinds there are, and one for 0.
    pub const KINDS: usize = 7;

    /// Code of a [`STALL`].
    pub const SENDING: u32 = 1;
    /// Code of a [`STALL`].
    pub const RECEIVING: u32 = 2;
}

/// How often it went wrong, with an example of whom it met.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Trouble {
    /// Since the entry was made.
    pub count: u64,
    /// Time it took, in all, ns: of a [`trouble::STALL`].
    pub time_ns: u64,
    /// Of the connection, if the table holds it; of a stall the task that was held up.
    pub owner: Owner,
    /// Of the connection; family 0: counted by interface.
    pub ends: Ends,
    /// Name of the interface, NUL-terminated.
    pub interface: [u8; 16],
}

/// What the user side asks of a look, see the program `look`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Look {
    /// Counts looks; never 0.
    pub number: u32,
    /// One of [`look`].
    pub what: u32,
    /// Boot clock, ns: what connections have counted is marked as told for those that began up to then.
    pub before_ns: u64,
    /// The look is for the connections with `key % parts == part`.
    pub part: u32,
    /// At least 1.
    pub parts: u32,
}

/// What a look is for.
pub mod look {
    /// Tell the connections that had no owner and have one now.
    pub const OWNERS: u32 = 1;
    /// Tell all, and the sockets that listen.
    pub const ALL: u32 = 2;
}

/// What the loader tells the programs of this room.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, IntoBytes, Immutable)]
pub struct Options {
    /// Buckets of the table but for the overflow, less one: a power of two less one.
    pub bucket_mask: u32,
    /// Buckets behind those for what finds them full, less one: a power of two less one.
    pub overflow_mask: u32,
    /// Not 0: send the answers of name servers.
    pub dns: u32,
    /// Not 0: these are events.
    pub dns_events: u32,
    /// Not 0: count UDP flows.
    pub udp_flows: u32,
    /// Number of the system call `io_submit`, which does not block on a socket.
    pub io_submit: u32,
    /// Time from which on a send or a receive is a stall, ns.
    pub stall_ns: u64,
    /// System calls that may block on a socket: bit by number.
    pub calls: [u64; CALLS / 64],
}

impl Options {
    /// Until the loader says otherwise.
    pub const NOTHING: Self = Self {
        bucket_mask: 0,
        overflow_mask: 0,
        dns: 0,
        dns_events: 0,
        udp_flows: 0,
        io_submit: 0,
        stall_ns: 0,
        calls: [0; CALLS / 64],
    };
}

/// Numbers of system calls are below this on every architecture that Leaf runs on.
pub const CALLS: usize = 512;

offsets! {
    /// Where the running kernel keeps what the network room reads.
    pub struct Offsets {
        common_family: Source::Member("sock_common", "skc_family"),
        common_state: Source::Member("sock_common", "skc_state"),
        common_local_port: Source::Member("sock_common", "skc_num"),
        common_remote_port: Source::Member("sock_common", "skc_dport"),
        common_local4: Source::Member("sock_common", "skc_rcv_saddr"),
        common_remote4: Source::Member("sock_common", "skc_daddr"),
        common_local6: Source::Member("sock_common", "skc_v6_rcv_saddr"),
        common_remote6: Source::Member("sock_common", "skc_v6_daddr"),
        common_net: Source::Member("sock_common", "skc_net.net"),
        net_inum: Source::Member("net", "ns.inum"),
        sock_err: Source::Member("sock", "sk_err"),
        sock_uid: Source::Member("sock", "sk_uid"),
        /// `sk_cgrp_data.val` before 5.15, and before that was changed in 5.10 stable.
        sock_cgroup: Source::Member("sock", "sk_cgrp_data.cgroup"),
        /// In `inet_sock` before 5.17.
        sock_interface: Source::Member("sock", "sk_rx_dst_ifindex"),
        common_flags: Source::Member("sock_common", "skc_flags"),
        /// Bit of `skc_flags`: the peer has sent its FIN.
        sock_done: Source::Enumerator("sock_flags", "SOCK_DONE"),
        socket_sock: Source::Member("socket", "sk"),
        tcp_local_port: Source::Member("tcp_sock", "inet_conn.icsk_inet.inet_sport"),
        tcp_bytes_sent: Source::Member("tcp_sock", "bytes_sent"),
        tcp_bytes_retrans: Source::Member("tcp_sock", "bytes_retrans"),
        tcp_bytes_received: Source::Member("tcp_sock", "bytes_received"),
        tcp_segs_out: Source::Member("tcp_sock", "segs_out"),
        tcp_segs_in: Source::Member("tcp_sock", "segs_in"),
        tcp_total_retrans: Source::Member("tcp_sock", "total_retrans"),
        tcp_srtt: Source::Member("tcp_sock", "srtt_us"),
        /// `struct minmax`, whose first sample is the smallest: { u32 time, u32 value }.
        tcp_rtt_min: Source::Member("tcp_sock", "rtt_min"),
        /// A route, `struct dst_entry`.
        sock_route: Source::Member("sock", "sk_dst_cache"),
        route_device: Source::Member("dst_entry", "dev"),
        packet_sock: Source::Member("sk_buff", "sk"),
        sock_queued: Source::Member("sock", "sk_receive_queue.qlen"),
        sock_last_packet: Source::Member("sock", "sk_receive_queue.prev"),
        packet_head: Source::Member("sk_buff", "head"),
        /// Where the packet's present layer begins.
        packet_data: Source::Member("sk_buff", "data"),
        packet_length: Source::Member("sk_buff", "len"),
        /// Bytes of the length that are not behind `data`.
        packet_fragments: Source::Member("sk_buff", "data_len"),
        packet_network: Source::Member("sk_buff", "network_header"),
        packet_transport: Source::Member("sk_buff", "transport_header"),
        /// A bit field before 5.6, which is no member of a byte offset.
        sock_protocol: Source::Member("sock", "sk_protocol"),
        packet_control: Source::Member("sk_buff", "cb"),
        control_segments: Source::Member("tcp_skb_cb", "tcp_gso_segs"),
        packet_device: Source::Member("sk_buff", "dev"),
        device_index: Source::Member("net_device", "ifindex"),
        device_name: Source::Member("net_device", "name"),
        device_net: Source::Member("net_device", "nd_net.net"),
        /// 4 with a reason (5.17).
        drop_arguments: Source::Arguments("kfree_skb"),
        /// 4 with an error (6.15): it then fires for attempts that failed, too.
        retransmit_arguments: Source::Arguments("tcp_retransmit_skb"),
        file_inode: Source::Member("file", "f_inode"),
        file_private: Source::Member("file", "private_data"),
        inode_mode: Source::Member("inode", "i_mode"),
        tp_state_socket: Source::Tracepoint("sock/inet_sock_set_state", "skaddr"),
        tp_state_before: Source::Tracepoint("sock/inet_sock_set_state", "oldstate"),
        tp_state_after: Source::Tracepoint("sock/inet_sock_set_state", "newstate"),
        cgroup_kn: Source::Member("cgroup", "kn"),
        kernfs_id: Source::Member("kernfs_node", "id"),
        task_tgid: Source::Member("task_struct", "tgid"),
        task_flags: Source::Member("task_struct", "flags"),
        task_group_leader: Source::Member("task_struct", "group_leader"),
        task_comm: Source::Member("task_struct", "comm"),
        /// `real_start_time` before 5.5.
        task_start: Source::Member("task_struct", "start_boottime"),
    }
}
