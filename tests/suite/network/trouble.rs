//! What goes wrong, made to happen.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use leaf_tests::netns::{self, Namespace};
use leaf_tests::skip::{has_program, is_root, require};
use serde_json::Value;

use leaf_tests::watch::{
    NETNS, ROOT, SERVERS, Server, acknowledged, all_events, connect, connect_soon, one, read_exactly, watching,
};

/// The values of trouble events of one entity, `WHAT:count`, by what.
fn troubles<'a>(events: &'a [Value], kind: &str, entity: &str) -> BTreeMap<&'a str, u64> {
    let mut sums = BTreeMap::new();
    for event in events.iter().filter(|event| event["type"] == kind && event["entity_id"] == entity) {
        assert_eq!(event["event_type"], kind, "{event}");
        let (what, count) = event["value"].as_str().and_then(|value| value.split_once(':')).expect("WHAT:count");
        *sums.entry(what).or_default() += count.parse::<u64>().expect("a number");
    }
    sums
}

#[test]
fn packets_that_are_lost_are_told_as_retransmits_of_the_connection_and_of_the_interface() -> Result<()> {
    if !require(netns::available(), NETNS) || !require(has_program("socat") && has_program("nft"), SERVERS) {
        return Ok(());
    }
    const BYTES: u64 = 2_000_000;
    let namespace = Namespace::new()?;
    let port = 9000;
    let server = Server::reader(&namespace, port)?;
    let address = format!("{}:{port}", namespace.there());
    drop(connect_soon(&address)?);
    let rule = "table ip leaf { chain in { type filter hook input priority 0\npolicy accept\n\
        tcp dport 9000 numgen inc mod 10 3 drop\n}\n}\n";
    ensure!(namespace.command("nft")?.arg(rule).status()?.success(), "nft refused the rule");
    let agent = watching(&[("LEAF_NETWORK_TROUBLE_INTERVAL", "300ms")])?;
    let mut client = TcpStream::connect(&address)?;
    let source = client.local_addr()?;
    client.write_all(&vec![0; BYTES as usize])?;
    let socket = acknowledged(source, port, BYTES)?;
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
    let server = Server::reader(&namespace, 9000)?;
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
fn sends_and_receives_that_block_are_told_as_stalls_with_the_time_they_took() -> Result<()> {
    if !require(is_root(), ROOT) {
        return Ok(());
    }
    const BLOCKED: Duration = Duration::from_millis(400);
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let agent = watching(&[("LEAF_NETWORK_STALL_THRESHOLD", "100ms"), ("LEAF_NETWORK_TROUBLE_INTERVAL", "300ms")])?;
    let (mut client, mut server) = connect(&listener)?;
    let ends = (client.local_addr()?, client.peer_addr()?);
    // More than the buffers of both ends hold, to a peer that does not read for a while.
    let bytes = fill(&client)? + 1_000_000;
    let reader = std::thread::spawn(move || -> Result<TcpStream> {
        std::thread::sleep(BLOCKED);
        read_exactly(&mut server, bytes)?;
        Ok(server)
    });
    let begin = Instant::now();
    client.write_all(&vec![0; 1_000_000])?;
    let send_took = begin.elapsed();
    let mut server = reader.join().expect("no panic")?;
    // Then the client waits for an answer, twice: for a long time, and for none that counts.
    let writer = std::thread::spawn(move || -> Result<TcpStream> {
        std::thread::sleep(BLOCKED);
        server.write_all(b"late")?;
        Ok(server)
    });
    let begin = Instant::now();
    read_exactly(&mut client, 4)?;
    let receive_took = begin.elapsed();
    let mut server = writer.join().expect("no panic")?;
    server.write_all(b"soon")?;
    read_exactly(&mut client, 4)?;
    std::thread::sleep(Duration::from_millis(500));
    drop((client, server));
    let events = all_events(agent)?;
    let entity = format!("{}-{}", ends.0, ends.1);
    for (direction, took) in [("transmit", send_took), ("receive", receive_took)] {
        let stalls: Vec<&Value> = events
            .iter()
            .filter(|event| event["entity_id"] == entity.as_str() && event["direction"] == direction)
            .collect();
        let [stall] = stalls[..] else { panic!("{direction} {took:?} {events:#?}") };
        assert_eq!((&stall["event_type"], &stall["value"]), (&"transport.drop".into(), &"STALL_100ms:1".into()));
        assert_eq!(stall["pid"], std::process::id(), "{stall}");
        let told = Duration::from_nanos(stall["stall_ns"].as_u64().context("a time")?);
        // The other end waits from a little earlier on.
        assert!(told >= BLOCKED / 2 && told <= took, "{told:?} of {took:?}");
    }
    Ok(())
}

/// Sends until both ends have no more room; returns how many bytes that were.
fn fill(stream: &TcpStream) -> Result<usize> {
    stream.set_nonblocking(true)?;
    let mut bytes = 0;
    let mut full_since = Instant::now();
    // Buffers grow while they fill.
    while full_since.elapsed() < Duration::from_millis(100) {
        match (&mut &*stream).write(&[0; 65_536]) {
            Ok(sent) => (bytes, full_since) = (bytes + sent, Instant::now()),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(error) => return Err(error.into()),
        }
    }
    stream.set_nonblocking(false)?;
    Ok(bytes)
}
