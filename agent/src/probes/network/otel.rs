//! Event -> signals: the log events and the span of a connection.

use super::{
    address::AddressText,
    bandwidth::Rate,
    connection::{Connection, End, Errno, Role, both},
    flows,
    trouble::News,
};
use crate::{
    enrich::{
        clock::Clock,
        container::Cgroup,
        dns::Answer,
        identity::{container, owner},
        process::{Process, until_nul},
    },
    otlp::{
        Attributes, SpanContext,
        attribute::{self as key},
        logs::LogEvent,
        spans::{Kind, Span},
    },
    probes::Output,
};
use agent_common::network::{Counts, Dns, Owner};
use std::{fmt::Write as _, net::SocketAddr};

/// Whose connection it is, as far as it is known.
#[derive(Clone, Copy, Debug)]
pub struct Whose<'a> {
    /// The process.
    pub process: Option<&'a Process>,
    /// The control group of the socket, for a connection without a process.
    pub cgroup: Option<&'a Cgroup>,
    /// Its place in a trace.
    pub span: SpanContext,
    /// Name of the accepting end, if it was asked for.
    pub server: Option<&'a str>,
}

/// Memory for texts, used again.
#[derive(Debug, Default)]
pub struct Texts {
    source: AddressText,
    destination: AddressText,
    entity: String,
    error: String,
}

/// `tcp_connect` of a connection that there is, or `tcp_accept`.
pub fn opened(connection: &Connection<'_>, whose: &Whose<'_>, clock: &Clock, texts: &mut Texts, out: &mut Output) {
    let name = match connection.role {
        Role::Client => "tcp_connect",
        Role::Server => "tcp_accept",
    };
    log(name, connection, whose, clock, texts, out, |attributes| {
        connect_time(attributes, connection);
    });
}

/// `tcp_connect` of an attempt that failed.
pub fn failed(
    connection: &Connection<'_>,
    error: Errno,
    whose: &Whose<'_>,
    clock: &Clock,
    texts: &mut Texts,
    out: &mut Output,
) {
    log("tcp_connect", connection, whose, clock, texts, out, |attributes| {
        attributes.text(key::ERROR_TYPE, error.name());
        if let Some(age) = connection.age() {
            attributes.int(key::CONNECT_TIME, age as i64);
        }
        if connection.tcp.counts.retransmits > 0 {
            attributes.int(key::RETRANSMITS, connection.tcp.counts.retransmits.into());
        }
    });
    span(connection, End::Failed(error), None, whose, clock, texts, out);
}

/// `tcp_close`: the whole story.
pub fn closed(
    connection: &Connection<'_>,
    end: End,
    peer: Option<SpanContext>,
    whose: &Whose<'_>,
    clock: &Clock,
    texts: &mut Texts,
    out: &mut Output,
) {
    log("tcp_close", connection, whose, clock, texts, out, |attributes| {
        duration(attributes, connection);
        connect_time(attributes, connection);
        traffic(attributes, connection, connection.counts());
        attributes.text(key::CONNECTION_STATE, connection.state());
        closing(attributes, connection.role, end);
    });
    span(connection, end, peer, whose, clock, texts, out);
}

/// `tcp_flow`: what went over a connection since it was last told of.
pub fn flow(
    connection: &Connection<'_>,
    news: Counts,
    whose: &Whose<'_>,
    clock: &Clock,
    texts: &mut Texts,
    out: &mut Output,
) {
    log("tcp_flow", connection, whose, clock, texts, out, |attributes| {
        duration(attributes, connection);
        traffic(attributes, connection, Some(news));
        attributes.text(key::CONNECTION_STATE, connection.state());
    });
}

/// `udp_flow`: what went over a UDP flow since it was last told of.
pub fn udp_flow(news: &flows::News, whose: &Whose<'_>, clock: &Clock, texts: &mut Texts, out: &mut Output) {
    let flow = &news.flow;
    let role = if news.is_client { Role::Client } else { Role::Server };
    let [local, remote] = both(&news.key.ends);
    let (source, destination) = if role == Role::Client { (local, remote) } else { (remote, local) };
    let event = LogEvent { name: "udp_flow", time: clock.unix(flow.last_ns), observed: 0, span: whose.span };
    out.log(&event, |attributes| {
        who(attributes, flow.owner.known(), whose);
        attributes.text(key::NETWORK_TRANSPORT, "udp");
        ends(attributes, source, destination, texts);
        attributes.text(key::SERVER_ADDRESS, whose.server.unwrap_or_default());
        attributes.text(key::CONNECTION_ROLE, role.name());
        if flow.namespace != 0 {
            attributes.int(key::NETWORK_NAMESPACE, flow.namespace.into());
        }
        attributes.int(key::CONNECTION_DURATION, flow.last_ns.saturating_sub(flow.begin_ns) as i64);
        let packets = [flow.sent_packets, flow.received_packets];
        amounts(attributes, [flow.sent_bytes, flow.received_bytes], packets);
        attributes.bool(key::FLOW_ENDED, news.has_ended);
    });
}

/// `dns_query`: a question that was answered.
pub fn dns_query(
    dns: &Dns,
    answer: Option<&Answer>,
    whose: &Whose<'_>,
    clock: &Clock,
    texts: &mut Texts,
    out: &mut Output,
) {
    let [local, server] = both(&dns.ends);
    let event = LogEvent { name: "dns_query", time: clock.unix(dns.time_ns), observed: 0, span: whose.span };
    out.log(&event, |attributes| {
        who(attributes, dns.asked.owner.known(), whose);
        attributes.text(key::NETWORK_TRANSPORT, "udp");
        ends(attributes, local, server, texts);
        match answer {
            Some(answer) => {
                attributes.text(key::DNS_NAME, &answer.name);
                attributes.text(key::DNS_TYPE, &answer.question);
                attributes.text(key::DNS_CODE, answer.code);
                attributes.int(key::DNS_ANSWERS, answer.addresses.len() as i64);
            }
            None => attributes.text(key::ERROR_TYPE, "unreadable"),
        }
        if dns.asked.time_ns != 0 {
            attributes.int(key::DNS_LATENCY, dns.time_ns.saturating_sub(dns.asked.time_ns) as i64);
        }
    });
}

/// `error.net` or `transport.drop`: something went wrong so often.
pub fn trouble(news: &News, value: &str, process: Option<&Process>, time: u64, texts: &mut Texts, out: &mut Output) {
    let (name, interface) = (news.event(), String::from_utf8_lossy(until_nul(&news.trouble.interface)));
    let [local, remote] = both(&news.trouble.ends);
    texts.entity.clear();
    let _ = match news.is_of_socket() {
        true => write!(texts.entity, "{local}-{remote}"),
        // A packet that belongs to no interface any more.
        false if interface.is_empty() && news.key.namespace == 0 => write!(texts.entity, "node"),
        false if interface.is_empty() => write!(texts.entity, "netns:{}", news.key.namespace),
        false => write!(texts.entity, "{interface}"),
    };
    let event = LogEvent { name, time, observed: 0, span: SpanContext::default() };
    out.log(&event, |attributes| {
        attributes.text(key::EVENT_TYPE, name);
        attributes.text(key::ENTITY_ID, &texts.entity);
        attributes.text(key::EVENT_VALUE, value);
        if let Some(known) = news.trouble.owner.known() {
            attributes.int(key::PROCESS_PID, known.pid.into());
        }
        if let Some(process) = process {
            owner(attributes, process);
        }
        if let Some(direction) = news.direction() {
            attributes.text(key::NETWORK_IO_DIRECTION, direction);
            attributes.int(key::STALL_TIME, news.time_ns as i64);
        }
        attributes.text(key::INTERFACE_NAME, &interface);
        if news.is_of_socket() {
            ends(attributes, local, remote, texts);
        }
        if news.key.namespace != 0 {
            attributes.int(key::NETWORK_NAMESPACE, news.key.namespace.into());
        }
    });
}

/// `transport.bw`: Mbit/s of an interface or a process.
pub fn bandwidth(rate: &Rate, process: Option<&Process>, time: u64, out: &mut Output) {
    const NAME: &str = "transport.bw";
    let event = LogEvent { name: NAME, time, observed: 0, span: SpanContext::default() };
    out.log(&event, |attributes| {
        attributes.text(key::EVENT_TYPE, NAME);
        attributes.text(key::ENTITY_ID, &rate.entity);
        // To the bit a second.
        attributes.double(key::EVENT_VALUE, (rate.mbit_s * 1e6).round() / 1e6);
        if rate.pid == 0 {
            attributes.text(key::INTERFACE_NAME, &rate.entity);
        } else {
            attributes.int(key::PROCESS_PID, rate.pid.into());
        }
        if let Some(process) = process {
            owner(attributes, process);
        }
    });
}

fn log(
    name: &str,
    connection: &Connection<'_>,
    whose: &Whose<'_>,
    clock: &Clock,
    texts: &mut Texts,
    out: &mut Output,
    more: impl FnOnce(&mut Attributes<'_>),
) {
    // `Output` sets the time of observation.
    let event = LogEvent { name, time: clock.unix(connection.tcp.time_ns), observed: 0, span: whose.span };
    out.log(&event, |attributes| {
        describe(attributes, connection, whose, texts);
        more(attributes);
    });
}

/// Who talks to whom.
fn describe(attributes: &mut Attributes<'_>, connection: &Connection<'_>, whose: &Whose<'_>, texts: &mut Texts) {
    who(attributes, connection.owner(), whose);
    attributes.text(key::NETWORK_TRANSPORT, "tcp");
    ends(attributes, connection.source(), connection.destination(), texts);
    attributes.text(key::SERVER_ADDRESS, whose.server.unwrap_or_default());
    attributes.text(key::CONNECTION_ROLE, connection.role.name());
    if connection.tcp.namespace != 0 {
        attributes.int(key::NETWORK_NAMESPACE, connection.tcp.namespace.into());
    }
}

fn who(attributes: &mut Attributes<'_>, known: Option<&Owner>, whose: &Whose<'_>) {
    if let Some(known) = known {
        attributes.int(key::PROCESS_PID, known.pid.into());
    }
    match (whose.process, known) {
        (Some(process), _) => owner(attributes, process),
        (None, Some(known)) => {
            attributes.int(key::PROCESS_USER_ID, known.uid.into());
            attributes.text(key::PROCESS_COMM, &String::from_utf8_lossy(until_nul(&known.comm)));
        }
        (None, None) => {
            if let Some(cgroup) = whose.cgroup {
                container(attributes, cgroup);
            }
        }
    }
}

fn ends(attributes: &mut Attributes<'_>, source: SocketAddr, destination: SocketAddr, texts: &mut Texts) {
    attributes.text(key::NETWORK_TYPE, if source.is_ipv4() { "ipv4" } else { "ipv6" });
    attributes.text(key::SOURCE_ADDRESS, texts.source.of(source.ip()));
    attributes.int(key::SOURCE_PORT, source.port().into());
    attributes.text(key::DESTINATION_ADDRESS, texts.destination.of(destination.ip()));
    attributes.int(key::DESTINATION_PORT, destination.port().into());
}

fn connect_time(attributes: &mut Attributes<'_>, connection: &Connection<'_>) {
    if let Some(connect) = connection.connect_time() {
        attributes.int(key::CONNECT_TIME, connect as i64);
    }
}

fn duration(attributes: &mut Attributes<'_>, connection: &Connection<'_>) {
    if let Some(age) = connection.age() {
        attributes.int(key::CONNECTION_DURATION, age as i64);
    }
}

/// Bytes and packets, sent and received.
fn amounts(attributes: &mut Attributes<'_>, bytes: [u64; 2], packets: [u64; 2]) {
    attributes.int(key::SENT_BYTES, bytes[0] as i64);
    attributes.int(key::RECEIVED_BYTES, bytes[1] as i64);
    attributes.int(key::SENT_PACKETS, packets[0] as i64);
    attributes.int(key::RECEIVED_PACKETS, packets[1] as i64);
}

fn traffic(attributes: &mut Attributes<'_>, connection: &Connection<'_>, counts: Option<Counts>) {
    if let Some(counts) = counts {
        let packets = [counts.sent_packets.into(), counts.received_packets.into()];
        amounts(attributes, [counts.sent_bytes, counts.received_bytes], packets);
        attributes.int(key::RETRANSMITS, counts.retransmits.into());
    }
    if let Some((smoothed, smallest)) = connection.rtt() {
        attributes.int(key::RTT, smoothed as i64);
        attributes.int(key::RTT_MIN, smallest as i64);
    }
}

fn closing(attributes: &mut Attributes<'_>, role: Role, end: End) {
    let (by, reset, error) = match end {
        End::Unknown => return,
        End::ByUs => (Some(role), false, None),
        End::ByPeer => (Some(role.other()), false, None),
        End::ResetByUs => (Some(role), true, None),
        End::ResetByPeer(error) => (Some(role.other()), true, Some(error)),
        End::Failed(error) | End::Broken(error) => (None, false, Some(error)),
    };
    if let Some(by) = by {
        attributes.text(key::CONNECTION_CLOSED_BY, by.name());
    }
    attributes.bool(key::CONNECTION_RESET, reset);
    if let Some(error) = error {
        attributes.text(key::ERROR_TYPE, error.name());
    }
}

/// The span of a connection, from its begin to its end.
fn span(
    connection: &Connection<'_>,
    end: End,
    peer: Option<SpanContext>,
    whose: &Whose<'_>,
    clock: &Clock,
    texts: &mut Texts,
    out: &mut Output,
) {
    texts.error.clear();
    let failed = match end {
        End::ByUs | End::ByPeer | End::Unknown => false,
        End::Failed(error) => write!(texts.error, "connect failed: {}", error.name()).is_ok(),
        End::ResetByUs => write!(texts.error, "reset by this end").is_ok(),
        End::ResetByPeer(error) => write!(texts.error, "reset by the peer: {}", error.name()).is_ok(),
        End::Broken(error) => write!(texts.error, "broken: {}", error.name()).is_ok(),
    };
    let error = std::mem::take(&mut texts.error);
    let (name, kind) = match connection.role {
        Role::Client => ("tcp connect", Kind::Client),
        Role::Server => ("tcp accept", Kind::Server),
    };
    let span = Span {
        context: whose.span,
        parent: whose.process.map_or(0, |process| process.span.span_id),
        name,
        kind,
        start: clock.unix(connection.begin()),
        end: clock.unix(connection.tcp.time_ns),
        error: failed.then_some(error.as_str()),
        link: peer,
    };
    out.span(&span, |attributes| {
        describe(attributes, connection, whose, texts);
        connect_time(attributes, connection);
        traffic(attributes, connection, connection.counts());
        closing(attributes, connection.role, end);
    });
    texts.error = error;
}
