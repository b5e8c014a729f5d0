//! What the room reads at intervals: the open files of all processes, and what
//! the programs have counted.

use super::{
    CONNECTIONS_A_LOOK, DEVICES, DROP_REASONS, FLOWS, FLOWS_LOST, LOOK, MAX_LISTENING, MAX_PARTS, NetworkRoom,
    TROUBLES, TROUBLES_LOST, connection,
    decode::{self, Event},
    events::{moved, total, whose},
    otel,
};
use crate::{
    enrich::{Node, clock::Clock, process::until_nul},
    kernel::programs::Programs,
    probes::Output,
};
use agent_common::{
    Unsent,
    network::{Flow, FlowKey, Look, Tcp, Trouble, TroubleKey, look, state, trouble},
};
use std::time::Instant;

/// Keys and values of [`TROUBLES`] and [`FLOWS`] as words, which are all that maps know.
const KEY_WORDS: usize = size_of::<TroubleKey>() / 8;
const TROUBLE_WORDS: usize = size_of::<Trouble>() / 8;
const FLOW_KEY_WORDS: usize = size_of::<FlowKey>() / 8;
const FLOW_WORDS: usize = size_of::<Flow>() / 8;
type FlowKeyWords = [u64; FLOW_KEY_WORDS];
type FlowWords = [u64; FLOW_WORDS];
type KeyWords = [u64; KEY_WORDS];
type TroubleWords = [u64; TROUBLE_WORDS];

impl NetworkRoom {
    /// Tells the UDP flows that are due, or all.
    pub(super) fn tell_flows(&mut self, last: bool, node: &mut Node, programs: &mut Programs, out: &mut Output) {
        let entries = match programs.entries(FLOWS) {
            Ok(entries) => entries,
            Err(error) => return tracing::debug!("network: {error}"),
        };
        if let Some(lost) = first_lost(programs, FLOWS_LOST, &mut self.flows_lost) {
            tracing::warn!(
                "network: {lost} UDP packets found no place in the table of flows: set network.udp_table higher; this is told once, the metric leaf.network.udp.not_counted counts on"
            );
        }
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
            let owner = &news.flow.owner;
            let [local, remote] = connection::both(&news.key.ends);
            let server = if news.is_client { remote } else { local };
            let clock = node.clock;
            let whose = whose(owner, news.flow.last_ns, Some(server.ip()), node, &mut self.redactor);
            let outcome = self.admission.admit(owner.pid, owner.filtered_uid(), until_nul(&owner.comm), now);
            if outcome != Err(Unsent::Filtered) {
                total(&mut self.traffic, owner, &whose).flowed(&news.flow);
                moved(&mut self.bandwidth, owner, &whose, news.recent_bytes);
            }
            if out.admit(outcome) {
                otel::udp_flow(&news, &whose, &clock, &mut self.texts, out);
            }
        }
        if let Err(error) = programs.remove::<FLOW_KEY_WORDS, FLOW_WORDS>(FLOWS, &ended) {
            tracing::debug!("network: {error}");
        }
    }

    /// Goes over all open files, and gives each socket that is found to `each`.
    pub(super) fn look(
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
        if let Err(error) = looked {
            tracing::debug!("network: a look at open files has ended early: {error}");
        }
    }

    /// Tells of the connections whose turn it is, and notes the states of all.
    pub(super) fn report(&mut self, now: Instant, node: &mut Node, programs: &mut Programs, out: &mut Output) {
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

    pub(super) fn tell_bandwidth(&mut self, now: Instant, node: &Node, out: &mut Output) {
        let time = node.clock.unix(Clock::boot_now());
        for rate in self.bandwidth.rates(&devices(), now) {
            let process = Some(rate.pid).filter(|pid| *pid != 0).and_then(|pid| node.processes.by_pid(pid));
            if out.admit(Ok(())) {
                otel::bandwidth(&rate, process, time, out);
            }
        }
    }

    /// Tells what went wrong since the last reading.
    pub(super) fn tell_troubles(&mut self, now: Instant, node: &Node, programs: &mut Programs, out: &mut Output) {
        self.next_troubles = Some(now + self.options.trouble_interval.0);
        let entries = match programs.entries(TROUBLES) {
            Ok(entries) => entries,
            Err(error) => return tracing::debug!("network: {error}"),
        };
        if let Some(lost) = first_lost(programs, TROUBLES_LOST, &mut self.troubles_lost) {
            tracing::warn!(
                "network: {lost} retransmits, errors, drops or stalls found no place in the table of them: set network.trouble_interval lower; this is told once, the metric leaf.network.troubles.lost counts on"
            );
        }
        let entries: Vec<(TroubleKey, Trouble)> = entries
            .into_iter()
            .map(|(key, value): (KeyWords, TroubleWords)| (zerocopy::transmute!(key), zerocopy::transmute!(value)))
            .collect();
        let (news, idle) = self.troubles.news(&entries);
        let now_ns = Clock::boot_now();
        let time = node.clock.unix(now_ns);
        let mut value = String::new();
        for news in news {
            let reason = programs.name_of(DROP_REASONS, news.key.code);
            let owner = &news.trouble.owner;
            if !news.value(reason, self.options.stall_threshold, &mut value) {
                continue;
            }
            let outcome = self.admission.admit(owner.pid, owner.filtered_uid(), until_nul(&owner.comm), now_ns);
            if news.key.what == trouble::STALL && outcome != Err(Unsent::Filtered) {
                self.stalls += news.count;
            }
            if out.admit(outcome) {
                let process = owner.known().and_then(|owner| node.processes.by_pid(owner.pid));
                otel::trouble(&news, &value, process, time, &mut self.texts, out);
            }
        }
        let idle: Vec<KeyWords> = idle.into_iter().map(|key| zerocopy::transmute!(key)).collect();
        if let Err(error) = programs.remove::<KEY_WORDS, TROUBLE_WORDS>(TROUBLES, &idle) {
            tracing::debug!("network: {error}");
        }
    }
}

/// Reads a kernel's count of what found no place into `lost`; returns it when it is the first.
fn first_lost(programs: &mut Programs, map: &'static str, lost: &mut u64) -> Option<u64> {
    let before = std::mem::replace(lost, programs.sum(map).unwrap_or(*lost));
    (before == 0 && *lost > 0).then_some(*lost)
}

pub(super) fn devices() -> String {
    std::fs::read_to_string(DEVICES).unwrap_or_default()
}
