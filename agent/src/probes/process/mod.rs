//! The process room: every exec, fork and exit of the node.

mod decode;
mod otel;
mod poll;

use super::{Descriptor, Hook, Malformed, Output, Room, Rung, Tuning, Way};
use crate::{
    config::Config,
    enrich::{
        Node,
        clock::Clock,
        container::CgroupId,
        process::{Process, Seen, Slot, set_lossy, until_nul},
        procfs::{ProcProcess, TICK_NS},
        redact::{Redactor, push_lossy},
    },
    otlp::metrics::{Data, Metric},
};
use agent_common::process::{Exec, Exit, Fork, Offsets, Task, missing};
use decode::Event;
use otel::Outcome;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// See [`Descriptor`].
pub const DESCRIPTOR: Descriptor = Descriptor {
    name: "process",
    stream: "process",
    object: || aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/process")),
    hooks: &[
        Hook {
            name: "exec",
            required: true,
            rungs: &[
                Rung::new(Way::BtfTracepoint, "sched_process_exec", "exec_btf"),
                Rung::new(Way::FunctionEntry, "finalize_exec", "exec_entry"),
                Rung::new(Way::RawTracepoint, "sched_process_exec", "exec_raw"),
                Rung::new(Way::Tracepoint, "sched:sched_process_exec", "exec_classic").without_btf(),
                Rung::new(Way::Probe, "finalize_exec", "exec_probe"),
            ],
        },
        Hook {
            name: "fork",
            required: true,
            rungs: &[
                Rung::new(Way::BtfTracepoint, "sched_process_fork", "fork_btf"),
                Rung::new(Way::FunctionEntry, "wake_up_new_task", "fork_entry"),
                Rung::new(Way::RawTracepoint, "sched_process_fork", "fork_raw"),
                Rung::new(Way::Tracepoint, "task:task_newtask", "fork_classic").without_btf(),
                Rung::new(Way::Probe, "wake_up_new_task", "fork_probe"),
            ],
        },
        Hook {
            name: "exit",
            required: true,
            rungs: &[
                Rung::new(Way::BtfTracepoint, "sched_process_exit", "exit_btf"),
                Rung::new(Way::FunctionEntry, "taskstats_exit", "exit_entry"),
                Rung::new(Way::RawTracepoint, "sched_process_exit", "exit_raw"),
                Rung::new(Way::Tracepoint, "sched:sched_process_exit", "exit_classic").without_btf(),
                Rung::new(Way::Probe, "taskstats_exit", "exit_probe"),
            ],
        },
        Hook {
            name: "cgroup",
            required: false,
            rungs: &[
                Rung::new(Way::BtfTracepoint, "cgroup_mkdir", "cgroup_btf"),
                Rung::new(Way::RawTracepoint, "cgroup_mkdir", "cgroup_raw"),
                Rung::new(Way::Tracepoint, "cgroup:cgroup_mkdir", "cgroup_classic").without_btf(),
            ],
        },
    ],
    sources: Offsets::SOURCES,
    without_ebpf: "looking at /proc",
    enums: &[],
    tuning: |_| Tuning::default(),
    new: |config| Box::new(ProcessRoom::new(config)),
};

/// The room at work.
pub struct ProcessRoom {
    redactor: Redactor,
    poller: poll::Poller,
    created: u64,
    execs: u64,
    ended: [u64; Outcome::ALL.len()],
    /// Why a process failed; kept to reuse its memory.
    error: String,
}

impl ProcessRoom {
    /// A room that has seen nothing.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        Self {
            redactor: config.privacy.redactor(),
            poller: poll::Poller::new(config),
            created: 0,
            execs: 0,
            ended: Default::default(),
            error: String::new(),
        }
    }

    fn on_event(&mut self, event: Event<'_>, node: &mut Node, out: &mut Output) {
        match event {
            Event::Exec(exec) => self.on_exec(exec, node, out),
            Event::Fork(fork) => self.on_fork(fork, node, out),
            Event::Exit(exit) => self.on_exit(exit, node, out),
            Event::CgroupMade(made) => {
                let id = CgroupId { hierarchy: made.hierarchy, id: made.id };
                node.cgroups.made(id, &String::from_utf8_lossy(&made.path[..made.path_len as usize]));
            }
        }
    }

    fn on_exec(&mut self, exec: &Exec, node: &mut Node, out: &mut Output) {
        self.execs += 1;
        let slot = node.processes.get_or_insert(&seen(&exec.task, &node.clock));
        resolve_cgroup(&exec.task, slot, node);
        let process = node.processes.get_mut(slot);
        if process.exec_ns == 0 {
            process.exec_ns = exec.task.time_ns;
        }
        let folder = || process_folder(&node.proc, exec.task.pid);
        set_executable(&mut process.executable, folder, &exec.filename[..exec.filename_len as usize]);
        process.command_line.clear();
        if exec.task.missing & missing::CMDLINE == 0 {
            self.redactor.write(&exec.cmdline[..exec.cmdline_len as usize], &mut process.command_line);
        } else if let Some(cmdline) = folder().and_then(|folder| std::fs::read(folder.join("cmdline")).ok()) {
            self.redactor.write(&cmdline, &mut process.command_line);
        }
        otel::log("process_exec", &exec.task, node.processes.get(slot), &node.clock, out, |_| {});
    }

    fn on_fork(&mut self, fork: &Fork, node: &mut Node, out: &mut Output) {
        self.created += 1;
        let slot = node.processes.fork(&seen(&fork.task, &node.clock));
        resolve_cgroup(&fork.task, slot, node);
        otel::log("process_fork", &fork.task, node.processes.get(slot), &node.clock, out, |_| {});
    }

    fn on_exit(&mut self, exit: &Exit, node: &mut Node, out: &mut Output) {
        let slot = node.processes.get_or_insert(&seen(&exit.task, &node.clock));
        resolve_cgroup(&exit.task, slot, node);
        let process = node.processes.get(slot);
        let end = otel::End::of(exit);
        self.ended[end.outcome() as usize] += 1;
        otel::log("process_exit", &exit.task, process, &node.clock, out, |attributes| end.write(attributes));
        otel::span(&exit.task, process, &end, &node.clock, &mut self.error, out);
        node.processes.end(slot);
    }
}

impl Room for ProcessRoom {
    fn record(&mut self, bytes: &[u8], node: &mut Node, out: &mut Output) -> Result<(), Malformed> {
        let event = decode::decode(bytes)?;
        self.on_event(event, node, out);
        Ok(())
    }

    fn poll(&mut self, node: &mut Node, out: &mut Output) {
        let first = self.poller.is_first();
        for change in self.poller.look(Path::new("/proc")) {
            let now = Clock::boot_now();
            if first && change.process().is_some_and(|process| node.processes.by_pid(process.pid).is_some()) {
                continue;
            }
            if let Some(process) = change.process() {
                // First, so that parents and control groups are known to the event.
                if !change.is_new() || node.processes.by_pid(process.pid).is_none_or(|known| !is_same(known, process)) {
                    node.processes.insert_from_proc(process, &mut self.redactor, &node.clock);
                }
            }
            for record in change.records(now) {
                let event = record.event();
                if out.admit(self.poller.admit(event.task(), now)) {
                    self.on_event(event, node, out);
                }
            }
        }
    }

    fn metrics(&self) -> Vec<Metric> {
        vec![
            Metric::count(
                "system.process.created",
                "{process}",
                "Processes made by fork, as far as the agent was told",
                self.created,
            ),
            Metric::count(
                "leaf.process.execs",
                "{exec}",
                "Programs started by exec, as far as the agent was told",
                self.execs,
            ),
            Metric {
                name: "leaf.process.ended",
                unit: "{process}",
                description: "Processes that ended, as far as the agent was told, by outcome",
                data: Data::Counter(
                    Outcome::ALL
                        .iter()
                        .map(|outcome| {
                            (vec![("leaf.process.outcome", outcome.name().to_owned())], self.ended[*outcome as usize])
                        })
                        .collect(),
                ),
            },
        ]
    }
}

/// Whether the table's entry is of this very process, and not of one that had its pid before.
fn is_same(known: &Process, process: &ProcProcess) -> bool {
    !known.ended && known.start.boot / TICK_NS == process.stat.start_ns / TICK_NS
}

fn seen<'a>(task: &'a Task, clock: &Clock) -> Seen<'a> {
    Seen {
        pid: task.pid,
        ppid: (task.missing & missing::PARENT == 0).then_some(task.ppid),
        start: (task.missing & missing::START == 0).then(|| clock.moment(task.start_ns)),
        time_ns: task.time_ns,
        uid: task.uid,
        gid: task.gid,
        comm: until_nul(&task.comm),
    }
}

/// A record without a number (from /proc) leaves what the table knows.
fn resolve_cgroup(task: &Task, slot: Slot, node: &mut Node) {
    if task.cgroup.id == 0 {
        return;
    }
    let leaf = std::str::from_utf8(&task.cgroup.name[..task.cgroup.name_len as usize]).unwrap_or_default();
    let id = CgroupId { hierarchy: task.cgroup.hierarchy, id: task.cgroup.id };
    let processes = &node.processes;
    let parent = || processes.by_pid(task.ppid).and_then(|parent| parent.cgroup.as_ref());
    let folder = || process_folder(&node.proc, task.pid);
    let cgroup = node.cgroups.resolve(id, folder, leaf, parent);
    let process = node.processes.get_mut(slot);
    if process.cgroup.as_ref().is_none_or(|known| !Arc::ptr_eq(known, &cgroup)) {
        process.cgroup = Some(cgroup);
    }
}

/// Where /proc speaks of a process, if it does.
fn process_folder(proc: &Option<PathBuf>, pid: u32) -> Option<PathBuf> {
    proc.as_ref().map(|proc| proc.join(pid.to_string()))
}

/// The path as given to execve; what is relative or a file descriptor is looked up while the process lives.
fn set_executable(text: &mut String, process: impl FnOnce() -> Option<PathBuf>, filename: &[u8]) {
    use std::os::unix::ffi::OsStrExt as _;
    let link = if filename.is_empty() || filename.starts_with(b"/dev/fd/") || filename.starts_with(b"/proc/self/") {
        Some("exe")
    } else if filename.starts_with(b"/") {
        None
    } else {
        Some("cwd")
    };
    if let Some(link) = link
        && let Some(Ok(target)) = process().map(|process| std::fs::read_link(process.join(link)))
    {
        set_lossy(text, target.as_os_str().as_bytes());
        if link == "cwd" {
            text.push('/');
            push_lossy(text, filename.strip_prefix(b"./").unwrap_or(filename));
        }
        return;
    }
    set_lossy(text, filename);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        health::ledger::Ledger,
        otlp::{
            Signal,
            batch::Batch,
            resource::{Resource, Scope},
        },
    };
    use agent_common::process::{CgroupMade, kind};
    use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
    use proptest::prelude::*;
    use prost::Message as _;
    use std::time::{Duration, Instant};
    use zerocopy::{FromZeros as _, IntoBytes as _};

    fn parts() -> (ProcessRoom, Node, Output) {
        let scope = Scope { name: "leaf.process".into(), stream: "process", source: "test" };
        let batch =
            |signal| Some(Batch::new(signal, &Resource::default(), &scope, 1 << 20, Arc::new(Ledger::new("test"))));
        let node = Node::new(None, "boot");
        let mut out = Output::new(batch(Signal::Logs), batch(Signal::Traces));
        out.at(Instant::now(), 1);
        (ProcessRoom::new(&Config::default()), node, out)
    }

    /// What the log batch holds, read by prost.
    fn names(out: &mut Output) -> Vec<String> {
        let mut names = Vec::new();
        out.take_due(Duration::ZERO, |block| {
            if block.signal == Signal::Logs {
                let request = ExportLogsServiceRequest::decode(block.bytes.clone()).expect("OTLP");
                let scopes = request.resource_logs.into_iter().flat_map(|resource| resource.scope_logs);
                names.extend(scopes.flat_map(|scope| scope.log_records).map(|record| record.event_name));
            }
        });
        names
    }

    proptest! {
        #[test]
        fn random_records_become_events_or_nothing_and_never_a_panic(
            records in prop::collection::vec((0u32..6, 0usize..4, any::<u64>()), 1..20),
        ) {
            let (mut room, mut node, mut out) = parts();
            let mut expected = Vec::new();
            for (kind, cut, seed) in records {
                let size = match kind {
                    kind::EXEC => size_of::<Exec>(),
                    kind::FORK => size_of::<Fork>(),
                    kind::EXIT => size_of::<Exit>(),
                    kind::CGROUP_MADE => size_of::<CgroupMade>(),
                    _ => 64,
                };
                // A pid that nobody has, so that no lookup finds a stranger; other bytes are noise.
                let mut words: Vec<u64> = (0..size as u64 / 8).map(|i| seed.wrapping_mul(i | 1).rotate_left(7)).collect();
                words[0] = u64::from(kind);
                if (kind::EXEC..=kind::EXIT).contains(&kind) {
                    let mut task = Task::new_zeroed();
                    task.kind = kind;
                    (task.pid, task.tid, task.time_ns) = (u32::MAX - (seed % 3) as u32, 1, seed >> 8);
                    let len = task.as_bytes().len();
                    words.as_mut_bytes()[..len].copy_from_slice(task.as_bytes());
                }
                let bytes = &words.as_bytes()[..size - cut];
                match room.record(bytes, &mut node, &mut out) {
                    Ok(()) if kind != kind::CGROUP_MADE => expected.push(["", "process_exec", "process_fork", "process_exit"][kind as usize]),
                    Ok(()) => {}
                    Err(_) => prop_assert!(cut > 0 || kind == 0 || kind > 4 || kind == kind::EXEC || kind == kind::CGROUP_MADE),
                }
            }
            prop_assert_eq!(names(&mut out), expected);
        }
    }
}
