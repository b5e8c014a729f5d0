//! Mean run time of each program, by the kernel's own statistics, beside a
//! bpftrace script that prints the same fields, in the same run.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use leaf_tests::nginx::Nginx;
use leaf_tests::place::{self, Folder};
use leaf_tests::{peer, skip::has_program};
use serde_json::Value;

use crate::report::{Goal, Report};
use crate::sink::Sink;
use crate::storm::{BPFTRACE, storm};
use crate::watch::{agent, agent_with};

const EXECS: u32 = 5_000;
const SWITCH: &str = "/proc/sys/kernel/bpf_stats_enabled";

/// Our program, the tracepoint that a bpftrace program for the same is attached to.
const PROGRAMS: [(&str, &str); 3] =
    [("exec_btf", "sched_process_exec"), ("fork_btf", "sched_process_fork"), ("exit_btf", "sched_process_exit")];

/// Switches the kernel's statistics on, and back as they were.
struct Statistics(String);

impl Statistics {
    fn on() -> Result<Self> {
        let before = fs::read_to_string(SWITCH)?;
        fs::write(SWITCH, "1").with_context(|| format!("failed to write {SWITCH}"))?;
        Ok(Self(before))
    }
}

impl Drop for Statistics {
    fn drop(&mut self) {
        let _ = fs::write(SWITCH, &self.0);
    }
}

/// During a storm.
pub fn run(report: &mut Report) -> Result<()> {
    ensure!(has_program("bpftool"), "no bpftool: run `cargo xtask setup --bench`");
    let sink = Sink::start()?;
    let folder = Folder::new("programs")?;
    let agent = agent(&sink, "process")?;
    let peer = if peer::available("bpftrace") {
        Some(peer::start("bpftrace", &["-e", BPFTRACE], folder.path())?)
    } else {
        None
    };
    std::thread::sleep(Duration::from_secs(3));
    let statistics = Statistics::on()?;
    storm(EXECS)?;
    drop(statistics);
    let programs = bpftool(&["prog", "show"])?;
    let of_peer: BTreeMap<String, i64> = bpftool(&["perf", "show"])?
        .iter()
        .filter(|event| peer.as_ref().is_some_and(|peer| event["pid"] == peer.pid()))
        .filter_map(|event| Some((event["tracepoint"].as_str()?.to_owned(), event["prog_id"].as_i64()?)))
        .collect();
    for (ours, tracepoint) in PROGRAMS {
        let mean = |wanted: &dyn Fn(&Value) -> bool| {
            let program = programs.iter().find(|program| wanted(program))?;
            let (time, runs) = (program["run_time_ns"].as_f64()?, program["run_cnt"].as_f64()?);
            (runs >= f64::from(EXECS)).then_some(time / runs / 1e3)
        };
        let own = mean(&|program| program["name"] == ours).with_context(|| format!("{ours} did not run"))?;
        let other = of_peer.get(tracepoint).and_then(|id| mean(&|program| program["id"] == *id));
        let peers: Vec<_> = other.map(|time| ("bpftrace", time)).into_iter().collect();
        report.add(format!("program {ours}, mean run time"), "µs", own, Goal::AtMost(1.5), &peers);
    }
    agent.terminate(Duration::from_secs(20)).map(drop)
}

/// Our programs of the network room, and their goals, ns. All but the first and `drop_btf` are
/// on the way of single packets or system calls.
const NETWORK: [(&str, Goal); 8] = [
    ("state_btf", Goal::AtMost(300.0)),
    ("answer_btf", Goal::None),
    ("receive_btf", Goal::None),
    ("send_btf", Goal::None),
    ("drop_btf", Goal::None),
    ("enter_btf", Goal::None),
    ("stall_send_btf", Goal::None),
    ("stall_receive_btf", Goal::None),
];

/// While nginx answers each request over a connection of its own, all options on.
pub fn network(report: &mut Report) -> Result<()> {
    ensure!(has_program("bpftool"), "no bpftool: run `cargo xtask setup --bench`");
    let nginx = Nginx::start(2)?;
    let sink = Sink::start()?;
    let options =
        [("LEAF_NETWORK_UDP_FLOWS", "true"), ("LEAF_NETWORK_DNS", "events"), ("LEAF_NETWORK_STALL_THRESHOLD", "100ms")];
    let agent = agent_with(&sink, "network", &options)?;
    let statistics = Statistics::on()?;
    let load = nginx.load(3, true)?;
    drop(statistics);
    let programs = bpftool(&["prog", "show"])?;
    for (name, goal) in NETWORK {
        let program = programs.iter().find(|program| program["name"] == name);
        let program = program.with_context(|| format!("{name} is not loaded"))?;
        let (time, runs) = (program["run_time_ns"].as_f64().unwrap_or(0.0), program["run_cnt"].as_f64().unwrap_or(0.0));
        let a_request = runs / load.requests as f64;
        let what = format!("program {name}, mean run time ({a_request:.1} runs a connection)");
        report.add(what, "ns", if runs > 0.0 { time / runs } else { 0.0 }, goal, &[]);
    }
    agent.terminate(Duration::from_secs(20)).map(drop)
}

fn bpftool(arguments: &[&str]) -> Result<Vec<Value>> {
    let program = place::program("bpftool").context("no bpftool")?;
    let output = Command::new(program).arg("-j").args(arguments).output()?;
    ensure!(output.status.success(), "bpftool failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}
