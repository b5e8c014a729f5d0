//! The whole way to Kafka.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use leaf_tests::agent::AgentProcess;
use leaf_tests::collector::Collector;
use leaf_tests::kafka::Kafka;
use leaf_tests::ledger::Line;
use leaf_tests::nginx::{self, Nginx};
use leaf_tests::pipeline::{PATIENCE, Pipeline};
use leaf_tests::skip::{has_program, is_root, require};
use serde_json::Value;

use crate::watch::{ROOT, STOP};

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
