//! A connection from its first event to its last.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{Ipv6Addr, Shutdown, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use leaf_tests::skip::{has_program, is_root, require};
use leaf_tests::{place, ss};
use serde_json::Value;

use leaf_tests::watch::{
    ROOT, all_events, close_first, connect, events, listen, one, read_exactly, reset_by_server, started, watching,
};

#[test]
fn a_connection_is_told_to_its_end_with_what_ss_says_of_both_ends() -> Result<()> {
    if !require(is_root(), ROOT) || !require(has_program("ss"), "no ss (iproute2)") {
        return Ok(());
    }
    const REQUEST: usize = 100_000;
    const ANSWER: usize = 5_000;
    let (listener, port) = listen()?;
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
    let (listener, port) = listen()?;
    let agent = watching(&[])?;

    let reset = reset_by_server(&listener)?;

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

    let all = all_events(agent)?;
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
    assert!(attempts[0]["src_port"].as_u64() > Some(0), "{attempts:?}");
    assert_eq!(troubles[0]["src_port"], attempts[0]["src_port"], "{troubles:?}");
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
    let (listener, port) = listen()?;
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
    let (listener, port) = listen()?;
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
fn ten_thousand_short_connections_are_each_told_once() -> Result<()> {
    if !require(is_root(), ROOT) {
        return Ok(());
    }
    const CONNECTIONS: usize = 10_000;
    let (listener, port) = listen()?;
    // A console that is slower than two busy cores can make connections drops none of them.
    let agent = watching(&[("LEAF_QUEUE_MAX_BATCHES", "1000")])?;
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

#[test]
fn without_ebpf_the_same_connection_is_told_from_looks_at_the_sockets() -> Result<()> {
    if !require(is_root(), ROOT) {
        return Ok(());
    }
    let (listener, port) = listen()?;
    let agent = started(&[("LEAF_ROOMS_NETWORK_RUNG", "procfs")], "network: no eBPF")?;
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
