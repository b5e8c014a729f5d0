//! UDP flows and names.

use std::net::{TcpListener, UdpSocket};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use leaf_tests::daemon::Daemon;
use leaf_tests::netns::{self, Namespace};
use leaf_tests::place::Folder;
use leaf_tests::skip::{has_program, is_root, require};
use leaf_tests::tshark::Capture;
use serde_json::Value;

use leaf_tests::watch::{NETNS, ROOT, SERVERS, STOP, Server, all_events, connect, events, events_of, one, watching};

#[test]
fn a_name_that_was_asked_for_stands_beside_the_address_and_the_question_is_told() -> Result<()> {
    if !require(netns::available(), NETNS)
        || !require(has_program("socat") && has_program("dnsmasq") && has_program("tshark"), SERVERS)
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
    let listen = "TCP-LISTEN:8088,bind=127.0.0.7,fork,reuseaddr";
    let _server = Server::socat(namespace.command("socat")?, &[listen, "SYSTEM:read -r request; echo hello"])?;
    let agent = watching(&[("LEAF_NETWORK_DNS", "events"), ("LEAF_NETWORK_UDP_FLOWS", "true")])?;
    let curl = |url: &str| -> Result<bool> {
        let arguments = ["-4", "-sS", "--http0.9", "--max-time", "5", "-o", "/dev/null", url];
        Ok(namespace.command("curl")?.args(arguments).stderr(Stdio::null()).status()?.success())
    };
    let capture = Capture::start(namespace.command("tshark")?, "lo")?;
    let begin = Instant::now();
    while !curl("http://web.leaf.test:8088/")? {
        ensure!(begin.elapsed() < STOP, "no answer");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(!curl("http://missing.leaf.test:8088/")?);
    std::thread::sleep(Duration::from_millis(200));
    let packets = capture.stop()?.fields(
        "dns.flags.response == 1",
        &["dns.qry.name", "udp.dstport", "dns.flags.rcode", "dns.count.answers", "dns.time"],
    )?;
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
        // What went over the wire.
        let port = question["src_port"].to_string();
        let packet = packets.iter().find(|packet| packet[0] == name && packet[1] == port).context("not captured")?;
        let rcode = if code == "NOERROR" { "0" } else { "3" };
        assert_eq!((packet[2].as_str(), packet[3].parse()?), (rcode, answers), "{packet:?}");
        let time: f64 = packet[4].parse()?;
        assert!((latency as f64 / 1e9 - time).abs() < 0.005, "{packet:?} {question}");
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

/// A DNS answer with this question and these records.
fn dns(id: u16, question: &[u8], records: u16, rest: &[u8]) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    message.extend_from_slice(&[0x81, 0x80, 0, 1]);
    message.extend_from_slice(&records.to_be_bytes());
    message.extend_from_slice(&[0; 4]);
    message.extend_from_slice(question);
    message.extend_from_slice(rest);
    message
}

#[test]
fn answers_that_are_none_are_told_as_unreadable_and_a_name_cannot_drive_a_terminal() -> Result<()> {
    if !require(is_root(), ROOT) {
        return Ok(());
    }
    let address = "127.9.9.9";
    let server = UdpSocket::bind((address, 53)).context("a name server's port on loopback")?;
    let listener = TcpListener::bind((address, 0))?;
    let agent = watching(&[("LEAF_NETWORK_DNS", "events")])?;
    let client = UdpSocket::bind(("127.0.0.1", 0))?;
    client.connect(server.local_addr()?)?;
    let web = b"\x03w\x1bb\x04leaf\x04test\x00\x00\x01\x00\x01";
    let record = [&b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x04"[..], &[127, 9, 9, 9]].concat();
    let answer = dns(7, web, 1, &record);
    let unreadable = [
        Vec::new(),
        answer[..5].to_vec(),
        // A name that points at itself, and two that point at each other.
        dns(1, b"\xc0\x0c\x00\x01\x00\x01", 0, &[]),
        dns(2, b"\xc0\x0e\xc0\x0c\x00\x01\x00\x01", 0, &[]),
        // More records than there are.
        dns(3, web, u16::MAX, &record),
        dns(4, web, 1, &record[..record.len() - 3]),
        vec![0xff; 9000],
        vec![0x3f; 60_000],
    ];
    let mut buffer = vec![0; 65_536];
    for payload in unreadable.iter().chain([&answer]) {
        client.send(b"\x00\x07?")?;
        let (_, peer) = server.recv_from(&mut buffer)?;
        server.send_to(payload, peer)?;
        client.recv(&mut buffer)?;
    }
    std::thread::sleep(Duration::from_millis(100));
    let (stream, _) = connect(&listener)?;
    let source = stream.local_addr()?;
    let finished = agent.terminate(STOP)?;
    assert!(!finished.stdout.contains('\x1b'), "{}", finished.stdout);
    let events = events_of(&finished)?;
    let (bad, good): (Vec<&Value>, Vec<&Value>) =
        events.iter().filter(|event| event["type"] == "dns_query").partition(|event| event["error"] == "unreadable");
    assert_eq!(bad.len(), unreadable.len(), "{events:#?}");
    assert_eq!(good.len(), 1, "{events:#?}");
    assert_eq!((&good[0]["dns_name"], &good[0]["dns_answers"]), (&r"w\027b.leaf.test".into(), &1.into()));
    // Of all the answers one has named an address.
    assert_eq!(one(&events, "tcp_connect", source, "client")["server"], r"w\027b.leaf.test");
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
