//! Programs started as fast as the machine can: what is lost, and what is left of
//! the rate while somebody watches.

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use leaf_tests::compile;
use leaf_tests::ledger::Line;

use crate::report::{Goal, Report};
use crate::sink::Sink;
use crate::watch::{Contest, Outcome, SETTLE, Work, agent, cpu, memory};

const LOST_EXECS: u32 = 20_000;
const EXECS: u32 = 3_000;
const ROUNDS: usize = 9;
const PATIENCE: Duration = Duration::from_secs(30);

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

/// None may be lost, by the ledger and by the receiver.
pub fn lost(report: &mut Report) -> Result<()> {
    let sink = Sink::start()?;
    let agent = agent(&sink, "process")?;
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
    let unsent = line.undelivered();
    report.add("events not delivered, by the ledger", "", unsent as f64, Goal::AtMost(0.0), &[]);
    report.add("CPU of the agent per event", "µs", cpu / 1e3 / line.attempted as f64, Goal::None, &[]);
    report.add("RSS after start", "MB", idle_memory, Goal::AtMost(50.0), &[]);
    report.add("RSS after the storm", "MB", memory, Goal::AtMost(50.0), &[]);
    Ok(())
}

/// The rate that is left while the agent or a peer watches, and, to show how far
/// the machine's moods go, while nobody does.
pub fn kept(report: &mut Report) -> Result<()> {
    // Files and caches are warm from here on.
    storm(EXECS / 4)?;
    let contest = Contest {
        peers: &[("bpftrace", &["-e", BPFTRACE]), ("execsnoop", &[])],
        probes: "process",
        rounds: ROUNDS,
        work: &|| Ok(Work::at(storm(EXECS)?)),
        each: f64::from(EXECS),
    };
    let Outcome { alone, kept, cpu, memory, .. } = contest.run()?;
    let mut add =
        |what: String, unit, goal, values: &[(&str, f64)]| report.add(what, unit, values[0].1, goal, &values[1..]);
    add(format!("exec storm kept, of {:.0}/s", alone.rate), "", Goal::AtLeast(0.97), &kept);
    add("CPU per exec (fork, exec and exit)".into(), "µs", Goal::None, &cpu);
    add("memory in the storm".into(), "MB", Goal::AtMost(50.0), &memory);
    Ok(())
}
