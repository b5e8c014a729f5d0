//! The two ends of a connection on one node: the span of the end that connects
//! is noted, so that the span of the end that accepts can point at it.

use super::connection::Connection;
use crate::otlp::SpanContext;
use rustc_hash::FxHashMap;
use std::{
    collections::VecDeque,
    hash::{BuildHasher as _, Hasher as _, RandomState},
    net::IpAddr,
};

/// Connections remembered; the oldest is forgotten first.
const MAX_PAIRS: usize = 32_768;

/// Spans of connecting ends whose other end may be on this node.
#[derive(Debug, Default)]
pub struct Pairs {
    /// By the hash of both ends.
    clients: FxHashMap<u64, SpanContext>,
    /// By age; some are gone already.
    order: VecDeque<u64>,
    hasher: RandomState,
}

impl Pairs {
    /// Notes the span of an end that connects.
    pub fn note(&mut self, connection: &Connection<'_>, span: SpanContext) {
        let key = self.key(connection);
        if self.clients.insert(key, span).is_none() {
            self.order.push_back(key);
        }
        while self.order.len() > MAX_PAIRS {
            if let Some(oldest) = self.order.pop_front() {
                self.clients.remove(&oldest);
            }
        }
    }

    /// The span of the end that connects, for the end that accepts.
    #[must_use]
    pub fn client_of(&self, connection: &Connection<'_>) -> Option<SpanContext> {
        self.clients.get(&self.key(connection)).copied()
    }

    /// Loopback addresses mean another host in every network namespace.
    fn key(&self, connection: &Connection<'_>) -> u64 {
        let (source, destination) = (connection.source(), connection.destination());
        let namespace = if source.ip().is_loopback() { connection.tcp.namespace } else { 0 };
        let mut bytes = [0; 40];
        for (end, at) in [source, destination].into_iter().zip([0, 18]) {
            bytes[at..at + 16].copy_from_slice(&octets(end.ip()));
            bytes[at + 16..at + 18].copy_from_slice(&end.port().to_ne_bytes());
        }
        bytes[36..].copy_from_slice(&namespace.to_ne_bytes());
        // In one piece: a keyed hash costs by the piece.
        let mut hasher = self.hasher.build_hasher();
        hasher.write(&bytes);
        hasher.finish()
    }
}

fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use agent_common::network::{Tcp, role};
    use zerocopy::FromZeros as _;

    fn ends(port: u16) -> [Tcp; 2] {
        let mut client = Tcp::new_zeroed();
        client.role = role::CLIENT;
        (client.ends.family, client.ends.local_port, client.ends.remote_port) = (2, port, 80);
        (client.ends.local[0], client.ends.remote[0]) = (10, 11);
        let mut server = client;
        (server.role, server.ends.local_port, server.ends.remote_port) = (role::SERVER, 80, port);
        (server.ends.local, server.ends.remote) = (client.ends.remote, client.ends.local);
        [client, server]
    }

    #[test]
    fn the_accepting_end_finds_the_span_of_the_connecting_one() {
        let mut pairs = Pairs::default();
        let span = SpanContext { trace_id: 1, span_id: 2 };
        let [client, server] = ends(4000);
        pairs.note(&Connection::new(&client, |_, _| false), span);
        assert_eq!(pairs.client_of(&Connection::new(&server, |_, _| false)), Some(span));
        let [_, stranger] = ends(4001);
        assert_eq!(pairs.client_of(&Connection::new(&stranger, |_, _| false)), None);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut pairs = Pairs::default();
        for namespace in 0..2u32 {
            for port in 1..=u16::MAX {
                let [mut client, _] = ends(port);
                client.ends.remote[1] = namespace as u8;
                pairs.note(&Connection::new(&client, |_, _| false), SpanContext::default());
            }
        }
        assert_eq!((pairs.clients.len(), pairs.order.len()), (MAX_PAIRS, MAX_PAIRS));
    }
}
