//! Process room: exec, fork and exit of every process, and the name of every
//! new cgroup. Each hook has an entry point for every rung of the ladder; all do
//! the same with another way to read memory, or from a function close by.
#![no_std]
#![no_main]
#![allow(unused_unsafe, reason = "`constant!` stands in unsafe and in safe code")]

mod end;
mod task;

use agent_common::{
    ABSENT, COMM_LEN, Unsent,
    process::{CGROUP_PATH_LEN, CMDLINE_LEN, CgroupMade, Exec, FILENAME_LEN, Fork, Offsets, Task, kind, missing},
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
        bpf_get_current_comm,
        generated::{bpf_get_current_task, bpf_get_current_task_btf, bpf_probe_read_user},
    },
    macros::{btf_tracepoint, fentry, kprobe, raw_tracepoint, tracepoint},
    programs::{BtfTracePointContext, FEntryContext, ProbeContext, RawTracePointContext, TracePointContext},
};
use end::exit;
use task::{cgroup_identity, current_pid, current_uid_gid, fill, read_str};

/// Filled by the loader from the running kernel's BTF and tracefs.
#[unsafe(no_mangle)]
static OFFSETS: Offsets = Offsets::ABSENT;

/// `CLONE_THREAD` and `CLONE_PARENT`, include/uapi/linux/sched.h
const CLONE_THREAD: u64 = 0x0001_0000;
const CLONE_PARENT: u64 = 0x0000_8000;

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

/// The programs use GPL-only helpers.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
pub static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
