//! The network room: every TCP connection of the node.

mod accepted;
mod bandwidth;
mod connection;
mod decode;
mod otel;
mod pairs;
mod traffic;
mod trouble;

use super::{Descriptor, Hook, Malformed, Output, Room, Rung, Tuning, admission::Admission};
use crate::{
    config::{Config, Period},
    enrich::{
        Node,
        clock::Clock,
        container::CgroupId,
        process::{Seen, Slot, until_nul},
        redact::Redactor,
    },
    kernel::programs::{LookError, Programs},
    otlp::metrics::{Data, Metric},
};
use accepted::Accepted;
use agent_common::network::{
    self as wire, Counts, Look, Offsets, Owner, SLOTS, Tcp, Trouble, TroubleKey, look, missing, state, trouble as kinds,
};
use bandwidth::Bandwidth;
use connection::{Connection, End, Role};
use decode::Event;
use otel::{Texts, Whose};
use pairs::Pairs;
use rustc_hash::{FxHashMap, FxHashSet};
use serde::{Deserialize, Serialize};
use std::time::Instant;
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
    ],
    sources: Offsets::SOURCES,
    enums: &[DROP_REASONS],
    tuning: |config| {
        let buckets = buckets(config.network.connections);
        let options = wire::Options { bucket_mask: buckets - 1 };
        Tuning { options: options.as_bytes().to_vec(), map_entries: vec![("CONNECTIONS", buckets)] }
    },
    new: |config| Box::new(NetworkRoom::new(config)),
};

/// The program that looks at all open files.
const LOOK: &str = "look";
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
    /// Series of each metric; what comes then is counted in one series of overflow.
    pub max_series: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { connections: 100_000, report_interval: Period::seconds(30), trouble_interval: Period::seconds(10), max_series: 2000 }
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
        let slot = process(tcp, node, &mut self.redactor);
        let whose = whose(tcp, slot, node);
        if connection.role == Role::Client {
            self.pairs.note(&connection, whose.span);
        }
        total(&mut self.traffic, tcp, &whose).opened(&connection);
        otel::opened(&connection, &whose, &node.clock, &mut self.texts, out);
    }

    fn on_closed(&mut self, tcp: &Tcp, node: &mut Node, out: &mut Output) {
        if let Some(opened) = self.accepted.owned(tcp.key, &tcp.owner) {
            self.tell_opened(&opened, node, out);
        }
        if tcp.missing & missing::ENTRY != 0 {
            self.traffic.not_held();
        }
        let connection = Connection::new(tcp, |namespace, port| self.listening.contains(&(namespace, port)));
        let slot = process(tcp, node, &mut self.redactor);
        let whose = whose(tcp, slot, node);
        let end = connection.end_of();
        let total = total(&mut self.traffic, tcp, &whose);
        total.closed(&connection, end);
        if let Some(news) = connection.news() {
            total.moved(&connection, &news);
            moved(&mut self.bandwidth, tcp, &whose, &news);
        }
        match end {
            End::Failed(error) => otel::failed(&connection, error, &whose, &node.clock, &mut self.texts, out),
            _ => {
                let peer = match connection.role {
                    Role::Client => None,
                    Role::Server => self.pairs.client_of(&connection),
                };
                otel::closed(&connection, end, peer, &whose, &node.clock, &mut self.texts, out);
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
        let connection = Connection::new(tcp, |namespace, port| self.listening.contains(&(namespace, port)));
        let Some(news) = connection.news().filter(|news| news.sent_packets > 0 || news.received_packets > 0) else {
            return;
        };
        let slot = process(tcp, node, &mut self.redactor);
        let whose = whose(tcp, slot, node);
        total(&mut self.traffic, tcp, &whose).moved(&connection, &news);
        moved(&mut self.bandwidth, tcp, &whose, &news);
        if out.admit(self.admission.admit(tcp.owner.pid, tcp.owner.uid, comm(tcp), tcp.time_ns)) {
            otel::flow(&connection, news, &whose, &node.clock, &mut self.texts, out);
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

/// Keys and values of [`TROUBLES`] as words, which are all that maps know.
const KEY_WORDS: usize = size_of::<TroubleKey>() / 8;
const TROUBLE_WORDS: usize = size_of::<Trouble>() / 8;
type KeyWords = [u64; KEY_WORDS];
type TroubleWords = [u64; TROUBLE_WORDS];

impl Room for NetworkRoom {
    fn record(&mut self, bytes: &[u8], node: &mut Node, out: &mut Output) -> Result<(), Malformed> {
        match decode::decode(bytes)? {
            Event::Opened(tcp) => self.on_opened(tcp, node, out),
            Event::Closed(tcp) => self.on_closed(tcp, node, out),
            Event::Alive(tcp) => return Err(Malformed::Kind(tcp.kind)),
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
    }

    fn due(&self) -> Option<Instant> {
        [self.accepted.due(), self.next_report, self.next_troubles].into_iter().flatten().min()
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
            if self.accepted.due().is_some_and(|due| due <= now) {
                self.look(look::OWNERS, 0, programs, |room, tcp, asked| room.on_alive(tcp, asked, node, out));
                self.accepted.looked(now, Instant::now());
            }
        }
        while let Some(tcp) = self.accepted.late(now) {
            self.tell_opened(&tcp, node, out);
        }
    }

    fn finish(&mut self, node: &mut Node, out: &mut Output) {
        while let Some(tcp) = self.accepted.oldest() {
            self.tell_opened(&tcp, node, out);
        }
    }

    // Not yet: sock_diag.
    fn poll(&mut self, _: &mut Node, _: &mut Output) {}

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
fn process(tcp: &Tcp, node: &mut Node, redactor: &mut Redactor) -> Option<Slot> {
    let owner = Some(&tcp.owner).filter(|owner| owner.pid != 0)?;
    let seen = Seen {
        pid: owner.pid,
        ppid: None,
        start: (owner.start_ns != 0).then(|| node.clock.moment(owner.start_ns)),
        time_ns: tcp.time_ns,
        uid: owner.uid,
        gid: 0,
        comm: until_nul(&owner.comm),
    };
    Some(node.process(&seen, redactor))
}

fn whose<'a>(tcp: &Tcp, slot: Option<Slot>, node: &'a Node) -> Whose<'a> {
    let process = slot.map(|slot| node.processes.get(slot));
    let cgroup = node.cgroups.get(CgroupId { hierarchy: 0, id: tcp.cgroup_id });
    Whose { process, cgroup: cgroup.map(|cgroup| &**cgroup), span: node.processes.span_in(process, tcp.key) }
}

fn total<'a>(traffic: &'a mut Traffic, tcp: &Tcp, whose: &Whose<'_>) -> &'a mut traffic::Total {
    let cgroup = whose.process.map_or(whose.cgroup, |process| process.cgroup.as_deref());
    let container = cgroup.and_then(|cgroup| cgroup.container.as_ref()).map_or("", |container| &container.id);
    match whose.process {
        Some(process) => traffic.of(&process.comm, container),
        None => traffic.of(&String::from_utf8_lossy(comm(tcp)), container),
    }
}
