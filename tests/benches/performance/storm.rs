//! Programs started as fast as the machine can: what is lost, and what is left of
//! the rate while somebody watches.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use leaf_tests::agent::AgentProcess;
use leaf_tests::daemon::Daemon;
use leaf_tests::ledger::Line;
use leaf_tests::place::Folder;
use leaf_tests::{compile, peer};
use rustix::process::Signal;

use crate::report::{Goal, Report, median};
use crate::sink::Sink;

const LOST_EXECS: u32 = 20_000;
const EXECS: u32 = 3_000;
const ROUNDS: usize = 9;
/// The watchers that are no peer.
const OURS: &str = "leaf";
const NOBODY: &str = "nobody";
const PATIENCE: Duration = Duration::from_secs(30);
/// For a peer to attach, and for the machine to come to rest.
const SETTLE: Duration = Duration::from_secs(2);

/// What `bpftrace` prints is what our events hold.
pub const BPFTRACE: &str = r#"
tracepoint:sched:sched_process_exec {
    $task = (struct task_struct *)curtask;
    printf("exec %llu %d %d %d %d %s %s %s %llu\n", nsecs, pid, tid, $task->real_parent->tgid, uid, comm,
        str(args->filename), str(uptr($task->mm->arg_start)), cgroup);
}
tracepoint:sched:sched_process_fork {
    $task = (struct task_struct *)curtask;
    printf("fork %llu %d %d %d %s %llu\n", nsecs, args->child_pid, pid, uid, comm, cgroup);
}
tracepoint:sched:sched_process_exit {
    $task = (struct task_struct *)curtask;
    printf("exit %llu %d %d %d %d %s %d %llu %llu %llu %llu %llu\n", nsecs, pid, tid, $task->real_parent->tgid, uid,
        comm, $task->exit_code, $task->utime, $task->stime, $task->min_flt, $task->maj_flt, cgroup);
}
"#;

/// Runs `count` programs one after the other; returns how many a second.
pub fn storm(count: u32) -> Result<f64> {
    let program = compile::program("leaf-nothing", "fn main() {}\n")?;
    let output =
        Command::new(env!("CARGO_BIN_EXE_workload")).arg("storm").arg(count.to_string()).arg(&program).output()?;
    ensure!(output.status.success(), "the storm failed: {}", String::from_utf8_lossy(&output.stderr));
    let nanos: f64 = String::from_utf8(output.stdout)?.trim().parse()?;
    Ok(f64::from(count) / nanos * 1e9)
}

/// An agent that sends to `sink`.
pub fn agent(sink: &Sink) -> Result<AgentProcess> {
    let mut agent = AgentProcess::start(&["run"], &[("OTEL_EXPORTER_OTLP_ENDPOINT", &sink.endpoint)])?;
    agent.wait_for_stderr("process: watching", PATIENCE)?;
    Ok(agent)
}

/// None may be lost, by the ledger and by the receiver.
pub fn lost(report: &mut Report) -> Result<()> {
    let sink = Sink::start()?;
    let agent = agent(&sink)?;
    std::thread::sleep(SETTLE);
    let (idle_memory, idle_cpu) = (memory(agent.pid())?, cpu(agent.pid())?);
    let rate = storm(LOST_EXECS)?;
    std::thread::sleep(SETTLE);
    let (memory, cpu) = (memory(agent.pid())?, cpu(agent.pid())? - idle_cpu);
    let finished = agent.terminate(PATIENCE)?;
    let line = Line::of(&finished.stderr, "process events")?;
    line.assert_all_delivered();
    let records = sink.take()?;
    ensure!(records.len() as u64 == line.outcome("delivered"), "the receiver has {} of {line:?}", records.len());
    let program = compile::program("leaf-nothing", "fn main() {}\n")?;
    let of_storm = |kind: &str| {
        let path = program.to_string_lossy();
        let has = |record: &&opentelemetry_proto::tonic::logs::v1::LogRecord| {
            record.event_name == kind
                && record.attributes.iter().any(|attribute| {
                    attribute.key == "process.executable.path"
                        && format!("{:?}", attribute.value).contains(path.as_ref())
                })
        };
        f64::from(u32::try_from(records.iter().filter(has).count()).unwrap_or(u32::MAX))
    };
    let expected = f64::from(LOST_EXECS);
    for kind in ["process_exec", "process_exit"] {
        let missing = expected - of_storm(kind);
        report.add(format!("{kind} lost of {LOST_EXECS} at {rate:.0}/s"), "", missing, Goal::AtMost(0.0), &[]);
    }
    let unsent = line.attempted - line.outcome("delivered") - line.outcome("filtered");
    report.add("events not delivered, by the ledger", "", unsent as f64, Goal::AtMost(0.0), &[]);
    report.add("CPU of the agent per event", "µs", cpu / 1e3 / line.attempted as f64, Goal::None, &[]);
    report.add("RSS after start", "MB", idle_memory, Goal::AtMost(50.0), &[]);
    report.add("RSS after the storm", "MB", memory, Goal::AtMost(50.0), &[]);
    Ok(())
}

/// Who watches.
enum Watcher {
    Agent(Box<AgentProcess>),
    Peer(Daemon),
}

impl Watcher {
    fn pid(&self) -> u32 {
        match self {
            Self::Agent(agent) => agent.pid(),
            Self::Peer(peer) => peer.pid(),
        }
    }

    fn stop(self) -> Result<()> {
        match self {
            Self::Agent(agent) => agent.terminate(PATIENCE).map(drop),
            Self::Peer(mut peer) => {
                peer.signal(Signal::INT)?;
                peer.wait(PATIENCE).map(drop)
            }
        }
    }
}

/// What one watcher cost, by round.
#[derive(Default)]
struct Costs {
    kept: Vec<f64>,
    memory: Vec<f64>,
    cpu: Vec<f64>,
}

/// The rate that is left while the agent or a peer watches, and, to show how far
/// the machine's moods go, while nobody does.
pub fn kept(report: &mut Report) -> Result<()> {
    let sink = Sink::start()?;
    let mut names = vec![OURS];
    names.extend(["bpftrace", "execsnoop"].into_iter().filter(|name| peer::available(name)));
    names.push(NOBODY);
    let mut costs: Vec<Costs> = names.iter().map(|_| Costs::default()).collect();
    let mut rates = Vec::new();
    // Files and caches are warm from here on.
    storm(EXECS / 4)?;
    let mut before = storm(EXECS)?;
    for _ in 0..ROUNDS {
        for (name, costs) in names.iter().zip(&mut costs) {
            let rate = watched(name, &sink, costs)?;
            let after = storm(EXECS)?;
            costs.kept.push(rate / f64::midpoint(before, after));
            rates.push(after);
            before = after;
        }
        drop(sink.take()?);
    }
    let median_of = |of: fn(&Costs) -> &Vec<f64>| -> Vec<(&str, f64)> {
        let medians = names.iter().copied().zip(costs.iter().map(|costs| median(of(costs).clone())));
        medians.filter(|(_, median)| !median.is_nan()).collect()
    };
    let mut add =
        |what: String, unit, goal, values: &[(&str, f64)]| report.add(what, unit, values[0].1, goal, &values[1..]);
    let alone = median(rates);
    add(format!("exec storm kept, of {alone:.0}/s"), "", Goal::AtLeast(0.97), &median_of(|costs| &costs.kept));
    add("CPU per exec (fork, exec and exit)".into(), "µs", Goal::None, &median_of(|costs| &costs.cpu));
    add("memory in the storm".into(), "MB", Goal::AtMost(50.0), &median_of(|costs| &costs.memory));
    Ok(())
}

/// The rate of a storm while `name` watches.
fn watched(name: &str, sink: &Sink, costs: &mut Costs) -> Result<f64> {
    if name == NOBODY {
        std::thread::sleep(SETTLE);
        return storm(EXECS);
    }
    let folder = Folder::new("peer")?;
    let watcher = start(name, sink, &folder)?;
    std::thread::sleep(SETTLE);
    let cpu_before = cpu(watcher.pid())?;
    let rate = storm(EXECS)?;
    costs.cpu.push((cpu(watcher.pid())? - cpu_before) / 1e3 / f64::from(EXECS));
    costs.memory.push(memory(watcher.pid())?);
    watcher.stop()?;
    Ok(rate)
}

fn start(name: &str, sink: &Sink, folder: &Folder) -> Result<Watcher> {
    Ok(match name {
        OURS => Watcher::Agent(Box::new(agent(sink)?)),
        "bpftrace" => Watcher::Peer(peer::start(name, &["-e", BPFTRACE], folder.path())?),
        _ => Watcher::Peer(peer::start(name, &[], folder.path())?),
    })
}

/// Memory of a process, MB.
fn memory(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib * 1024.0 / 1e6)
}

/// Time that all threads of a process have had a CPU, ns (`schedstat`, its first field).
fn cpu(pid: u32) -> Result<f64> {
    let mut sum = 0.0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(task?.path().join("schedstat"))?;
        sum += text.split_whitespace().next().context("an empty schedstat")?.parse::<f64>()?;
    }
    Ok(sum)
}
