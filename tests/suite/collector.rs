//! `otel-collector.yaml` in a real collector, read back from a real broker: topic,
//! key, partition and the record's JSON.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use leaf_tests::collector::renames;
use leaf_tests::otlp::{Client, attribute, counter, event, events, metrics, resource, scope, span, spans};
use leaf_tests::pipeline::{PATIENCE, Pipeline};
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, any_value::Value as Any};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs};
use serde_json::{Value, json};

const PROCESS: &str = "system.events.process";
const NETWORK: &str = "system.events.network";
const PERFORMANCE: &str = "system.events.performance";

#[test]
fn each_attribute_that_the_agent_sends_has_its_short_name_in_the_configuration() -> Result<()> {
    // Lists, not maps: a second rename of one attribute would never take effect.
    let mut wanted = leaf::otlp::attribute::ALL
        .iter()
        .map(|attribute| (attribute.key.to_owned(), attribute.field.to_owned()))
        .collect::<Vec<_>>();
    let mut configured = renames()?;
    wanted.sort_unstable();
    configured.sort_unstable();
    assert_eq!(configured, wanted);
    Ok(())
}

#[test]
fn a_network_event_is_the_documented_envelope_keyed_by_its_source_address() -> Result<()> {
    let Some(pipeline) = Pipeline::shared()? else {
        return Ok(());
    };
    let connect = event(
        "tcp_connect",
        1_704_806_400_000_000_000,
        vec![
            attribute("process.pid", 12345),
            attribute("leaf.process.comm", "curl"),
            attribute("source.address", "10.0.0.1"),
            attribute("source.port", 54321),
            attribute("destination.address", "93.184.216.34"),
            attribute("destination.port", 443),
            attribute("container.id", "abc123def456"),
        ],
    );
    Client::connect(&pipeline.collector.endpoint())?.logs(events("prod-web-01", "network", vec![connect]))?;

    let records = pipeline.events(NETWORK, "prod-web-01", 1)?;
    let (record, value) = &records[0];
    assert_eq!(
        *value,
        json!({
            "type": "network",
            "timestamp": 1_704_806_400_000_000_000_u64,
            "hostname": "prod-web-01",
            "data": {
                "type": "tcp_connect",
                "pid": 12345,
                "comm": "curl",
                "src_ip": "10.0.0.1",
                "src_port": 54321,
                "dst_ip": "93.184.216.34",
                "dst_port": 443,
                "container_id": "abc123def456"
            }
        })
    );
    assert_eq!(record.key_text(), format!("{:0>32}", "010000000001"));
    Ok(())
}

#[test]
fn a_process_event_keeps_all_its_fields_with_their_types() -> Result<()> {
    let Some(pipeline) = Pipeline::shared()? else {
        return Ok(());
    };
    let awkward = "sh -c \"printf '\\t%s\\n' <ä & 漢>\"\nsecond line";
    let exit = event(
        "process_exit",
        1_704_806_400_123_456_789,
        vec![
            attribute("process.pid", 4_194_303),
            attribute("thread.id", 4_194_303),
            attribute("process.parent_pid", 1),
            attribute("process.user.id", 4_294_967_295),
            attribute("leaf.process.group.id", 0),
            attribute("leaf.process.comm", "sh"),
            attribute("process.executable.path", "/usr/bin/sh"),
            attribute("process.command_line", awkward),
            attribute("process.creation.time", "2024-01-09T13:20:00.000000001Z"),
            attribute("process.linux.cgroup", "/system.slice/ssh.service"),
            attribute("leaf.cgroup.id", i64::MAX),
            attribute("container.id", "c0ffee"),
            attribute("container.runtime.name", "runc"),
            attribute("k8s.pod.uid", "5a1c7b1e-0000-4000-8000-000000000000"),
            attribute("process.exit.code", -1),
            attribute("leaf.process.exit.signal", "SIGKILL"),
            attribute("leaf.process.exit.core_dumped", false),
            attribute("leaf.process.cpu.user_time", 9_007_199_254_740_993),
            attribute("leaf.process.cpu.system_time", 0),
            attribute("leaf.process.faults.minor", 130),
            attribute("leaf.process.faults.major", 0),
            attribute("leaf.process.io.bytes_read", 4096),
            attribute("k8s.pod.name", "web-0"),
        ],
    );
    let request = events("types", "process", vec![exit]);
    Client::connect(&pipeline.collector.endpoint())?.logs(request)?;

    let records = pipeline.events(PROCESS, "types", 1)?;
    let (record, value) = &records[0];
    assert_eq!(
        *value,
        json!({
            "type": "process",
            "timestamp": 1_704_806_400_123_456_789_u64,
            "hostname": "types",
            "data": {
                "type": "process_exit",
                "pid": 4_194_303,
                "tid": 4_194_303,
                "ppid": 1,
                "uid": 4_294_967_295_u32,
                "gid": 0,
                "comm": "sh",
                "filename": "/usr/bin/sh",
                "cmdline": awkward,
                "start_time": "2024-01-09T13:20:00.000000001Z",
                "cgroup": "/system.slice/ssh.service",
                "cgroup_id": i64::MAX,
                "container_id": "c0ffee",
                "container_runtime": "runc",
                "pod_uid": "5a1c7b1e-0000-4000-8000-000000000000",
                "exit_code": -1,
                "signal": "SIGKILL",
                "core_dumped": false,
                // 2^53 + 1: a value that no floating-point number holds.
                "utime_ns": 9_007_199_254_740_993_i64,
                "stime_ns": 0,
                "minor_faults": 130,
                "major_faults": 0,
                // Attributes that the configuration does not know by name.
                "process_io_bytes_read": 4096,
                "k8s_pod_name": "web-0"
            }
        })
    );
    // The key is the PID to whoever parses it as a number.
    assert_eq!(record.key_text().len(), 32);
    assert_eq!(record.key_text().parse::<u64>()?, 4_194_303);
    Ok(())
}

#[test]
fn the_events_of_a_pid_stay_in_one_partition_and_in_order() -> Result<()> {
    const PIDS: i64 = 16;
    const ROUNDS: i64 = 25;
    let Some(pipeline) = Pipeline::shared()? else {
        return Ok(());
    };
    let client = Client::connect(&pipeline.collector.endpoint())?;
    for round in 0..ROUNDS {
        let log_records = (1..=PIDS)
            .map(|pid| {
                let attributes = vec![attribute("process.pid", pid), attribute("leaf.round", round)];
                let mut record = event("process_fork", 1, attributes);
                // A trace of its own must not pull an event away from its PID.
                record.trace_id = vec![u8::try_from(round + 1).unwrap_or(1); 16];
                record
            })
            .collect();
        client.logs(events("order", "process", log_records))?;
    }

    let records = pipeline.events(PROCESS, "order", usize::try_from(PIDS * ROUNDS)?)?;
    let mut partitions: BTreeMap<i64, BTreeSet<u32>> = BTreeMap::new();
    let mut rounds: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
    for (record, value) in &records {
        let pid = value["data"]["pid"].as_i64().context("no pid")?;
        assert_eq!(record.key_text(), format!("{pid:032}"));
        partitions.entry(pid).or_default().insert(record.partition);
        let round = value["data"]["round"].as_i64().context("no round")?;
        rounds.entry(pid).or_default().push(round);
    }
    for pid in 1..=PIDS {
        assert_eq!(partitions[&pid].len(), 1, "PID {pid} is in several partitions");
        assert_eq!(rounds[&pid], (0..ROUNDS).collect::<Vec<_>>(), "PID {pid}");
    }
    let used: BTreeSet<_> = partitions.values().flatten().collect();
    assert!(used.len() > 1, "all PIDs are in one partition");
    Ok(())
}

#[test]
fn a_request_with_several_families_reaches_the_topic_of_each() -> Result<()> {
    let Some(pipeline) = Pipeline::shared()? else {
        return Ok(());
    };
    let host = "families";
    let stall = event("context_switch", 1, vec![attribute("process.pid", 7)]);
    let close = event("tcp_close", 2, vec![attribute("source.address", "2001:db8::1")]);
    let exec = event("process_exec", 3, vec![attribute("process.pid", 7)]);
    let request = ExportLogsServiceRequest {
        resource_logs: vec![ResourceLogs {
            resource: Some(resource(host)),
            scope_logs: vec![
                scope("performance", vec![stall]),
                scope("network", vec![close]),
                scope("process", vec![exec]),
            ],
            ..ResourceLogs::default()
        }],
    };
    Client::connect(&pipeline.collector.endpoint())?.logs(request)?;

    for (topic, family, name, wanted) in [
        (PERFORMANCE, "performance", "context_switch", sha256(host)?),
        (NETWORK, "network", "tcp_close", sha256("2001:db8::1")?),
        (PROCESS, "process", "process_exec", format!("{:0>32}", 7)),
    ] {
        let records = pipeline.events(topic, host, 1)?;
        let (record, value) = &records[0];
        assert_eq!(value["type"], family);
        assert_eq!(value["data"]["type"], name);
        assert_eq!(record.key_text(), wanted, "{topic}");
    }
    Ok(())
}

#[test]
fn a_log_record_of_a_stranger_does_not_reach_an_event_topic() -> Result<()> {
    let Some(pipeline) = Pipeline::shared()? else {
        return Ok(());
    };
    let stranger = LogRecord {
        body: Some(AnyValue { value: Some(Any::StringValue("a stranger's line".into())) }),
        attributes: vec![attribute("process.pid", 9)],
        ..LogRecord::default()
    };
    let unnamed = ScopeLogs { log_records: vec![stranger.clone()], ..ScopeLogs::default() };
    let request = ExportLogsServiceRequest {
        resource_logs: vec![ResourceLogs {
            scope_logs: vec![unnamed, scope("invented", vec![stranger])],
            ..ResourceLogs::default()
        }],
    };
    Client::connect(&pipeline.collector.endpoint())?.logs(request)?;

    let records = pipeline.kafka.records("system.logs", |records| records.len() >= 2, PATIENCE)?;
    assert!(records.iter().all(|record| record.value == b"\"a stranger's line\""));
    Ok(())
}

#[test]
fn a_metric_is_a_record_of_its_own_and_its_name_keeps_to_a_partition() -> Result<()> {
    let Some(pipeline) = Pipeline::shared()? else {
        return Ok(());
    };
    let client = Client::connect(&pipeline.collector.endpoint())?;
    for value in [1, 2] {
        let both = vec![counter("leaf.a", value), counter("leaf.b", value)];
        client.metrics(metrics("metrics", both))?;
    }

    let records = pipeline.kafka.records("system.metrics", |records| records.len() >= 4, PATIENCE)?;
    let mut keys: BTreeMap<String, BTreeSet<(u32, Vec<u8>)>> = BTreeMap::new();
    for record in &records {
        let value: Value = serde_json::from_slice(&record.value)?;
        let resource = &value["resourceMetrics"][0];
        let metrics = resource["scopeMetrics"][0]["metrics"].as_array();
        assert_eq!(metrics.map(Vec::len), Some(1), "{value}");
        let metric = &resource["scopeMetrics"][0]["metrics"][0];
        let name = metric["name"].as_str().context("no name")?.to_owned();
        assert_eq!(metric["sum"]["dataPoints"].as_array().map(Vec::len), Some(1));
        assert!(resource["resource"]["attributes"].as_array().is_some_and(|attributes| {
            attributes.contains(&json!({"key": "host.name", "value": {"stringValue": "metrics"}}))
                && attributes.contains(&json!({"key": "leaf.metric", "value": {"stringValue": name}}))
        }));
        let key = record.key.clone().context("no key")?;
        keys.entry(name).or_default().insert((record.partition, key));
    }
    assert_eq!(keys.keys().collect::<Vec<_>>(), ["leaf.a", "leaf.b"]);
    assert!(keys.values().all(|places| places.len() == 1), "{keys:?}");
    assert_ne!(keys["leaf.a"], keys["leaf.b"]);
    Ok(())
}

#[test]
fn spans_are_keyed_by_their_trace() -> Result<()> {
    let Some(pipeline) = Pipeline::shared()? else {
        return Ok(());
    };
    let request = spans("spans", vec![span(0xaa, 1), span(0xbb, 2), span(0xaa, 3)]);
    Client::connect(&pipeline.collector.endpoint())?.spans(request)?;

    let records = pipeline.kafka.records("system.traces", |records| records.len() >= 2, PATIENCE)?;
    let mut traces = BTreeMap::new();
    for record in &records {
        let value: Value = serde_json::from_slice(&record.value)?;
        let found = value["resourceSpans"][0]["scopeSpans"][0]["spans"].clone();
        assert_eq!(found[0]["traceId"], record.key_text());
        traces.insert(record.key_text(), found.as_array().map(Vec::len));
    }
    let wanted = [("aa".repeat(16), Some(2)), ("bb".repeat(16), Some(1))];
    assert_eq!(traces, wanted.into());
    Ok(())
}

/// The first 32 digits of a text's SHA-256, as coreutils sees it.
fn sha256(text: &str) -> Result<String> {
    let mut sha256sum = Command::new("sha256sum")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("failed to start sha256sum")?;
    let mut stdin = sha256sum.stdin.take().context("no standard input")?;
    stdin.write_all(text.as_bytes())?;
    drop(stdin);
    let output = sha256sum.wait_with_output()?;
    Ok(String::from_utf8(output.stdout)?[..32].to_owned())
}
