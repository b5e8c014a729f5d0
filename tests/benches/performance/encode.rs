//! From the bytes of a record to the bytes of OTLP, in this process.

use std::sync::Arc;
use std::time::{Duration, Instant};

use agent_common::process::{Exec, Exit, Fork, Task, kind};
use anyhow::Result;
use leaf::config::Config;
use leaf::enrich::Node;
use leaf::health::ledger::Ledger;
use leaf::otlp::Signal;
use leaf::otlp::batch::Batch;
use leaf::otlp::resource::{Resource, Scope};
use leaf::probes::process::ProcessRoom;
use leaf::probes::{Output, Room};
use rustix::time::{ClockId, clock_gettime};
use zerocopy::{FromZeros, IntoBytes};

use crate::allocator;
use crate::report::{Goal, Report, median};

/// Processes of one round: each has a fork, an exec and an exit.
const PROCESSES: u32 = 20_000;
const ROUNDS: usize = 41;
/// Nanoseconds of a tick of /proc, so that every process has a start of its own.
const TICK: u64 = 10_000_000;

/// Time and allocations per event, once the table of processes is full.
pub fn run(report: &mut Report) -> Result<()> {
    let mut node = Node::new(None, "boot");
    let path = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod8dbc5577_d0e2_4706_8787_57d52c03ddf2.slice/\
                cri-containerd-0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef.scope";
    node.cgroups.made(leaf::enrich::container::CgroupId { hierarchy: 0, id: 77 }, path);
    let mut resource = Resource::default();
    resource.set("service.name", "leaf");
    resource.set("host.name", "node-1");
    let scope = Scope { name: "leaf.process".into(), stream: "process", source: "tp_btf" };
    let config = Config::default();
    let batch = |signal| Batch::new(signal, &resource, &scope, config.batch.max_bytes, Arc::new(Ledger::new("bench")));
    let mut out = Output::new(Some(batch(Signal::Logs)), Some(batch(Signal::Traces)));
    let mut room = ProcessRoom::new(&config);
    let mut records = Records::new();
    let (mut costs, mut allocations, mut batches) = (Vec::new(), 0, 0u64);
    for round in 0..=ROUNDS {
        let calls = allocator::calls();
        let (now, start) = (Instant::now(), cpu_time());
        for index in 0..PROCESSES {
            out.at(now, 1);
            for record in records.of(round as u32 * PROCESSES + index) {
                room.record(record, &mut node, &mut out)?;
                if out.is_full() {
                    out.take_due(Duration::MAX, |block| {
                        batches += 1;
                        block.settle(0);
                    });
                }
            }
        }
        let spent = cpu_time() - start;
        // The first round fills the table.
        if round > 0 {
            costs.push(spent as f64 / f64::from(PROCESSES * 3));
            allocations += allocator::calls() - calls;
        } else {
            batches = 0;
        }
    }
    let events = f64::from(PROCESSES * 3) * ROUNDS as f64;
    report.add(
        "decode, enrich, encode: an event (log record, and a span at exit)",
        "ns",
        median(costs),
        Goal::AtMost(400.0),
        &[],
    );
    report.add(
        "allocations per event, those of the batches included",
        "",
        allocations as f64 / events,
        Goal::AtMost(0.05),
        &[],
    );
    report.add("allocations per batch of 256 KiB", "", allocations as f64 / batches as f64, Goal::None, &[]);
    Ok(())
}

/// CPU time of this thread, ns: who else runs does not count.
fn cpu_time() -> i64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}

/// Command lines as nodes see them: one in four has secrets to find.
const COMMAND_LINES: [&[u8]; 4] = [
    b"curl\0-sS\0--retry\x003\0-H\0Authorization: Bearer abcdef\0https://user:secret@example.org/a/b/c?d=e\0",
    b"/bin/sh\0-c\0test -f /run/ready && exec /usr/bin/env LANG=C sort -u /var/lib/app/list\0",
    b"grep\0-q\0^healthy$\0/run/status\0",
    b"/usr/lib/jvm/bin/java\0-Xmx512m\0-XX:+UseG1GC\0-cp\0/opt/app/lib/*\0org.example.Main\0--port\x008080\0",
];

/// The three records of a process, as the kernel side writes them.
struct Records {
    fork: Fork,
    exec: Box<Exec>,
    exit: Exit,
}

impl Records {
    fn new() -> Self {
        let mut task = Task::new_zeroed();
        (task.ppid, task.uid, task.gid) = (77, 1000, 1000);
        task.comm[..4].copy_from_slice(b"curl");
        (task.cgroup.id, task.cgroup.hierarchy) = (77, 0);
        let leaf = b"cri-containerd-0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef.scope";
        task.cgroup.name[..leaf.len()].copy_from_slice(leaf);
        task.cgroup.name_len = leaf.len() as u32;
        let (mut fork, mut exec, mut exit) = (Fork::new_zeroed(), Box::new(Exec::new_zeroed()), Exit::new_zeroed());
        fork.task = Task { kind: kind::FORK, ..task };
        exec.task = Task { kind: kind::EXEC, ..task };
        exit.task = Task { kind: kind::EXIT, ..task };
        let filename = b"/usr/bin/curl";
        exec.filename[..filename.len()].copy_from_slice(filename);
        exec.filename_len = filename.len() as u32;
        let cmdline =
            b"curl\0-sS\0--retry\x003\0-H\0Authorization: Bearer abcdef\0https://user:secret@example.org/a/b/c?d=e\0";
        exec.cmdline[..cmdline.len()].copy_from_slice(cmdline);
        exec.cmdline_len = cmdline.len() as u32;
        (exit.utime_ns, exit.stime_ns, exit.runtime_ns) = (3_000_000, 1_000_000, 4_100_000);
        (exit.minor_faults, exit.major_faults) = (211, 1);
        Self { fork, exec, exit }
    }

    fn of(&mut self, index: u32) -> [&[u8]; 3] {
        for task in [&mut self.fork.task, &mut self.exec.task, &mut self.exit.task] {
            // Pids come again, as they do.
            task.pid = 1000 + index % 30_000;
            task.tid = task.pid;
            task.start_ns = u64::from(index) * TICK;
            task.time_ns = task.start_ns + 1000;
        }
        // One in four fails.
        self.exit.status = i32::from(index.is_multiple_of(4)) << 8;
        let cmdline = COMMAND_LINES[index as usize % COMMAND_LINES.len()];
        self.exec.cmdline[..cmdline.len()].copy_from_slice(cmdline);
        self.exec.cmdline_len = cmdline.len() as u32;
        [self.fork.as_bytes(), self.exec.as_bytes(), self.exit.as_bytes()]
    }
}
