//! Who a record is about: the node, the process, the container. One copy of
//! this knowledge serves all rooms.
#![forbid(unsafe_code)]

pub mod clock;
pub mod container;
pub mod dns;
pub mod host;
pub mod identity;
pub mod process;
pub mod procfs;
pub mod redact;

use clock::Clock;
use container::Cgroups;
use dns::Names;
use process::{ProcessTable, Seen, Slot};
use redact::Redactor;
use std::path::PathBuf;

/// What the agent knows about the node while it runs.
pub struct Node {
    /// Where /proc speaks of the processes of events; `None` in a pid namespace
    /// that is not the host's, where it speaks of others.
    pub proc: Option<PathBuf>,
    /// Boot clock to Unix time.
    pub clock: Clock,
    /// Live processes and the recently dead.
    pub processes: ProcessTable,
    /// Control groups by number.
    pub cgroups: Cgroups,
    /// Names by address.
    pub names: Names,
}

impl Node {
    /// A node of which nothing is known yet; `boot_id` as for [`ProcessTable::new`].
    #[must_use]
    pub fn new(proc: Option<PathBuf>, boot_id: &str) -> Self {
        Self {
            proc,
            clock: Clock::new(),
            processes: ProcessTable::new(boot_id),
            cgroups: Cgroups::default(),
            names: Names::default(),
        }
    }

    /// The process of an event that is not about processes: known, or read from
    /// /proc while it lives, or as the event describes it.
    pub fn process(&mut self, seen: &Seen<'_>, redactor: &mut Redactor) -> Slot {
        if let Some(slot) = self.processes.find(seen) {
            return slot;
        }
        let read = self.proc.as_ref().and_then(|proc| procfs::read(proc, seen.pid));
        let same = |process: &procfs::ProcProcess| {
            seen.start.is_none_or(|start| start.boot / procfs::TICK_NS == process.stat.start_ns / procfs::TICK_NS)
        };
        match read.filter(same) {
            Some(process) => self.processes.insert_from_proc(&process, redactor, &self.clock),
            None => self.processes.get_or_insert(seen),
        }
    }
}
