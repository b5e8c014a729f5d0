//! The whole way to Kafka.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use leaf_tests::agent::AgentProcess;
use leaf_tests::collector::Collector;
use leaf_tests::kafka::{Kafka, Record};
use leaf_tests::ledger::Line;
use leaf_tests::nginx::{self, Nginx};
use leaf_tests::pipeline::{PATIENCE, Pipeline, attribute, items};
use leaf_tests::place;
use leaf_tests::skip::{has_program, is_root, require};
use serde_json::Value;

use leaf_tests::watch::{ROOT, STOP};

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
    let refused = place::free_port()?;
    assert!(curl(refused).is_err());
    std::thread::sleep(Duration::from_millis(200));
    let finished = agent.terminate(STOP)?;
    ensure!(finished.status.success(), "the agent failed: {}", finished.stderr);
    Line::of(&finished.stderr, "network events")?.assert_all_delivered();

    let data = |value: &[u8]| serde_json::from_slice::<Value>(value).expect("JSON");
    let is_ours = |envelope: &Value| envelope["data"]["dst_port"] == nginx.port();
    let enough =
        |records: &[Record]| records.iter().filter(|record| is_ours(&data(&record.value))).count() >= 4 * ports.len();
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
    assert_spans(&pipeline, &ports, nginx.port(), refused)?;
    let received = seen.iter().filter(|((_, kind, role), _)| kind == "tcp_close" && role == "client");
    let received = received.filter_map(|(_, envelope)| envelope["data"]["received_bytes"].as_u64()).sum();
    assert_metrics(&pipeline, ports.len() as u64, received)
}

const CLIENT: i64 = 3;
const SERVER: i64 = 2;
const ERROR: i64 = 2;

/// A span for each end; that of curl is a child of its process, that of nginx is linked to it.
fn assert_spans(pipeline: &Pipeline, ports: &BTreeSet<u16>, nginx: u16, refused: u16) -> Result<()> {
    let all = |records: &[Record]| -> Vec<Value> {
        records.iter().flat_map(|record| items(&record.value, "resourceSpans", "scopeSpans", "spans")).collect()
    };
    let to = |span: &Value, port: u16| attribute(span, "destination.port") == Some(port.to_string());
    let is_there = |records: &[Record]| {
        let spans = all(records);
        let of_nginx = spans.iter().filter(|span| to(span, nginx)).count();
        of_nginx >= 2 * ports.len() && spans.iter().any(|span| to(span, refused))
    };
    let spans = all(&pipeline.kafka.records("system.traces", is_there, PATIENCE)?);
    let process_of = |span: &Value| {
        let pid = attribute(span, "process.pid");
        spans.iter().find(|other| attribute(other, "process.pid") == pid && attribute(other, "source.port").is_none())
    };
    for port in ports {
        let one = |kind: i64| -> Result<&Value> {
            let is = |span: &&Value| {
                to(span, nginx) && span["kind"] == kind && attribute(span, "source.port") == Some(port.to_string())
            };
            let found: Vec<&Value> = spans.iter().filter(is).collect();
            ensure!(found.len() == 1, "{kind} of {port}: {found:?}");
            Ok(found[0])
        };
        let (client, server) = (one(CLIENT)?, one(SERVER)?);
        assert_eq!((&client["name"], &server["name"]), (&"tcp connect".into(), &"tcp accept".into()));
        assert_eq!(client["status"]["code"].as_i64().unwrap_or(0), 0, "{client}");
        let curl = process_of(client).context("no span of curl")?;
        assert_eq!((&client["traceId"], &client["parentSpanId"]), (&curl["traceId"], &curl["spanId"]), "{client}");
        let time = |span: &Value, key: &str| span[key].as_str().and_then(|text| text.parse::<u64>().ok());
        assert!(time(curl, "startTimeUnixNano") < time(client, "startTimeUnixNano"), "{curl} {client}");
        // The last packets of a connection may come when its process has ended.
        assert!(time(client, "startTimeUnixNano") < time(curl, "endTimeUnixNano"), "{curl} {client}");
        let [link] = server["links"].as_array().map_or(&[][..], Vec::as_slice) else { panic!("one link: {server}") };
        assert_eq!((&link["traceId"], &link["spanId"]), (&client["traceId"], &client["spanId"]), "{server}");
    }
    let failed = spans.iter().find(|span| to(span, refused)).context("a span")?;
    assert_eq!((&failed["kind"], &failed["status"]["code"]), (&CLIENT.into(), &ERROR.into()), "{failed}");
    assert_eq!(failed["status"]["message"], "connect failed: ECONNREFUSED");
    Ok(())
}

/// What is counted of curl is what it has done.
fn assert_metrics(pipeline: &Pipeline, connections: u64, received: u64) -> Result<()> {
    let points = |records: &[Record], name: &str, label: Option<(&str, &str)>| -> Vec<Value> {
        let metrics =
            records.iter().flat_map(|record| items(&record.value, "resourceMetrics", "scopeMetrics", "metrics"));
        let metrics = metrics.filter(|metric| metric["name"] == name);
        let kinds = ["sum", "exponentialHistogram"];
        let points = metrics
            .flat_map(|metric| kinds.map(|kind| metric[kind]["dataPoints"].clone()))
            .filter_map(|points| points.as_array().cloned());
        let is = |point: &Value, key: &str, value: &str| attribute(point, key).as_deref() == Some(value);
        let points = points.flatten().filter(|point| is(point, "leaf.process.comm", "curl"));
        points.filter(|point| label.is_none_or(|(key, value)| is(point, key, value))).collect()
    };
    let number = |value: &Value| value.as_str().and_then(|text| text.parse::<u64>().ok());
    let greatest = |records: &[Record], name: &str, label, of: &str| {
        points(records, name, label).iter().filter_map(|point| number(&point[of])).max()
    };
    let done = [
        ("leaf.network.connections.opened", Some(("leaf.connection.role", "client")), "asInt", connections),
        ("leaf.network.connections.failed", Some(("error.type", "ECONNREFUSED")), "asInt", 1),
        ("process.network.io", Some(("network.io.direction", "receive")), "asInt", received),
        ("leaf.network.connect.duration", None, "count", connections),
        ("leaf.network.rtt", None, "count", connections),
        ("leaf.network.connection.duration", None, "count", connections),
    ];
    let enough = |records: &[Record]| {
        done.iter().all(|(name, label, of, least)| greatest(records, name, *label, of) >= Some(*least))
    };
    let records = pipeline.kafka.records("system.metrics", enough, PATIENCE)?;
    for (name, label, of, expected) in done {
        assert_eq!(greatest(&records, name, label, of), Some(expected), "{name}");
    }
    // Every connection is in a bucket, and each took some time.
    let histograms = points(&records, "leaf.network.connect.duration", None);
    let last = histograms.iter().max_by_key(|point| number(&point["count"])).context("a histogram")?;
    let buckets = last["positive"]["bucketCounts"].as_array().context("buckets")?;
    assert_eq!(buckets.iter().filter_map(number).sum::<u64>(), connections, "{last}");
    let sum = last["sum"].as_f64().context("a sum")?;
    assert!(sum > 0.0 && sum < connections as f64, "{last}");
    Ok(())
}
