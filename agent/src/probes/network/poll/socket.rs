//! A socket as a look finds it, in whichever way it looks.

use agent_common::network::{Counts, Owner};
use std::net::SocketAddr;

/// A socket as one look found it.
#[derive(Clone, Copy, Debug)]
pub struct Socket {
    /// Number of the socket, unique in this boot; 0 if it has none (/proc/net).
    pub cookie: u64,
    /// Inode of the socket; 0 if no process holds it: not yet accepted, or closed.
    pub inode: u32,
    /// User of who made it.
    pub uid: u32,
    /// One of [`agent_common::network::state`].
    pub state: u8,
    /// This end.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
    /// See [`agent_common::network::Tcp::cgroup_id`]; 0 if it is not known.
    pub cgroup_id: u64,
    /// What it has counted, if that is told.
    pub info: Option<Info>,
    /// Who holds it.
    pub holder: Holder,
}

/// What a socket counts and measures; units as in [`agent_common::network::Tcp`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Info {
    /// Up to now.
    pub counts: Counts,
    /// See [`agent_common::network::Tcp::srtt_us`].
    pub srtt_us: u32,
    /// See [`agent_common::network::Tcp::rtt_min_us`].
    pub rtt_min_us: u32,
}

/// What is known of the process that holds a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// Nobody has looked.
    NotSought,
    /// It is nobody's yet, or of somebody whose descriptors we may not read.
    NotFound,
    /// This one.
    Known(Owner),
}

/// How a socket is found again in the next look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Id {
    /// See [`Socket::cookie`].
    Cookie(u64),
    /// Both ends of one without a cookie.
    /// The inode would not do: a connection has none before it is accepted and after it is closed.
    Ends(SocketAddr, SocketAddr),
}

impl Socket {
    /// The same as long as it lives.
    pub fn id(&self) -> Id {
        match self.cookie {
            0 => Id::Ends(self.local, self.remote),
            cookie => Id::Cookie(cookie),
        }
    }
}
