//! Two looks at the sockets -> the records that the kernel side would have made.

use super::{
    known::Known,
    socket::{Id, Socket},
};
use agent_common::network::{Tcp, state};
use rustc_hash::{FxHashMap, FxHashSet};
use std::{
    collections::{HashMap, HashSet},
    hash::{BuildHasher as _, RandomState},
    time::Duration,
};

/// Searches for an owner; one may come between the birth of a socket and that of its descriptor.
const SEARCHES: u8 = 2;

/// What was seen at the last look.
#[derive(Debug)]
pub struct Looks {
    known: HashMap<Id, Known>,
    states: FxHashMap<u8, u64>,
    looks: u32,
    report_ns: u64,
    namespace: u32,
    hasher: RandomState,
}

impl Looks {
    /// Knows nothing yet. `namespace` is the inode number of the network namespace that is looked at.
    pub fn new(report_interval: Duration, namespace: u32) -> Self {
        Self {
            known: HashMap::new(),
            states: FxHashMap::default(),
            looks: 0,
            report_ns: report_interval.as_nanos() as u64,
            namespace,
            hasher: RandomState::new(),
        }
    }

    /// Sockets by state, as the last look found them.
    pub fn states(&self) -> &FxHashMap<u8, u64> {
        &self.states
    }

    /// Forgets all: the next look is a first one.
    pub fn begin_anew(&mut self) {
        self.known.clear();
        self.looks = 0;
    }

    /// Whether it would help to know who holds this socket.
    pub fn wants_holder(&self, socket: &Socket) -> bool {
        if socket.inode == 0 || matches!(socket.state, state::LISTEN | state::TIME_WAIT | state::CLOSE) {
            return false;
        }
        match self.known.get(&socket.id()) {
            Some(known) if known.is(socket) => known.tcp.owner.pid == 0 && known.searches < SEARCHES,
            _ => true,
        }
    }

    /// What differs from the last look, at `now` (boot clock, ns): the ends first.
    /// What the first look finds is not new. Records of connections that live
    /// come when their owner is found and when a report of them is due.
    pub fn compare(&mut self, sockets: &[Socket], now: u64) -> Vec<Tcp> {
        let first = self.looks == 0;
        self.looks += 1;
        self.states.clear();
        let mut listening = FxHashSet::default();
        let mut waiting = HashSet::new();
        for socket in sockets {
            *self.states.entry(socket.state).or_default() += 1;
            match socket.state {
                state::LISTEN => drop(listening.insert(socket.local.port())),
                state::TIME_WAIT => drop(waiting.insert((socket.local, socket.remote))),
                _ => {}
            }
        }
        let (mut records, mut lives) = (Vec::new(), Vec::new());
        for socket in sockets {
            // A connection that waits for old packets is over: it is missed below.
            if matches!(socket.state, state::LISTEN | state::TIME_WAIT | state::CLOSE) {
                continue;
            }
            let id = socket.id();
            match self.known.get_mut(&id) {
                Some(known) if known.is(socket) => {
                    known.look = self.looks;
                    lives.extend(known.changed(socket, now, self.report_ns));
                }
                _ => {
                    let mut known = Known::new(socket, now, listening.contains(&socket.local.port()));
                    known.look = self.looks;
                    known.tcp.namespace = self.namespace;
                    if socket.cookie == 0 {
                        known.tcp.key = self.hasher.hash_one((socket.local, socket.remote, now));
                    }
                    if first {
                        known.set_old();
                    }
                    lives.extend(known.opening(socket));
                    if let Some(earlier) = self.known.insert(id, known) {
                        records.extend(earlier.ended(&waiting, now));
                    }
                }
            }
        }
        self.known.retain(|_, known| {
            let found = known.look == self.looks;
            if !found {
                records.extend(known.ended(&waiting, now));
            }
            found
        });
        records.extend(lives);
        records
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probes::network::{
        connection::{Connection, End, Role},
        poll::socket::{Holder, Info},
    };
    use agent_common::network::{Counts, Owner, kind};

    const SECOND: u64 = 1_000_000_000;

    fn socket(cookie: u64, state: u8, ends: (&str, &str)) -> Socket {
        Socket {
            cookie,
            inode: 7,
            uid: 1000,
            state,
            local: ends.0.parse().expect("an address"),
            remote: ends.1.parse().expect("an address"),
            cgroup_id: 0,
            info: Some(Info {
                counts: Counts { sent_bytes: 10, sent_packets: 3, ..Counts::default() },
                ..Info::default()
            }),
            holder: Holder::NotFound,
        }
    }

    const HERE: (&str, &str) = ("192.0.2.1:40000", "192.0.2.2:80");
    const THERE: (&str, &str) = ("192.0.2.2:80", "192.0.2.1:40000");

    fn open(cookie: u64) -> Socket {
        socket(cookie, state::ESTABLISHED, HERE)
    }

    /// One that has looked once, and seen this.
    fn looks(first: &[Socket]) -> Looks {
        let mut looks = Looks::new(Duration::from_secs(30), 1);
        assert!(looks.compare(first, SECOND).is_empty());
        looks
    }

    fn kinds(records: &[Tcp]) -> Vec<(u32, u64)> {
        records.iter().map(|tcp| (tcp.kind, tcp.key)).collect()
    }

    fn end(tcp: &Tcp) -> End {
        assert_eq!(tcp.kind, kind::CLOSED);
        Connection::new(tcp, |_, _| false).end_of()
    }

    #[test]
    fn what_the_first_look_finds_is_not_new_and_ends_with_what_it_counted_since() {
        let mut looks = looks(&[open(1)]);
        let mut later = open(1);
        later.info = Some(Info { counts: Counts { sent_bytes: 25, ..Counts::default() }, ..Info::default() });
        assert!(looks.compare(&[later], 2 * SECOND).is_empty());
        let gone = looks.compare(&[], 3 * SECOND);
        assert_eq!(kinds(&gone), [(kind::CLOSED, 1)]);
        assert_eq!((gone[0].begin_ns, gone[0].time_ns), (0, 3 * SECOND));
        let connection = Connection::new(&gone[0], |_, _| false);
        assert_eq!((connection.age(), connection.news().map(|news| news.sent_bytes)), (None, Some(15)));
        assert!(looks.compare(&[], 4 * SECOND).is_empty());
    }

    #[test]
    fn a_new_connection_is_told_once_and_what_vanished_has_an_unknown_end() {
        let mut looks = looks(&[]);
        let new = looks.compare(&[open(1)], 2 * SECOND);
        assert_eq!(kinds(&new), [(kind::OPENED, 1)]);
        let connection = Connection::new(&new[0], |_, _| false);
        assert_eq!((connection.source().to_string().as_str(), connection.connect_time()), (HERE.0, None));
        assert!(looks.compare(&[open(1)], 3 * SECOND).is_empty());
        let gone = looks.compare(&[], 4 * SECOND);
        assert_eq!(end(&gone[0]), End::Unknown);
        assert_eq!(Connection::new(&gone[0], |_, _| false).age(), Some(2 * SECOND));
    }

    #[test]
    fn an_end_at_a_port_that_listens_is_the_server() {
        let mut looks = looks(&[]);
        let listens = socket(9, state::LISTEN, ("0.0.0.0:80", "0.0.0.0:0"));
        let new = looks.compare(&[listens, socket(1, state::ESTABLISHED, THERE), open(2)], 2 * SECOND);
        let roles: Vec<Role> = new.iter().map(|tcp| Connection::new(tcp, |_, _| false).role).collect();
        assert_eq!(roles, [Role::Server, Role::Client]);
        assert_eq!(looks.states().get(&state::LISTEN), Some(&1));
    }

    #[test]
    fn one_that_waits_for_old_packets_has_closed_first_and_its_peer_here_second() {
        let mut looks = looks(&[open(1), socket(2, state::ESTABLISHED, THERE)]);
        // After the close it is another socket, of nobody.
        let waits = Socket { inode: 0, info: None, ..socket(5, state::TIME_WAIT, HERE) };
        let gone = looks.compare(&[waits], 2 * SECOND);
        let ends: Vec<(u64, End)> = gone.iter().map(|tcp| (tcp.key, end(tcp))).collect();
        assert!(ends.len() == 2 && ends.contains(&(1, End::ByUs)) && ends.contains(&(2, End::ByPeer)), "{ends:?}");
        assert!(looks.compare(&[waits], 3 * SECOND).is_empty());
    }

    #[test]
    fn the_last_state_tells_who_closed() {
        let last = |number| end(&looks(&[socket(1, number, HERE)]).compare(&[], 2 * SECOND)[0]);
        for number in [state::FIN_WAIT1, state::FIN_WAIT2, state::CLOSING] {
            assert_eq!(last(number), End::ByUs);
        }
        assert_eq!((last(state::CLOSE_WAIT), last(state::LAST_ACK)), (End::ByPeer, End::ByPeer));
    }

    #[test]
    fn the_same_addresses_in_another_socket_are_one_end_and_one_begin() {
        let mut cookies = looks(&[open(1)]);
        assert_eq!(kinds(&cookies.compare(&[open(2)], 2 * SECOND)), [(kind::CLOSED, 1), (kind::OPENED, 2)]);
        // Without cookies the inode tells them apart, where there is one.
        let mut inodes = looks(&[Socket { inode: 0, ..open(0) }]);
        assert!(inodes.compare(&[open(0)], 2 * SECOND).is_empty());
        let records = inodes.compare(&[Socket { inode: 8, ..open(0) }], 3 * SECOND);
        assert_eq!(records.iter().map(|tcp| tcp.kind).collect::<Vec<_>>(), [kind::CLOSED, kind::OPENED]);
        assert_ne!(records[0].key, records[1].key);
    }

    #[test]
    fn a_connect_is_told_when_it_succeeds_and_one_that_vanished_is_not_said_to_have_failed() {
        let mut looks = looks(&[]);
        let connects = |cookie| socket(cookie, state::SYN_SENT, HERE);
        assert!(looks.compare(&[connects(1), connects(2)], 2 * SECOND).is_empty());
        let records = looks.compare(&[open(1)], 3 * SECOND);
        assert_eq!(kinds(&records), [(kind::CLOSED, 2), (kind::OPENED, 1)]);
        assert_eq!((end(&records[0]), records[0].state), (End::Unknown, state::SYN_SENT));
        assert_eq!(records[1].begin_ns, 2 * SECOND);
    }

    #[test]
    fn a_request_that_was_never_accepted_is_no_connection() {
        let mut looks = looks(&[]);
        assert!(looks.compare(&[socket(1, state::SYN_RECV, THERE)], 2 * SECOND).is_empty());
        assert!(looks.compare(&[], 3 * SECOND).is_empty());
    }

    #[test]
    fn a_long_life_is_reported_each_interval_and_an_owner_when_it_is_found() {
        let mut looks = looks(&[]);
        assert_eq!(looks.compare(&[open(1)], SECOND).len(), 1);
        assert!(looks.wants_holder(&open(1)));
        let known = Socket { holder: Holder::Known(Owner { pid: 42, ..Owner::default() }), ..open(1) };
        let found = looks.compare(&[known], 2 * SECOND);
        assert_eq!((found[0].kind, found[0].owner.pid, found[0].owner.uid), (kind::ALIVE, 42, 1000));
        assert_eq!(found[0].counts, found[0].reported);
        assert!(!looks.wants_holder(&open(1)));
        let news = |records: &[Tcp]| Connection::new(&records[0], |_, _| false).news().map(|news| news.sent_bytes);
        assert_eq!(news(&looks.compare(&[open(1)], 31 * SECOND)), Some(10));
        assert!(looks.compare(&[open(1)], 60 * SECOND).is_empty());
        assert_eq!(news(&looks.compare(&[open(1)], 61 * SECOND)), Some(0));
        assert_eq!(news(&looks.compare(&[], 62 * SECOND)), Some(0));
    }

    #[test]
    fn a_begin_waits_for_the_search_for_its_owner_but_not_longer_than_the_connection_lives() {
        let mut looks = looks(&[]);
        let unsought = |cookie| Socket { holder: Holder::NotSought, ..open(cookie) };
        assert!(looks.compare(&[unsought(1), unsought(2)], 2 * SECOND).is_empty());
        let records = looks.compare(&[open(1)], 3 * SECOND);
        assert_eq!(kinds(&records), [(kind::OPENED, 2), (kind::CLOSED, 2), (kind::OPENED, 1)]);
        assert_eq!((records[0].time_ns, records[2].time_ns), (2 * SECOND, 2 * SECOND));
        assert!(looks.compare(&[unsought(1)], 4 * SECOND).is_empty());
        // Nobody can hold it yet.
        let unaccepted = Socket { inode: 0, ..unsought(3) };
        assert_eq!(kinds(&looks.compare(&[open(1), unaccepted], 5 * SECOND)), [(kind::OPENED, 3)]);
    }

    #[test]
    fn a_socket_is_searched_for_only_so_often() {
        let mut looks = looks(&[]);
        for second in 2..4 {
            assert!(looks.wants_holder(&open(1)));
            looks.compare(&[open(1)], second * SECOND);
        }
        assert!(!looks.wants_holder(&open(1)));
        assert!(!looks.wants_holder(&Socket { inode: 0, ..open(2) }));
    }
}
