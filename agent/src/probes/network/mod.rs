//! The network room: every TCP connection of the node.

mod accepted;
mod address;
mod bandwidth;
mod connection;
mod decode;
mod events;
mod flows;
mod options;
mod otel;
mod pairs;
mod poll;
mod readings;
mod traffic;
mod trouble;

use super::{Descriptor, Hook, Malformed, Output, Room, Rung, Way, admission::Admission};
use crate::{
    config::Config,
    enrich::{Node, redact::Redactor},
    kernel::programs::Programs,
    otlp::metrics::Metric,
};
use accepted::Accepted;
use agent_common::network::{Offsets, kind, look, trouble as kinds};
use bandwidth::Bandwidth;
use decode::Event;
use events::comm;
use flows::Flows;
pub use options::{DnsOption, Options};
use otel::Texts;
use pairs::Pairs;
use poll::Poller;
use readings::devices;
use rustc_hash::{FxHashMap, FxHashSet};
use std::time::{Duration, Instant};
use traffic::Traffic;
use trouble::Troubles;

/// See [`Descriptor`].
pub const DESCRIPTOR: Descriptor = Descriptor {
    name: "network",
    stream: "network",
    object: || aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/network")),
    hooks: &[
        Hook {
            name: "state",
            required: true,
            rungs: &[
                Rung::new(Way::BtfTracepoint, "inet_sock_set_state", "state_btf"),
                Rung::new(Way::FunctionEntry, "tcp_set_state", "state_entry"),
                Rung::new(Way::RawTracepoint, "inet_sock_set_state", "state_raw"),
                Rung::new(Way::Tracepoint, "sock:inet_sock_set_state", "state_classic"),
                Rung::new(Way::Probe, "tcp_set_state", "state_probe"),
            ],
        },
        Hook {
            name: LOOK,
            required: false,
            rungs: &[
                Rung::new(Way::Iterator, "task_file", LOOK),
                Rung::new(Way::Iterator, "task_file", LOOK_BY_ADDRESS).by_address(),
            ],
        },
        Hook {
            name: "retransmit",
            required: false,
            rungs: &[
                Rung::new(Way::BtfTracepoint, "tcp_retransmit_skb", "retransmit_btf"),
                Rung::new(Way::RawTracepoint, "tcp_retransmit_skb", "retransmit_raw"),
            ],
        },
        Hook {
            name: "reset",
            required: false,
            rungs: &[
                Rung::new(Way::BtfTracepoint, "tcp_send_reset", "reset_btf"),
                Rung::new(Way::RawTracepoint, "tcp_send_reset", "reset_raw"),
            ],
        },
        Hook {
            name: "error",
            required: false,
            rungs: &[
                Rung::new(Way::BtfTracepoint, "inet_sk_error_report", "error_btf"),
                Rung::new(Way::RawTracepoint, "inet_sk_error_report", "error_raw"),
            ],
        },
        Hook {
            name: "queue",
            required: false,
            rungs: &[
                Rung::new(Way::BtfTracepoint, "sock_rcvqueue_full", "queue_btf"),
                Rung::new(Way::RawTracepoint, "sock_rcvqueue_full", "queue_raw"),
            ],
        },
        Hook {
            name: "drop",
            required: false,
            rungs: &[
                Rung::new(Way::BtfTracepoint, "kfree_skb", "drop_btf"),
                Rung::new(Way::RawTracepoint, "kfree_skb", "drop_raw"),
            ],
        },
        Hook {
            name: RECEIVE,
            required: false,
            rungs: &[Rung::new(Way::BtfTracepoint, "sock_recv_length", "receive_btf")],
        },
        Hook { name: ANSWER, required: false, rungs: &[Rung::new(Way::BtfTracepoint, "sk_data_ready", "answer_btf")] },
        Hook { name: SEND, required: false, rungs: &[Rung::new(Way::BtfTracepoint, "net_dev_queue", "send_btf")] },
        Hook { name: CALL, required: false, rungs: &[Rung::new(Way::BtfTracepoint, "sys_enter", "enter_btf")] },
        Hook {
            name: STALL_SEND,
            required: false,
            rungs: &[
                Rung::new(Way::BtfTracepoint, "sock_send_length", "stall_send_btf"),
                Rung::new(Way::FunctionExit, "tcp_sendmsg", "stall_send_exit"),
            ],
        },
        Hook {
            name: STALL_RECEIVE,
            required: false,
            rungs: &[
                Rung::new(Way::BtfTracepoint, "sock_recv_length", "stall_receive_btf"),
                Rung::new(Way::FunctionExit, "tcp_recvmsg", "stall_receive_exit"),
            ],
        },
    ],
    sources: Offsets::SOURCES,
    without_ebpf: "asking for all sockets",
    enums: &[DROP_REASONS],
    tuning: |config| config.network.tuning(),
    new: |config| Box::new(NetworkRoom::new(config)),
};

/// The programs that look at all open files; the first is the hook's name, too.
const LOOK: &str = "look";
const LOOK_BY_ADDRESS: &str = "look_by_address";
/// Hooks that see single packets; attached for the options that need them.
const RECEIVE: &str = "udp receive";
const ANSWER: &str = "dns answer";
const SEND: &str = "udp send";
/// Hooks that see system calls; attached for the option that needs them.
const CALL: &str = "call";
const STALL_SEND: &str = "stall send";
const STALL_RECEIVE: &str = "stall receive";
/// Threads and their system calls, and how many of them.
const IN_CALL: &str = "IN_CALL";
const THREADS: u32 = 65_536;
/// The kernel's sums of UDP flows, and of packets that found no place in them.
const FLOWS: &str = "FLOWS";
const FLOWS_LOST: &str = "FLOWS_LOST";
/// Between two readings of them.
const FLOWS_PERIOD: Duration = Duration::from_secs(2);
/// The enum that says why a packet was dropped (5.17).
const DROP_REASONS: &str = "skb_drop_reason";
/// The kernel's counts of what went wrong, and of what it could not count.
const TROUBLES: &str = "TROUBLES";
const TROUBLES_LOST: &str = "TROUBLES_LOST";
/// Bytes of each interface, in the agent's own network namespace.
const DEVICES: &str = "/proc/net/dev";
/// Sockets that are known to listen; past this some roles are guessed.
const MAX_LISTENING: usize = 65_536;
/// Connections told in one look: with more, the looks of an interval share them.
const CONNECTIONS_A_LOOK: u64 = 5_000;
/// Looks that share an interval at most.
const MAX_PARTS: u64 = 30;

/// The room at work.
pub struct NetworkRoom {
    options: Options,
    redactor: Redactor,
    admission: Admission,
    accepted: Accepted,
    pairs: Pairs,
    traffic: Traffic,
    /// Network namespaces and ports.
    listening: FxHashSet<(u32, u16)>,
    /// States that the looks of this interval have found.
    states: FxHashMap<u8, u64>,
    looks: u32,
    part: u32,
    parts: u32,
    next_report: Option<Instant>,
    troubles: Troubles,
    troubles_lost: u64,
    stalls: u64,
    next_troubles: Option<Instant>,
    bandwidth: Bandwidth,
    flows: Flows,
    flows_lost: u64,
    next_flows: Option<Instant>,
    /// Answers of name servers that could not be read.
    dns_unreadable: u64,
    poller: Poller,
    texts: Texts,
    /// The time of what is being done.
    now: Instant,
}

impl NetworkRoom {
    /// A room that has seen nothing.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        Self {
            options: config.network.clone(),
            redactor: config.privacy.redactor(),
            admission: Admission::new(&config.room("network")),
            accepted: Accepted::default(),
            pairs: Pairs::default(),
            traffic: Traffic::new(config.network.max_series),
            listening: FxHashSet::default(),
            states: FxHashMap::default(),
            looks: 0,
            part: 0,
            parts: 1,
            next_report: None,
            troubles: Troubles::default(),
            troubles_lost: 0,
            stalls: 0,
            next_troubles: None,
            bandwidth: Bandwidth::new(&devices(), Instant::now()),
            flows: Flows::default(),
            flows_lost: 0,
            next_flows: None,
            dns_unreadable: 0,
            poller: Poller::new(config.network.report_interval.0),
            texts: Texts::default(),
            now: Instant::now(),
        }
    }
}

impl Room for NetworkRoom {
    fn record(&mut self, bytes: &[u8], node: &mut Node, out: &mut Output) -> Result<(), Malformed> {
        match decode::decode(bytes)? {
            Event::Opened(tcp) => self.on_opened(tcp, node, out),
            Event::Closed(tcp) => self.on_closed(tcp, node, out),
            Event::Alive(tcp) => return Err(Malformed::Kind(tcp.kind)),
            Event::Dns(answer) => self.on_dns(answer, node, out),
        }
        Ok(())
    }

    /// Takes in the connections that there are, so that their ends are complete.
    fn begin(&mut self, _: &mut Node, programs: Option<&mut Programs>) {
        let Some(programs) = programs else {
            return;
        };
        let mut states: FxHashMap<u8, u64> = FxHashMap::default();
        self.look(look::ALL, u64::MAX, programs, |_, tcp, _| *states.entry(tcp.state).or_default() += 1);
        self.traffic.set_states(states);
        let now = Instant::now();
        self.next_report = Some(now + self.options.report_interval.0);
        self.next_troubles = Some(now + self.options.trouble_interval.0);
        self.next_flows = self.options.udp_flows.then_some(now + FLOWS_PERIOD);
    }

    fn due(&self) -> Option<Instant> {
        [self.accepted.due(), self.next_report, self.next_troubles, self.next_flows].into_iter().flatten().min()
    }

    fn tick(&mut self, now: Instant, node: &mut Node, programs: Option<&mut Programs>, out: &mut Output) {
        self.now = now;
        if let Some(programs) = programs {
            if self.next_report.is_some_and(|next| next <= now) {
                self.report(now, node, programs, out);
            }
            if self.next_troubles.is_some_and(|next| next <= now) {
                self.tell_troubles(now, node, programs, out);
            }
            if self.next_flows.is_some_and(|next| next <= now) {
                self.next_flows = Some(now + FLOWS_PERIOD);
                self.tell_flows(false, node, programs, out);
            }
            if self.accepted.due().is_some_and(|due| due <= now) {
                self.look(look::OWNERS, 0, programs, |room, tcp, asked| room.on_alive(tcp, asked, node, out));
                self.accepted.looked(now, Instant::now());
            }
        } else {
            if self.next_report.is_some_and(|next| next <= now) {
                self.tell_bandwidth(now, node, out);
                self.next_report = Some(now + self.options.report_interval.0);
            }
            // It is the polls that look for owners; what waits is asked for again only after a while.
            self.accepted.looked(now, now);
        }
        while let Some(tcp) = self.accepted.late(now) {
            self.tell_opened(&tcp, node, out);
        }
    }

    fn close(&mut self, node: &mut Node, programs: &mut Programs, out: &mut Output) {
        if self.next_flows.is_some() {
            self.tell_flows(true, node, programs, out);
        }
        if self.next_troubles.is_some() {
            self.tell_troubles(Instant::now(), node, programs, out);
        }
    }

    fn finish(&mut self, node: &mut Node, out: &mut Output) {
        while let Some(tcp) = self.accepted.oldest() {
            self.tell_opened(&tcp, node, out);
        }
    }

    fn poll(&mut self, node: &mut Node, out: &mut Output) {
        self.now = Instant::now();
        self.next_report.get_or_insert(self.now + self.options.report_interval.0);
        let records = self.poller.look();
        self.traffic.set_states(self.poller.states().clone());
        for tcp in &records {
            if tcp.kind == kind::ALIVE {
                if let Some(opened) = self.accepted.owned(tcp.key, &tcp.owner) {
                    self.tell_opened(&opened, node, out);
                }
                self.tell_news(tcp, node, out);
            } else if out.admit(self.admission.admit(tcp.owner.pid, tcp.owner.uid, comm(tcp), tcp.time_ns)) {
                match tcp.kind {
                    kind::OPENED => self.on_opened(tcp, node, out),
                    _ => self.on_closed(tcp, node, out),
                }
            }
        }
    }

    fn metrics(&self) -> Vec<Metric> {
        let mut metrics = self.traffic.metrics();
        metrics.extend([
            Metric::count(
                "leaf.network.packets.dropped",
                "{packet}",
                "Packets that the kernel has dropped, whatever the reason",
                self.troubles.total(kinds::DROP),
            ),
            Metric::count(
                "leaf.network.stalls",
                "{stall}",
                "Sends and receives that blocked for longer than network.stall_threshold",
                self.stalls,
            ),
            Metric::count(
                "leaf.network.udp.not_counted",
                "{packet}",
                "UDP packets that found no place in the kernel's table of flows",
                self.flows_lost,
            ),
            Metric::count(
                "leaf.network.dns.unreadable",
                "{packet}",
                "Packets from port 53 that could not be read as an answer",
                self.dns_unreadable,
            ),
            Metric::count(
                "leaf.network.troubles.lost",
                "{event}",
                "Things that went wrong and found no place in the kernel's map of them",
                self.troubles_lost,
            ),
        ]);
        metrics
    }
}
