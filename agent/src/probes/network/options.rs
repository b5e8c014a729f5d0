//! What only this room can be set to, and what its programs are told of it.

use super::{ANSWER, CALL, FLOWS, IN_CALL, RECEIVE, SEND, STALL_RECEIVE, STALL_SEND, THREADS, TROUBLES};
use crate::{config::Period, probes::Tuning};
use agent_common::network::{self as wire, CALLS, SLOTS};
use serde::{Deserialize, Serialize};
use zerocopy::IntoBytes as _;

/// What only this room can be set to: the section `network` of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// Connections that the kernel's table holds, 150 to 300 bytes each.
    pub connections: u32,
    /// Time between two reports of a connection that lives long.
    pub report_interval: Period,
    /// Time between two readings of what went wrong.
    pub trouble_interval: Period,
    /// `off`; `names`: read the answers of name servers, to name the ends of
    /// connections; `events`: also tell each as `dns_query`. One small program per packet received.
    pub dns: DnsOption,
    /// Count UDP flows: one small program per packet sent or received.
    pub udp_flows: bool,
    /// UDP flows that are counted at a time.
    pub udp_table: u32,
    /// A send or a receive that blocks for longer is told as a stall; 0: none is. One small
    /// program per system call, and the slower way into the kernel that tracing takes.
    pub stall_threshold: Period,
    /// Series of each metric; what comes then is counted in one series of overflow.
    pub max_series: usize,
}

/// See [`Options::dns`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum DnsOption {
    Off,
    Names,
    Events,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            connections: 100_000,
            report_interval: Period::seconds(30),
            trouble_interval: Period::seconds(10),
            dns: DnsOption::Names,
            udp_flows: false,
            udp_table: 16_384,
            stall_threshold: Period::seconds(0),
            max_series: 2000,
        }
    }
}

/// Things that went wrong between two readings; stalls are counted by connection.
const TROUBLES_ALONE: u32 = 4096;
const TROUBLES_WITH_STALLS: u32 = 16_384;

/// Buckets for so many connections, a power of two, so that they are at most four
/// fifths full; and an eighth of that for the overflow.
fn buckets(connections: u32) -> [u32; 2] {
    let slots = u64::from(connections) * 5 / 4;
    let buckets = slots.div_ceil(SLOTS as u64).max(1).next_power_of_two();
    let buckets = u32::try_from(buckets).unwrap_or(1 << 31);
    [buckets, (buckets / 8).max(1)]
}

/// The system calls that may block on a socket, bit by number; and two that reach sockets
/// and do not block on them, which the program knows.
fn blocking_calls() -> [u64; CALLS / 64] {
    const BLOCKING: [libc::c_long; 14] = [
        libc::SYS_read,
        libc::SYS_readv,
        libc::SYS_preadv2,
        libc::SYS_recvfrom,
        libc::SYS_recvmsg,
        libc::SYS_recvmmsg,
        libc::SYS_write,
        libc::SYS_writev,
        libc::SYS_pwritev2,
        libc::SYS_sendto,
        libc::SYS_sendmsg,
        libc::SYS_sendmmsg,
        libc::SYS_sendfile,
        libc::SYS_splice,
    ];
    let mut calls = [0; CALLS / 64];
    for call in BLOCKING.into_iter().chain([libc::SYS_io_uring_enter, libc::SYS_io_submit]) {
        let call = call as usize;
        calls[call / 64] |= 1 << (call % 64);
    }
    calls
}

impl Options {
    /// Constants and sizes of the room's object, and the hooks that nothing needs.
    pub(super) fn tuning(&self) -> Tuning {
        let [buckets, overflow] = buckets(self.connections);
        let Options { dns, udp_flows, udp_table, stall_threshold, .. } = *self;
        let stalls = !stall_threshold.0.is_zero();
        let options = wire::Options {
            bucket_mask: buckets - 1,
            overflow_mask: overflow - 1,
            dns: u32::from(dns != DnsOption::Off),
            dns_events: u32::from(dns == DnsOption::Events),
            udp_flows: u32::from(udp_flows),
            io_submit: libc::SYS_io_submit as u32,
            stall_ns: stall_threshold.0.as_nanos() as u64,
            calls: blocking_calls(),
        };
        let needed = [
            (RECEIVE, udp_flows),
            (SEND, udp_flows || dns == DnsOption::Events),
            (ANSWER, dns != DnsOption::Off),
            (CALL, stalls),
            (STALL_SEND, stalls),
            (STALL_RECEIVE, stalls),
        ];
        let unused = needed.into_iter().filter(|(_, needed)| !needed).map(|(hook, _)| hook).collect();
        Tuning {
            options: options.as_bytes().to_vec(),
            map_entries: vec![
                ("CONNECTIONS", buckets + overflow),
                (FLOWS, if udp_flows { udp_table } else { 1 }),
                (IN_CALL, if stalls { THREADS } else { 1 }),
                (TROUBLES, if stalls { TROUBLES_WITH_STALLS } else { TROUBLES_ALONE }),
            ],
            unused,
        }
    }
}
