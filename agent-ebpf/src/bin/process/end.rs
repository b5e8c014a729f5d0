//! The end of a process: which thread is the last, its status, and what it has used.

use crate::{
    OFFSETS,
    task::{current_pid, current_uid_gid, fill, leader_start},
};
use agent_common::{
    ABSENT, COMM_LEN, Unsent,
    process::{Exit, MAX_THREADS_SUMMED, kind, missing},
};
use agent_ebpf::{
    admit::{account, admit, now},
    constant,
    memory::{Memory, Probed},
    ring::{reserve, submit},
};
use aya_ebpf::{
    helpers::{bpf_get_current_comm, bpf_get_current_pid_tgid},
    macros::map,
    maps::LruHashMap,
};

/// Processes of several threads whose end was told. Before 6.14 two threads
/// that end at the same time both see that no thread is left.
#[map]
static ENDED: LruHashMap<[u64; 2], u8> = LruHashMap::with_max_entries(4096, 0);

/// `SIGNAL_GROUP_EXIT`, include/linux/sched/signal.h
const SIGNAL_GROUP_EXIT: u32 = 0x4;

#[inline(always)]
pub fn exit<M: Memory>(task: *const u8, group_dead: Option<bool>) -> i32 {
    // SAFETY: `task` is the current task.
    let signal: *const u8 = unsafe { M::read(task, constant!(OFFSETS.task_signal)) }.unwrap_or(core::ptr::null());
    if !unsafe { is_last_thread::<M>(task, signal, group_dead) } {
        return 0;
    }
    account(try_exit::<M>(task, signal))
}

/// Sources: `do_exit` and `wait_task_zombie` in kernel/exit.c.
#[inline(always)]
fn try_exit<M: Memory>(task: *const u8, signal: *const u8) -> Result<(), Unsent> {
    let now = now();
    let comm = unsafe { leader_comm::<M>(task) };
    admit(current_pid(), current_uid_gid().0, &comm, now)?;
    let mut entry = reserve::<Exit>()?;
    let exit = entry.as_mut_ptr();
    // SAFETY: `exit` is a reserved record of this size.
    unsafe {
        let task_out = &raw mut (*exit).task;
        fill::<M>(task_out, kind::EXIT, task, now, &comm);
        (*exit).status = match status::<M>(task, signal) {
            Some(status) => status,
            None => {
                (*task_out).missing |= missing::STATUS;
                0
            }
        };
        let mut sum = Usage::default();
        if sum.add_process::<M>(task, signal).is_none() {
            (*task_out).missing |= missing::USAGE;
        }
        (*exit).utime_ns = sum.utime;
        (*exit).stime_ns = sum.stime;
        (*exit).runtime_ns = sum.runtime;
        (*exit).minor_faults = sum.min_flt;
        (*exit).major_faults = sum.maj_flt;
        (*exit).threads_missed = sum.threads_missed;
    }
    submit(entry);
    Ok(())
}

/// `signal->live` is counted down before the hook runs.
#[inline(always)]
unsafe fn is_last_thread<M: Memory>(task: *const u8, signal: *const u8, group_dead: Option<bool>) -> bool {
    if let Some(dead) = group_dead {
        return dead;
    }
    let Some(live) = (unsafe { M::read::<i32>(signal, constant!(OFFSETS.signal_live)) }) else {
        // No BTF: the leader's end stands for the process's.
        let id = bpf_get_current_pid_tgid();
        return id as u32 == (id >> 32) as u32;
    };
    if live != 0 {
        return false;
    }
    let start = unsafe { leader_start::<M>(task) };
    let key = [u64::from(current_pid()), start];
    if unsafe { M::read::<i32>(signal, constant!(OFFSETS.signal_nr_threads)) } == Some(1) {
        // Another one may have been told and released already.
        // SAFETY: the entry is only tested for presence.
        return unsafe { ENDED.get(key) }.is_none();
    }
    const BPF_NOEXIST: u64 = 1;
    /// With any other error the end is told, perhaps twice, rather than not at all.
    const EEXIST: i32 = -17;
    ENDED.insert(key, 1, BPF_NOEXIST) != Err(EEXIST)
}

/// The name of a process is its leader's; another thread may be the last to end.
#[inline(always)]
unsafe fn leader_comm<M: Memory>(task: *const u8) -> [u8; COMM_LEN] {
    let id = bpf_get_current_pid_tgid();
    if id as u32 != (id >> 32) as u32 {
        let leader: Option<*const u8> = unsafe { M::read(task, constant!(OFFSETS.task_group_leader)) };
        if let Some(leader) = leader {
            // As words: an array of bytes is no load.
            if let Some(comm) = unsafe { M::read::<[u64; 2]>(leader, constant!(OFFSETS.task_comm)) } {
                // SAFETY: sixteen bytes as sixteen bytes.
                return unsafe { core::mem::transmute::<[u64; 2], [u8; COMM_LEN]>(comm) };
            }
        }
    }
    bpf_get_current_comm().unwrap_or_default()
}

/// What waitpid will say: the group's code if one was set, else the leader's.
#[inline(always)]
unsafe fn status<M: Memory>(task: *const u8, signal: *const u8) -> Option<i32> {
    let flags: u32 = unsafe { M::read(signal, constant!(OFFSETS.signal_flags)) }?;
    if flags & SIGNAL_GROUP_EXIT != 0 {
        return unsafe { M::read(signal, constant!(OFFSETS.signal_group_exit_code)) };
    }
    let leader: *const u8 = unsafe { M::read(task, constant!(OFFSETS.task_group_leader)) }?;
    unsafe { M::read(leader, constant!(OFFSETS.task_exit_code)) }
}

/// CPU time (ns) and page faults of a process.
#[derive(Default)]
struct Usage {
    utime: u64,
    stime: u64,
    runtime: u64,
    min_flt: u64,
    maj_flt: u64,
    threads_missed: u32,
}

impl Usage {
    /// `signal` keeps the sums of the threads that were released; those still
    /// in its list are added (`thread_group_cputime`, kernel/sched/cputime.c).
    #[inline(always)]
    unsafe fn add_process<M: Memory>(&mut self, task: *const u8, signal: *const u8) -> Option<()> {
        unsafe {
            self.utime = M::read(signal, constant!(OFFSETS.signal_utime))?;
            self.stime = M::read(signal, constant!(OFFSETS.signal_stime))?;
            self.runtime = M::read(signal, constant!(OFFSETS.signal_runtime))?;
            self.min_flt = M::read(signal, constant!(OFFSETS.signal_min_flt))?;
            self.maj_flt = M::read(signal, constant!(OFFSETS.signal_maj_flt))?;
            let threads: u32 = M::read(signal, constant!(OFFSETS.signal_nr_threads))?;
            if threads <= 1 {
                return self.add_task::<M>(task);
            }
            self.add_listed_threads(signal, threads)
        }
    }

    #[inline(always)]
    unsafe fn add_task<M: Memory>(&mut self, task: *const u8) -> Option<()> {
        unsafe {
            self.utime += M::read::<u64>(task, constant!(OFFSETS.task_utime))?;
            self.stime += M::read::<u64>(task, constant!(OFFSETS.task_stime))?;
            self.runtime += M::read::<u64>(task, constant!(OFFSETS.task_runtime))?;
            self.min_flt += M::read::<u64>(task, constant!(OFFSETS.task_min_flt))?;
            self.maj_flt += M::read::<u64>(task, constant!(OFFSETS.task_maj_flt))?;
        }
        Some(())
    }

    /// A list node is no typed pointer to a task, so this walk copies.
    #[inline(always)]
    unsafe fn add_listed_threads(&mut self, signal: *const u8, threads: u32) -> Option<()> {
        let head_offset = constant!(OFFSETS.signal_thread_head);
        let node_offset = constant!(OFFSETS.task_thread_node);
        if head_offset == ABSENT || node_offset == ABSENT {
            return None;
        }
        let head = signal.wrapping_add(head_offset as usize) as u64;
        let mut node: u64 = unsafe { Probed::read(signal, head_offset) }?;
        let mut walked = 0u32;
        while walked < MAX_THREADS_SUMMED {
            if node == head || node == 0 {
                return Some(());
            }
            let task = (node - u64::from(node_offset)) as *const u8;
            unsafe { self.add_task::<Probed>(task) }?;
            node = unsafe { Probed::read(node as *const u8, 0) }?;
            walked += 1;
        }
        self.threads_missed = threads.saturating_sub(walked);
        Some(())
    }
}
