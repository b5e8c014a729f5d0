//! The agent as its user meets it: what it says, what it prints, how it ends,
//! with and without privilege, and when things go wrong.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use leaf_tests::agent::{self, AgentProcess};
use leaf_tests::launch::{AS_NOBODY, ForEveryone, WITH_READ_ONLY_TRACEFS, WITH_TRACEFS, WITHOUT_TRACEFS};
use leaf_tests::ledger::Line;
use leaf_tests::place::{self, Folder};
use leaf_tests::skip::{is_root, kernel_version, require};
use leaf_tests::workload::Truth;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(20);
const JSON: [&str; 5] = ["run", "--exporter", "console", "--format", "json"];
const ROOT: &str = "eBPF takes root";

/// The envelopes that an agent has printed.
fn envelopes(stdout: &str) -> Result<Vec<Value>> {
    stdout.lines().map(|line| serde_json::from_str(line).with_context(|| format!("not JSON: {line}"))).collect()
}

/// The events of a process, in their order.
fn events_of(envelopes: &[Value], pid: u32) -> Vec<&Value> {
    envelopes.iter().map(|envelope| &envelope["data"]).filter(|data| data["pid"] == pid).collect()
}

fn types<'a>(events: &[&'a Value]) -> Vec<&'a str> {
    events.iter().filter_map(|event| event["type"].as_str()).collect()
}

/// Starts an agent that prints the events of processes as JSON, and waits until it watches.
fn watching(launcher: &[&str], env: &[(&str, &str)]) -> Result<AgentProcess> {
    let arguments = [&JSON[..], &["--probes", "process"]].concat();
    let mut agent = AgentProcess::start_by(launcher, &arguments, env)?;
    agent.wait_for_stderr("process: ", PATIENCE)?;
    Ok(agent)
}

/// Runs a command to its end.
fn run(launcher: &[&str], args: &[&str], env: &[(&str, &str)]) -> Result<(i32, String, String)> {
    let output = agent::command(launcher, args, env)?.output()?;
    let code = output.status.code().context("killed")?;
    Ok((code, String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?))
}

#[test]
fn the_classic_tracepoints_tell_what_the_typed_ones_tell() -> Result<()> {
    if !require(is_root(), ROOT) {
        return Ok(());
    }
    let mut seen = Vec::new();
    for rung in ["tp_btf", "tracepoint"] {
        let agent = watching(&WITH_TRACEFS, &[("LEAF_ROOMS_PROCESS_RUNG", rung)])?;
        let child = Truth::of(Command::new("/bin/sh").args(["-c", "exit 3"]), |_| {})?;
        let workload = env!("CARGO_BIN_EXE_workload");
        let threads = Truth::of(Command::new(workload).args(["threads", "3", "1", "0"]), |_| {})?;
        let finished = agent.terminate(PATIENCE)?;
        assert!(finished.stderr.contains(&format!("process: watching by {rung}")), "{}", finished.stderr);
        Line::of(&finished.stderr, "process events")?.assert_all_delivered();
        let envelopes = envelopes(&finished.stdout)?;
        for truth in [&child, &threads] {
            assert_eq!(types(&events_of(&envelopes, truth.pid)), ["process_fork", "process_exec", "process_exit"]);
        }
        let events = events_of(&envelopes, child.pid);
        let later = child.minor_faults - events[2]["minor_faults"].as_i64().context("a number")?;
        assert!((0..=2).contains(&later), "{later} more faults by getrusage on {rung}");
        // What must differ between two processes, and what is only sampled.
        seen.push(events.into_iter().cloned().map(without_its_own).collect::<Vec<_>>());
    }
    assert_eq!(seen[0], seen[1]);
    Ok(())
}

fn without_its_own(mut event: Value) -> Value {
    for field in ["pid", "tid", "start_time", "utime_ns", "stime_ns", "minor_faults"] {
        event.as_object_mut().expect("an object").remove(field);
    }
    event
}

#[test]
fn an_ordinary_user_sees_processes_through_proc_and_is_told_why() -> Result<()> {
    if !require(is_root(), "to become an ordinary user takes root") {
        return Ok(());
    }
    let copy = ForEveryone::new()?;
    let path = copy.path();
    let env = [("LEAF_ROOMS_PROCESS_POLL_INTERVAL", "50ms")];
    let mut command = agent::command_of(&path, &AS_NOBODY, &JSON, &env);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(child.stderr.take().context("piped")?).lines();
    let warning = lines.next().context("a line")??;
    for part in ["no eBPF", "not permitted", "CAP_BPF and CAP_PERFMON", "/proc every 50ms"] {
        assert!(warning.contains(part), "{part} in {warning}");
    }
    let lived = Truth::of(Command::new("/bin/sleep").arg("0.5"), |_| {})?;
    std::thread::sleep(Duration::from_millis(300));
    kill_process(Pid::from_child(&child), Signal::TERM)?;
    let mut stdout = String::new();
    child.stdout.take().context("piped")?.read_to_string(&mut stdout)?;
    assert!(child.wait()?.success());
    let rest = lines.collect::<Result<Vec<_>, _>>()?.join("\n");
    Line::of(&rest, "process events")?.assert_all_delivered();

    let envelopes = envelopes(&stdout)?;
    let events = events_of(&envelopes, lived.pid);
    assert_eq!(types(&events), ["process_fork", "process_exec", "process_exit"], "{events:?}");
    assert_eq!(events[1]["cmdline"], "/bin/sleep 0.5");
    assert_eq!(events[1]["ppid"], std::process::id());
    assert_eq!((&events[2]["comm"], &events[2]["uid"]), (&"sleep".into(), &0.into()));
    // The exit code of another user's process is not for this user to see.
    assert_eq!(events[2].get("exit_code"), None);
    Ok(())
}

#[test]
fn without_tracefs_the_classic_rung_is_refused_with_the_way_out_and_the_agent_runs_on() -> Result<()> {
    if !require(is_root(), ROOT) {
        return Ok(());
    }
    let env = [("LEAF_ROOMS_PROCESS_RUNG", "tracepoint")];
    let (code, report, _) = run(&WITHOUT_TRACEFS, &["doctor", "--json"], &env)?;
    assert_eq!(code, 0);
    let report: Value = serde_json::from_str(&report)?;
    let room = &report["rooms"][0];
    assert_eq!((&room["room"], &room["source"]), (&"process".into(), &"procfs".into()), "{room}");
    let refusal = &room["hooks"][0]["refused"][0];
    assert_eq!(refusal["rung"], "tracepoint");
    assert!(refusal["cause"].as_str().is_some_and(|cause| cause.contains("tracefs is not mounted")), "{refusal}");
    assert_eq!(refusal["way_out"], "mount -t tracefs tracefs /sys/kernel/tracing");

    let agent = watching(&WITHOUT_TRACEFS, &env)?;
    let lived = Truth::of(Command::new("/bin/sleep").arg("1"), |_| {})?;
    std::thread::sleep(Duration::from_millis(600));
    let finished = agent.terminate(PATIENCE)?;
    assert!(finished.stderr.contains("mount -t tracefs"), "{}", finished.stderr);
    let envelopes = envelopes(&finished.stdout)?;
    assert_eq!(types(&events_of(&envelopes, lived.pid)), ["process_fork", "process_exec", "process_exit"]);
    Ok(())
}

#[test]
fn a_tracefs_that_may_only_be_read_is_enough() -> Result<()> {
    if !require(is_root(), ROOT) {
        return Ok(());
    }
    let agent = watching(&WITH_READ_ONLY_TRACEFS, &[("LEAF_ROOMS_PROCESS_RUNG", "tracepoint")])?;
    let child = Truth::of(Command::new("/bin/sh").args(["-c", "exit 3"]), |_| {})?;
    let finished = agent.terminate(PATIENCE)?;
    assert!(finished.stderr.contains("process: watching by tracepoint"), "{}", finished.stderr);
    let envelopes = envelopes(&finished.stdout)?;
    assert_eq!(types(&events_of(&envelopes, child.pid)), ["process_fork", "process_exec", "process_exit"]);
    Ok(())
}

#[test]
fn the_doctor_says_for_root_which_rung_each_hook_takes() -> Result<()> {
    if !require(is_root(), ROOT) {
        return Ok(());
    }
    let (code, report, _) = run(&[], &["doctor", "--json"], &[])?;
    assert_eq!(code, 0);
    let report: Value = serde_json::from_str(&report)?;
    assert_eq!(report["btf"]["found"], true);
    let supported = |name: &str| {
        let features = report["features"].as_array().expect("a list");
        features.iter().find(|feature| feature["name"] == name).unwrap_or_else(|| panic!("{name}"))["supported"].clone()
    };
    for name in ["ring buffer", "per-CPU maps", "sockmap", "XDP", "classic tracepoints"] {
        assert_eq!(supported(name), true, "{name}");
    }
    for hook in report["rooms"][0]["hooks"].as_array().context("a list")? {
        assert_eq!(hook["rung"], "tp_btf", "{hook}");
    }
    let (code, text, _) = run(&[], &["doctor"], &[])?;
    assert_eq!(code, 0);
    assert!(text.contains("ring buffer") && text.contains("room process"), "{text}");
    Ok(())
}

#[test]
fn a_reader_that_leaves_ends_the_agent_quietly() -> Result<()> {
    let mut child = agent::command(&[], &JSON, &[])?.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut reader = BufReader::new(child.stdout.take().context("piped")?);
    let mut shell = Command::new("/bin/sh").args(["-c", "while :; do /bin/sleep 0.3; done"]).spawn()?;
    let mut line = String::new();
    reader.read_line(&mut line)?;
    assert_eq!(serde_json::from_str::<Value>(&line)?["type"], "process");
    drop(reader);
    let status = child.wait()?;
    shell.kill()?;
    shell.wait()?;
    let mut stderr = String::new();
    child.stderr.take().context("piped")?.read_to_string(&mut stderr)?;
    assert_eq!(status.code(), Some(0));
    assert!(!stderr.contains("error") && !stderr.contains("ledger") && !stderr.contains("panicked"), "{stderr}");
    Ok(())
}

#[test]
fn a_log_that_nobody_reads_does_not_stop_the_agent() -> Result<()> {
    let endpoint = format!("http://127.0.0.1:{}", place::free_port()?);
    let args = ["run", "--endpoint", &endpoint, "--log-level", "debug", "--duration", "1s"];
    let env = [("LEAF_OTLP_RETRY_INITIAL", "10ms"), ("LEAF_METRICS_INTERVAL", "100ms")];
    let mut child = agent::command(&[], &args, &env)?.stderr(Stdio::piped()).spawn()?;
    let mut reader = BufReader::new(child.stderr.take().context("piped")?);
    reader.read_line(&mut String::new())?;
    drop(reader);
    assert_eq!(child.wait()?.code(), Some(0));
    Ok(())
}

#[test]
fn an_endpoint_that_nobody_listens_on_is_told_once_and_its_events_are_counted() -> Result<()> {
    let endpoint = format!("http://127.0.0.1:{}", place::free_port()?);
    let env = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
        ("LEAF_OTLP_RETRY_INITIAL", "20ms"),
        ("LEAF_OTLP_RETRY_MAX", "50ms"),
        ("LEAF_BATCH_MAX_AGE", "50ms"),
        ("LEAF_QUEUE_FLUSH_TIMEOUT", "300ms"),
        ("LEAF_METRICS_INTERVAL", "100ms"),
    ];
    let mut agent = AgentProcess::start(&["run"], &env)?;
    agent.wait_for_stderr("failed to send", PATIENCE)?;
    let mut child = Command::new("/bin/sleep").arg("1").spawn()?;
    child.wait()?;
    let finished = agent.terminate(PATIENCE)?;
    assert!(finished.status.success());
    let told = finished.stderr.lines().filter(|line| line.contains("failed to send")).collect::<Vec<_>>();
    assert_eq!(told.len(), 1, "{}", finished.stderr);
    assert!(told[0].contains(&endpoint) && told[0].contains("Connection refused"), "{told:?}");
    let line = Line::of(&finished.stderr, "process events")?;
    assert!(line.attempted > 0);
    assert_eq!(line.outcome("queue_dropped") + line.outcome("filtered"), line.attempted, "{line:?}");
    Ok(())
}

#[test]
fn a_configuration_error_names_key_value_and_source_and_ends_with_2() -> Result<()> {
    let folder = Folder::new("config")?;
    let file = folder.path().join("leaf.yaml");
    fs::write(&file, "batch:\n  max_bites: 5\n")?;
    let path = file.to_str().context("UTF-8")?;
    for command in [&["run", "--config", path][..], &["config", "check", "--config", path]] {
        let (code, stdout, stderr) = run(&[], command, &[])?;
        assert_eq!((code, stdout.as_str()), (2, ""), "{stderr}");
        assert!(
            stderr.contains("batch.max_bites") && stderr.contains(path) && stderr.contains("unknown key"),
            "{stderr}"
        );
    }
    let (code, _, stderr) = run(&[], &["run"], &[("LEAF_QUEUE_MAX_BATCHES", "0")])?;
    assert_eq!(code, 2);
    for part in ["queue.max_batches", "0 is not from 1 to 65536", "environment variable LEAF_QUEUE_MAX_BATCHES"] {
        assert!(stderr.contains(part), "{part} in {stderr}");
    }
    fs::write(&file, "batch:\n  max_bytes: 8192\n")?;
    let (code, stdout, _) = run(&[], &["config", "show", "--config", path], &[("LEAF_BATCH_MAX_AGE", "3s")])?;
    assert_eq!(code, 0);
    let setting = |key: &str| {
        let line = stdout.lines().find(|line| line.starts_with(key)).unwrap_or_else(|| panic!("no {key} in {stdout}"));
        line.split_whitespace().skip(1).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(setting("batch.max_bytes"), format!("8192 file {path}"));
    assert_eq!(setting("batch.max_age"), "3s environment variable LEAF_BATCH_MAX_AGE");
    assert_eq!(setting("queue.max_batches"), "64 default");
    Ok(())
}

/// Runs so many processes as fast as one shell can.
fn storm(count: u32) -> Result<()> {
    let script = format!("i=0; while [ $i -lt {count} ]; do /bin/true; i=$((i+1)); done");
    assert!(Command::new("/bin/sh").args(["-c", &script]).status()?.success());
    Ok(())
}

#[test]
fn a_ring_that_is_full_loses_events_and_counts_each() -> Result<()> {
    if !require(is_root(), ROOT) {
        return Ok(());
    }
    let mut agent = watching(&[], &[("LEAF_ROOMS_PROCESS_RING_BYTES", "65536")])?;
    // As if it had no CPU for a while.
    agent.signal(Signal::STOP)?;
    storm(500)?;
    agent.signal(Signal::CONT)?;
    let finished = agent.terminate(PATIENCE)?;
    let line = Line::of(&finished.stderr, "process events")?;
    assert!(line.attempted >= 1500 && line.outcome("ring_full") > 0, "{line:?}");
    assert_eq!(line.outcomes.values().sum::<u64>(), line.attempted, "{line:?}");
    assert_eq!(line.outcome("in_flight"), 0, "{line:?}");
    assert_eq!(envelopes(&finished.stdout)?.len() as u64, line.outcome("delivered"));
    Ok(())
}

#[test]
fn rate_and_filters_keep_events_in_the_kernel_and_count_them() -> Result<()> {
    if !require(is_root(), ROOT) {
        return Ok(());
    }
    let env = [("LEAF_ROOMS_PROCESS_RATE_LIMIT", "10"), ("LEAF_ROOMS_PROCESS_RATE_BURST", "50")];
    let agent = watching(&[], &env)?;
    storm(200)?;
    let finished = agent.terminate(PATIENCE)?;
    let limited = Line::of(&finished.stderr, "process events")?;
    // The burst, 10 a second while the storm lasted, and what was before and after.
    assert!((50..=150).contains(&limited.outcome("delivered")), "{limited:?}");
    assert!(limited.outcome("rate_limited") >= 400, "{limited:?}");
    assert_eq!(limited.outcomes.values().sum::<u64>(), limited.attempted, "{limited:?}");

    let agent = watching(&[], &[("LEAF_ROOMS_PROCESS_EXCLUDE_COMMS", "true")])?;
    storm(100)?;
    let finished = agent.terminate(PATIENCE)?;
    let excluded = Line::of(&finished.stderr, "process events")?;
    // The exec and the exit of each; its fork has the name of the shell.
    assert!(excluded.outcome("filtered") >= 200, "{excluded:?}");
    let envelopes = envelopes(&finished.stdout)?;
    assert!(envelopes.iter().all(|envelope| envelope["data"]["comm"] != "true"));

    let agent = watching(&[], &[("LEAF_ROOMS_PROCESS_EXCLUDE_UIDS", "0")])?;
    storm(10)?;
    let finished = agent.terminate(PATIENCE)?;
    assert!(Line::of(&finished.stderr, "process events")?.outcome("filtered") >= 30);
    Ok(())
}

#[test]
fn an_end_in_the_middle_of_a_storm_loses_nothing() -> Result<()> {
    if !require(is_root(), ROOT) {
        return Ok(());
    }
    let agent = watching(&[], &[])?;
    let mut shell = Command::new("/bin/sh").args(["-c", "while :; do /bin/true; done"]).spawn()?;
    std::thread::sleep(Duration::from_secs(1));
    let finished = agent.terminate(PATIENCE)?;
    shell.kill()?;
    shell.wait()?;
    let line = Line::of(&finished.stderr, "process events")?;
    line.assert_all_delivered();
    assert!(line.attempted > 500, "{line:?}");
    assert_eq!(envelopes(&finished.stdout)?.len() as u64, line.outcome("delivered"));
    Ok(())
}

#[test]
fn every_hook_holds_where_the_kernel_has_all_that_they_need() -> Result<()> {
    if !require(is_root(), "eBPF takes root") || !require(kernel_version()? >= (6, 3), "the kernel is older than 6.3") {
        return Ok(());
    }
    let options =
        [("LEAF_NETWORK_UDP_FLOWS", "true"), ("LEAF_NETWORK_DNS", "events"), ("LEAF_NETWORK_STALL_THRESHOLD", "100ms")];
    let (code, stdout, stderr) = run(&[], &["doctor", "--json"], &options)?;
    assert_eq!(code, 0, "{stderr}");
    let report: Value = serde_json::from_str(&stdout)?;
    let rooms = report["rooms"].as_array().context("rooms")?;
    let hooks: Vec<&Value> = rooms.iter().flat_map(|room| room["hooks"].as_array().into_iter().flatten()).collect();
    assert!(hooks.len() >= 17, "{report:#}");
    for hook in hooks {
        assert!(hook["rung"].is_string(), "{hook:#}");
    }
    Ok(())
}
