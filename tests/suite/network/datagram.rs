//! UDP flows and names.

use std::net::UdpSocket;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use leaf_tests::daemon::Daemon;
use leaf_tests::netns::{self, Namespace};
use leaf_tests::place::Folder;
use leaf_tests::skip::{has_program, is_root, require};

use crate::watch::{NETNS, ROOT, SERVERS, STOP, Server, all_events, events, one, watching};

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
    let listen = "TCP-LISTEN:8088,bind=127.0.0.7,fork,reuseaddr";
    let _server = Server::socat(namespace.command("socat")?, listen, "SYSTEM:read -r request; echo hello")?;
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
