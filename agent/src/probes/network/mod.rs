//! The network room: every TCP connection of the node.

mod accepted;
mod bandwidth;
mod connection;
mod decode;
mod flows;
mod otel;
mod pairs;
mod poll;
mod traffic;
mod trouble;

use super::{Descriptor, Hook, Malformed, Output, Room, Rung, Tuning, admission::Admission};
use crate::{
    config::{Config, Period},
    enrich::{
        Node,
        clock::Clock,
        container::CgroupId,
        dns,
        process::{Seen, Slot, until_nul},
        redact::Redactor,
    },
    kernel::programs::{LookError, Programs},
    otlp::metrics::{Data, Metric},
};
use accepted::Accepted;
use agent_common::network::{
    self as wire, Counts, Dns, Flow, FlowKey, Look, Offsets, Owner, SLOTS, Tcp, Trouble, TroubleKey, kind, look,
    missing, state, trouble as kinds,
};
use bandwidth::Bandwidth;
use connection::{Connection, End, Role};
use decode::Event;
use flows::Flows;
use otel::{Texts, Whose};
use pairs::Pairs;
use poll::Poller;
use rustc_hash::{FxHashMap, FxHashSet};
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};
use traffic::Traffic;
use trouble::Troubles;
use zerocopy::IntoBytes as _;

/// See [`Descriptor`].
pub const DESCRIPTOR: Descriptor = Descriptor {
    name: "network",
    stream: "network",
    object: || aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/network")),
    hooks: &[
        Hook {
            name: "state",
            required: true,
            rungs: &[Rung::BtfTracepoint { tracepoint: "inet_sock_set_state", program: "state_btf" }],
        },
        Hook { name: LOOK, required: false, rungs: &[Rung::Iterator { over: "task_file", program: LOOK }] },
        Hook {
            name: "retransmit",
            required: false,
            rungs: &[Rung::BtfTracepoint { tracepoint: "tcp_retransmit_skb", program: "retransmit_btf" }],
        },
        Hook {
            name: "reset",
            required: false,
            rungs: &[Rung::BtfTracepoint { tracepoint: "tcp_send_reset", program: "reset_btf" }],
        },
        Hook {
            name: "error",
            required: false,
            rungs: &[Rung::BtfTracepoint { tracepoint: "inet_sk_error_report", program: "error_btf" }],
        },
        Hook {
            name: "queue",
            required: false,
            rungs: &[Rung::BtfTracepoint { tracepoint: "sock_rcvqueue_full", program: "queue_btf" }],
        },
        Hook {
            name: "drop",
            required: false,
            rungs: &[Rung::BtfTracepoint { tracepoint: "kfree_skb", program: "drop_btf" }],
        },
        Hook {
            name: RECEIVE,
            required: false,
            rungs: &[Rung::BtfTracepoint { tracepoint: "sock_recv_length", program: "receive_btf" }],
        },
        Hook {
            name: ANSWER,
            required: false,
            rungs: &[Rung::BtfTracepoint { tracepoint: "sk_data_ready", program: "answer_btf" }],
        },
        Hook {
            name: SEND,
            required: false,
            rungs: &[Rung::BtfTracepoint { tracepoint: "net_dev_queue", program: "send_btf" }],
        },
    ],
    sources: Offsets::SOURCES,
    enums: &[DROP_REASONS],
    tuning: |config| {
        let buckets = buckets(config.network.connections);
        let Options { dns, udp_flows, udp_table, .. } = config.network;
        let options = wire::Options {
            bucket_mask: buckets - 1,
            dns: u32::from(dns != DnsOption::Off),
            dns_events: u32::from(dns == DnsOption::Events),
            udp_flows: u32::from(udp_flows),
        };
        let needed =
            [(RECEIVE, udp_flows), (SEND, udp_flows || dns == DnsOption::Events), (ANSWER, dns != DnsOption::Off)];
        let unused = needed.into_iter().filter(|(_, needed)| !needed).map(|(hook, _)| hook).collect();
        Tuning {
            options: options.as_bytes().to_vec(),
            map_entries: vec![("CONNECTIONS", buckets), (FLOWS, if udp_flows { udp_table } else { 1 })],
            unused,
        }
    },
    new: |config| Box::new(NetworkRoom::new(config)),
};

/// The program that looks at all open files.
const LOOK: &str = "look";
/// Hooks that see single packets; attached for the options that need them.
const RECEIVE: &str = "udp receive";
const ANSWER: &str = "dns answer";
const SEND: &str = "udp send";
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

/// What only this room can be set to: the section `network` of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// Connections that the kernel's table holds, 96 bytes each.
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
            max_series: 2000,
        }
    }
}

/// Buckets for so many connections: a power of two, so that the table is at most four fifths full.
fn buckets(connections: u32) -> u32 {
    let slots = u64::from(connections) * 5 / 4;
    let buckets = slots.div_ceil(SLOTS as u64).max(1).next_power_of_two();
    u32::try_from(buckets).unwrap_or(1 << 31)
}

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

    fn on_opened(&mut self, tcp: &Tcp, node: &mut Node, out: &mut Output) {
        if tcp.role == wire::role::SERVER && tcp.owner.pid == 0 {
            if let Some(tcp) = self.accepted.wait(*tcp, self.now) {
                self.tell_opened(&tcp, node, out);
            }
            return;
        }
        self.tell_opened(tcp, node, out);
    }

    /// An accept whose owner is known only now is measured by the filters only now.
    fn tell_opened(&mut self, tcp: &Tcp, node: &mut Node, out: &mut Output) {
        let connection = Connection::new(tcp, |namespace, port| self.listening.contains(&(namespace, port)));
        if connection.role == Role::Server && self.admission.excludes(tcp.owner.pid, tcp.owner.uid, comm(tcp)) {
            return out.filtered();
        }
        let slot = process(&tcp.owner, tcp.time_ns, node, &mut self.redactor);
        let clock = node.clock;
        let whose = whose(tcp, slot, &connection, node);
        if connection.role == Role::Client {
            self.pairs.note(&connection, whose.span);
        }
        total(&mut self.traffic, tcp, &whose).opened(&connection);
        otel::opened(&connection, &whose, &clock, &mut self.texts, out);
    }

    fn on_closed(&mut self, tcp: &Tcp, node: &mut Node, out: &mut Output) {
        if let Some(opened) = self.accepted.owned(tcp.key, &tcp.owner) {
            self.tell_opened(&opened, node, out);
        }
        if tcp.missing & missing::ENTRY != 0 {
            self.traffic.not_held();
        }
        let connection = Connection::new(tcp, |namespace, port| self.listening.contains(&(namespace, port)));
        let slot = process(&tcp.owner, tcp.time_ns, node, &mut self.redactor);
        let clock = node.clock;
        let whose = whose(tcp, slot, &connection, node);
        let end = connection.end_of();
        let total = total(&mut self.traffic, tcp, &whose);
        total.closed(&connection, end);
        if let Some(news) = connection.news() {
            total.moved(&connection, &news);
            moved(&mut self.bandwidth, tcp, &whose, &news);
        }
        match end {
            End::Failed(error) => otel::failed(&connection, error, &whose, &clock, &mut self.texts, out),
            _ => {
                let peer = match connection.role {
                    Role::Client => None,
                    Role::Server => self.pairs.client_of(&connection),
                };
                otel::closed(&connection, end, peer, &whose, &clock, &mut self.texts, out);
            }
        }
    }

    /// A look has found a socket.
    fn on_alive(&mut self, tcp: &Tcp, asked: &Look, node: &mut Node, out: &mut Output) {
        if asked.what == look::OWNERS {
            match self.accepted.owned(tcp.key, &tcp.owner) {
                Some(opened) => self.tell_opened(&opened, node, out),
                None => self.accepted.early(tcp.key, &tcp.owner),
            }
            return;
        }
        *self.states.entry(tcp.state).or_default() += 1;
        if tcp.state == state::LISTEN || tcp.begin_ns > asked.before_ns {
            return;
        }
        self.tell_news(tcp, node, out);
    }

    /// Tells what went over a connection since it was last told of, if anything did.
    fn tell_news(&mut self, tcp: &Tcp, node: &mut Node, out: &mut Output) {
        let connection = Connection::new(tcp, |namespace, port| self.listening.contains(&(namespace, port)));
        let Some(news) = connection.news().filter(|news| news.sent_packets > 0 || news.received_packets > 0) else {
            return;
        };
        let slot = process(&tcp.owner, tcp.time_ns, node, &mut self.redactor);
        let clock = node.clock;
        let whose = whose(tcp, slot, &connection, node);
        total(&mut self.traffic, tcp, &whose).moved(&connection, &news);
        moved(&mut self.bandwidth, tcp, &whose, &news);
        if out.admit(self.admission.admit(tcp.owner.pid, tcp.owner.uid, comm(tcp), tcp.time_ns)) {
            otel::flow(&connection, news, &whose, &clock, &mut self.texts, out);
        }
    }

    fn on_dns(&mut self, record: &Dns, node: &mut Node, out: &mut Output) {
        let answer = dns::parse(&record.payload[..record.len as usize]);
        match &answer {
            Some(answer) => node.names.learn(answer),
            None => self.dns_unreadable += 1,
        }
        if self.options.dns == DnsOption::Events {
            let slot = process(&record.asked.owner, record.time_ns, node, &mut self.redactor);
            let process = slot.map(|slot| node.processes.get(slot));
            let span = process.map(|process| process.span).unwrap_or_default();
            let whose = Whose { process, cgroup: None, span, server: None };
            otel::dns_query(record, answer.as_ref(), &whose, &node.clock, &mut self.texts, out);
        }
    }

    /// Tells the UDP flows that are due, or all.
    fn tell_flows(&mut self, last: bool, node: &mut Node, programs: &mut Programs, out: &mut Output) {
        let entries = match programs.entries(FLOWS) {
            Ok(entries) => entries,
            Err(error) => return tracing::debug!("network: {error}"),
        };
        self.flows_lost = programs.sum(FLOWS_LOST).unwrap_or(self.flows_lost);
        let entries: Vec<(FlowKey, Flow)> = entries
            .into_iter()
            .map(|(key, value): (FlowKeyWords, FlowWords)| (zerocopy::transmute!(key), zerocopy::transmute!(value)))
            .collect();
        let now = Clock::boot_now();
        let mut ended: Vec<FlowKeyWords> = Vec::new();
        for news in self.flows.news(&entries, now, self.options.report_interval.0, last) {
            if news.has_ended {
                ended.push(zerocopy::transmute!(news.key));
            }
            let owner = news.flow.owner;
            let slot = process(&owner, news.flow.last_ns, node, &mut self.redactor);
            let process = slot.map(|slot| node.processes.get(slot));
            let [local, remote] = connection::both(&news.key.ends);
            let server = if news.is_client { remote } else { local };
            let server = node.names.of(server.ip()).map(|name| &**name);
            let span = process.map(|process| process.span).unwrap_or_default();
            let whose = Whose { process, cgroup: None, span, server };
            let clock = node.clock;
            let container = process.and_then(|process| process.cgroup.as_ref()?.container.as_ref());
            let container = container.map_or("", |container| &container.id);
            let comm = process.map_or("", |process| &process.comm);
            self.traffic.of(comm, container).flowed(&news.flow);
            self.bandwidth.moved(owner.pid, comm, news.flow.sent_bytes + news.flow.received_bytes);
            if out.admit(self.admission.admit(
                owner.pid,
                process.map_or(0, |process| process.uid),
                until_nul(&owner.comm),
                now,
            )) {
                otel::udp_flow(&news, &whose, &clock, &mut self.texts, out);
            }
        }
        if let Err(error) = programs.remove::<FLOW_KEY_WORDS, FLOW_WORDS>(FLOWS, &ended) {
            tracing::debug!("network: {error}");
        }
    }

    /// Goes over all open files, and gives each socket that is found to `each`.
    fn look(
        &mut self,
        what: u32,
        before_ns: u64,
        programs: &mut Programs,
        mut each: impl FnMut(&mut Self, &Tcp, &Look),
    ) {
        self.looks = self.looks.wrapping_add(1).max(1);
        let asked = Look { number: self.looks, what, before_ns, part: self.part, parts: self.parts };
        let question: [u64; size_of::<Look>() / 8] = zerocopy::transmute!(asked);
        let looked = programs.look(LOOK, ("LOOK", question), size_of::<Tcp>(), |record| {
            if let Ok(Event::Alive(tcp)) = decode::decode(record) {
                if tcp.state == state::LISTEN && self.listening.len() < MAX_LISTENING {
                    self.listening.insert((tcp.namespace, tcp.ends.local_port));
                }
                each(self, tcp, &asked);
            }
        });
        match looked {
            Ok(()) => {}
            // Said at start, with its reason.
            Err(LookError::NotLoaded(_)) => self.next_report = None,
            Err(error) => tracing::debug!("network: a look at open files has ended early: {error}"),
        }
    }

    /// Tells of the connections whose turn it is, and notes the states of all.
    fn report(&mut self, now: Instant, node: &mut Node, programs: &mut Programs, out: &mut Output) {
        let interval = self.options.report_interval.0;
        let before = Clock::boot_now().saturating_sub(interval.as_nanos() as u64);
        self.look(look::ALL, before, programs, |room, tcp, asked| room.on_alive(tcp, asked, node, out));
        self.part += 1;
        if self.part >= self.parts {
            self.part = 0;
            let connections: u64 = self.states.values().sum();
            self.parts = (connections / CONNECTIONS_A_LOOK + 1).min(MAX_PARTS) as u32;
            self.traffic.set_states(std::mem::take(&mut self.states));
            self.tell_bandwidth(now, node, out);
        }
        self.next_report = Some(now + interval / self.parts);
    }

    fn tell_bandwidth(&mut self, now: Instant, node: &Node, out: &mut Output) {
        let time = node.clock.unix(Clock::boot_now());
        for rate in self.bandwidth.rates(&devices(), now) {
            let process = Some(rate.pid).filter(|pid| *pid != 0).and_then(|pid| node.processes.by_pid(pid));
            if out.admit(Ok(())) {
                otel::bandwidth(&rate, process, time, out);
            }
        }
    }

    /// Tells what went wrong since the last reading.
    fn tell_troubles(&mut self, now: Instant, node: &Node, programs: &mut Programs, out: &mut Output) {
        self.next_troubles = Some(now + self.options.trouble_interval.0);
        let entries = match programs.entries(TROUBLES) {
            Ok(entries) => entries,
            Err(error) => return tracing::debug!("network: {error}"),
        };
        self.troubles_lost = programs.sum(TROUBLES_LOST).unwrap_or(self.troubles_lost);
        let entries: Vec<(TroubleKey, Trouble)> = entries
            .into_iter()
            .map(|(key, value): (KeyWords, TroubleWords)| (zerocopy::transmute!(key), zerocopy::transmute!(value)))
            .collect();
        let (news, idle) = self.troubles.news(&entries);
        let time = node.clock.unix(Clock::boot_now());
        let mut value = String::new();
        for news in news {
            let reason = programs.name_of(DROP_REASONS, news.key.code);
            let Owner { pid, uid, comm, .. } = news.trouble.owner;
            if news.value(reason, &mut value) && out.admit(self.admission.admit(pid, uid, until_nul(&comm), time)) {
                let process = Some(pid).filter(|pid| *pid != 0).and_then(|pid| node.processes.by_pid(pid));
                otel::trouble(&news, &value, process, time, &mut self.texts, out);
            }
        }
        let idle: Vec<KeyWords> = idle.into_iter().map(|key| zerocopy::transmute!(key)).collect();
        if let Err(error) = programs.remove::<KEY_WORDS, TROUBLE_WORDS>(TROUBLES, &idle) {
            tracing::debug!("network: {error}");
        }
    }
}

/// Keys and values of [`TROUBLES`] and [`FLOWS`] as words, which are all that maps know.
const KEY_WORDS: usize = size_of::<TroubleKey>() / 8;
const TROUBLE_WORDS: usize = size_of::<Trouble>() / 8;
const FLOW_KEY_WORDS: usize = size_of::<FlowKey>() / 8;
const FLOW_WORDS: usize = size_of::<Flow>() / 8;
type FlowKeyWords = [u64; FLOW_KEY_WORDS];
type FlowWords = [u64; FLOW_WORDS];
type KeyWords = [u64; KEY_WORDS];
type TroubleWords = [u64; TROUBLE_WORDS];

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
        let total = |what| Data::Counter(vec![(Vec::new(), self.troubles.total(what))]);
        metrics.extend([
            Metric {
                name: "leaf.network.packets.dropped",
                unit: "{packet}",
                description: "Packets that the kernel has dropped, whatever the reason",
                data: total(kinds::DROP),
            },
            Metric {
                name: "leaf.network.udp.not_counted",
                unit: "{packet}",
                description: "UDP packets that found no place in the kernel's table of flows",
                data: Data::Counter(vec![(Vec::new(), self.flows_lost)]),
            },
            Metric {
                name: "leaf.network.dns.unreadable",
                unit: "{packet}",
                description: "Packets from port 53 that could not be read as an answer",
                data: Data::Counter(vec![(Vec::new(), self.dns_unreadable)]),
            },
            Metric {
                name: "leaf.network.troubles.lost",
                unit: "{event}",
                description: "Things that went wrong and found no place in the kernel's map of them",
                data: Data::Counter(vec![(Vec::new(), self.troubles_lost)]),
            },
        ]);
        metrics
    }
}

fn devices() -> String {
    std::fs::read_to_string(DEVICES).unwrap_or_default()
}

fn moved(bandwidth: &mut Bandwidth, tcp: &Tcp, whose: &Whose<'_>, news: &Counts) {
    if tcp.owner.pid != 0 {
        let comm = whose.process.map_or("", |process| &process.comm);
        bandwidth.moved(tcp.owner.pid, comm, news.sent_bytes + news.received_bytes);
    }
}

fn comm(tcp: &Tcp) -> &[u8] {
    until_nul(&tcp.owner.comm)
}

/// The entry of the owner, if it is known.
fn process(owner: &Owner, time_ns: u64, node: &mut Node, redactor: &mut Redactor) -> Option<Slot> {
    let owner = Some(owner).filter(|owner| owner.pid != 0)?;
    let seen = Seen {
        pid: owner.pid,
        ppid: None,
        start: (owner.start_ns != 0).then(|| node.clock.moment(owner.start_ns)),
        time_ns,
        uid: owner.uid,
        gid: 0,
        comm: until_nul(&owner.comm),
    };
    Some(node.process(&seen, redactor))
}

fn whose<'a>(tcp: &Tcp, slot: Option<Slot>, connection: &Connection<'_>, node: &'a mut Node) -> Whose<'a> {
    let process = slot.map(|slot| node.processes.get(slot));
    let cgroup = node.cgroups.get(CgroupId { hierarchy: 0, id: tcp.cgroup_id });
    let span = node.processes.span_in(process, tcp.key);
    let server = node.names.of(connection.destination().ip()).map(|name| &**name);
    Whose { process, cgroup: cgroup.map(|cgroup| &**cgroup), span, server }
}

fn total<'a>(traffic: &'a mut Traffic, tcp: &Tcp, whose: &Whose<'_>) -> &'a mut traffic::Total {
    let cgroup = whose.process.map_or(whose.cgroup, |process| process.cgroup.as_deref());
    let container = cgroup.and_then(|cgroup| cgroup.container.as_ref()).map_or("", |container| &container.id);
    match whose.process {
        Some(process) => traffic.of(&process.comm, container),
        None => traffic.of(&String::from_utf8_lossy(comm(tcp)), container),
    }
}
