//! The room's metrics: what went over the node's connections, by who. Bounded:
//! who comes when the bound is reached is counted in one series of overflow.

use super::connection::{Connection, End, Role, state_name};
use crate::otlp::{
    histogram::Histogram,
    metrics::{Data, Labels, Metric},
};
use agent_common::network::{Counts, Flow, state};
use rustc_hash::FxHashMap;
use std::hash::{BuildHasher as _, RandomState};

/// Says that a series stands for all that came after the bound was reached
/// (OpenTelemetry metrics SDK, "Overflow attribute").
const OVERFLOW: &str = "otel.metric.overflow";
/// Largest number of series that one name of a process or container adds to a metric.
const SERIES_EACH: usize = 4;

/// Everything counted, by process name and container.
#[derive(Debug)]
pub struct Traffic {
    by: FxHashMap<u64, (Who, Total)>,
    overflow: Total,
    max: usize,
    hasher: RandomState,
    /// Sockets by state, as the last look at all found them.
    states: FxHashMap<u8, u64>,
    /// Connections that the table did not hold when they ended.
    not_held: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Who {
    comm: String,
    container: String,
}

/// What is counted for one of them.
#[derive(Clone, Debug, Default)]
pub struct Total {
    counts: [u64; 5],
    udp: [u64; 4],
    opened: [u64; 2],
    resets: u64,
    broken: u64,
    failed: FxHashMap<&'static str, u64>,
    connect: Histogram,
    rtt: Histogram,
    duration: Histogram,
}

impl Traffic {
    /// Of at most `max_series` series a metric.
    #[must_use]
    pub fn new(max_series: usize) -> Self {
        Self {
            by: FxHashMap::default(),
            overflow: Total::default(),
            max: (max_series / SERIES_EACH).max(1),
            hasher: RandomState::default(),
            states: FxHashMap::default(),
            not_held: 0,
        }
    }

    /// Where a process of this name in this container (empty: none) is counted.
    pub fn of(&mut self, comm: &str, container: &str) -> &mut Total {
        let key = self.hasher.hash_one((comm, container));
        if !self.by.contains_key(&key) {
            if self.by.len() >= self.max {
                return &mut self.overflow;
            }
            let who = Who { comm: comm.to_owned(), container: container.to_owned() };
            self.by.insert(key, (who, Total::default()));
        }
        self.by.get_mut(&key).map_or(&mut self.overflow, |(_, total)| total)
    }

    /// Notes how many sockets a look has found in each state.
    pub fn set_states(&mut self, states: FxHashMap<u8, u64>) {
        self.states = states;
    }

    /// Counts a connection that the table did not hold.
    pub fn not_held(&mut self) {
        self.not_held += 1;
    }

    /// As metrics.
    #[must_use]
    pub fn metrics(&self) -> Vec<Metric> {
        let counter = |name, unit, description, data: fn(&Total) -> Vec<(Labels, u64)>| Metric {
            name,
            unit,
            description,
            data: Data::Counter(self.series(data)),
        };
        let histogram = |name, description, of: fn(&Total) -> &Histogram| Metric {
            name,
            unit: "s",
            description,
            data: Data::Histogram(self.series(|total| {
                Some(of(total)).filter(|values| values.count() > 0).map(|values| (Labels::new(), values.clone()))
            })),
        };
        vec![
            counter("process.network.io", "By", "Payload bytes over TCP connections and in UDP packets", |total| {
                by_direction([total.counts[0], total.counts[1]], [total.udp[0], total.udp[1]])
            }),
            counter("leaf.network.packets", "{packet}", "Packets of TCP connections and of UDP", |total| {
                by_direction([total.counts[2], total.counts[3]], [total.udp[2], total.udp[3]])
            }),
            counter(
                "leaf.network.retransmits",
                "{packet}",
                "Packets of TCP connections that were sent again",
                |total| vec![(tcp(), total.counts[4])],
            ),
            counter("leaf.network.connections.opened", "{connection}", "TCP connections made and accepted", |total| {
                let role = |role: Role| {
                    let mut labels = tcp();
                    labels.push(("leaf.connection.role", role.name().to_owned()));
                    (labels, total.opened[role as usize])
                };
                vec![role(Role::Client), role(Role::Server)]
            }),
            counter(
                "leaf.network.connections.failed",
                "{connection}",
                "Attempts at a TCP connection that failed",
                |total| {
                    let one =
                        |(error, failed): (&&'static str, &u64)| (vec![("error.type", (*error).to_owned())], *failed);
                    total.failed.iter().map(one).collect()
                },
            ),
            counter("leaf.network.resets", "{connection}", "TCP connections ended by a reset", |total| {
                vec![(tcp(), total.resets)]
            }),
            counter(
                "leaf.network.broken",
                "{connection}",
                "TCP connections ended by a timeout or another error",
                |total| vec![(tcp(), total.broken)],
            ),
            histogram("leaf.network.connect.duration", "Time from connect() to the end of the handshake", |total| {
                &total.connect
            }),
            histogram(
                "leaf.network.rtt",
                "Smoothed round-trip time of TCP connections when they were told of",
                |total| &total.rtt,
            ),
            histogram("leaf.network.connection.duration", "Life of TCP connections that have ended", |total| {
                &total.duration
            }),
            Metric {
                name: "system.network.connection.count",
                unit: "{connection}",
                description: "Open TCP sockets of all processes, as the last look found them",
                data: Data::UpDownCounter(
                    self.states
                        .iter()
                        .map(|(state, sockets)| {
                            let mut labels = tcp();
                            labels.push(("network.connection.state", state_name(*state).to_owned()));
                            (labels, *sockets)
                        })
                        .collect(),
                ),
            },
            Metric::count(
                "leaf.network.connections.not_held",
                "{connection}",
                "TCP connections that the kernel's table did not hold: owner and begin are unknown",
                self.not_held,
            ),
        ]
    }

    /// The series of all who have any, each with its name.
    fn series<T, I: IntoIterator<Item = (Labels, T)>>(&self, of: impl Fn(&Total) -> I) -> Vec<(Labels, T)> {
        let named = self.by.values().flat_map(|(who, total)| {
            of(total).into_iter().map(|(mut labels, value)| {
                labels.push(("leaf.process.comm", who.comm.clone()));
                if !who.container.is_empty() {
                    labels.push(("container.id", who.container.clone()));
                }
                (labels, value)
            })
        });
        let overflow = (self.by.len() >= self.max).then(|| of(&self.overflow)).into_iter().flatten();
        let overflow = overflow.map(|(mut labels, value)| {
            labels.push((OVERFLOW, "true".to_owned()));
            (labels, value)
        });
        named.chain(overflow).collect()
    }
}

impl Total {
    /// A connection is there.
    pub fn opened(&mut self, connection: &Connection<'_>) {
        self.opened[connection.role as usize] += 1;
        if let Some(connect) = connection.connect_time() {
            self.connect.record(seconds(connect));
        }
    }

    /// Something went over a connection.
    pub fn moved(&mut self, connection: &Connection<'_>, news: &Counts) {
        let counts = [
            news.sent_bytes,
            news.received_bytes,
            news.sent_packets.into(),
            news.received_packets.into(),
            news.retransmits.into(),
        ];
        for (total, more) in self.counts.iter_mut().zip(counts) {
            *total += more;
        }
        if let Some((smoothed, _)) = connection.rtt() {
            self.rtt.record(seconds(smoothed));
        }
    }

    /// Something went over a UDP flow.
    pub fn flowed(&mut self, flow: &Flow) {
        let counts = [flow.sent_bytes, flow.received_bytes, flow.sent_packets, flow.received_packets];
        for (total, more) in self.udp.iter_mut().zip(counts) {
            *total += more;
        }
    }

    /// A connection, or the attempt at one, is over.
    pub fn closed(&mut self, connection: &Connection<'_>, end: End) {
        match end {
            End::Failed(error) => *self.failed.entry(error.name()).or_default() += 1,
            End::ResetByUs | End::ResetByPeer(_) => self.resets += 1,
            End::Broken(_) => self.broken += 1,
            End::ByUs | End::ByPeer | End::Unknown => {}
        }
        if let Some(age) = connection.age()
            && !matches!(end, End::Failed(_))
            && connection.tcp.state != state::SYN_SENT
        {
            self.duration.record(seconds(age));
        }
    }
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

fn tcp() -> Labels {
    vec![("network.transport", "tcp".to_owned())]
}

/// Sent and received, by transport; nothing is said of what never was.
fn by_direction(tcp: [u64; 2], udp: [u64; 2]) -> Vec<(Labels, u64)> {
    let series = |transport: &'static str, counts: [u64; 2]| {
        ["transmit", "receive"].into_iter().zip(counts).filter(|(_, count)| *count > 0).map(
            move |(direction, count)| {
                let labels =
                    vec![("network.transport", transport.to_owned()), ("network.io.direction", direction.to_owned())];
                (labels, count)
            },
        )
    };
    series("tcp", tcp).chain(series("udp", udp)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_after_the_bound_is_counted_as_overflow() {
        let mut traffic = Traffic::new(2 * SERIES_EACH);
        for name in ["a", "b", "c", "d"] {
            traffic.of(name, "").resets += 1;
        }
        traffic.of("a", "").resets += 1;
        let metrics = traffic.metrics();
        let resets = metrics.iter().find(|metric| metric.name == "leaf.network.resets").expect("a metric");
        let Data::Counter(series) = &resets.data else { panic!("a counter") };
        let of = |label: (&str, &str)| {
            let named = |labels: &Labels| labels.iter().any(|(key, value)| (*key, value.as_str()) == label);
            series.iter().find(|(labels, _)| named(labels)).map(|(_, value)| *value)
        };
        assert_eq!((of(("leaf.process.comm", "a")), of(("leaf.process.comm", "b"))), (Some(2), Some(1)));
        assert_eq!((of(("leaf.process.comm", "c")), of((OVERFLOW, "true"))), (None, Some(2)));
        for metric in &metrics {
            let Data::Counter(series) = &metric.data else { continue };
            assert!(series.len() <= 6, "{} has {} series", metric.name, series.len());
        }
    }
}
