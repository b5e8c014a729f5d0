//! The process room by each of its rungs.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use leaf_tests::agent::{AgentProcess, Finished};
use leaf_tests::ledger::Line;
use leaf_tests::truth::{EXIT_FAULTS, Limits, assert_told};
use leaf_tests::workload::{self, Truth};
use serde_json::Value;

use crate::ladder::{PATIENCE, in_matrix, rung};

/// Of the workload, besides its first.
const THREADS: i64 = 4;
const ALL: [&str; 3] = ["process_exec", "process_exit", "process_fork"];

#[test]
fn auto() -> Result<()> {
    rung("process", "auto", every_process)
}

#[test]
fn tp_btf() -> Result<()> {
    rung("process", "tp_btf", every_process)
}

#[test]
fn fentry() -> Result<()> {
    rung("process", "fentry", every_process)
}

#[test]
fn raw_tp() -> Result<()> {
    rung("process", "raw_tp", every_process)
}

#[test]
fn tracepoint() -> Result<()> {
    rung("process", "tracepoint", every_process)
}

#[test]
fn kprobe() -> Result<()> {
    rung("process", "kprobe", every_process)
}

#[test]
fn procfs() -> Result<()> {
    rung("process", "procfs", long_processes)
}

/// Whatever the rung, the events of these processes are what their parent knows of them.
fn every_process(agent: AgentProcess, source: &str) -> Result<()> {
    let success = Truth::of(Command::new("/bin/true").arg("an argument"), |_| {})?;
    let failure = Truth::of(Command::new("/bin/sh").args(["-c", "exit 3"]), |_| {})?;
    let killed = Truth::of_killed_cat()?;
    let workload = workload::program();
    let workload = workload.to_str().context("UTF-8")?;
    let threads = Truth::of(Command::new(workload).args(["threads", &THREADS.to_string(), "30", "9"]), |_| {})?;
    let finished = agent.terminate(PATIENCE)?;
    Line::of(&finished.stderr, "process events")?.assert_all_delivered();

    let mut limits = Limits { no_start_of_fork: source == "tracepoint", ..Limits::default() };
    if matches!(source, "fentry" | "kprobe") {
        // The functions come before a thread leaves the memory, so every one may have some.
        limits.later_faults = EXIT_FAULTS * (1 + THREADS);
    }
    if in_matrix() {
        limits.untold = Duration::from_millis(100);
    }
    let told = |truth: &Truth, program: &str, arguments: &str| -> Result<()> {
        assert_told(truth, &events_of(&finished, truth.pid)?, &ALL, program, arguments, limits);
        Ok(())
    };
    told(&success, "/bin/true", "/bin/true an argument")?;
    told(&failure, "/bin/sh", "/bin/sh -c exit 3")?;
    told(&killed, "/bin/cat", "/bin/cat")?;
    told(&threads, workload, &format!("{workload} threads {THREADS} 30 9"))
}

/// By looking again and again, only what lives for a while is seen.
fn long_processes(agent: AgentProcess, _: &str) -> Result<()> {
    std::thread::sleep(Duration::from_millis(300));
    let lived = Truth::of(Command::new("/bin/sleep").arg("1"), |_| {})?;
    std::thread::sleep(Duration::from_millis(600));
    let finished = agent.terminate(PATIENCE)?;
    Line::of(&finished.stderr, "process events")?.assert_all_delivered();
    let events = events_of(&finished, lived.pid)?;
    assert_eq!(events.keys().map(String::as_str).collect::<Vec<_>>(), ALL);
    assert_eq!(events["process_exec"]["cmdline"], "/bin/sleep 1");
    for event in events.values() {
        assert_eq!((&event["ppid"], &event["uid"]), (&std::process::id().into(), &0.into()), "{event}");
    }
    Ok(())
}

/// The events of a process by their type; fails if one came twice.
pub fn events_of(finished: &Finished, pid: u32) -> Result<BTreeMap<String, Value>> {
    let mut events = BTreeMap::new();
    for line in finished.stdout.lines() {
        let envelope: Value = serde_json::from_str(line).with_context(|| format!("not JSON: {line}"))?;
        if envelope["data"]["pid"] == pid {
            let mut event = envelope["data"].clone();
            event["timestamp"] = envelope["timestamp"].clone();
            let kind = event["type"].as_str().context("a type")?.to_owned();
            assert!(events.insert(kind.clone(), event).is_none(), "{kind} of {pid} came twice");
        }
    }
    Ok(events)
}
