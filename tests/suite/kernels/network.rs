//! The network room by each of its rungs.

use std::io::Write;
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::Result;
use leaf_tests::agent::AgentProcess;
use leaf_tests::place;
use leaf_tests::watch::{close_first, connect, events_of, listen, one, read_exactly, reset_by_server};
use serde_json::Value;

use crate::ladder::{PATIENCE, rung};

#[test]
fn auto() -> Result<()> {
    rung("network", "auto", every_connection)
}

#[test]
fn tp_btf() -> Result<()> {
    rung("network", "tp_btf", every_connection)
}

#[test]
fn fentry() -> Result<()> {
    rung("network", "fentry", every_connection)
}

#[test]
fn raw_tp() -> Result<()> {
    rung("network", "raw_tp", every_connection)
}

#[test]
fn tracepoint() -> Result<()> {
    rung("network", "tracepoint", every_connection)
}

#[test]
fn kprobe() -> Result<()> {
    rung("network", "kprobe", every_connection)
}

#[test]
fn procfs() -> Result<()> {
    rung("network", "procfs", long_connections)
}

/// Whatever the rung, the events of these connections are what both their ends know of them.
fn every_connection(agent: AgentProcess, _: &str) -> Result<()> {
    let (listener, port) = listen()?;
    let plain = exchange(&listener)?;
    let listener6 = TcpListener::bind((Ipv6Addr::LOCALHOST, 0))?;
    let plain6 = exchange(&listener6)?;

    let reset = reset_by_server(&listener)?;

    let refused = place::free_port()?;
    assert!(TcpStream::connect(("127.0.0.1", refused)).is_err());

    // Open for longer than the agent takes to find who accepted it.
    std::thread::sleep(Duration::from_millis(300));
    let all = events_of(&agent.terminate(PATIENCE)?)?;
    for (of, address, version, port) in
        [(plain, "127.0.0.1", "ipv4", port), (plain6, "::1", "ipv6", listener6.local_addr()?.port())]
    {
        let events = at(&all, port);
        assert_eq!(one(&events, "tcp_connect", of, "client")["pid"], std::process::id());
        one(&events, "tcp_accept", of, "server");
        for (role, sent, received) in [("client", 100_000, 5_000), ("server", 5_000, 100_000)] {
            let closed = one(&events, "tcp_close", of, role);
            assert_eq!(
                (&closed["sent_bytes"], &closed["received_bytes"]),
                (&sent.into(), &received.into()),
                "{closed}"
            );
            assert_eq!((&closed["src_ip"], &closed["ip_version"]), (&address.into(), &version.into()), "{closed}");
            assert_eq!((&closed["pid"], &closed["uid"]), (&std::process::id().into(), &0.into()), "{closed}");
            assert_eq!((&closed["closed_by"], &closed["reset"]), (&"client".into(), &false.into()), "{closed}");
            assert!(closed["rtt_ns"].as_u64() > Some(0) && closed["duration_ns"].as_u64() > Some(0), "{closed}");
        }
    }
    for role in ["client", "server"] {
        let events = at(&all, port);
        let closed = one(&events, "tcp_close", reset, role);
        assert_eq!((&closed["closed_by"], &closed["reset"]), (&"server".into(), &true.into()), "{closed}");
    }
    let attempts: Vec<Value> = at(&all, refused).into_iter().filter(|event| event["type"] == "tcp_connect").collect();
    assert_eq!(attempts.len(), 1, "{attempts:?}");
    assert_eq!((&attempts[0]["error"], &attempts[0]["pid"]), (&"ECONNREFUSED".into(), &std::process::id().into()));
    Ok(())
}

/// By looking again and again, only what lives for a while is seen.
fn long_connections(agent: AgentProcess, _: &str) -> Result<()> {
    std::thread::sleep(Duration::from_millis(500));
    let (listener, port) = listen()?;
    let (mut client, mut server) = connect(&listener)?;
    let source = client.local_addr()?;
    client.write_all(&[0; 3000])?;
    read_exactly(&mut server, 3000)?;
    std::thread::sleep(Duration::from_secs(1));
    close_first(client, server)?;
    std::thread::sleep(Duration::from_secs(1));
    let all = events_of(&agent.terminate(PATIENCE)?)?;
    let events = at(&all, port);
    for (opened, role, counted) in [("tcp_connect", "client", "sent_bytes"), ("tcp_accept", "server", "received_bytes")]
    {
        assert_eq!(one(&events, opened, source, role)["pid"], std::process::id());
        let closed = one(&events, "tcp_close", source, role);
        assert_eq!((&closed["pid"], &closed[counted]), (&std::process::id().into(), &3000.into()), "{closed}");
    }
    Ok(())
}

/// A request and an answer; the client closes first.
fn exchange(listener: &TcpListener) -> Result<SocketAddr> {
    let (mut client, mut server) = connect(listener)?;
    let source = client.local_addr()?;
    let request = std::thread::spawn(move || client.write_all(&[1; 100_000]).map(|()| client));
    read_exactly(&mut server, 100_000)?;
    let mut client = request.join().expect("no panic")?;
    server.write_all(&[2; 5_000])?;
    read_exactly(&mut client, 5_000)?;
    close_first(client, server)?;
    Ok(source)
}

/// The events of connections to a port.
fn at(all: &[Value], port: u16) -> Vec<Value> {
    all.iter().filter(|event| event["dst_port"] == port && !event["role"].is_null()).cloned().collect()
}
