//! Wire structs of the process room: one record per exec, fork and exit of a
//! process (a thread group), and one per new cgroup.

use crate::{COMM_LEN, Source, fields::offsets};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Longest executable path kept, with its NUL, in bytes.
pub const FILENAME_LEN: usize = 256;
/// Longest command line kept, in bytes; arguments are separated by NUL.
pub const CMDLINE_LEN: usize = 512;
/// Longest cgroup leaf name kept, with its NUL. The longest seen in practice is
/// `crio-conmon-<64 hex>.scope`, 83 bytes.
pub const CGROUP_NAME_LEN: usize = 128;
/// Longest cgroup path kept, with its NUL. A systemd Kubernetes path of a
/// container takes about 250.
pub const CGROUP_PATH_LEN: usize = 512;
/// Threads of an ending process whose CPU time is summed one by one; those of
/// a larger group that were not yet released when the last one ended are missing.
pub const MAX_THREADS_SUMMED: u32 = 128;

/// What a record is: its first four bytes.
pub mod kind {
    /// [`super::Exec`]
    pub const EXEC: u32 = 1;
    /// [`super::Fork`]
    pub const FORK: u32 = 2;
    /// [`super::Exit`]
    pub const EXIT: u32 = 3;
    /// [`super::CgroupMade`]
    pub const CGROUP_MADE: u32 = 4;
}

/// Bits of [`Task::missing`]: what this kernel and rung could not tell.
pub mod missing {
    /// `ppid`
    pub const PARENT: u32 = 1;
    /// `start_ns`
    pub const START: u32 = 1 << 1;
    /// `cgroup.name` (and the id where cgroup v2 is not in use)
    pub const CGROUP_NAME: u32 = 1 << 2;
    /// `Exec::cmdline`
    pub const CMDLINE: u32 = 1 << 3;
    /// `Exit::status`
    pub const STATUS: u32 = 1 << 4;
    /// CPU times and faults of `Exit`
    pub const USAGE: u32 = 1 << 5;
}

/// The cgroup of a task: in the unified hierarchy, or, where the task is in
/// its root, in the v1 memory hierarchy.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Cgroup {
    /// `cgroup->kn->id`: the inode number of the cgroup's folder.
    pub id: u64,
    /// `cgroup->root->hierarchy_id`: 0 for cgroup v2.
    pub hierarchy: u32,
    /// Bytes used of `name`.
    pub name_len: u32,
    /// `cgroup->kn->name`: the last part of the path, empty in the root.
    pub name: [u8; CGROUP_NAME_LEN],
}

/// What every record about a process begins with.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Task {
    /// One of [`kind`].
    pub kind: u32,
    /// Bits of [`missing`].
    pub missing: u32,
    /// Boot clock, ns (`bpf_ktime_get_boot_ns`).
    pub time_ns: u64,
    /// Boot clock, ns: `task->group_leader->start_boottime`.
    pub start_ns: u64,
    /// Thread group id, in the initial pid namespace.
    pub pid: u32,
    /// Thread id: the thread that called, for a fork the child's only one.
    pub tid: u32,
    /// Thread group id of `task->real_parent`.
    pub ppid: u32,
    /// Real user id, in the initial user namespace.
    pub uid: u32,
    /// Real group id, in the initial user namespace.
    pub gid: u32,
    /// Always 0.
    pub reserved: u32,
    /// `task->comm`, NUL-terminated.
    pub comm: [u8; COMM_LEN],
    /// See [`Cgroup`].
    pub cgroup: Cgroup,
}

/// A process replaced its program: `sched_process_exec`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Exec {
    /// The process, after the exec.
    pub task: Task,
    /// Bytes used of `filename`.
    pub filename_len: u32,
    /// Bytes used of `cmdline`.
    pub cmdline_len: u32,
    /// `bprm->filename`: the path as given to execve, relative if it was.
    pub filename: [u8; FILENAME_LEN],
    /// `mm->arg_start ..`, arguments separated by NUL; cut at [`CMDLINE_LEN`].
    pub cmdline: [u8; CMDLINE_LEN],
}

/// A new process: `sched_process_fork`, not sent for a thread.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Fork {
    /// The child.
    pub task: Task,
}

/// The last thread of a process ended: `sched_process_exit`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Exit {
    /// The process; `tid` is the thread that ended last.
    pub task: Task,
    /// As waitpid gives it: exit code << 8, or the signal in the low 7 bits.
    pub status: i32,
    /// Threads that the sums could not reach, see [`MAX_THREADS_SUMMED`].
    pub threads_missed: u32,
    /// Tick-sampled user time of all threads, ns (`utime`).
    pub utime_ns: u64,
    /// Tick-sampled system time of all threads, ns (`stime`).
    pub stime_ns: u64,
    /// Time on a CPU of all threads, ns (`sum_exec_runtime`), up to the last tick or switch.
    pub runtime_ns: u64,
    /// Page faults served without I/O.
    pub minor_faults: u64,
    /// Page faults that needed I/O.
    pub major_faults: u64,
}

/// A cgroup was made: `cgroup_mkdir`. It comes before any record of a process in it.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CgroupMade {
    /// [`kind::CGROUP_MADE`]
    pub kind: u32,
    /// `cgroup->root->hierarchy_id`
    pub hierarchy: u32,
    /// `cgroup->kn->id`
    pub id: u64,
    /// Bytes used of `path`.
    pub path_len: u32,
    /// Always 0.
    pub reserved: u32,
    /// Path below the hierarchy's root, begins with `/`.
    pub path: [u8; CGROUP_PATH_LEN],
}

offsets! {
    /// Where the running kernel keeps what the process room reads.
    pub struct Offsets {
        task_pid: Source::Member("task_struct", "pid"),
        task_tgid: Source::Member("task_struct", "tgid"),
        task_real_parent: Source::Member("task_struct", "real_parent"),
        task_group_leader: Source::Member("task_struct", "group_leader"),
        /// `real_start_time` before 5.5.
        task_start: Source::Member("task_struct", "start_boottime"),
        task_comm: Source::Member("task_struct", "comm"),
        task_mm: Source::Member("task_struct", "mm"),
        task_signal: Source::Member("task_struct", "signal"),
        task_cgroups: Source::Member("task_struct", "cgroups"),
        task_exit_code: Source::Member("task_struct", "exit_code"),
        task_utime: Source::Member("task_struct", "utime"),
        task_stime: Source::Member("task_struct", "stime"),
        task_runtime: Source::Member("task_struct", "se.sum_exec_runtime"),
        task_min_flt: Source::Member("task_struct", "min_flt"),
        task_maj_flt: Source::Member("task_struct", "maj_flt"),
        task_thread_node: Source::Member("task_struct", "thread_node"),
        signal_live: Source::Member("signal_struct", "live"),
        signal_nr_threads: Source::Member("signal_struct", "nr_threads"),
        signal_thread_head: Source::Member("signal_struct", "thread_head"),
        signal_flags: Source::Member("signal_struct", "flags"),
        signal_group_exit_code: Source::Member("signal_struct", "group_exit_code"),
        signal_utime: Source::Member("signal_struct", "utime"),
        signal_stime: Source::Member("signal_struct", "stime"),
        signal_runtime: Source::Member("signal_struct", "sum_sched_runtime"),
        signal_min_flt: Source::Member("signal_struct", "min_flt"),
        signal_maj_flt: Source::Member("signal_struct", "maj_flt"),
        bprm_filename: Source::Member("linux_binprm", "filename"),
        mm_arg_start: Source::Member("mm_struct", "arg_start"),
        mm_arg_end: Source::Member("mm_struct", "arg_end"),
        css_set_dfl_cgrp: Source::Member("css_set", "dfl_cgrp"),
        css_set_subsys: Source::Member("css_set", "subsys"),
        css_cgroup: Source::Member("cgroup_subsys_state", "cgroup"),
        cgroup_level: Source::Member("cgroup", "level"),
        cgroup_kn: Source::Member("cgroup", "kn"),
        cgroup_root: Source::Member("cgroup", "root"),
        cgroup_root_hierarchy: Source::Member("cgroup_root", "hierarchy_id"),
        kernfs_id: Source::Member("kernfs_node", "id"),
        kernfs_name: Source::Member("kernfs_node", "name"),
        memory_subsys: Source::Enumerator("cgroup_subsys_id", "memory_cgrp_id"),
        /// 3 with `group_dead` (6.14), 2 without; the first is the tracepoint's own data.
        exit_arguments: Source::Arguments("sched_process_exit"),
        tp_exec_filename: Source::Tracepoint("sched/sched_process_exec", "filename"),
        tp_newtask_pid: Source::Tracepoint("task/task_newtask", "pid"),
        tp_newtask_flags: Source::Tracepoint("task/task_newtask", "clone_flags"),
        tp_exit_group_dead: Source::Tracepoint("sched/sched_process_exit", "group_dead"),
        tp_mkdir_root: Source::Tracepoint("cgroup/cgroup_mkdir", "root"),
        tp_mkdir_id: Source::Tracepoint("cgroup/cgroup_mkdir", "id"),
        tp_mkdir_path: Source::Tracepoint("cgroup/cgroup_mkdir", "path"),
    }
}
