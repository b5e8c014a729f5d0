//! What every record says of a task, and how it is read.

use crate::OFFSETS;
use agent_common::{
    ABSENT, COMM_LEN,
    process::{CGROUP_NAME_LEN, Cgroup, Task, missing},
};
use agent_ebpf::{constant, memory::Memory};
use aya_ebpf::helpers::{
    bpf_get_current_pid_tgid, bpf_get_current_uid_gid,
    generated::{bpf_get_current_cgroup_id, bpf_probe_read_kernel_str},
};

/// Fills what every record about a process begins with, from `task` and the current credentials.
#[inline(always)]
pub unsafe fn fill<M: Memory>(out: *mut Task, kind: u32, task: *const u8, now: u64, comm: &[u8; COMM_LEN]) {
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
pub unsafe fn leader_start<M: Memory>(task: *const u8) -> u64 {
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
pub unsafe fn cgroup_identity<M: Memory>(cgroup: *const u8) -> (u64, u32) {
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
pub unsafe fn read_str(to: *mut u8, from: *const u8, size: usize) -> u32 {
    if from.is_null() {
        return 0;
    }
    // SAFETY: `to` has `size` bytes; the helper checks `from`.
    let copied = unsafe { bpf_probe_read_kernel_str(to.cast(), size as u32, from.cast()) };
    if copied > 0 { copied as u32 - 1 } else { 0 }
}

#[inline(always)]
pub fn current_pid() -> u32 {
    (bpf_get_current_pid_tgid() >> 32) as u32
}

#[inline(always)]
pub fn current_uid_gid() -> (u32, u32) {
    let both = bpf_get_current_uid_gid();
    (both as u32, (both >> 32) as u32)
}
