//! Rings and tables that are too small for what happens.

use std::io::Read;
use std::net::{TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Result, ensure};
use leaf_tests::ledger::Line;
use leaf_tests::skip::{is_root, require};
use serde_json::Value;

use leaf_tests::watch::{ROOT, STOP, connect, events, events_of, listen, watching};

#[test]
fn what_finds_the_ring_full_is_counted_to_the_last_event() -> Result<()> {
    if !require(is_root(), ROOT) {
        return Ok(());
    }
    const CONNECTIONS: u64 = 2_000;
    let (listener, port) = listen()?;
    // A dozen records.
    let agent = watching(&[("LEAF_ROOMS_NETWORK_RING_BYTES", "4096")])?;
    for _ in 0..CONNECTIONS {
        let (client, server) = connect(&listener)?;
        drop((client, server));
    }
    std::thread::sleep(Duration::from_millis(200));
    let finished = agent.terminate(STOP)?;
    ensure!(finished.status.success(), "the agent failed: {}", finished.stderr);
    let line = Line::of(&finished.stderr, "network events")?;
    assert!(line.outcome("ring_full") > 0, "{line:?}");
    assert_eq!(line.undelivered(), line.outcome("ring_full"), "{line:?}");
    // A connect, an accept and two closes each, and what else happened on this machine.
    assert!(line.attempted >= 4 * CONNECTIONS, "{line:?}");
    let told = finished.stdout.lines().count() as u64;
    assert_eq!(told, line.outcome("delivered"), "{line:?}");
    let warned = finished.stderr.lines().filter(|line| line.contains("its ring is full")).count();
    assert_eq!(warned, 1, "{}", finished.stderr);
    let whole = |line: &str| serde_json::from_str::<Value>(line).is_ok_and(|event| event["data"]["dst_port"].is_u64());
    assert!(finished.stdout.lines().filter(|line| line.contains(&format!("{port}"))).all(whole), "{}", finished.stdout);
    Ok(())
}

#[test]
fn a_connection_that_finds_no_place_in_the_table_is_told_from_its_socket() -> Result<()> {
    if !require(is_root(), ROOT) {
        return Ok(());
    }
    const CONNECTIONS: usize = 2_000;
    // More than this machine has open by itself.
    const PLACES: &str = "200";
    let (listener, port) = listen()?;
    let agent = watching(&[("LEAF_NETWORK_CONNECTIONS", PLACES)])?;
    let pairs: Vec<(TcpStream, TcpStream)> = (0..CONNECTIONS).map(|_| connect(&listener)).collect::<Result<_>>()?;
    for (client, mut server) in pairs {
        drop(client);
        assert_eq!(server.read(&mut [0])?, 0);
    }
    std::thread::sleep(Duration::from_millis(100));
    let events = events(agent, port)?;
    for role in ["client", "server"] {
        let closes: Vec<&Value> =
            events.iter().filter(|event| event["type"] == "tcp_close" && event["role"] == role).collect();
        assert_eq!(closes.len(), CONNECTIONS, "{role}");
        // What the socket says of itself is there; since when it was there, only the table knows.
        let held = closes.iter().filter(|event| event["duration_ns"].is_u64()).count();
        assert!((1..CONNECTIONS / 2).contains(&held), "{held} of {CONNECTIONS} were held");
        for close in closes {
            assert_eq!((&close["closed_by"], &close["sent_bytes"]), (&"client".into(), &0.into()), "{close}");
            assert!(close["src_port"].is_u64() && close["sent_packets"].as_u64() > Some(0), "{close}");
        }
    }
    Ok(())
}

#[test]
fn a_udp_flow_that_finds_no_place_does_not_disturb_those_that_have_one() -> Result<()> {
    if !require(is_root(), ROOT) {
        return Ok(());
    }
    const FLOWS: usize = 1_000;
    // More than this machine makes by itself in a second.
    const PLACES: usize = 200;
    let server = UdpSocket::bind(("127.0.0.1", 0))?;
    let port = server.local_addr()?.port();
    let agent = watching(&[("LEAF_NETWORK_UDP_FLOWS", "true"), ("LEAF_NETWORK_UDP_TABLE", &PLACES.to_string())])?;
    let mut clients = Vec::new();
    for _ in 0..FLOWS {
        let client = UdpSocket::bind(("127.0.0.1", 0))?;
        client.connect(server.local_addr()?)?;
        client.send(b"hello")?;
        clients.push(client);
    }
    let finished = agent.terminate(STOP)?;
    ensure!(finished.status.success(), "the agent failed: {}", finished.stderr);
    let events = events_of(&finished)?;
    let flows: Vec<&Value> = events.iter().filter(|event| event["dst_port"] == port).collect();
    assert!(!flows.is_empty() && flows.len() <= PLACES, "{events:#?}");
    assert!(flows.iter().all(|flow| flow["sent_bytes"] == 5 && flow["sent_packets"] == 1), "{flows:#?}");
    assert!(finished.stderr.contains("udp_table"), "nobody was told: {}", finished.stderr);
    Ok(())
}
