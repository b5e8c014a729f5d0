//! Process room: exec, fork and exit of every process, and the name of every
//! new cgroup. Each hook has an entry point for every rung of the ladder; all do
//! the same with another way to read memory, or from a function close by.
#![no_std]
#![no_main]
#![allow(unused_unsafe, reason = "`constant!` stands in unsafe and in safe code")]

use agent_common::{
    ABSENT, COMM_LEN, Unsent,
    process::{
        CGROUP_NAME_LEN, CGROUP_PATH_LEN, CMDLINE_LEN, Cgroup, CgroupMade, Exec, Exit, FILENAME_LEN, Fork,
        MAX_THREADS_SUMMED, Offsets, Task, kind, missing,
    },
};
use agent_ebpf::{
    admit::{account, admit, note, now},
    constant,
    memory::{Memory, Probed, Typed},
    ring::{reserve, submit},
};
use aya_ebpf::{
    EbpfContext as _,
    helpers::{
        bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_current_uid_gid,
        generated::{
            bpf_get_current_cgroup_id, bpf_get_current_task, bpf_get_current_task_btf, bpf_probe_read_kernel_str,
            bpf_probe_read_user,
        },
    },
    macros::{btf_tracepoint, fentry, kprobe, map, raw_tracepoint, tracepoint},
    maps::LruHashMap,
    programs::{BtfTracePointContext, FEntryContext, ProbeContext, RawTracePointContext, TracePointContext},
};

/// Filled by the loader from the running kernel's BTF and tracefs.
#[unsafe(no_mangle)]
static OFFSETS: Offsets = Offsets::ABSENT;

/// Processes of several threads whose end was told. Before 6.14 two threads
/// that end at the same time both see that no thread is left.
#[map]
static ENDED: LruHashMap<[u64; 2], u8> = LruHashMap::with_max_entries(4096, 0);

/// `CLONE_THREAD` and `CLONE_PARENT`, include/uapi/linux/sched.h
const CLONE_THREAD: u64 = 0x0001_0000;
const CLONE_PARENT: u64 = 0x0000_8000;
/// `SIGNAL_GROUP_EXIT`, include/linux/sched/signal.h
const SIGNAL_GROUP_EXIT: u32 = 0x4;

/// A program was replaced; the current task is the process, with its new memory.
#[btf_tracepoint(function = "sched_process_exec")]
pub fn exec_btf(ctx: BtfTracePointContext) -> i32 {
    exec_of::<Typed>(ctx.arg(0), ctx.arg(2))
}

#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn exec_raw(ctx: RawTracePointContext) -> i32 {
    exec_of::<Probed>(ctx.arg(0), ctx.arg(2))
}

/// The last that an exec does which can be traced; nothing can fail from here on.
#[fentry(function = "finalize_exec")]
pub fn exec_entry(ctx: FEntryContext) -> i32 {
    exec_of::<Typed>(current_typed(), ctx.arg(0))
}

#[kprobe(function = "finalize_exec")]
pub fn exec_probe(ctx: ProbeContext) -> u32 {
    exec_of::<Probed>(current(), ctx.arg(0).unwrap_or(core::ptr::null()));
    0
}

#[inline(always)]
fn exec_of<M: Memory>(task: *const u8, bprm: *const u8) -> i32 {
    account(exec::<M>(task, |at| unsafe {
        M::read(bprm, constant!(OFFSETS.bprm_filename)).map_or(0, |path| read_str(at, path, FILENAME_LEN))
    }))
}

#[tracepoint(category = "sched", name = "sched_process_exec")]
pub fn exec_classic(ctx: TracePointContext) -> i32 {
    account(exec::<Probed>(current(), |at| unsafe {
        read_str(at, data_loc(&ctx, constant!(OFFSETS.tp_exec_filename)), FILENAME_LEN)
    }))
}

/// A new task; the current one is its parent. Threads are not processes.
#[btf_tracepoint(function = "sched_process_fork")]
pub fn fork_btf(ctx: BtfTracePointContext) -> i32 {
    fork_of::<Typed>(ctx.arg(1))
}

#[raw_tracepoint(tracepoint = "sched_process_fork")]
pub fn fork_raw(ctx: RawTracePointContext) -> i32 {
    fork_of::<Probed>(ctx.arg(1))
}

/// The child is complete, and has not run yet.
#[fentry(function = "wake_up_new_task")]
pub fn fork_entry(ctx: FEntryContext) -> i32 {
    fork_of::<Typed>(ctx.arg(0))
}

#[kprobe(function = "wake_up_new_task")]
pub fn fork_probe(ctx: ProbeContext) -> u32 {
    fork_of::<Probed>(ctx.arg(0).unwrap_or(core::ptr::null()));
    0
}

#[inline(always)]
fn fork_of<M: Memory>(child: *const u8) -> i32 {
    let pid: u32 = unsafe { M::read(child, constant!(OFFSETS.task_pid)) }.unwrap_or(0);
    let tgid: u32 = unsafe { M::read(child, constant!(OFFSETS.task_tgid)) }.unwrap_or(0);
    if pid != tgid {
        return 0;
    }
    account(fork(pid, |out, now, comm| unsafe { fill::<M>(out, kind::FORK, child, now, comm) }))
}

/// `task_newtask` and not `sched_process_fork`: only it tells a thread from a process.
#[tracepoint(category = "task", name = "task_newtask")]
pub fn fork_classic(ctx: TracePointContext) -> i32 {
    let pid = unsafe { tracepoint_field::<u32>(&ctx, constant!(OFFSETS.tp_newtask_pid)) };
    let flags = unsafe { tracepoint_field::<u64>(&ctx, constant!(OFFSETS.tp_newtask_flags)) };
    let (Some(pid), Some(flags)) = (pid, flags) else {
        return 0;
    };
    if flags & CLONE_THREAD != 0 {
        return 0;
    }
    // The hook does not give the child. It inherits the caller's cgroup; its start is not known.
    account(fork(pid, |out, now, comm| unsafe {
        fill::<Probed>(out, kind::FORK, current(), now, comm);
        if flags & CLONE_PARENT == 0 {
            (*out).ppid = current_pid();
            (*out).missing &= !missing::PARENT;
        }
        (*out).start_ns = 0;
        (*out).missing |= missing::START;
    }))
}

/// A thread ends; told once for a process, by its last one.
#[btf_tracepoint(function = "sched_process_exit")]
pub fn exit_btf(ctx: BtfTracePointContext) -> i32 {
    let group_dead = if exit_says_group() { Some(ctx.arg::<u8>(1) != 0) } else { None };
    exit::<Typed>(ctx.arg(0), group_dead)
}

#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn exit_raw(ctx: RawTracePointContext) -> i32 {
    let group_dead = if exit_says_group() { Some(ctx.arg::<u8>(1) != 0) } else { None };
    exit::<Probed>(ctx.arg(0), group_dead)
}

/// Whether the tracepoint says if this is the last thread (6.14).
#[inline(always)]
fn exit_says_group() -> bool {
    let arguments = constant!(OFFSETS.exit_arguments);
    arguments != ABSENT && arguments >= 3
}

/// A function of `do_exit` that is told whether this is the last thread, when its exit code is set.
#[fentry(function = "taskstats_exit")]
pub fn exit_entry(ctx: FEntryContext) -> i32 {
    exit::<Typed>(ctx.arg(0), Some(ctx.arg::<i32>(1) != 0))
}

#[kprobe(function = "taskstats_exit")]
pub fn exit_probe(ctx: ProbeContext) -> u32 {
    if let (Some(task), Some(dead)) = (ctx.arg(0), ctx.arg::<i32>(1)) {
        exit::<Probed>(task, Some(dead != 0));
    }
    0
}

#[tracepoint(category = "sched", name = "sched_process_exit")]
pub fn exit_classic(ctx: TracePointContext) -> i32 {
    let group_dead =
        unsafe { tracepoint_field::<u8>(&ctx, constant!(OFFSETS.tp_exit_group_dead)) }.map(|dead| dead != 0);
    exit::<Probed>(current(), group_dead)
}

/// A cgroup is made, before any process can be in it.
#[btf_tracepoint(function = "cgroup_mkdir")]
pub fn cgroup_btf(ctx: BtfTracePointContext) -> i32 {
    let (id, hierarchy) = unsafe { cgroup_identity::<Typed>(ctx.arg(0)) };
    note(cgroup_made(id, hierarchy, ctx.arg(1)))
}

#[raw_tracepoint(tracepoint = "cgroup_mkdir")]
pub fn cgroup_raw(ctx: RawTracePointContext) -> i32 {
    let (id, hierarchy) = unsafe { cgroup_identity::<Probed>(ctx.arg(0)) };
    note(cgroup_made(id, hierarchy, ctx.arg(1)))
}

#[tracepoint(category = "cgroup", name = "cgroup_mkdir")]
pub fn cgroup_classic(ctx: TracePointContext) -> i32 {
    let hierarchy = unsafe { tracepoint_field::<u32>(&ctx, constant!(OFFSETS.tp_mkdir_root)) };
    let id = unsafe { tracepoint_field::<u64>(&ctx, constant!(OFFSETS.tp_mkdir_id)) };
    let path = unsafe { data_loc(&ctx, constant!(OFFSETS.tp_mkdir_path)) };
    note(cgroup_made(id.unwrap_or(0), hierarchy.unwrap_or(0), path))
}

#[inline(always)]
fn exec<M: Memory>(task: *const u8, filename: impl FnOnce(*mut u8) -> u32) -> Result<(), Unsent> {
    let now = now();
    let comm = bpf_get_current_comm().unwrap_or_default();
    admit(current_pid(), current_uid_gid().0, &comm, now)?;
    let mut entry = reserve::<Exec>()?;
    let exec = entry.as_mut_ptr();
    // SAFETY: `exec` is a reserved record of this size; every field that the reader uses is written.
    unsafe {
        let task_out = &raw mut (*exec).task;
        fill::<M>(task_out, kind::EXEC, task, now, &comm);
        (*exec).filename_len = filename((&raw mut (*exec).filename).cast());
        (*exec).cmdline_len = 0;
        match cmdline_range::<M>(task) {
            Some((start, end)) => {
                let mut len = (end - start) as u32;
                if len > CMDLINE_LEN as u32 {
                    len = CMDLINE_LEN as u32;
                }
                let to = (&raw mut (*exec).cmdline).cast();
                if bpf_probe_read_user(to, len, start as *const _) == 0 {
                    (*exec).cmdline_len = len;
                } else {
                    (*task_out).missing |= missing::CMDLINE;
                }
            }
            None => (*task_out).missing |= missing::CMDLINE,
        }
    }
    submit(entry);
    Ok(())
}

/// Where the new program's arguments stand in its own memory.
#[inline(always)]
unsafe fn cmdline_range<M: Memory>(task: *const u8) -> Option<(u64, u64)> {
    let mm: *const u8 = unsafe { M::read(task, constant!(OFFSETS.task_mm)) }?;
    let start: u64 = unsafe { M::read(mm, constant!(OFFSETS.mm_arg_start)) }?;
    let end: u64 = unsafe { M::read(mm, constant!(OFFSETS.mm_arg_end)) }?;
    (start != 0 && end >= start).then_some((start, end))
}

/// `describe` writes what is known of the child, but for its ids.
#[inline(always)]
fn fork(pid: u32, describe: impl FnOnce(*mut Task, u64, &[u8; COMM_LEN])) -> Result<(), Unsent> {
    let now = now();
    let comm = bpf_get_current_comm().unwrap_or_default();
    admit(current_pid(), current_uid_gid().0, &comm, now)?;
    let mut entry = reserve::<Fork>()?;
    let fork = entry.as_mut_ptr();
    // SAFETY: `fork` is a reserved record of this size.
    unsafe {
        let task_out = &raw mut (*fork).task;
        describe(task_out, now, &comm);
        (*task_out).pid = pid;
        (*task_out).tid = pid;
    }
    submit(entry);
    Ok(())
}

#[inline(always)]
fn exit<M: Memory>(task: *const u8, group_dead: Option<bool>) -> i32 {
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

#[inline(always)]
fn cgroup_made(id: u64, hierarchy: u32, path: *const u8) -> Result<(), Unsent> {
    let mut entry = reserve::<CgroupMade>()?;
    let made = entry.as_mut_ptr();
    // SAFETY: `made` is a reserved record of this size.
    unsafe {
        (*made).kind = kind::CGROUP_MADE;
        (*made).hierarchy = hierarchy;
        (*made).id = id;
        (*made).reserved = 0;
        (*made).path_len = read_str((&raw mut (*made).path).cast(), path, CGROUP_PATH_LEN);
    }
    submit(entry);
    Ok(())
}

/// Fills what every record about a process begins with, from `task` and the current credentials.
#[inline(always)]
unsafe fn fill<M: Memory>(out: *mut Task, kind: u32, task: *const u8, now: u64, comm: &[u8; COMM_LEN]) {
    let id = bpf_get_current_pid_tgid();
    let (uid, gid) = current_uid_gid();
    let mut absent = 0;
    unsafe {
        let parent: *const u8 = M::read(task, constant!(OFFSETS.task_real_parent)).unwrap_or(core::ptr::null());
        let ppid = M::read(parent, constant!(OFFSETS.task_tgid)).unwrap_or(0);
        let start = leader_start::<M>(task);
        if constant!(OFFSETS.task_real_parent) == ABSENT || constant!(OFFSETS.task_tgid) == ABSENT {
            absent |= missing::PARENT;
        }
        if start == 0 {
            absent |= missing::START;
        }
        absent |= fill_cgroup::<M>(&raw mut (*out).cgroup, task);
        (*out).kind = kind;
        (*out).missing = absent;
        (*out).time_ns = now;
        (*out).start_ns = start;
        (*out).pid = (id >> 32) as u32;
        (*out).tid = id as u32;
        (*out).ppid = ppid;
        (*out).uid = uid;
        (*out).gid = gid;
        (*out).reserved = 0;
        (*out).comm = *comm;
    }
}

/// The start of the process, which is that of its leader; an exec by another
/// thread makes that one the leader with the old leader's start. 0: not known.
#[inline(always)]
unsafe fn leader_start<M: Memory>(task: *const u8) -> u64 {
    unsafe {
        let leader: *const u8 = M::read(task, constant!(OFFSETS.task_group_leader)).unwrap_or(core::ptr::null());
        M::read(leader, constant!(OFFSETS.task_start)).unwrap_or(0)
    }
}

/// Returns the bits of what is missing.
#[inline(always)]
unsafe fn fill_cgroup<M: Memory>(out: *mut Cgroup, task: *const u8) -> u32 {
    unsafe {
        let Some(cgroup) = task_cgroup::<M>(task) else {
            (*out).id = bpf_get_current_cgroup_id();
            (*out).hierarchy = 0;
            (*out).name_len = 0;
            return missing::CGROUP_NAME;
        };
        let (id, hierarchy) = cgroup_identity::<M>(cgroup);
        (*out).id = id;
        (*out).hierarchy = hierarchy;
        (*out).name_len = 0;
        let kn: Option<*const u8> = M::read(cgroup, constant!(OFFSETS.cgroup_kn));
        if let Some(kn) = kn
            && let Some(name) = M::read::<*const u8>(kn, constant!(OFFSETS.kernfs_name))
        {
            (*out).name_len = read_str((&raw mut (*out).name).cast(), name, CGROUP_NAME_LEN);
        }
        0
    }
}

/// The cgroup v2 of a task or, where that is the root, its v1 memory cgroup.
#[inline(always)]
unsafe fn task_cgroup<M: Memory>(task: *const u8) -> Option<*const u8> {
    unsafe {
        let set: *const u8 = M::read(task, constant!(OFFSETS.task_cgroups))?;
        let unified: *const u8 = M::read(set, constant!(OFFSETS.css_set_dfl_cgrp))?;
        let level: i32 = M::read(unified, constant!(OFFSETS.cgroup_level))?;
        if level > 0 {
            return Some(unified);
        }
        Some(memory_cgroup::<M>(set).unwrap_or(unified))
    }
}

#[inline(always)]
unsafe fn memory_cgroup<M: Memory>(set: *const u8) -> Option<*const u8> {
    let array = constant!(OFFSETS.css_set_subsys);
    let index = constant!(OFFSETS.memory_subsys);
    if array == ABSENT || index == ABSENT {
        return None;
    }
    unsafe {
        let state: *const u8 = M::read(set, array + index * 8)?;
        let cgroup: *const u8 = M::read(state, constant!(OFFSETS.css_cgroup))?;
        if cgroup.is_null() { None } else { Some(cgroup) }
    }
}

/// Id and hierarchy of a `struct cgroup`.
#[inline(always)]
unsafe fn cgroup_identity<M: Memory>(cgroup: *const u8) -> (u64, u32) {
    unsafe {
        let kn: Option<*const u8> = M::read(cgroup, constant!(OFFSETS.cgroup_kn));
        let id = kn.and_then(|kn| M::read(kn, constant!(OFFSETS.kernfs_id)));
        let root: Option<*const u8> = M::read(cgroup, constant!(OFFSETS.cgroup_root));
        let hierarchy = root.and_then(|root| M::read(root, constant!(OFFSETS.cgroup_root_hierarchy)));
        (id.unwrap_or(0), hierarchy.unwrap_or(0))
    }
}

/// Copies a NUL-terminated kernel string; returns its length without the NUL.
#[inline(always)]
unsafe fn read_str(to: *mut u8, from: *const u8, size: usize) -> u32 {
    if from.is_null() {
        return 0;
    }
    // SAFETY: `to` has `size` bytes; the helper checks `from`.
    let copied = unsafe { bpf_probe_read_kernel_str(to.cast(), size as u32, from.cast()) };
    if copied > 0 { copied as u32 - 1 } else { 0 }
}

/// One field of a classic tracepoint's record.
#[inline(always)]
unsafe fn tracepoint_field<T: Copy>(ctx: &TracePointContext, offset: u32) -> Option<T> {
    unsafe { Probed::read(ctx.as_ptr().cast_const().cast(), offset) }
}

/// The address of a `__data_loc` string: its low 16 bits are an offset into the record.
#[inline(always)]
unsafe fn data_loc(ctx: &TracePointContext, offset: u32) -> *const u8 {
    match unsafe { tracepoint_field::<u32>(ctx, offset) } {
        Some(location) => (ctx.as_ptr() as u64 + u64::from(location & 0xffff)) as *const u8,
        None => core::ptr::null(),
    }
}

/// The current task as a typed pointer (5.11).
#[inline(always)]
fn current_typed() -> *const u8 {
    // SAFETY: no arguments, no side effect.
    (unsafe { bpf_get_current_task_btf() }) as *const u8
}

/// The current task as an address.
#[inline(always)]
fn current() -> *const u8 {
    // SAFETY: no arguments, no side effect.
    (unsafe { bpf_get_current_task() }) as *const u8
}

#[inline(always)]
fn current_pid() -> u32 {
    (bpf_get_current_pid_tgid() >> 32) as u32
}

#[inline(always)]
fn current_uid_gid() -> (u32, u32) {
    let both = bpf_get_current_uid_gid();
    (both as u32, (both >> 32) as u32)
}

/// The programs use GPL-only helpers.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
pub static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
