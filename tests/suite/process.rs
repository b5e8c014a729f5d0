//! The process room on the real kernel: what a parent knows of its children is
//! what the topic says of them, each once.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use leaf_tests::agent::{AgentProcess, Finished};
use leaf_tests::collector::Collector;
use leaf_tests::container::{COMMAND, Container};
use leaf_tests::kafka::{Kafka, Record};
use leaf_tests::ledger::Line;
use leaf_tests::pipeline::{PATIENCE, Pipeline, attribute, items};
use leaf_tests::place::Folder;
use leaf_tests::skip::{is_root, require};
use leaf_tests::truth::{Limits, assert_told};
use leaf_tests::workload::{self, Truth};
use serde_json::{Value, json};

const TOPIC: &str = "system.events.process";
const STOP: Duration = Duration::from_secs(20);

/// An envelope's `data`, and the partition it was in.
type Event = (u32, Value);

/// The events of a process by their type; panics if one came twice.
fn events_of(records: &[Record], pid: u32) -> BTreeMap<String, Event> {
    let mut events = BTreeMap::new();
    for record in records {
        let envelope: Value = serde_json::from_slice(&record.value).expect("JSON");
        if envelope["data"]["pid"] == pid {
            assert_eq!(envelope["type"], "process");
            assert_eq!(envelope["hostname"], hostname());
            let kind = envelope["data"]["type"].as_str().expect("a type").to_owned();
            let mut data = envelope["data"].clone();
            data["timestamp"] = envelope["timestamp"].clone();
            let earlier = events.insert(kind.clone(), (record.partition, data));
            assert!(earlier.is_none(), "{kind} of {pid} came twice");
        }
    }
    events
}

fn hostname() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname").expect("procfs").trim().to_owned()
}

/// The same as [`assert_told`], and that all came by one partition.
fn assert_true(truth: &Truth, events: &BTreeMap<String, Event>, kinds: &[&str], program: &str, arguments: &str) {
    let partitions: BTreeSet<u32> = events.values().map(|(partition, _)| *partition).collect();
    assert_eq!(partitions.len(), 1, "the records of one PID are in {partitions:?}");
    let events = events.iter().map(|(kind, (_, event))| (kind.clone(), event.clone())).collect();
    assert_told(truth, &events, kinds, program, arguments, Limits::default());
}

/// Starts the agent that sends to a collector and is ready to see events.
fn agent(collector: &Collector, more: &[(&str, &str)]) -> Result<AgentProcess> {
    let endpoint = collector.endpoint();
    let environment: Vec<_> =
        [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str())].into_iter().chain(more.iter().copied()).collect();
    let mut agent = AgentProcess::start(&["run"], &environment)?;
    agent.wait_for_stderr("process: ", PATIENCE)?;
    Ok(agent)
}

fn stop(agent: AgentProcess) -> Result<Finished> {
    let finished = agent.terminate(STOP)?;
    ensure!(finished.status.success(), "the agent failed: {}", finished.stderr);
    Ok(finished)
}

const ALL: [&str; 3] = ["process_exec", "process_exit", "process_fork"];

#[test]
fn every_process_is_in_kafka_once_with_what_its_parent_knows_of_it() -> Result<()> {
    let here = Kafka::available() && Collector::available();
    if !require(is_root(), "eBPF takes root")
        || !require(here, "no collector or no Kafka: run `cargo xtask setup --tests`")
        || !require(Container::available(), Container::NEEDS)
    {
        return Ok(());
    }
    let pipeline = Pipeline::start()?;
    let agent = agent(&pipeline.collector, &[("LEAF_METRICS_INTERVAL", "500ms")])?;

    let success = Truth::of(Command::new("/bin/true").arg("an argument"), |_| {})?;
    let failure = Truth::of(Command::new("/bin/sh").args(["-c", "exit 3"]), |_| {})?;
    let killed = Truth::of_killed_cat()?;
    let workload = workload::program();
    let workload = workload.to_str().context("UTF-8")?;
    let threads = Truth::of(Command::new(workload).args(["threads", "4", "60", "9"]), |_| {})?;

    // A subshell is a fork without exec; the shell prints its pid.
    let forked = Command::new("/bin/sh").args(["-c", "(exit 5) & echo $!; wait $!; echo $?"]).output()?;
    let forked = String::from_utf8(forked.stdout)?;
    let (forked_pid, forked_code) = forked.trim().split_once('\n').context("two lines")?;
    assert_eq!(forked_code, "5");
    let forked_pid: u32 = forked_pid.parse()?;

    let folder = Folder::new("names")?;
    let name = folder.path().join(std::ffi::OsStr::from_bytes(b"a name\nof \xff bytes"));
    fs::copy("/bin/true", &name)?;
    fs::set_permissions(&name, fs::Permissions::from_mode(0o755))?;
    let odd = Truth::of(Command::new(&name).arg(std::ffi::OsStr::from_bytes(b"\xc3(\n")), |_| {})?;

    let container = Container::new(u64::from(std::process::id()), 7);
    let contained = container.run()?;

    let finished = stop(agent)?;
    let events = Line::of(&finished.stderr, "process events")?;
    events.assert_all_delivered();
    Line::of(&finished.stderr, "process spans")?.assert_all_delivered();
    Line::of(&finished.stderr, "process points")?.assert_all_delivered();

    let delivered = usize::try_from(events.outcome("delivered"))?;
    let records = pipeline.kafka.records(TOPIC, |records| records.len() >= delivered, PATIENCE)?;
    assert_eq!(records.len(), delivered, "the broker holds what was delivered");
    let of = |pid| events_of(&records, pid);

    assert_true(&success, &of(success.pid), &ALL, "/bin/true", "/bin/true an argument");
    assert_true(&failure, &of(failure.pid), &ALL, "/bin/sh", "/bin/sh -c exit 3");
    assert_eq!((failure.code, killed.signal), (Some(3), Some(9)));
    assert_true(&killed, &of(killed.pid), &ALL, "/bin/cat", "/bin/cat");
    assert_eq!(of(killed.pid)["process_exit"].1["core_dumped"], false);
    assert!(threads.cpu >= Duration::from_millis(200), "{threads:?}");
    assert_true(&threads, &of(threads.pid), &ALL, workload, &format!("{workload} threads 4 60 9"));
    let lossy = name.to_string_lossy();
    assert_true(&odd, &of(odd.pid), &ALL, &lossy, &format!("{lossy} \u{fffd}(\n"));

    let subshell = of(forked_pid);
    assert_eq!(subshell.keys().collect::<Vec<_>>(), ["process_exit", "process_fork"]);
    let (_, exit) = &subshell["process_exit"];
    assert_eq!((&exit["exit_code"], &exit["comm"], &exit["filename"]), (&json!(5), &json!("sh"), &json!("/bin/sh")));

    let inside = of(contained.pid);
    for kind in ["process_exec", "process_exit"] {
        let (_, event) = &inside[kind];
        assert_eq!(event["container_id"], container.id, "{event}");
        assert_eq!(event["comm"], COMMAND, "{event}");
        let cgroup = event["cgroup"].as_str().context("a path")?;
        let path = format!("/{}/{}", container.cgroup_parent, container.id);
        assert!(cgroup.ends_with(&path), "{event}");
        assert!(contained.cgroups.lines().any(|line| line.ends_with(&format!(":{cgroup}"))), "{contained:?} {event}");
    }
    assert_eq!(inside["process_exit"].1["exit_code"], contained.exit_code);

    assert_spans(&pipeline, &[&success, &failure, &killed])?;
    assert_metrics(&pipeline)
}

/// The spans of these children: status by their end, one trace, this process's span as parent.
fn assert_spans(pipeline: &Pipeline, children: &[&Truth]) -> Result<()> {
    let found = |records: &[Record]| -> BTreeMap<i64, Value> {
        let spans = records.iter().flat_map(|record| items(&record.value, "resourceSpans", "scopeSpans", "spans"));
        spans.filter_map(|span| Some((attribute(&span, "process.pid")?.parse().ok()?, span))).collect()
    };
    let all = |records: &[Record]| {
        let spans = found(records);
        children.iter().all(|child| spans.contains_key(&i64::from(child.pid)))
    };
    let spans = found(&pipeline.kafka.records("system.traces", all, PATIENCE)?);
    let of = |child: &Truth| &spans[&i64::from(child.pid)];
    for child in children {
        let span = of(child);
        let failed = child.code != Some(0);
        assert_eq!(span["status"]["code"].as_i64().unwrap_or(0), if failed { 2 } else { 0 }, "{span}");
        assert_eq!(span["traceId"], of(children[0])["traceId"], "one parent, one trace");
        let parent = span["parentSpanId"].as_str().unwrap_or_default();
        assert_eq!(parent, of(children[0])["parentSpanId"], "{span}");
        assert_eq!(parent.len(), 16, "{span}");
    }
    assert_eq!(of(children[1])["status"]["message"], "exit code 3");
    assert_eq!(of(children[2])["status"]["message"], "killed by SIGKILL");
    Ok(())
}

/// The counters grow to what the test itself has done at least.
fn assert_metrics(pipeline: &Pipeline) -> Result<()> {
    let greatest = |records: &[Record], name: &str, outcome: Option<&str>| {
        let metrics =
            records.iter().flat_map(|record| items(&record.value, "resourceMetrics", "scopeMetrics", "metrics"));
        metrics
            .filter(|metric| metric["name"] == name)
            .flat_map(|metric| metric["sum"]["dataPoints"].as_array().cloned().unwrap_or_default())
            .filter(|point| {
                outcome.is_none_or(|name| attribute(point, "leaf.process.outcome").as_deref() == Some(name))
            })
            .filter_map(|point| point["asInt"].as_str()?.parse::<u64>().ok())
            .max()
            .unwrap_or(0)
    };
    let enough = |records: &[Record]| {
        greatest(records, "system.process.created", None) >= 5
            && greatest(records, "leaf.process.ended", Some("success")) >= 1
            && greatest(records, "leaf.process.ended", Some("failure")) >= 2
            && greatest(records, "leaf.process.ended", Some("signal")) >= 1
    };
    pipeline.kafka.records("system.metrics", enough, PATIENCE).map(drop)
}
