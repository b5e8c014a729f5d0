//! The process table: seeded from /proc, kept up by the events, and holding
//! the dead for a while, so that a late event about them is still complete.
//!
//! Entries and their strings are used again, so that in steady state an event
//! allocates nothing.

use super::{
    clock::{Clock, Moment},
    container::{Cgroup, Cgroups},
    procfs::{self, ProcProcess, TICK_NS},
    redact::{Redactor, push_lossy},
};
use crate::otlp::{
    SpanContext,
    time::{Iso8601, iso8601},
};
use agent_common::COMM_LEN;
use rustc_hash::FxHashMap;
use std::{collections::VecDeque, io, path::Path, sync::Arc};

/// The dead that are remembered.
const MAX_DEAD: usize = 4096;
/// The living that are remembered; more are described by their events alone.
const MAX_LIVE: usize = 262_144;

/// Below this many living entries nobody looks for those that are gone.
const FEW_LIVE: usize = 4096;

/// Keeps the span ids of other things apart from those of processes, whose numbers are below.
const NO_PROCESS: u64 = 1 << 63;

/// Number of an entry.
pub type Slot = u32;

/// A process, as far as it is known.
#[derive(Clone, Debug, Default)]
pub struct Process {
    /// Thread group id.
    pub pid: u32,
    /// Parent's thread group id.
    pub ppid: u32,
    /// Real user id.
    pub uid: u32,
    /// Real group id.
    pub gid: u32,
    /// All 0 if unknown. From /proc it is a multiple of [`TICK_NS`].
    pub start: Moment,
    /// Its start as text, since every record says it.
    pub created: Iso8601,
    /// Boot clock, ns, of its first exec since the agent runs; 0 if none.
    pub exec_ns: u64,
    /// Command name.
    pub comm: String,
    /// Path of the program.
    pub executable: String,
    /// Redacted.
    pub command_line: String,
    /// Its control group.
    pub cgroup: Option<Arc<Cgroup>>,
    /// Its span.
    pub span: SpanContext,
    /// The span of its parent process, 0 for a root.
    pub parent_span: u64,
    /// It has ended.
    pub ended: bool,
}

/// What an event says of a process.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// Thread group id.
    pub pid: u32,
    /// Parent, if known.
    pub ppid: Option<u32>,
    /// Start, if known.
    pub start: Option<Moment>,
    /// When it was seen: boot clock, ns.
    pub time_ns: u64,
    /// Real user id.
    pub uid: u32,
    /// Real group id.
    pub gid: u32,
    /// Command name without NUL.
    pub comm: &'a [u8],
}

/// See the module.
pub struct ProcessTable {
    entries: Vec<Process>,
    free: Vec<Slot>,
    by_pid: FxHashMap<u32, Slot>,
    dead: VecDeque<Slot>,
    /// Living entries at which those that are gone are looked for.
    crowded: usize,
    /// Makes the span ids of one boot differ from another's.
    seed: u64,
}

impl ProcessTable {
    /// An empty table; `boot_id` is the text of /proc/sys/kernel/random/boot_id.
    #[must_use]
    pub fn new(boot_id: &str) -> Self {
        let seed = boot_id.bytes().fold(0, |hash, byte| mix(hash ^ u64::from(byte)));
        Self {
            entries: Vec::new(),
            free: Vec::new(),
            by_pid: FxHashMap::default(),
            dead: VecDeque::with_capacity(MAX_DEAD + 1),
            crowded: FEW_LIVE,
            seed,
        }
    }

    /// Reads every process of `proc` that is not known yet; returns how many.
    ///
    /// # Errors
    /// If the folder cannot be read; a process that cannot is left out.
    pub fn seed(&mut self, proc: &Path, redactor: &mut Redactor, clock: &Clock) -> io::Result<usize> {
        let mut processes: Vec<ProcProcess> = procfs::pids(proc)?.filter_map(|pid| procfs::read(proc, pid)).collect();
        // Parents first, so that their spans are known.
        processes.sort_by_key(|process| (process.stat.start_ns, process.pid));
        for process in &processes {
            self.insert_from_proc(process, redactor, clock);
        }
        Ok(processes.len())
    }

    /// Takes in a process as /proc shows it.
    pub fn insert_from_proc(&mut self, from: &ProcProcess, redactor: &mut Redactor, clock: &Clock) -> Slot {
        let slot = self.get_or_insert(&Seen {
            pid: from.pid,
            ppid: Some(from.stat.ppid),
            start: Some(clock.moment(from.stat.start_ns)),
            time_ns: Clock::boot_now(),
            uid: from.uid,
            gid: from.gid,
            comm: &from.stat.comm,
        });
        let entry = &mut self.entries[slot as usize];
        set_lossy(&mut entry.executable, &from.exe);
        entry.command_line.clear();
        redactor.write(&from.cmdline, &mut entry.command_line);
        entry.cgroup = Some(Arc::new(Cgroups::of_process(&from.cgroup)));
        slot
    }

    /// The entry of an event's process: the one that is known, or a new one.
    pub fn get_or_insert(&mut self, seen: &Seen<'_>) -> Slot {
        if let Some(slot) = self.find(seen) {
            let entry = &mut self.entries[slot as usize];
            if let Some(ppid) = seen.ppid {
                entry.ppid = ppid;
            }
            if let Some(start) = seen.start
                && start.boot != entry.start.boot
            {
                entry.start = start;
                entry.created = iso8601(start.unix);
            }
            (entry.uid, entry.gid) = (seen.uid, seen.gid);
            set_lossy(&mut entry.comm, seen.comm);
            return slot;
        }
        self.insert(seen)
    }

    /// A new process, with the program of its parent.
    pub fn fork(&mut self, seen: &Seen<'_>) -> Slot {
        // Seeding may have been faster than the event; an older entry is of one that had the pid before.
        let is_new = |slot: &Slot| seen.start.is_some() || self.get(*slot).start.boot + 2 * TICK_NS >= seen.time_ns;
        if let Some(slot) = self.find(seen).filter(is_new) {
            return slot;
        }
        let slot = self.insert(seen);
        let parent = seen.ppid.and_then(|pid| self.by_pid.get(&pid).copied()).filter(|parent| *parent != slot);
        if let Some(parent) = parent {
            // Two entries of one vector: the strings are moved out while they are copied.
            let mut child = std::mem::take(&mut self.entries[slot as usize]);
            let parent = &self.entries[parent as usize];
            child.executable.clone_from(&parent.executable);
            child.command_line.clone_from(&parent.command_line);
            self.entries[slot as usize] = child;
        }
        slot
    }

    /// Marks a process as ended; its entry stays for a while.
    pub fn end(&mut self, slot: Slot) {
        let entry = &mut self.entries[slot as usize];
        if std::mem::replace(&mut entry.ended, true) {
            return;
        }
        self.dead.push_back(slot);
        if self.dead.len() > MAX_DEAD
            && let Some(oldest) = self.dead.pop_front()
        {
            let pid = self.entries[oldest as usize].pid;
            if self.by_pid.get(&pid) == Some(&oldest) {
                self.by_pid.remove(&pid);
            }
            self.free.push(oldest);
        }
    }

    /// Ends the entries whose processes are not in `proc` any more: their ends
    /// were excluded, over the rate or lost. Looks only when the living have
    /// doubled since it last looked.
    pub fn forget_gone(&mut self, proc: &Path) {
        if self.live() < self.crowded {
            return;
        }
        let gone: Vec<Slot> = self
            .living()
            .filter(|(_, process)| !proc.join(process.pid.to_string()).exists())
            .map(|(slot, _)| slot)
            .collect();
        gone.into_iter().for_each(|slot| self.end(slot));
        self.crowded = (self.live() * 2).max(FEW_LIVE);
    }

    /// Entries that have not ended.
    fn live(&self) -> usize {
        self.entries.len() - self.free.len() - self.dead.len()
    }

    /// The place of something that happened in a process: `what` is its number, unique in this boot.
    /// What has no process has a trace of its own.
    #[must_use]
    pub fn span_in(&self, process: Option<&Process>, what: u64) -> SpanContext {
        let id = mix(self.seed ^ mix(what.wrapping_add(NO_PROCESS)));
        let trace_id = process.map_or(u128::from(mix(id)) << 64 | u128::from(id), |process| process.span.trace_id);
        SpanContext { trace_id, span_id: id | 1 }
    }

    /// The entry of a slot.
    #[inline]
    #[must_use]
    pub fn get(&self, slot: Slot) -> &Process {
        &self.entries[slot as usize]
    }

    /// The entry of a slot, to change.
    #[inline]
    pub fn get_mut(&mut self, slot: Slot) -> &mut Process {
        &mut self.entries[slot as usize]
    }

    /// The process that has or last had `pid`.
    #[must_use]
    pub fn by_pid(&self, pid: u32) -> Option<&Process> {
        self.by_pid.get(&pid).map(|slot| self.get(*slot))
    }

    /// Processes that have not ended.
    pub fn living(&self) -> impl Iterator<Item = (Slot, &Process)> {
        self.by_pid.values().map(|slot| (*slot, self.get(*slot))).filter(|(_, process)| !process.ended)
    }

    /// Entries in use, the dead included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_pid.len()
    }

    /// Whether nothing is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_pid.is_empty()
    }

    /// The slot of the very process, not of an earlier one with the same pid.
    #[must_use]
    pub fn find(&self, seen: &Seen<'_>) -> Option<Slot> {
        let slot = *self.by_pid.get(&seen.pid)?;
        let entry = self.get(slot);
        let same = match seen.start {
            Some(start) if entry.start.boot != 0 => start.boot / TICK_NS == entry.start.boot / TICK_NS,
            _ => !entry.ended,
        };
        same.then_some(slot)
    }

    fn insert(&mut self, seen: &Seen<'_>) -> Slot {
        if let Some(&earlier) = self.by_pid.get(&seen.pid) {
            // Its pid is used again, so it has ended, whether we saw it or not.
            self.end(earlier);
        } else if self.live() >= MAX_LIVE {
            self.forget_any();
        }
        let slot = self.free.pop().unwrap_or_else(|| {
            self.entries.push(Process::default());
            (self.entries.len() - 1) as Slot
        });
        let start = seen.start.unwrap_or_default();
        let (span, parent_span) = self.place(seen);
        self.by_pid.insert(seen.pid, slot);
        let entry = &mut self.entries[slot as usize];
        entry.pid = seen.pid;
        entry.ppid = seen.ppid.unwrap_or(0);
        entry.uid = seen.uid;
        entry.gid = seen.gid;
        entry.start = start;
        entry.created = iso8601(start.unix);
        entry.exec_ns = 0;
        set_lossy(&mut entry.comm, seen.comm);
        entry.executable.clear();
        entry.command_line.clear();
        entry.cgroup = None;
        entry.span = span;
        entry.parent_span = parent_span;
        entry.ended = false;
        slot
    }

    /// Makes room when more live than the table holds.
    fn forget_any(&mut self) {
        let any = self.living().map(|(slot, process)| (slot, process.pid)).next();
        if let Some((slot, pid)) = any {
            self.by_pid.remove(&pid);
            self.free.push(slot);
        }
    }

    /// A process belongs to its parent's trace. The children of init and of
    /// the kernel begin traces of their own, or everything would be one.
    fn place(&self, seen: &Seen<'_>) -> (SpanContext, u64) {
        let start = seen.start.map_or(seen.time_ns, |start| start.boot);
        let id = mix(self.seed ^ mix(u64::from(seen.pid) ^ mix(start / TICK_NS)));
        let span_id = id | 1;
        let parent = seen.ppid.filter(|ppid| *ppid > 2).and_then(|ppid| self.by_pid(ppid));
        match parent {
            Some(parent) => (SpanContext { trace_id: parent.span.trace_id, span_id }, parent.span.span_id),
            None => (SpanContext { trace_id: u128::from(mix(id)) << 64 | u128::from(id), span_id }, 0),
        }
    }
}

/// Replaces the text by bytes that may not be UTF-8.
pub fn set_lossy(text: &mut String, bytes: &[u8]) {
    text.clear();
    push_lossy(text, bytes);
}

/// Bytes up to the first NUL.
#[must_use]
pub fn until_nul(bytes: &[u8; COMM_LEN]) -> &[u8] {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    &bytes[..end]
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood: "Fast splittable
/// pseudorandom number generators", 2014): every input bit changes half the output.
fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(pid: u32, ppid: u32, start_ns: u64) -> Seen<'static> {
        let start = Some(Moment { boot: start_ns, unix: start_ns });
        Seen { pid, ppid: Some(ppid), start, time_ns: start_ns, uid: 0, gid: 0, comm: b"x" }
    }

    #[test]
    fn a_child_is_in_its_parents_trace_and_a_child_of_init_is_not() {
        let mut table = ProcessTable::new("boot");
        let init = table.get_or_insert(&seen(1, 0, TICK_NS));
        let service = table.fork(&seen(10, 1, 2 * TICK_NS));
        let child = table.fork(&seen(11, 10, 3 * TICK_NS));
        let (init, service, child) = (table.get(init), table.get(service), table.get(child));
        assert_ne!(service.span.trace_id, init.span.trace_id);
        assert_eq!(service.parent_span, 0);
        assert_eq!(child.span.trace_id, service.span.trace_id);
        assert_eq!(child.parent_span, service.span.span_id);
    }

    #[test]
    fn a_pid_used_again_is_another_process() {
        let mut table = ProcessTable::new("boot");
        let first = table.fork(&seen(10, 1, TICK_NS));
        table.end(first);
        assert!(table.by_pid(10).expect("the dead stay").ended);
        let second = table.fork(&seen(10, 1, 9 * TICK_NS));
        assert_ne!(table.get(first).span, table.get(second).span);
        assert!(!table.by_pid(10).expect("the new one").ended);
    }

    #[test]
    fn proc_and_the_kernel_mean_the_same_process_though_proc_rounds() {
        let mut table = ProcessTable::new("boot");
        let from_proc = table.get_or_insert(&seen(10, 1, 5 * TICK_NS));
        let from_kernel = table.get_or_insert(&seen(10, 1, 5 * TICK_NS + 123));
        assert_eq!(from_proc, from_kernel);
    }

    #[test]
    fn the_dead_are_bounded_and_their_entries_used_again() {
        let mut table = ProcessTable::new("boot");
        for i in 0..50_000u32 {
            let slot = table.fork(&seen(100 + i, 1, u64::from(i) * TICK_NS));
            table.end(slot);
        }
        assert_eq!(table.len(), MAX_DEAD);
        assert!(table.entries.len() <= MAX_DEAD + 1);
    }

    #[test]
    fn processes_whose_end_was_never_told_do_not_pile_up() {
        let mut table = ProcessTable::new("boot");
        let me = std::process::id();
        table.fork(&seen(me, 1, TICK_NS));
        // No pid is that large (PID_MAX_LIMIT, 4 million).
        for i in 0..200_000u32 {
            table.fork(&seen(5_000_000 + i, 1, u64::from(i) * TICK_NS));
            table.forget_gone(Path::new("/proc"));
        }
        assert!(table.live() <= FEW_LIVE && table.entries.len() <= 2 * FEW_LIVE + 2, "{}", table.entries.len());
        assert!(!table.by_pid(me).expect("alive").ended);
    }

    #[test]
    fn a_fork_has_its_parents_program() {
        let mut table = ProcessTable::new("boot");
        let parent = table.get_or_insert(&seen(10, 1, TICK_NS));
        table.get_mut(parent).executable.push_str("/bin/sh");
        let child = table.fork(&seen(11, 10, 2 * TICK_NS));
        assert_eq!(table.get(child).executable, "/bin/sh");
    }
}
