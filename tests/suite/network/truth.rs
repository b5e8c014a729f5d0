//! The same traffic, counted by the kernel's own statistics and by a packet capture.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use leaf_tests::netns::{self, Namespace};
use leaf_tests::place::Folder;
use leaf_tests::skip::{has_program, require};
use leaf_tests::tshark::Capture;
use serde_json::Value;

use leaf_tests::watch::{NETNS, SERVERS, Server, acknowledged, all_events, connect_soon, one, watching};

/// What `nstat` says of a namespace.
fn nstat(namespace: &Namespace) -> Result<BTreeMap<String, u64>> {
    let output = namespace.command("nstat")?.args(["-j", "-asz"]).output()?;
    ensure!(output.status.success(), "nstat failed: {}", String::from_utf8_lossy(&output.stderr));
    let said: Value = serde_json::from_slice(&output.stdout)?;
    Ok(serde_json::from_value(said["kernel"].clone())?)
}

/// How often something happened, by the events of trouble in a namespace.
fn troubles(events: &[Value], namespace: u64, what: &str) -> u64 {
    events
        .iter()
        // What is told of a connection is told of its interface, too.
        .filter(|event| event["event_type"] == "error.net" && event["netns"] == namespace && event["pid"].is_null())
        .filter_map(|event| event["value"].as_str()?.split_once(':'))
        .filter(|(name, _)| *name == what)
        .map(|(_, count)| count.parse::<u64>().expect("a number"))
        .sum()
}

#[test]
fn what_nstat_counts_in_a_namespace_is_what_was_told_of_it() -> Result<()> {
    if !require(netns::available() && has_program("nstat"), NETNS)
        || !require(has_program("socat") && has_program("nft"), SERVERS)
    {
        return Ok(());
    }
    const TRANSFERS: u64 = 5;
    const REFUSED: u64 = 3;
    let agent = watching(&[("LEAF_NETWORK_TROUBLE_INTERVAL", "300ms")])?;
    let namespace = Namespace::new()?;
    // Not what a handshake consists of: the kernel counts repeated answers to it, too.
    let rule = "table ip leaf { chain in { type filter hook input priority 0\npolicy accept\n\
        tcp dport 9000 meta length > 100 numgen inc mod 10 3 drop\n}\n}\n";
    ensure!(namespace.command("nft")?.arg(rule).status()?.success(), "nft refused the rule");
    let server = Server::reader(&namespace, 9000)?;
    drop(connect_soon(&format!("{}:9000", namespace.there()))?);
    let folder = Folder::new("transfer")?;
    let file = folder.path().join("file");
    std::fs::write(&file, vec![0; 500_000])?;
    let open = format!("OPEN:{}", file.display());
    let transfer = |port: u16| -> Result<bool> {
        let to = format!("TCP:127.0.0.1:{port}");
        Ok(namespace.command("socat")?.args(["-u", &open, &to]).output()?.status.success())
    };
    for _ in 0..TRANSFERS {
        ensure!(transfer(9000)?, "a transfer failed");
    }
    for _ in 0..REFUSED {
        ensure!(!transfer(9)?, "somebody listens at port 9");
    }
    std::thread::sleep(Duration::from_millis(500));
    drop(server);
    std::thread::sleep(Duration::from_millis(500));
    let (truth, inode) = (nstat(&namespace)?, namespace.inode()?);
    let events = all_events(agent)?;
    let of = |kind: &str| events.iter().filter(|event| event["type"] == kind && event["netns"] == inode).count() as u64;
    let failed =
        |event: &&Value| event["type"] == "tcp_connect" && event["netns"] == inode && !event["error"].is_null();
    let told = [
        ("TcpActiveOpens", of("tcp_connect")),
        ("TcpPassiveOpens", of("tcp_accept")),
        ("TcpAttemptFails", events.iter().filter(failed).count() as u64),
        ("TcpRetransSegs", troubles(&events, inode, "RETRANSMIT")),
        ("TcpOutRsts", troubles(&events, inode, "RESET_SENT")),
    ];
    assert_eq!(told[0].1, TRANSFERS + REFUSED);
    for (name, told) in told {
        assert!(told > 0, "no {name}: {events:#?}");
        assert_eq!(Some(&told), truth.get(name), "{name}");
    }
    Ok(())
}

#[test]
fn a_slow_link_is_told_as_tshark_and_ss_see_it() -> Result<()> {
    if !require(netns::available() && has_program("tc"), NETNS)
        || !require(has_program("socat") && has_program("tshark"), SERVERS)
    {
        return Ok(());
    }
    const MBIT: f64 = 20.0;
    const BYTES: u64 = 5_000_000;
    let namespace = Namespace::new()?;
    let interface = namespace.interface();
    for arguments in
        ["qdisc add dev DEV root handle 1: htb default 1", "class add dev DEV parent 1: classid 1:1 htb rate 20mbit"]
    {
        let arguments = arguments.replace("DEV", &interface);
        let output = Command::new("tc").args(arguments.split(' ')).output()?;
        ensure!(output.status.success(), "tc {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let _server = Server::reader(&namespace, 9000)?;
    let address = format!("{}:9000", namespace.there());
    drop(connect_soon(&address)?);
    let agent = watching(&[("LEAF_NETWORK_REPORT_INTERVAL", "500ms")])?;
    let capture = Capture::start(Server::command("tshark")?, &interface)?;
    let mut client = TcpStream::connect(&address)?;
    let source = client.local_addr()?;
    client.write_all(&vec![0; BYTES as usize])?;
    let socket = acknowledged(source, 9000, BYTES)?;
    drop(client);
    let captured = capture.stop()?;
    let events = all_events(agent)?;
    let closed = one(&events, "tcp_close", source, "client");
    let number = |name: &str| closed[name].as_f64().unwrap_or_else(|| panic!("no {name} in {closed}"));

    let sent = format!("tcp.srcport == {} && !tcp.analysis.retransmission", source.port());
    let packets = captured.fields(&sent, &["tcp.len", "frame.time_relative"])?;
    let payload: u64 = packets.iter().filter_map(|packet| packet[0].parse::<u64>().ok()).sum();
    assert_eq!((closed["sent_bytes"].as_u64(), payload), (Some(BYTES), BYTES), "{closed}");
    // From SYN to the last acknowledgement of the handshake: the process knew a little before that one was sent.
    let handshake = captured.fields("tcp.analysis.initial_rtt", &["tcp.analysis.initial_rtt"])?;
    let handshake: f64 = handshake.first().context("no handshake")?[0].parse()?;
    assert!((number("connect_ns") / 1e9 - handshake).abs() < 0.005, "{handshake} {closed}");

    // The time of one more measurement at most.
    let rtt = socket.nanos("rtt");
    assert!(number("rtt_ns") >= rtt * 0.87 - 1e3 && number("rtt_ns") <= rtt * 1.13 + 1e3, "{socket:?} {closed}");
    assert!(number("rtt_ns") > 10.0 * number("rtt_min_ns"), "the queue of the slow link is seen: {closed}");
    // At the rate of the link, with its headers but for those of Ethernet.
    let [_, time] = &packets.last().context("no packets")?[..] else { panic!("two fields") };
    let rate = BYTES as f64 * 8e-6 / time.parse::<f64>()?;
    assert!(rate > 0.8 * MBIT && rate < MBIT, "{rate} Mbit/s");
    let (interface, process) = (Value::from(interface), Value::from(std::process::id()));
    for (key, whose) in [("interface", &interface), ("pid", &process)] {
        let values = events.iter().filter(|event| event["type"] == "transport.bw" && event[key] == *whose);
        let fastest = values.filter_map(|event| event["value"].as_f64()).fold(0.0, f64::max);
        assert!(fastest > 0.8 * rate && fastest < 1.2 * MBIT, "{key}: {fastest} of {rate} Mbit/s in {events:#?}");
    }
    Ok(())
}
