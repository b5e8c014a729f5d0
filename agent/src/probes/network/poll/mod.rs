//! The rung below eBPF: the same records, from looking at all TCP sockets
//! again and again. An ordinary user may do that, without any capability.
//!
//! Its limits, which no polling can overcome: a connection that lives shorter
//! than the interval is not seen; times are those of the look, so how long a
//! connect took is not known; counts are those of the last look before the
//! end; who closed is known only where a look found the connection closing,
//! and no error is known, not even that of a connect. Only the agent's own
//! network namespace is seen; of other users' connections the user, but not
//! the process.

mod compare;
mod known;
mod owners;
mod proc_net;
mod sock_diag;
mod socket;

use crate::enrich::clock::Clock;
use agent_common::network::Tcp;
use compare::Looks;
use owners::Owners;
use rustc_hash::{FxHashMap, FxHashSet};
use sock_diag::DiagError;
use socket::{Holder, Socket};
use std::{io, os::unix::fs::MetadataExt as _, path::Path, time::Duration};

const PROC: &str = "/proc";

/// Looks, and says what differs.
#[derive(Debug)]
pub struct Poller {
    looks: Looks,
    owners: Owners,
    diag: bool,
}

impl Poller {
    /// Has seen nothing yet.
    pub fn new(report_interval: Duration) -> Self {
        let namespace = std::fs::metadata("/proc/self/ns/net").map_or(0, |namespace| namespace.ino() as u32);
        Self { looks: Looks::new(report_interval, namespace), owners: Owners::default(), diag: true }
    }

    /// Looks once: the records that the kernel side would have made, see [`Looks::compare`].
    pub fn look(&mut self) -> Vec<Tcp> {
        match self.read() {
            Ok(mut sockets) => {
                let now = Clock::boot_now();
                self.name_holders(&mut sockets);
                self.looks.compare(&sockets, now)
            }
            Err(error) => {
                tracing::debug!("network: a look at the sockets failed: {error}");
                Vec::new()
            }
        }
    }

    /// Sockets by state, as the last look found them.
    pub fn states(&self) -> &FxHashMap<u8, u64> {
        self.looks.states()
    }

    fn read(&mut self) -> io::Result<Vec<Socket>> {
        if self.diag {
            match sock_diag::read() {
                Ok(sockets) => return Ok(sockets),
                Err(DiagError::Failed(error)) => return Err(error),
                Err(error) => {
                    tracing::warn!(
                        "network: {error}; reading /proc/net/tcp instead, which has neither bytes nor round-trip times"
                    );
                    self.diag = false;
                    self.looks.begin_anew();
                }
            }
        }
        proc_net::read(Path::new(PROC))
    }

    fn name_holders(&mut self, sockets: &mut [Socket]) {
        let wanted = |socket: &Socket| self.looks.wants_holder(socket);
        let inodes: FxHashSet<u32> =
            sockets.iter().filter(|socket| wanted(socket)).map(|socket| socket.inode).collect();
        if let Some(found) = self.owners.find(Path::new(PROC), &inodes) {
            for socket in sockets.iter_mut().filter(|socket| inodes.contains(&socket.inode)) {
                socket.holder = found.get(&socket.inode).map_or(Holder::NotFound, |owner| Holder::Known(*owner));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::Config,
        enrich::Node,
        health::ledger::Ledger,
        otlp::{
            Signal,
            batch::Batch,
            resource::{Resource, Scope},
        },
        probes::{
            Output, Room as _,
            network::{
                NetworkRoom,
                connection::{Connection, End, Role},
            },
        },
    };
    use agent_common::network::{kind, missing};
    use opentelemetry_proto::tonic::{
        collector::logs::v1::ExportLogsServiceRequest, common::v1::any_value::Value, logs::v1::LogRecord,
    };
    use prost::Message as _;
    use std::{
        io::{Read as _, Write as _},
        net::{TcpListener, TcpStream},
        process::{Command, Stdio},
        sync::Arc,
        time::Instant,
    };

    /// Looks until `count` records of this kind are there for the port; gives them.
    fn await_records(poller: &mut Poller, port: u16, kind: u32, count: usize) -> Vec<Tcp> {
        let (begin, mut records) = (Instant::now(), Vec::new());
        while records.len() < count {
            assert!(begin.elapsed() < Duration::from_secs(5), "only {records:?}");
            let here = |tcp: &Tcp| tcp.kind == kind && [tcp.ends.local_port, tcp.ends.remote_port].contains(&port);
            records.extend(poller.look().into_iter().filter(here));
        }
        records
    }

    fn role<'a>(records: &'a [Tcp], role: Role) -> Connection<'a> {
        let mut connections = records.iter().map(|tcp| Connection::new(tcp, |_, _| false));
        connections.find(|connection| connection.role == role).expect("this end")
    }

    fn a_connection_opens_and_closes(mut poller: Poller, address: &str) -> Vec<Tcp> {
        let listener = TcpListener::bind(address).expect("a port");
        let port = listener.local_addr().expect("an address").port();
        poller.look();
        let mut client = TcpStream::connect(listener.local_addr().expect("an address")).expect("connected");
        let (mut server, _) = listener.accept().expect("accepted");
        let opened = await_records(&mut poller, port, kind::OPENED, 2);
        assert!(opened.iter().all(|tcp| tcp.owner.pid == std::process::id() && tcp.begin_ns != 0));
        assert_eq!(role(&opened, Role::Client).source(), client.local_addr().expect("an address"));
        assert_eq!(role(&opened, Role::Server).source(), client.local_addr().expect("an address"));
        client.write_all(&[1; 100_000]).expect("sent");
        server.read_exact(&mut [0; 100_000]).expect("received");
        server.write_all(&[2; 777]).expect("sent");
        client.read_exact(&mut [0; 777]).expect("received");
        poller.look();
        drop(client);
        assert_eq!(server.read(&mut [0; 1]).expect("the end"), 0);
        drop(server);
        let closed = await_records(&mut poller, port, kind::CLOSED, 2);
        assert_eq!(role(&closed, Role::Client).end_of(), End::ByUs);
        assert_eq!(role(&closed, Role::Server).end_of(), End::ByPeer);
        closed
    }

    #[test]
    fn a_connection_is_seen_to_open_and_to_close_with_the_bytes_that_were_sent() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let closed = a_connection_opens_and_closes(Poller::new(Duration::from_secs(30)), address);
            let counts = |end| role(&closed, end).counts().map(|counts| (counts.sent_bytes, counts.received_bytes));
            assert_eq!(counts(Role::Client), Some((100_000, 777)));
            assert_eq!(counts(Role::Server), Some((777, 100_000)));
            assert!(role(&closed, Role::Client).rtt().is_some_and(|(smoothed, _)| smoothed < 1_000_000_000));
        }
    }

    #[test]
    fn without_sock_diag_a_connection_is_seen_without_counts() {
        let poller = Poller { diag: false, ..Poller::new(Duration::from_secs(30)) };
        let closed = a_connection_opens_and_closes(poller, "127.0.0.1:0");
        assert!(closed.iter().all(|tcp| tcp.missing & missing::COUNTS != 0 && tcp.key != 0));
        assert!(role(&closed, Role::Client).counts().is_none());
    }

    #[test]
    fn both_ways_to_look_find_the_socket_of_the_same_descriptor() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let client = TcpStream::connect(listener.local_addr().expect("an address")).expect("connected");
        let (local, remote) = (client.local_addr().expect("an address"), client.peer_addr().expect("an address"));
        let one = |sockets: Vec<Socket>| {
            let mut found = sockets.into_iter().filter(|socket| socket.local == local && socket.remote == remote);
            let socket = found.next().expect("listed");
            (socket.state, socket.inode, socket.uid)
        };
        let by_diag = one(sock_diag::read().expect("sock_diag"));
        assert_eq!(by_diag, one(proc_net::read(Path::new(PROC)).expect("/proc/net")));
        let link = std::fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&client)));
        assert_eq!(link.expect("a descriptor").to_string_lossy(), format!("socket:[{}]", by_diag.1));
    }

    /// The log records up to the one of this name and port.
    fn logs(room: &mut NetworkRoom, node: &mut Node, out: &mut Output, (wanted, port): (&str, i64)) -> Vec<LogRecord> {
        let (begin, mut records) = (Instant::now(), Vec::new());
        while !records.iter().any(|record: &LogRecord| record.event_name == wanted && is_at(record, port)) {
            assert!(begin.elapsed() < Duration::from_secs(5), "no {wanted}");
            room.poll(node, out);
            out.take_due(Duration::ZERO, |block| {
                if block.signal == Signal::Logs {
                    let request = ExportLogsServiceRequest::decode(block.bytes.clone()).expect("OTLP");
                    let scopes = request.resource_logs.into_iter().flat_map(|resource| resource.scope_logs);
                    records.extend(scopes.flat_map(|scope| scope.log_records));
                }
            });
        }
        records
    }

    fn is_at(record: &LogRecord, port: i64) -> bool {
        value(record, "destination.port") == Some(Value::IntValue(port))
    }

    fn value(record: &LogRecord, key: &str) -> Option<Value> {
        let attribute = record.attributes.iter().find(|attribute| attribute.key == key)?;
        attribute.value.clone()?.value
    }

    #[test]
    fn the_room_tells_of_another_process_and_counts_its_own_as_filtered() {
        let (ledger, scope) =
            (Arc::new(Ledger::new("test")), Scope { name: "leaf.network".into(), stream: "network", source: "procfs" });
        let batch = |signal| Some(Batch::new(signal, &Resource::default(), &scope, 1 << 20, Arc::clone(&ledger)));
        let mut out = Output::new(batch(Signal::Logs), batch(Signal::Traces));
        let mut node = Node::new(Some(PROC.into()), "boot");
        let mut config = Config::default();
        // Nobody else's connections.
        config.network.report_interval.0 = Duration::from_secs(3600);
        let mut room = NetworkRoom::new(&config);
        room.poll(&mut node, &mut out);
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = i64::from(listener.local_addr().expect("an address").port());
        let script = format!("exec 3<>/dev/tcp/127.0.0.1/{port}; printf hello >&3; read");
        let mut bash = Command::new("bash").args(["-c", &script]).stdin(Stdio::piped()).spawn().expect("bash");
        let (mut server, _) = listener.accept().expect("accepted");
        server.read_exact(&mut [0; 5]).expect("received");
        let connects = logs(&mut room, &mut node, &mut out, ("tcp_connect", port));
        let here = |record: &&LogRecord| is_at(record, port);
        let connect = connects.iter().find(here).expect("the connection");
        assert_eq!(value(connect, "process.pid"), Some(Value::IntValue(bash.id().into())));
        assert_eq!(value(connect, "leaf.connection.role"), Some(Value::StringValue("client".into())));
        bash.kill().expect("killed");
        bash.wait().expect("reaped");
        let closes = logs(&mut room, &mut node, &mut out, ("tcp_close", port));
        let close = closes.iter().find(here).expect("the connection");
        assert_eq!(value(close, "process.pid"), Some(Value::IntValue(bash.id().into())));
        assert_eq!(value(close, "leaf.connection.closed_by"), Some(Value::StringValue("client".into())));
        assert_eq!(value(close, "leaf.connection.sent.bytes"), Some(Value::IntValue(5)), "{close:?}");
        // The other end is this process.
        let own = connects
            .iter()
            .chain(&closes)
            .any(|record| value(record, "process.pid") == Some(Value::IntValue(std::process::id().into())));
        assert!(!own);
        assert!(ledger.read().filtered >= 1, "{:?}", ledger.read());
    }
}
