//! A connection between two looks, and the records of it.

use super::socket::{Holder, Socket};
use agent_common::network::{Owner, Tcp, family, kind, missing, role, state};
use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
};
use zerocopy::FromZeros as _;

/// A connection, or the attempt at one, as it was last seen.
#[derive(Debug)]
pub struct Known {
    /// The record of it, but for kind and time.
    pub tcp: Tcp,
    inode: u32,
    local: SocketAddr,
    remote: SocketAddr,
    /// Boot clock, ns: it was first seen established, or later; 0: not yet.
    opened_ns: u64,
    /// Its begin is told, or older than the first look.
    told: bool,
    /// How often an owner was looked for in vain.
    pub searches: u8,
    /// The last look that found it.
    pub look: u32,
    /// Boot clock, ns: when an interval of reports began.
    reported_ns: u64,
}

impl Known {
    /// Found first at `now`; `listens`: whether a socket listens at its local port.
    pub fn new(socket: &Socket, now: u64, listens: bool) -> Self {
        let mut tcp = Tcp::new_zeroed();
        (tcp.key, tcp.begin_ns) = (socket.cookie, now);
        // Until a process holds it: 0 would be root's.
        tcp.owner.uid = u32::MAX;
        (tcp.ends.family, tcp.ends.local) = bytes(socket.local.ip());
        (_, tcp.ends.remote) = bytes(socket.remote.ip());
        (tcp.ends.local_port, tcp.ends.remote_port) = (socket.local.port(), socket.remote.port());
        tcp.role = match socket.state {
            state::SYN_SENT => role::CLIENT,
            state::SYN_RECV => role::SERVER,
            _ if listens => role::SERVER,
            _ => role::CLIENT,
        };
        let mut known = Self {
            tcp,
            inode: 0,
            local: socket.local,
            remote: socket.remote,
            opened_ns: 0,
            told: false,
            searches: 0,
            look: 0,
            reported_ns: now,
        };
        known.take(socket, now);
        known
    }

    /// Whether the socket is this connection, and not one that has its addresses after it.
    pub fn is(&self, socket: &Socket) -> bool {
        socket.cookie != 0 || self.inode == 0 || socket.inode == 0 || self.inode == socket.inode
    }

    fn take(&mut self, socket: &Socket, now: u64) {
        let tcp = &mut self.tcp;
        tcp.state = socket.state;
        tcp.missing = 0;
        match socket.info {
            Some(info) => {
                tcp.counts = info.counts;
                (tcp.srtt_us, tcp.rtt_min_us) = (info.srtt_us, info.rtt_min_us);
            }
            None => tcp.missing |= missing::COUNTS | missing::RTT,
        }
        tcp.cgroup_id = socket.cgroup_id;
        if socket.cgroup_id == 0 {
            tcp.missing |= missing::CGROUP;
        }
        // What no process holds shows the user 0 on some kernels.
        if socket.inode != 0 {
            self.inode = socket.inode;
            tcp.owner.uid = socket.uid;
        }
        match socket.holder {
            Holder::Known(owner) => tcp.owner = Owner { uid: socket.uid, ..owner },
            Holder::NotFound => self.searches = self.searches.saturating_add(1),
            Holder::NotSought => {}
        }
        let connected = !matches!(socket.state, state::SYN_SENT | state::SYN_RECV | state::NEW_SYN_RECV);
        if connected && self.opened_ns == 0 {
            self.opened_ns = now;
        }
    }

    /// It was there before the first look.
    pub fn set_old(&mut self) {
        self.tcp.begin_ns = 0;
        self.tcp.reported = self.tcp.counts;
        self.told = self.opened_ns != 0;
    }

    /// Its begin, once, and only when its owner was looked for; what no process holds has none.
    pub fn opening(&mut self, socket: &Socket) -> Option<Tcp> {
        let sought = socket.inode == 0 || self.tcp.owner.pid != 0 || self.searches > 0;
        if self.told || self.opened_ns == 0 || !sought {
            return None;
        }
        self.told = true;
        Some(self.record(kind::OPENED, self.opened_ns))
    }

    /// It is there again: what is to be told of it.
    pub fn changed(&mut self, socket: &Socket, now: u64, report_ns: u64) -> Option<Tcp> {
        let owned = self.tcp.owner.pid != 0;
        self.take(socket, now);
        if !self.told {
            return self.opening(socket);
        }
        if now.saturating_sub(self.reported_ns) >= report_ns {
            let record = self.record(kind::ALIVE, now);
            (self.tcp.reported, self.reported_ns) = (self.tcp.counts, now);
            return Some(record);
        }
        // With nothing to report: only its owner is news.
        (!owned && self.tcp.owner.pid != 0).then(|| Tcp { reported: self.tcp.counts, ..self.record(kind::ALIVE, now) })
    }

    /// It is there no more; `waiting` are the ends that wait for old packets: they have closed first.
    pub fn ended(&self, waiting: &HashSet<(SocketAddr, SocketAddr)>, now: u64) -> impl Iterator<Item = Tcp> + use<> {
        let by_us = waiting.contains(&(self.local, self.remote));
        // The other end is on this node too.
        let by_peer = !by_us && waiting.contains(&(self.remote, self.local));
        let mut closed = self.record(kind::CLOSED, now);
        match self.tcp.state {
            _ if by_us => closed.state = state::FIN_WAIT2,
            state::FIN_WAIT1 | state::FIN_WAIT2 | state::CLOSING => closed.state = state::FIN_WAIT2,
            _ if by_peer => closed.state = state::LAST_ACK,
            state::CLOSE_WAIT | state::LAST_ACK => closed.state = state::LAST_ACK,
            _ => closed.missing |= missing::END,
        }
        // Between two looks it may have been established and have ended.
        let opened_ns = match self.opened_ns {
            0 => (by_us || by_peer).then_some(now),
            seen => Some(seen),
        };
        let opened = opened_ns.filter(|_| !self.told).map(|opened_ns| self.record(kind::OPENED, opened_ns));
        let told = self.told || opened.is_some() || self.tcp.state == state::SYN_SENT;
        opened.into_iter().chain(told.then_some(closed))
    }

    /// The record of it as it was last seen.
    fn record(&self, kind: u32, now: u64) -> Tcp {
        Tcp { kind, time_ns: now, ..self.tcp }
    }
}

/// Address family and address as a record has them.
fn bytes(address: IpAddr) -> (u16, [u8; 16]) {
    match address {
        IpAddr::V4(four) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&four.octets());
            (family::INET, bytes)
        }
        IpAddr::V6(six) => (family::INET6, six.octets()),
    }
}
