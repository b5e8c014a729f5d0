//! From records to what is told: whose each connection is, and the counts of it.

use super::{
    NetworkRoom,
    bandwidth::Bandwidth,
    connection::{Connection, End, Role},
    options::DnsOption,
    otel::{self, Whose},
    traffic::{self, Traffic},
};
use crate::{
    enrich::{
        Node,
        container::CgroupId,
        dns,
        process::{Seen, Slot, until_nul},
        redact::Redactor,
    },
    probes::Output,
};
use agent_common::{
    Unsent,
    network::{self as wire, Dns, Look, Owner, Tcp, look, missing, state},
};
use std::net::IpAddr;

impl NetworkRoom {
    fn connection<'a>(&self, tcp: &'a Tcp) -> Connection<'a> {
        Connection::new(tcp, |namespace, port| self.listening.contains(&(namespace, port)))
    }

    pub(super) fn on_opened(&mut self, tcp: &Tcp, node: &mut Node, out: &mut Output) {
        if tcp.role == wire::role::SERVER && tcp.owner.pid == 0 {
            if let Some(tcp) = self.accepted.wait(*tcp, self.now) {
                self.tell_opened(&tcp, node, out);
            }
            return;
        }
        self.tell_opened(tcp, node, out);
    }

    /// An accept whose owner is known only now is measured by the filters only now.
    pub(super) fn tell_opened(&mut self, tcp: &Tcp, node: &mut Node, out: &mut Output) {
        let connection = self.connection(tcp);
        if connection.role == Role::Server && self.admission.excludes(tcp.owner.pid, tcp.owner.uid, comm(tcp)) {
            return out.filtered();
        }
        let clock = node.clock;
        let whose = whose_connection(&connection, node, &mut self.redactor);
        if connection.role == Role::Client {
            self.pairs.note(&connection, whose.span);
        }
        total(&mut self.traffic, &tcp.owner, &whose).opened(&connection);
        otel::opened(&connection, &whose, &clock, &mut self.texts, out);
    }

    pub(super) fn on_closed(&mut self, tcp: &Tcp, node: &mut Node, out: &mut Output) {
        if let Some(opened) = self.accepted.owned(tcp.key, &tcp.owner) {
            self.tell_opened(&opened, node, out);
        }
        if tcp.missing & missing::ENTRY != 0 {
            self.traffic.not_held();
        }
        let connection = self.connection(tcp);
        let clock = node.clock;
        let whose = whose_connection(&connection, node, &mut self.redactor);
        let end = connection.end_of();
        let total = total(&mut self.traffic, &tcp.owner, &whose);
        total.closed(&connection, end);
        if let Some(news) = connection.news() {
            total.moved(&connection, &news);
            moved(&mut self.bandwidth, &tcp.owner, &whose, connection.recent_bytes(self.options.report_interval.0));
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
    pub(super) fn on_alive(&mut self, tcp: &Tcp, asked: &Look, node: &mut Node, out: &mut Output) {
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
    pub(super) fn tell_news(&mut self, tcp: &Tcp, node: &mut Node, out: &mut Output) {
        let connection = self.connection(tcp);
        let Some(news) = connection.news().filter(|news| news.sent_packets > 0 || news.received_packets > 0) else {
            return;
        };
        let clock = node.clock;
        let whose = whose_connection(&connection, node, &mut self.redactor);
        let outcome = self.admission.admit(tcp.owner.pid, tcp.owner.uid, comm(tcp), tcp.time_ns);
        // What is over the rate is counted; what is excluded is not.
        if outcome != Err(Unsent::Filtered) {
            total(&mut self.traffic, &tcp.owner, &whose).moved(&connection, &news);
            moved(&mut self.bandwidth, &tcp.owner, &whose, connection.recent_bytes(self.options.report_interval.0));
        }
        if out.admit(outcome) {
            otel::flow(&connection, news, &whose, &clock, &mut self.texts, out);
        }
    }

    pub(super) fn on_dns(&mut self, record: &Dns, node: &mut Node, out: &mut Output) {
        let answer = dns::parse(&record.payload[..record.len as usize]);
        match &answer {
            Some(answer) => node.names.learn(answer),
            None => self.dns_unreadable += 1,
        }
        if self.options.dns == DnsOption::Events {
            let clock = node.clock;
            let whose = whose(&record.asked.owner, record.time_ns, None, node, &mut self.redactor);
            otel::dns_query(record, answer.as_ref(), &whose, &clock, &mut self.texts, out);
        }
    }
}

/// Adds bytes to those of the owner, if it is known.
pub(super) fn moved(bandwidth: &mut Bandwidth, owner: &Owner, whose: &Whose<'_>, bytes: u64) {
    if let Some(owner) = owner.known() {
        bandwidth.moved(owner.pid, whose.process.map_or("", |process| &process.comm), bytes);
    }
}

pub(super) fn comm(tcp: &Tcp) -> &[u8] {
    until_nul(&tcp.owner.comm)
}

/// The entry of the owner, if it is known.
fn process(owner: &Owner, time_ns: u64, node: &mut Node, redactor: &mut Redactor) -> Option<Slot> {
    let owner = owner.known()?;
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

/// Whose something is that happened in a process; `server` is the address of the end that was asked for.
pub(super) fn whose<'a>(
    owner: &Owner,
    time_ns: u64,
    server: Option<IpAddr>,
    node: &'a mut Node,
    redactor: &mut Redactor,
) -> Whose<'a> {
    let slot = process(owner, time_ns, node, redactor);
    let process = slot.map(|slot| node.processes.get(slot));
    let span = process.map(|process| process.span).unwrap_or_default();
    Whose { process, cgroup: None, span, server: server.and_then(|address| node.names.of(address)).map(|name| &**name) }
}

/// The same for a connection, which has a span of its own, and a control group without a process, too.
fn whose_connection<'a>(connection: &Connection<'_>, node: &'a mut Node, redactor: &mut Redactor) -> Whose<'a> {
    let tcp = connection.tcp;
    let slot = process(&tcp.owner, tcp.time_ns, node, redactor);
    let process = slot.map(|slot| node.processes.get(slot));
    let cgroup = node.cgroups.get(CgroupId { hierarchy: 0, id: tcp.cgroup_id });
    let span = node.processes.span_in(process, tcp.key);
    let server = node.names.of(connection.destination().ip()).map(|name| &**name);
    Whose { process, cgroup: cgroup.map(|cgroup| &**cgroup), span, server }
}

/// Where it is counted.
pub(super) fn total<'a>(traffic: &'a mut Traffic, owner: &Owner, whose: &Whose<'_>) -> &'a mut traffic::Total {
    let cgroup = whose.process.map_or(whose.cgroup, |process| process.cgroup.as_deref());
    let container = cgroup.and_then(|cgroup| cgroup.container.as_ref()).map_or("", |container| &container.id);
    match whose.process {
        Some(process) => traffic.of(&process.comm, container),
        None => traffic.of(&String::from_utf8_lossy(until_nul(&owner.comm)), container),
    }
}
