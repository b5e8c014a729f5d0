//! The network room on the real kernel: what `ss`, the two ends and a server's own
//! log say of connections is what the agent tells of them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use leaf_tests::agent::AgentProcess;
use leaf_tests::collector::Collector;
use leaf_tests::daemon::Daemon;
use leaf_tests::kafka::Kafka;
use leaf_tests::ledger::Line;
use leaf_tests::netns::{self, Namespace};
use leaf_tests::nginx::{self, Nginx};
use leaf_tests::pipeline::{PATIENCE, Pipeline};
use leaf_tests::place::Folder;
use leaf_tests::skip::{has_program, is_root, require};
use leaf_tests::{place, ss};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::Value;

const ROOT: &str = "eBPF takes root";
const STOP: Duration = Duration::from_secs(20);
/// Longer than an agent looks for owners of accepted connections.
const A_WHILE: Duration = Duration::from_secs(3);

/// An agent that prints the events of connections, and when it watches.
fn watching(env: &[(&str, &str)]) -> Result<AgentProcess> {
    let arguments = ["run", "--exporter", "console", "--format", "json", "--probes", "network"];
    let mut agent = AgentProcess::start(&arguments, env)?;
    agent.wait_for_stderr("network: watching", STOP)?;
    Ok(agent)
}

/// The events of one port, after the agent has ended in order and lost nothing.
fn events(agent: AgentProcess, port: u16) -> Result<Vec<Value>> {
    let finished = agent.terminate(STOP)?;
    ensure!(finished.status.success(), "the agent failed: {}", finished.stderr);
    Line::of(&finished.stderr, "network events")?.assert_all_delivered();
    let mut events = Vec::new();
    for line in finished.stdout.lines() {
        let envelope: Value = serde_json::from_str(line).with_context(|| format!("not JSON: {line}"))?;
        assert_eq!(envelope["type"], "network", "{envelope}");
        // Troubles of a connection have no role.
        if envelope["data"]["dst_port"] == port && !envelope["data"]["role"].is_null() {
            let mut data = envelope["data"].clone();
            data["timestamp"] = envelope["timestamp"].clone();
            events.push(data);
        }
    }
    Ok(events)
}

/// The only event of this type of the connection from `source`, seen from one end.
fn one<'a>(events: &'a [Value], kind: &str, source: SocketAddr, role: &str) -> &'a Value {
    let is = |event: &&Value| event["type"] == kind && event["src_port"] == source.port() && event["role"] == role;
    let found: Vec<_> = events.iter().filter(is).collect();
    assert_eq!(found.len(), 1, "{kind} of {source} as {role} in {events:#?}");
    found[0]
}

/// Both ends of a new connection to a listener of ours.
fn connect(listener: &TcpListener) -> Result<(TcpStream, TcpStream)> {
    let client = TcpStream::connect(listener.local_addr()?)?;
    Ok((client, listener.accept()?.0))
}

fn read_exactly(from: &mut TcpStream, bytes: usize) -> Result<()> {
    from.read_exact(&mut vec![0; bytes]).context("fewer bytes than were sent")
}

/// Closes, and waits until the peer has, too: the kernel is then done with both ends.
fn close_first(first: TcpStream, mut second: TcpStream) -> Result<()> {
    drop(first);
    assert_eq!(second.read(&mut [0])?, 0);
    drop(second);
    std::thread::sleep(Duration::from_millis(50));
    Ok(())
}

#[test]
fn a_connection_is_told_to_its_end_with_what_ss_says_of_both_ends() -> Result<()> {
    if !require(is_root(), ROOT) || !require(has_program("ss"), "no ss (iproute2)") {
        return Ok(());
    }
    const REQUEST: usize = 100_000;
    const ANSWER: usize = 5_000;
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let port = listener.local_addr()?.port();
    let agent = watching(&[])?;
    let before = Instant::now();
    let (mut client, mut server) = connect(&listener)?;
    let source = client.local_addr()?;
    let request = std::thread::spawn(move || client.write_all(&vec![1; REQUEST]).map(|()| client));
    read_exactly(&mut server, REQUEST)?;
    let mut client = request.join().expect("no panic")?;
    server.write_all(&vec![2; ANSWER])?;
    read_exactly(&mut client, ANSWER)?;
    // The last acknowledgement is on its way for 40 ms at most.
    std::thread::sleep(Duration::from_millis(100));
    let sockets = ss::sockets(port)?;
    close_first(client, server)?;
    let lived = before.elapsed();

    let events = events(agent, port)?;
    let me = std::process::id();
    assert_eq!(events.len(), 4, "{events:#?}");
    for (opened, role, peer) in [("tcp_connect", "client", "server"), ("tcp_accept", "server", "client")] {
        let local = if role == "client" { source } else { listener.local_addr()? };
        let socket = sockets.iter().find(|socket| socket.local == local.to_string()).context("not in ss")?;
        assert_eq!(socket.pids, [me]);
        let closed = one(&events, "tcp_close", source, role);
        for event in [one(&events, opened, source, role), closed] {
            assert_eq!(event["pid"], me, "{event}");
            assert_eq!(event["comm"], std::fs::read_to_string("/proc/self/comm")?.trim(), "{event}");
            assert_eq!((&event["src_ip"], &event["dst_ip"]), (&Value::from("127.0.0.1"), &Value::from("127.0.0.1")));
            assert_eq!((&event["transport"], &event["ip_version"]), (&Value::from("tcp"), &Value::from("ipv4")));
        }
        let number = |name: &str| closed[name].as_u64().unwrap_or_else(|| panic!("no {name} in {closed}"));
        assert_eq!(number("sent_bytes"), socket.count("bytes_sent") - socket.count("bytes_retrans"), "{peer} {closed}");
        assert_eq!(number("received_bytes"), socket.count("bytes_received"), "{closed}");
        // A FIN each way and its acknowledgement come after `ss` looked.
        let more = |name: &str, of: &str| number(name).checked_sub(socket.count(of));
        assert!(more("sent_packets", "segs_out").is_some_and(|more| (1..=2).contains(&more)), "{socket:?} {closed}");
        assert!(more("received_packets", "segs_in").is_some_and(|more| (1..=2).contains(&more)), "{socket:?} {closed}");
        assert_eq!(number("retransmits"), socket.count("retrans"), "{closed}");
        // One more measurement at most: an eighth of it goes into the mean (RFC 6298), the smallest gets smaller.
        assert!(number("rtt_ns") as f64 >= socket.nanos("rtt") * 0.87 - 1e3, "{socket:?} {closed}");
        assert!(number("rtt_min_ns") as f64 <= socket.nanos("minrtt") + 1e3, "{socket:?} {closed}");
        let duration = Duration::from_nanos(number("duration_ns"));
        assert!(duration >= Duration::from_millis(100) && duration <= lived, "{duration:?} of {lived:?}");
        assert_eq!((&closed["closed_by"], &closed["reset"]), (&Value::from("client"), &Value::from(false)));
        assert_eq!(closed["state"], if role == "client" { "fin_wait_2" } else { "last_ack" });
    }
    let connect = one(&events, "tcp_connect", source, "client")["connect_ns"].as_u64().context("a time")?;
    assert!(connect > 0 && u128::from(connect) < lived.as_nanos(), "{connect}");
    Ok(())
}

#[test]
fn ends_that_are_no_ordinary_close_are_told_as_what_they_are() -> Result<()> {
    if !require(is_root(), ROOT) {
        return Ok(());
    }
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let port = listener.local_addr()?.port();
    let agent = watching(&[])?;

    // Closed with unread data: a reset (RFC 2525, 2.17).
    let (mut client, server) = connect(&listener)?;
    let reset = client.local_addr()?;
    client.write_all(b"unread")?;
    while server.peek(&mut [0; 6])? < 6 {}
    drop(server);
    assert_eq!(client.read(&mut [0]).map_err(|error| error.kind()), Err(std::io::ErrorKind::ConnectionReset));
    drop(client);

    // Each end closes its half, the server first.
    let (mut client, mut server) = connect(&listener)?;
    let half = client.local_addr()?;
    server.shutdown(Shutdown::Write)?;
    assert_eq!(client.read(&mut [0])?, 0);
    client.write_all(b"still here")?;
    read_exactly(&mut server, 10)?;
    close_first(client, server)?;

    let refused = place::free_port()?;
    assert!(TcpStream::connect(("127.0.0.1", refused)).is_err());

    let finished = agent.terminate(STOP)?;
    let all: Vec<Value> = finished
        .stdout
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).map(|e| e["data"].clone()))
        .collect::<Result<_, _>>()?;
    let events: Vec<Value> = all.iter().filter(|event| event["dst_port"] == port).cloned().collect();
    for role in ["client", "server"] {
        let closed = one(&events, "tcp_close", reset, role);
        assert_eq!((&closed["closed_by"], &closed["reset"]), (&Value::from("server"), &Value::from(true)), "{closed}");
        assert_eq!(closed["error"], if role == "client" { Value::from("ECONNRESET") } else { Value::Null }, "{closed}");
        let closed = one(&events, "tcp_close", half, role);
        assert_eq!((&closed["closed_by"], &closed["reset"]), (&Value::from("server"), &Value::from(false)), "{closed}");
        let (sent, received) = if role == "client" { (10, 0) } else { (0, 10) };
        assert_eq!((&closed["sent_bytes"], &closed["received_bytes"]), (&sent.into(), &received.into()), "{closed}");
    }
    let at_refused =
        |kind: &str| all.iter().filter(|event| event["dst_port"] == refused && event["type"] == kind).collect();
    let attempts: Vec<&Value> = at_refused("tcp_connect");
    assert_eq!(attempts.len(), 1, "{attempts:?}");
    assert_eq!(
        (&attempts[0]["type"], &attempts[0]["error"]),
        (&Value::from("tcp_connect"), &Value::from("ECONNREFUSED"))
    );
    assert_eq!(attempts[0]["pid"], std::process::id());
    // Told as a trouble of this process, too.
    let troubles: Vec<&Value> = at_refused("error.net");
    assert_eq!(troubles.len(), 1, "{all:#?}");
    assert_eq!((&troubles[0]["pid"], &troubles[0]["value"]), (&std::process::id().into(), &"ECONNREFUSED:1".into()));
    Ok(())
}

#[test]
fn a_connection_over_ipv6_has_its_addresses_and_a_mapped_one_those_of_ipv4() -> Result<()> {
    if !require(is_root(), ROOT) {
        return Ok(());
    }
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0))?;
    let port = listener.local_addr()?.port();
    let agent = watching(&[])?;
    let six = TcpStream::connect((Ipv6Addr::LOCALHOST, port))?;
    let (source6, server6) = (six.local_addr()?, listener.accept()?.0);
    close_first(six, server6)?;
    let four = TcpStream::connect(("127.0.0.1", port))?;
    let (source4, server4) = (four.local_addr()?, listener.accept()?.0);
    close_first(four, server4)?;
    let events = events(agent, port)?;
    for (source, address, version) in [(source6, "::1", "ipv6"), (source4, "127.0.0.1", "ipv4")] {
        for role in ["client", "server"] {
            let closed = one(&events, "tcp_close", source, role);
            assert_eq!((&closed["src_ip"], &closed["dst_ip"]), (&address.into(), &address.into()), "{closed}");
            assert_eq!(closed["ip_version"], version, "{closed}");
        }
    }
    Ok(())
}

#[test]
fn a_connection_older_than_the_agent_is_not_new_and_its_end_is_complete() -> Result<()> {
    if !require(is_root(), ROOT) {
        return Ok(());
    }
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let port = listener.local_addr()?.port();
    let (mut client, mut server) = connect(&listener)?;
    let source = client.local_addr()?;
    client.write_all(b"before")?;
    read_exactly(&mut server, 6)?;
    let agent = watching(&[])?;
    server.write_all(b"after the start")?;
    read_exactly(&mut client, 15)?;
    close_first(server, client)?;
    let events = events(agent, port)?;
    assert_eq!(events.len(), 2, "{events:#?}");
    for (role, sent, received) in [("client", 6, 15), ("server", 15, 6)] {
        let closed = one(&events, "tcp_close", source, role);
        assert_eq!(closed["pid"], std::process::id());
        assert_eq!((&closed["sent_bytes"], &closed["received_bytes"]), (&sent.into(), &received.into()), "{closed}");
        assert_eq!((&closed["closed_by"], &closed["duration_ns"]), (&Value::from("server"), &Value::Null), "{closed}");
    }
    Ok(())
}

#[test]
fn a_long_connection_is_told_at_each_interval_with_what_is_new() -> Result<()> {
    if !require(is_root(), ROOT) {
        return Ok(());
    }
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let port = listener.local_addr()?.port();
    let agent = watching(&[("LEAF_NETWORK_REPORT_INTERVAL", "400ms")])?;
    let (mut client, mut server) = connect(&listener)?;
    let source = client.local_addr()?;
    for _ in 0..20 {
        client.write_all(&[0; 1000])?;
        read_exactly(&mut server, 1000)?;
        std::thread::sleep(Duration::from_millis(100));
    }
    // Nothing moves, so nothing is told.
    std::thread::sleep(Duration::from_secs(1));
    close_first(client, server)?;
    let events = events(agent, port)?;
    for (role, counted) in [("client", "sent_bytes"), ("server", "received_bytes")] {
        let flows: Vec<u64> = events
            .iter()
            .filter(|event| event["type"] == "tcp_flow" && event["role"] == role)
            .map(|event| event[counted].as_u64().expect("a number"))
            .collect();
        assert!((3..=6).contains(&flows.len()), "{events:#?}");
        assert_eq!(flows.iter().sum::<u64>(), 20_000, "{flows:?}");
        assert_eq!(one(&events, "tcp_close", source, role)[counted], 20_000);
    }
    Ok(())
}

#[test]
fn the_owner_is_who_handles_the_connection_and_not_who_accepted_it() -> Result<()> {
    let needs = "no socat: run `cargo xtask setup --tests`";
    if !require(is_root(), ROOT) || !require(has_program("socat"), needs) {
        return Ok(());
    }
    let port = place::free_port()?;
    let agent = watching(&[])?;
    // It accepts, and forks a child for the connection, which forks the one that calls the shell.
    let socat = place::program("socat").context("socat")?;
    let listen = format!("TCP-LISTEN:{port},bind=127.0.0.1,fork,reuseaddr");
    let folder = Folder::new("socat")?;
    let mut command = Command::new(socat);
    command.args([&listen, "SYSTEM:read -r pid name state parent rest < /proc/$PPID/stat; echo $parent"]);
    let server = Daemon::start("socat", command, folder.path())?;
    let mut client = connect_soon(&format!("127.0.0.1:{port}"))?;
    let source = client.local_addr()?;
    let mut said = String::new();
    client.read_to_string(&mut said)?;
    drop(client);
    std::thread::sleep(Duration::from_millis(200));
    let child: u32 = said.trim().parse()?;
    assert_ne!(child, server.pid());
    let events = events(agent, port)?;
    assert_eq!(one(&events, "tcp_close", source, "server")["pid"], child, "{events:#?}");
    Ok(())
}

#[test]
fn a_socket_that_was_passed_on_belongs_to_who_closes_it() -> Result<()> {
    if !require(is_root(), ROOT) {
        return Ok(());
    }
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let port = listener.local_addr()?.port();
    let agent = watching(&[])?;
    let (client, server) = connect(&listener)?;
    let source = client.local_addr()?;
    let (ours, theirs) = UnixStream::pair()?;
    let mut holder = Command::new(env!("CARGO_BIN_EXE_workload"))
        .arg("hold-socket")
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::piped())
        .spawn()?;
    let sockets = [client.as_fd()];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(&sockets)));
    sendmsg(&ours, &[std::io::IoSlice::new(b"!")], &mut ancillary, SendFlags::empty())?;
    // It says when it has it; then it closes and ends.
    holder.stdout.take().context("piped")?.read_exact(&mut [0])?;
    drop(client);
    drop(ours);
    assert!(holder.wait()?.success());
    drop(server);
    std::thread::sleep(Duration::from_millis(50));
    let events = events(agent, port)?;
    assert_eq!(one(&events, "tcp_connect", source, "client")["pid"], std::process::id());
    let closed = one(&events, "tcp_close", source, "client");
    assert_eq!((&closed["pid"], &closed["comm"]), (&holder.id().into(), &"workload".into()), "{closed}");
    assert_eq!(one(&events, "tcp_close", source, "server")["pid"], std::process::id());
    Ok(())
}

#[test]
fn without_ebpf_the_same_connection_is_told_from_looks_at_the_sockets() -> Result<()> {
    if !require(is_root(), ROOT) {
        return Ok(());
    }
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let port = listener.local_addr()?.port();
    let arguments = ["run", "--exporter", "console", "--format", "json", "--probes", "network"];
    let mut agent = AgentProcess::start(&arguments, &[("LEAF_ROOMS_NETWORK_RUNG", "procfs")])?;
    agent.wait_for_stderr("network: no eBPF", STOP)?;
    std::thread::sleep(Duration::from_secs(1));
    let (mut client, mut server) = connect(&listener)?;
    let source = client.local_addr()?;
    client.write_all(b"a question")?;
    read_exactly(&mut server, 10)?;
    server.write_all(&[0; 3000])?;
    read_exactly(&mut client, 3000)?;
    // A few looks.
    std::thread::sleep(Duration::from_secs(1));
    close_first(client, server)?;
    std::thread::sleep(Duration::from_secs(1));
    let events = events(agent, port)?;
    assert_eq!(events.len(), 4, "{events:#?}");
    for (opened, role, sent, received) in [("tcp_connect", "client", 10, 3000), ("tcp_accept", "server", 3000, 10)] {
        assert_eq!(one(&events, opened, source, role)["pid"], std::process::id());
        let closed = one(&events, "tcp_close", source, role);
        assert_eq!((&closed["pid"], &closed["sent_bytes"]), (&std::process::id().into(), &sent.into()), "{closed}");
        assert_eq!(closed["received_bytes"], received, "{closed}");
        assert!(closed["rtt_ns"].as_u64().is_some_and(|rtt| rtt > 0), "{closed}");
        // Looking again and again, it may have missed the end itself: then it does not say who closed.
        assert!(closed["closed_by"].is_null() || closed["closed_by"] == "client", "{closed}");
    }
    Ok(())
}

#[test]
fn an_accepted_connection_that_stays_open_is_told_with_its_owner() -> Result<()> {
    if !require(is_root(), ROOT) {
        return Ok(());
    }
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let port = listener.local_addr()?.port();
    let mut agent = watching(&[])?;
    let (client, server) = connect(&listener)?;
    let source = client.local_addr()?;
    agent.wait_for_stdout("tcp_accept", A_WHILE)?;
    let events = events(agent, port)?;
    assert_eq!(one(&events, "tcp_accept", source, "server")["pid"], std::process::id());
    assert_eq!(events.len(), 2, "{events:#?}");
    drop((client, server));
    Ok(())
}

#[test]
fn ten_thousand_short_connections_are_each_told_once() -> Result<()> {
    if !require(is_root(), ROOT) {
        return Ok(());
    }
    const CONNECTIONS: usize = 10_000;
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let port = listener.local_addr()?.port();
    let agent = watching(&[])?;
    let mut sources = BTreeSet::new();
    for _ in 0..CONNECTIONS {
        let (client, mut server) = connect(&listener)?;
        sources.insert(client.local_addr()?.port());
        drop(client);
        assert_eq!(server.read(&mut [0])?, 0);
    }
    std::thread::sleep(Duration::from_millis(100));
    let events = events(agent, port)?;
    let mut seen: BTreeMap<(String, String), usize> = BTreeMap::new();
    for event in &events {
        assert!(event["src_port"].as_u64().is_some_and(|port| sources.contains(&(port as u16))), "{event}");
        assert_eq!(event["pid"], std::process::id(), "{event}");
        let text = |name: &str| event[name].as_str().unwrap_or_default().to_owned();
        *seen.entry((text("type"), text("role"))).or_default() += 1;
    }
    let expected =
        [("tcp_accept", "server"), ("tcp_close", "client"), ("tcp_close", "server"), ("tcp_connect", "client")];
    let expected = expected.map(|(kind, role)| ((kind.to_owned(), role.to_owned()), CONNECTIONS));
    assert_eq!(seen, BTreeMap::from(expected));
    Ok(())
}

/// The value of trouble events of one entity, `WHAT:count`, by what.
fn troubles<'a>(events: &'a [Value], kind: &str, entity: &str) -> BTreeMap<&'a str, u64> {
    let mut sums = BTreeMap::new();
    for event in events.iter().filter(|event| event["type"] == kind && event["entity_id"] == entity) {
        assert_eq!(event["event_type"], kind, "{event}");
        let (what, count) = event["value"].as_str().and_then(|value| value.split_once(':')).expect("WHAT:count");
        *sums.entry(what).or_default() += count.parse::<u64>().expect("a number");
    }
    sums
}

/// All events that an agent has printed.
fn all_events(agent: AgentProcess) -> Result<Vec<Value>> {
    let finished = agent.terminate(STOP)?;
    ensure!(finished.status.success(), "the agent failed: {}", finished.stderr);
    Line::of(&finished.stderr, "network events")?.assert_all_delivered();
    let data = |line: &str| serde_json::from_str::<Value>(line).map(|envelope| envelope["data"].clone());
    finished.stdout.lines().map(|line| data(line).with_context(|| format!("not JSON: {line}"))).collect()
}

/// Connects to a server that may not listen yet.
fn connect_soon(address: &str) -> Result<TcpStream> {
    let begin = Instant::now();
    loop {
        match TcpStream::connect(address) {
            Ok(stream) => return Ok(stream),
            Err(error) if begin.elapsed() > STOP => return Err(error).context("nobody listens"),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

const NETNS: &str = "no network namespaces: they take root and iproute2";
const SERVERS: &str = "no socat, nft or dnsmasq: run `cargo xtask setup --tests`";

#[test]
fn packets_that_are_lost_are_told_as_retransmits_of_the_connection_and_of_the_interface() -> Result<()> {
    if !require(netns::available(), NETNS) || !require(has_program("socat") && has_program("nft"), SERVERS) {
        return Ok(());
    }
    const BYTES: usize = 2_000_000;
    let namespace = Namespace::new()?;
    let port = 9000;
    let listen = format!("TCP-LISTEN:{port},reuseaddr,fork");
    let folder = Folder::new("socat")?;
    let mut command = namespace.command("socat")?;
    command.args(["-u", &listen, "OPEN:/dev/null"]);
    let server = Daemon::start("socat", command, folder.path())?;
    let address = format!("{}:{port}", namespace.there());
    drop(connect_soon(&address)?);
    let rule = "table ip leaf { chain in { type filter hook input priority 0\npolicy accept\n\
        tcp dport 9000 numgen inc mod 10 3 drop\n}\n}\n";
    ensure!(namespace.command("nft")?.arg(rule).status()?.success(), "nft refused the rule");
    let agent = watching(&[("LEAF_NETWORK_TROUBLE_INTERVAL", "300ms")])?;
    let mut client = TcpStream::connect(&address)?;
    let source = client.local_addr()?;
    client.write_all(&vec![0; BYTES])?;
    let begin = Instant::now();
    let socket = loop {
        let sockets = ss::sockets(port)?;
        let socket = sockets.iter().find(|socket| socket.local == source.to_string()).context("not in ss")?.clone();
        if socket.count("bytes_acked") as usize > BYTES {
            break socket;
        }
        ensure!(begin.elapsed() < STOP, "the bytes do not arrive: {socket:?}");
        std::thread::sleep(Duration::from_millis(50));
    };
    let sent_again = socket.count("retrans");
    assert!(sent_again > 0, "nothing was lost: {socket:?}");
    std::thread::sleep(Duration::from_millis(500));
    let events = all_events(agent)?;
    drop((client, server));
    let connection = format!("{source}-{address}");
    assert_eq!(troubles(&events, "error.net", &connection), BTreeMap::from([("RETRANSMIT", sent_again)]));
    let interface = troubles(&events, "error.net", &namespace.interface());
    assert_eq!(interface.get("RETRANSMIT"), Some(&sent_again), "{interface:?}");
    let of_connection = events.iter().find(|event| event["entity_id"] == connection.as_str()).context("an event")?;
    assert_eq!(of_connection["pid"], std::process::id(), "{of_connection}");
    // The interface inside has the same name in every namespace; the kernel says why it dropped.
    assert!(troubles(&events, "transport.drop", "eth0").contains_key("NETFILTER_DROP"), "{events:#?}");
    Ok(())
}

#[test]
fn an_interface_and_a_namespace_that_vanish_do_not_disturb() -> Result<()> {
    if !require(netns::available(), NETNS) || !require(has_program("socat"), SERVERS) {
        return Ok(());
    }
    let namespace = Namespace::new()?;
    let folder = Folder::new("socat")?;
    let mut command = namespace.command("socat")?;
    command.args(["-u", "TCP-LISTEN:9000,reuseaddr,fork", "OPEN:/dev/null"]);
    let server = Daemon::start("socat", command, folder.path())?;
    let agent = watching(&[("LEAF_NETWORK_REPORT_INTERVAL", "200ms"), ("LEAF_NETWORK_TROUBLE_INTERVAL", "200ms")])?;
    let mut client = connect_soon(&format!("{}:9000", namespace.there()))?;
    let source = client.local_addr()?;
    client.write_all(b"before")?;
    std::thread::sleep(Duration::from_millis(100));
    namespace.cut()?;
    client.write_all(b"after")?;
    std::thread::sleep(Duration::from_millis(500));
    drop((server, namespace, client));
    std::thread::sleep(Duration::from_millis(500));
    let events = all_events(agent)?;
    assert_eq!(one(&events, "tcp_connect", source, "client")["pid"], std::process::id());
    Ok(())
}

#[test]
fn a_name_that_was_asked_for_stands_beside_the_address_and_the_question_is_told() -> Result<()> {
    if !require(netns::available(), NETNS)
        || !require(has_program("socat") && has_program("dnsmasq"), SERVERS)
        || !require(has_program("curl"), "no curl")
    {
        return Ok(());
    }
    let namespace = Namespace::new()?;
    namespace.set_name_server("127.0.0.1")?;
    let folder = Folder::new("dns")?;
    let mut command = namespace.command("dnsmasq")?;
    command.args(["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--user=root"]);
    command.args(["--listen-address=127.0.0.1", "--bind-interfaces", "--log-facility=-", "--log-queries"]);
    command.arg(format!("--pid-file={}", folder.path().join("pid").display()));
    command.args(["--address=/web.leaf.test/127.0.0.7", "--local=/leaf.test/"]);
    let mut dnsmasq = Daemon::start("dnsmasq", command, folder.path())?;
    dnsmasq.wait_until("started", STOP, |server| server.stderr().contains("started"))?;
    let mut command = namespace.command("socat")?;
    command.args(["TCP-LISTEN:8088,bind=127.0.0.7,fork,reuseaddr", "SYSTEM:read -r request; echo hello"]);
    let _server = Daemon::start("socat", command, folder.path())?;
    let agent = watching(&[("LEAF_NETWORK_DNS", "events"), ("LEAF_NETWORK_UDP_FLOWS", "true")])?;
    let curl = |url: &str| -> Result<bool> {
        let arguments = ["-4", "-sS", "--http0.9", "--max-time", "5", "-o", "/dev/null", url];
        Ok(namespace.command("curl")?.args(arguments).stderr(Stdio::null()).status()?.success())
    };
    let begin = Instant::now();
    while !curl("http://web.leaf.test:8088/")? {
        ensure!(begin.elapsed() < STOP, "no answer");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(!curl("http://missing.leaf.test:8088/")?);
    std::thread::sleep(Duration::from_millis(200));
    let events = all_events(agent)?;
    let connect = events.iter().find(|event| event["type"] == "tcp_connect" && event["dst_port"] == 8088);
    let connect = connect.context("no connection")?;
    assert_eq!((&connect["comm"], &connect["server"]), (&"curl".into(), &"web.leaf.test".into()), "{connect}");
    assert_eq!(connect["dst_ip"], "127.0.0.7");
    let questions: Vec<_> = events.iter().filter(|event| event["type"] == "dns_query").collect();
    for (name, code, answers) in [("web.leaf.test", "NOERROR", 1), ("missing.leaf.test", "NXDOMAIN", 0)] {
        let question = questions.iter().find(|event| event["dns_name"] == name).with_context(|| name.to_owned())?;
        assert_eq!((&question["dns_type"], &question["dns_code"]), (&"A".into(), &code.into()), "{question}");
        assert_eq!((&question["comm"], &question["dns_answers"]), (&"curl".into(), &answers.into()), "{question}");
        let latency = question["latency_ns"].as_u64().context("a latency")?;
        assert!(latency > 0 && latency < 1_000_000_000, "{question}");
        // The flow of the question: what curl has asked and was answered, by the server's own log.
        let flow = events.iter().find(|event| {
            event["type"] == "udp_flow" && event["src_port"] == question["src_port"] && event["role"] == "client"
        });
        let flow = flow.context("no flow")?;
        assert_eq!((&flow["pid"], &flow["dst_port"]), (&question["pid"], &53.into()), "{flow}");
        // Header, name with its lengths, type and class (RFC 1035); the answer has a record of 16 bytes more.
        let asked = 12 + name.len() as u64 + 2 + 4;
        assert_eq!(flow["sent_bytes"], asked, "{flow}");
        assert_eq!(flow["received_bytes"], asked + 16 * answers, "{flow}");
        assert!(dnsmasq.stderr().contains(&format!("query[A] {name} from 127.0.0.1")), "{}", dnsmasq.stderr());
    }
    Ok(())
}

#[test]
fn a_udp_flow_counts_what_both_ends_say() -> Result<()> {
    if !require(is_root(), ROOT) {
        return Ok(());
    }
    let server = UdpSocket::bind(("127.0.0.1", 0))?;
    let port = server.local_addr()?.port();
    let agent = watching(&[("LEAF_NETWORK_UDP_FLOWS", "true")])?;
    let client = UdpSocket::bind(("127.0.0.1", 0))?;
    client.connect(server.local_addr()?)?;
    let (mut sent, mut answered) = (0, 0);
    for size in [1, 100, 1400, 30_000] {
        sent += client.send(&vec![1; size])?;
        let mut buffer = vec![0; 65_536];
        let (_, peer) = server.recv_from(&mut buffer)?;
        answered += server.send_to(&buffer[..size / 2], peer)?;
        // Looked at first, which must not count twice.
        client.peek(&mut buffer)?;
        client.recv(&mut buffer)?;
    }
    let events = events(agent, port)?;
    let flow = one(&events, "udp_flow", client.local_addr()?, "client");
    assert_eq!((&flow["pid"], &flow["transport"]), (&std::process::id().into(), &"udp".into()));
    assert_eq!((&flow["sent_bytes"], &flow["received_bytes"]), (&sent.into(), &answered.into()), "{flow}");
    assert_eq!((&flow["sent_packets"], &flow["received_packets"]), (&4.into(), &4.into()), "{flow}");
    let answers = one(&events, "udp_flow", client.local_addr()?, "server");
    assert_eq!((&answers["sent_bytes"], &answers["sent_packets"]), (&answered.into(), &4.into()), "{answers}");
    // Who sent is known to nobody but the process; what came is counted under no one.
    let questions: Vec<_> = events.iter().filter(|event| event["src_port"] == 0).collect();
    assert_eq!(questions.len(), 1, "{events:#?}");
    assert_eq!((&questions[0]["received_bytes"], &questions[0]["role"]), (&sent.into(), &"server".into()));
    Ok(())
}

/// A request to a server, each over a connection of its own; returns curl's own port.
fn curl(port: u16) -> Result<u16> {
    let url = format!("http://127.0.0.1:{port}/");
    let output = Command::new("curl").args(["-sS", "-o", "/dev/null", "-w", "%{local_port}", &url]).output()?;
    ensure!(output.status.success(), "curl failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.parse()?)
}

#[test]
fn requests_of_curl_to_nginx_are_in_kafka_under_their_source_with_the_worker_that_answered() -> Result<()> {
    let tools = "no nginx or no curl: run `cargo xtask setup --tests`";
    let here = Kafka::available() && Collector::available();
    if !require(is_root(), ROOT)
        || !require(nginx::available() && has_program("curl"), tools)
        || !require(here, "no collector or no Kafka: run `cargo xtask setup --tests`")
    {
        return Ok(());
    }
    const REQUESTS: usize = 20;
    let pipeline = Pipeline::start()?;
    let nginx = Nginx::start_logging(2)?;
    let endpoint = pipeline.collector.endpoint();
    let mut agent = AgentProcess::start(&["run"], &[("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)])?;
    agent.wait_for_stderr("network: watching", PATIENCE)?;
    let ports: BTreeSet<u16> = (0..REQUESTS).map(|_| curl(nginx.port())).collect::<Result<_>>()?;
    std::thread::sleep(Duration::from_millis(200));
    let finished = agent.terminate(STOP)?;
    ensure!(finished.status.success(), "the agent failed: {}", finished.stderr);
    Line::of(&finished.stderr, "network events")?.assert_all_delivered();

    let data = |value: &[u8]| serde_json::from_slice::<Value>(value).expect("JSON");
    let is_ours = |envelope: &Value| envelope["data"]["dst_port"] == nginx.port();
    let enough = |records: &[leaf_tests::kafka::Record]| {
        records.iter().filter(|record| is_ours(&data(&record.value))).count() >= 4 * ports.len()
    };
    let records = pipeline.kafka.records("system.events.network", enough, PATIENCE)?;
    let log = nginx.log()?;
    assert_eq!(log.len(), ports.len());
    let mut seen: BTreeMap<(u16, String, String), Value> = BTreeMap::new();
    let (mut keys, mut partitions) = (BTreeSet::new(), BTreeSet::new());
    for record in &records {
        let envelope = data(&record.value);
        if is_ours(&envelope) {
            keys.insert(record.key_text());
            partitions.insert(record.partition);
            let event = &envelope["data"];
            let text = |name: &str| event[name].as_str().unwrap_or_default().to_owned();
            let port = event["src_port"].as_u64().context("a port")? as u16;
            let earlier = seen.insert((port, text("type"), text("role")), envelope.clone());
            assert!(earlier.is_none(), "twice: {envelope}");
        }
    }
    assert_eq!(seen.len(), 4 * ports.len());
    assert_eq!((keys.len(), partitions.len()), (1, 1), "{keys:?}");
    for (port, worker) in &log {
        let of = |kind: &str, role: &str| &seen[&(*port, kind.to_owned(), role.to_owned())];
        let connect = of("tcp_connect", "client");
        assert_eq!(connect["type"], "network");
        assert_eq!(connect["hostname"], std::fs::read_to_string("/proc/sys/kernel/hostname")?.trim());
        assert!(connect["timestamp"].is_u64(), "{connect}");
        let data = &connect["data"];
        assert_eq!(
            (&data["comm"], &data["src_ip"], &data["dst_ip"]),
            (&"curl".into(), &"127.0.0.1".into(), &"127.0.0.1".into())
        );
        assert!(data["pid"].is_u64() && data["src_port"].is_u64(), "{data}");
        for kind in ["tcp_accept", "tcp_close"] {
            let server = &of(kind, "server")["data"];
            assert_eq!((&server["pid"], &server["comm"]), (&(*worker).into(), &"nginx".into()), "{server}");
        }
        assert_eq!(
            of("tcp_close", "client")["data"]["received_bytes"],
            of("tcp_close", "server")["data"]["sent_bytes"]
        );
    }
    Ok(())
}
