//! What a record says of a connection, in the words of who reads it.

use super::decode::address;
use agent_common::network::{Counts, Ends, Owner, Tcp, missing, role, state};
use std::{net::SocketAddr, time::Duration};

/// Which end of a connection a socket is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It called connect().
    Client,
    /// It came out of a listening socket.
    Server,
}

impl Role {
    /// Value of `leaf.connection.role`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Role::Client => "client",
            Role::Server => "server",
        }
    }

    /// That of the peer.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Role::Client => Role::Server,
            Role::Server => Role::Client,
        }
    }
}

/// How a connection, or the attempt at one, came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// There was no connection: the error of connect().
    Failed(Errno),
    /// By FIN, this end first.
    ByUs,
    /// By FIN, the peer first.
    ByPeer,
    /// By a reset that this end sent.
    ResetByUs,
    /// By a reset that the peer sent.
    ResetByPeer(Errno),
    /// By the kernel, after the peer had not answered for long, or on an administrator's order.
    Broken(Errno),
    /// It is there no more, and nobody saw how. Where it was last seen in
    /// `SYN_SENT`, it may have failed or have been short.
    Unknown,
}

/// An errno of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

impl Errno {
    /// Given up by the process itself.
    pub const ECANCELED: Self = Self(125);
    /// No local port is free.
    pub const EADDRNOTAVAIL: Self = Self(99);
    const EPIPE: i32 = 32;
    const ECONNRESET: i32 = 104;
    const ECONNREFUSED: i32 = 111;

    /// What a socket is told when the peer has sent a reset, before and after it closed its half.
    #[must_use]
    pub fn is_reset(self) -> bool {
        matches!(self.0, Self::ECONNRESET | Self::EPIPE)
    }

    /// `ECONNREFUSED`; `errno` for a number that no socket is known to have.
    #[must_use]
    pub fn name(self) -> &'static str {
        ERRNOS.iter().find(|(number, _)| *number == self.0).map_or("errno", |(_, name)| name)
    }
}

/// Errors of sockets, as numbered on x86 and ARM (include/uapi/asm-generic/errno.h).
const ERRNOS: &[(i32, &str)] = &[
    (1, "EPERM"),
    (5, "EIO"),
    (11, "EAGAIN"),
    (12, "ENOMEM"),
    (13, "EACCES"),
    (22, "EINVAL"),
    (32, "EPIPE"),
    (71, "EPROTO"),
    (90, "EMSGSIZE"),
    (92, "ENOPROTOOPT"),
    (95, "EOPNOTSUPP"),
    (97, "EAFNOSUPPORT"),
    (98, "EADDRINUSE"),
    (99, "EADDRNOTAVAIL"),
    (100, "ENETDOWN"),
    (101, "ENETUNREACH"),
    (102, "ENETRESET"),
    (103, "ECONNABORTED"),
    (104, "ECONNRESET"),
    (105, "ENOBUFS"),
    (106, "EISCONN"),
    (107, "ENOTCONN"),
    (110, "ETIMEDOUT"),
    (111, "ECONNREFUSED"),
    (112, "EHOSTDOWN"),
    (113, "EHOSTUNREACH"),
    (125, "ECANCELED"),
];

/// A record with the question answered which end it is about.
#[derive(Clone, Copy, Debug)]
pub struct Connection<'a> {
    /// The record.
    pub tcp: &'a Tcp,
    /// This end's.
    pub role: Role,
}

impl<'a> Connection<'a> {
    /// `listens`: whether a socket is known to listen at the local port. It decides
    /// where the table could not tell.
    #[must_use]
    pub fn new(tcp: &'a Tcp, listens: impl FnOnce(u32, u16) -> bool) -> Self {
        let role = match tcp.role {
            role::CLIENT => Role::Client,
            role::SERVER => Role::Server,
            _ if tcp.state == state::SYN_SENT => Role::Client,
            _ if tcp.state == state::SYN_RECV || listens(tcp.namespace, tcp.ends.local_port) => Role::Server,
            _ => Role::Client,
        };
        Self { tcp, role }
    }

    /// The end that connects.
    #[must_use]
    pub fn source(&self) -> SocketAddr {
        self.end(self.role == Role::Client)
    }

    /// The end that accepts.
    #[must_use]
    pub fn destination(&self) -> SocketAddr {
        self.end(self.role == Role::Server)
    }

    fn end(&self, is_local: bool) -> SocketAddr {
        let [local, remote] = both(&self.tcp.ends);
        if is_local { local } else { remote }
    }

    /// The owner, if it is known.
    #[must_use]
    pub fn owner(&self) -> Option<&'a Owner> {
        self.tcp.owner.known()
    }

    /// Boot clock, ns: connect() or accept; the record's own time where it is not known.
    #[must_use]
    pub fn begin(&self) -> u64 {
        match self.tcp.begin_ns {
            0 => self.tcp.time_ns,
            begin => begin,
        }
    }

    /// From its begin to the record, ns.
    #[must_use]
    pub fn age(&self) -> Option<u64> {
        (self.tcp.begin_ns != 0).then(|| self.tcp.time_ns.saturating_sub(self.tcp.begin_ns))
    }

    /// From connect() to the end of the handshake, ns.
    #[must_use]
    pub fn connect_time(&self) -> Option<u64> {
        let Tcp { begin_ns, established_ns, .. } = *self.tcp;
        (self.role == Role::Client && begin_ns != 0 && established_ns != 0)
            .then(|| established_ns.saturating_sub(begin_ns))
    }

    /// All that went over it.
    #[must_use]
    pub fn counts(&self) -> Option<Counts> {
        (self.tcp.missing & missing::COUNTS == 0).then_some(self.tcp.counts)
    }

    /// What went over it since it was last told of.
    #[must_use]
    pub fn news(&self) -> Option<Counts> {
        let (now, told) = (self.counts()?, &self.tcp.reported);
        Some(Counts {
            sent_bytes: now.sent_bytes.saturating_sub(told.sent_bytes),
            received_bytes: now.received_bytes.saturating_sub(told.received_bytes),
            sent_packets: now.sent_packets.wrapping_sub(told.sent_packets),
            received_packets: now.received_packets.wrapping_sub(told.received_packets),
            retransmits: now.retransmits.wrapping_sub(told.retransmits),
            reserved: 0,
        })
    }

    /// Bytes both ways, of [`Self::news`], that went over it in the last `interval`: a
    /// connection is first told of when it is older than that, and is then assumed to have been
    /// even. Nothing, if it was never told of and nobody knows since when it was there.
    #[must_use]
    pub fn recent_bytes(&self, interval: Duration) -> u64 {
        let bytes = self.news().map_or(0, |news| news.sent_bytes + news.received_bytes);
        let interval = interval.as_nanos();
        match self.age().map(u128::from) {
            Some(age) if age > interval && self.tcp.reported == Counts::default() => {
                (u128::from(bytes) * interval / age) as u64
            }
            None if self.tcp.reported == Counts::default() => 0,
            _ => bytes,
        }
    }

    /// Smoothed and smallest round-trip time, ns; `None` before the first was measured.
    #[must_use]
    pub fn rtt(&self) -> Option<(u64, u64)> {
        /// `rtt_min` before the first measurement (`tcp_init_sock`: ~0U).
        const NONE: u32 = u32::MAX;
        let Tcp { missing: absent, srtt_us, rtt_min_us, .. } = *self.tcp;
        (absent & missing::RTT == 0 && srtt_us != 0 && rtt_min_us != NONE)
            .then(|| (u64::from(srtt_us) * 1000, u64::from(rtt_min_us) * 1000))
    }

    /// How it ended, for the record of an end.
    ///
    /// From the state before: `FIN_WAIT2` and `CLOSING` are reached by closing
    /// first, `LAST_ACK` by closing second, and both end in silence. From any
    /// other state a connection ends by a reset or a timeout; without an error
    /// the reset is our own (`tcp_reset`, `tcp_done`, `__tcp_close`, net/ipv4).
    #[must_use]
    pub fn end_of(&self) -> End {
        if self.tcp.missing & missing::END != 0 {
            return End::Unknown;
        }
        let error = Errno(self.tcp.error);
        match (self.tcp.state, self.tcp.error) {
            // `inet_hash_connect` has found no port for it.
            (state::SYN_SENT, 0) if self.tcp.ends.local_port == 0 => End::Failed(Errno::EADDRNOTAVAIL),
            (state::SYN_SENT, 0) => End::Failed(Errno::ECANCELED),
            (state::SYN_SENT, _) => End::Failed(error),
            (state::FIN_WAIT2 | state::CLOSING | state::TIME_WAIT, 0) => End::ByUs,
            (state::LAST_ACK, 0) => End::ByPeer,
            (_, 0) => End::ResetByUs,
            (_, Errno::ECONNRESET | Errno::EPIPE | Errno::ECONNREFUSED) => End::ResetByPeer(error),
            _ => End::Broken(error),
        }
    }

    /// Name of a state, as semantic conventions have it.
    #[must_use]
    pub fn state(&self) -> &'static str {
        state_name(self.tcp.state)
    }
}

/// Local and remote end.
#[must_use]
pub fn both(ends: &Ends) -> [SocketAddr; 2] {
    let Ends { family, local, local_port, remote, remote_port, .. } = *ends;
    [SocketAddr::new(address(family, local), local_port), SocketAddr::new(address(family, remote), remote_port)]
}

/// Value of `network.connection.state`.
#[must_use]
pub fn state_name(number: u8) -> &'static str {
    match number {
        state::ESTABLISHED => "established",
        state::SYN_SENT => "syn_sent",
        state::SYN_RECV | state::NEW_SYN_RECV => "syn_received",
        state::FIN_WAIT1 => "fin_wait_1",
        state::FIN_WAIT2 => "fin_wait_2",
        state::TIME_WAIT => "time_wait",
        state::CLOSE => "closed",
        state::CLOSE_WAIT => "close_wait",
        state::LAST_ACK => "last_ack",
        state::LISTEN => "listen",
        state::CLOSING => "closing",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromZeros as _;

    fn closed(state: u8, error: i32) -> Tcp {
        let mut tcp = Tcp::new_zeroed();
        (tcp.state, tcp.error, tcp.ends.family) = (state, error, 2);
        tcp
    }

    #[test]
    fn the_last_state_and_the_error_tell_the_end() {
        let end = |state, error| Connection::new(&closed(state, error), |_, _| false).end_of();
        assert_eq!(end(state::SYN_SENT, 111), End::Failed(Errno(111)));
        assert_eq!(end(state::SYN_SENT, 0), End::Failed(Errno::EADDRNOTAVAIL));
        let mut given_up = closed(state::SYN_SENT, 0);
        given_up.ends.local_port = 40_000;
        assert_eq!(Connection::new(&given_up, |_, _| false).end_of(), End::Failed(Errno::ECANCELED));
        assert_eq!(end(state::FIN_WAIT2, 0), End::ByUs);
        assert_eq!(end(state::CLOSING, 0), End::ByUs);
        assert_eq!(end(state::LAST_ACK, 0), End::ByPeer);
        assert_eq!(end(state::ESTABLISHED, 0), End::ResetByUs);
        assert_eq!(end(state::CLOSE_WAIT, 0), End::ResetByUs);
        assert_eq!(end(state::ESTABLISHED, 104), End::ResetByPeer(Errno(104)));
        assert_eq!(end(state::CLOSE_WAIT, 32), End::ResetByPeer(Errno(32)));
        assert_eq!(end(state::ESTABLISHED, 110), End::Broken(Errno(110)));
    }

    #[test]
    fn an_end_that_nobody_saw_is_no_error() {
        for state in [state::ESTABLISHED, state::SYN_SENT] {
            let mut tcp = closed(state, 0);
            tcp.missing = missing::END;
            assert_eq!(Connection::new(&tcp, |_, _| false).end_of(), End::Unknown);
        }
    }

    #[test]
    fn what_went_over_a_connection_before_the_interval_is_no_recent_traffic() {
        let mut tcp = closed(state::ESTABLISHED, 0);
        (tcp.begin_ns, tcp.time_ns, tcp.counts.sent_bytes) = (1_000, 1_000 + 20_000_000_000, 600);
        let recent = |tcp: &Tcp| Connection::new(tcp, |_, _| false).recent_bytes(Duration::from_secs(10));
        assert_eq!(recent(&tcp), 300);
        tcp.reported.sent_bytes = 100;
        assert_eq!(recent(&tcp), 500);
        tcp.time_ns = 6_000_000_000;
        assert_eq!(recent(&tcp), 500);
        tcp.begin_ns = 0;
        assert_eq!(recent(&tcp), 500);
        tcp.reported.sent_bytes = 0;
        assert_eq!(recent(&tcp), 0);
    }

    #[test]
    fn the_source_is_the_end_that_connects() {
        let mut tcp = closed(state::ESTABLISHED, 0);
        (tcp.ends.local_port, tcp.ends.remote_port, tcp.role) = (80, 40_000, role::SERVER);
        let server = Connection::new(&tcp, |_, _| false);
        assert_eq!((server.source().port(), server.destination().port()), (40_000, 80));
        tcp.role = role::UNKNOWN;
        let listens = Connection::new(&tcp, |_, port| port == 80);
        assert_eq!((listens.role, listens.source().port()), (Role::Server, 40_000));
        let unknown = Connection::new(&tcp, |_, _| false);
        assert_eq!((unknown.role, unknown.source().port()), (Role::Client, 80));
    }
}
