//! The system calls that an agent never makes once it is attached.
//!
//! It is a list of what is refused, not of what is allowed. Which calls a libc, a name service module or the TLS
//! library makes differs by version and architecture, and a call that was left out of a list of allowed ones would be
//! an agent that does not start somewhere. What an intruder would want is known, and the same everywhere.

use libc::{c_int, c_long};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen as Length, SeccompCmpOp as Is, SeccompCondition,
    SeccompFilter, SeccompRule, apply_filter, sock_filter,
};
use std::collections::BTreeMap;

/// Calls that are refused whatever their arguments are, by what they do.
const REFUSED: &[(&str, &[c_long])] = &[
    ("start a program", &[libc::SYS_execve, libc::SYS_execveat]),
    (
        "look into other processes or change them",
        &[
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
            libc::SYS_process_vm_writev,
            libc::SYS_process_madvise,
            libc::SYS_pidfd_getfd,
            libc::SYS_pidfd_send_signal,
            libc::SYS_kcmp,
            libc::SYS_kill,
            libc::SYS_tkill,
            libc::SYS_rt_sigqueueinfo,
            libc::SYS_setpriority,
            libc::SYS_ioprio_set,
            libc::SYS_sched_setaffinity,
            libc::SYS_sched_setparam,
            libc::SYS_sched_setscheduler,
            libc::SYS_sched_setattr,
            PROCESS_MRELEASE,
        ],
    ),
    (
        "mount, or see another part of the system",
        &[
            libc::SYS_mount,
            libc::SYS_umount2,
            libc::SYS_pivot_root,
            libc::SYS_chroot,
            libc::SYS_move_mount,
            libc::SYS_open_tree,
            OPEN_TREE_ATTR,
            libc::SYS_fsopen,
            libc::SYS_fsconfig,
            libc::SYS_fsmount,
            libc::SYS_fspick,
            libc::SYS_mount_setattr,
            libc::SYS_setns,
            libc::SYS_unshare,
            libc::SYS_name_to_handle_at,
            libc::SYS_open_by_handle_at,
            libc::SYS_fanotify_init,
        ],
    ),
    (
        "change the kernel or the machine",
        &[
            libc::SYS_init_module,
            libc::SYS_finit_module,
            libc::SYS_delete_module,
            libc::SYS_kexec_load,
            KEXEC_FILE_LOAD,
            libc::SYS_reboot,
            libc::SYS_swapon,
            libc::SYS_swapoff,
            libc::SYS_acct,
            libc::SYS_quotactl,
            libc::SYS_quotactl_fd,
            libc::SYS_syslog,
            libc::SYS_settimeofday,
            libc::SYS_clock_settime,
            libc::SYS_adjtimex,
            libc::SYS_clock_adjtime,
            libc::SYS_sethostname,
            libc::SYS_setdomainname,
            libc::SYS_vhangup,
        ],
    ),
    (
        "use parts of the kernel that are known for their bugs",
        &[
            libc::SYS_perf_event_open,
            libc::SYS_userfaultfd,
            libc::SYS_io_uring_setup,
            libc::SYS_io_uring_enter,
            libc::SYS_io_uring_register,
            libc::SYS_keyctl,
            libc::SYS_add_key,
            libc::SYS_request_key,
        ],
    ),
    (
        "become another user",
        &[
            libc::SYS_setuid,
            libc::SYS_setgid,
            libc::SYS_setreuid,
            libc::SYS_setregid,
            libc::SYS_setresuid,
            libc::SYS_setresgid,
            libc::SYS_setfsuid,
            libc::SYS_setfsgid,
            libc::SYS_setgroups,
        ],
    ),
    (
        "change files",
        &[
            libc::SYS_mkdirat,
            libc::SYS_unlinkat,
            libc::SYS_renameat,
            libc::SYS_renameat2,
            libc::SYS_linkat,
            libc::SYS_symlinkat,
            libc::SYS_mknodat,
            libc::SYS_truncate,
            libc::SYS_fchmod,
            libc::SYS_fchmodat,
            FCHMODAT2,
            libc::SYS_fchown,
            libc::SYS_fchownat,
            libc::SYS_utimensat,
            libc::SYS_setxattr,
            libc::SYS_lsetxattr,
            libc::SYS_fsetxattr,
            SETXATTRAT,
            libc::SYS_removexattr,
            libc::SYS_lremovexattr,
            libc::SYS_fremovexattr,
            REMOVEXATTRAT,
            FILE_SETATTR,
        ],
    ),
    #[cfg(target_arch = "x86_64")]
    (
        "do any of it by calls that newer architectures do not have",
        &[
            libc::SYS_fork,
            libc::SYS_vfork,
            libc::SYS_iopl,
            libc::SYS_ioperm,
            libc::SYS_modify_ldt,
            libc::SYS_uselib,
            libc::SYS_creat,
            libc::SYS_mkdir,
            libc::SYS_rmdir,
            libc::SYS_unlink,
            libc::SYS_rename,
            libc::SYS_link,
            libc::SYS_symlink,
            libc::SYS_mknod,
            libc::SYS_chmod,
            libc::SYS_chown,
            libc::SYS_lchown,
            libc::SYS_utime,
            libc::SYS_utimes,
            libc::SYS_futimesat,
        ],
    ),
];

/// Calls that not every C library's headers have. From 424 on, numbers are the same on all architectures
/// (scripts/syscall.tbl).
const PROCESS_MRELEASE: c_long = 448;
const FCHMODAT2: c_long = 452;
const SETXATTRAT: c_long = 463;
const REMOVEXATTRAT: c_long = 466;
const OPEN_TREE_ATTR: c_long = 467;
const FILE_SETATTR: c_long = 469;
#[cfg(target_arch = "x86_64")]
const KEXEC_FILE_LOAD: c_long = 320;
#[cfg(not(target_arch = "x86_64"))]
const KEXEC_FILE_LOAD: c_long = 294;

/// Commands of bpf() that work on what there is: elements of maps, and a new run of an iterator that is loaded
/// (enum bpf_cmd, include/uapi/linux/bpf.h). All others create, load, pin, or find objects of other programs.
const BPF_COMMANDS: &[(&str, u32)] = &[
    ("MAP_LOOKUP_ELEM", 1),
    ("MAP_UPDATE_ELEM", 2),
    ("MAP_DELETE_ELEM", 3),
    ("MAP_GET_NEXT_KEY", 4),
    ("OBJ_GET_INFO_BY_FD", 15),
    ("MAP_LOOKUP_AND_DELETE_ELEM", 21),
    ("MAP_LOOKUP_BATCH", 24),
    ("MAP_LOOKUP_AND_DELETE_BATCH", 25),
    ("MAP_UPDATE_BATCH", 26),
    ("MAP_DELETE_BATCH", 27),
    ("LINK_CREATE", 28),
    ("ITER_CREATE", 33),
];

/// TIOCSTI and TIOCLINUX (include/uapi/asm-generic/ioctls.h) put keystrokes into a terminal, which a shell then reads.
const TYPING: [u64; 2] = [0x5412, 0x541c];

/// Why there is no filter.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// The rules are no program.
    #[error("the rules make no filter: {0}")]
    Rules(#[from] BackendError),
    /// The kernel does not take it.
    #[error("the kernel refuses the filter: {0}")]
    Refused(#[from] seccompiler::Error),
    /// It is written for x86-64 and 64-bit Arm.
    #[error("there is no filter for this architecture")]
    Architecture,
}

/// Refuses them to the calling thread, and to threads that it makes from now on.
///
/// # Errors
/// [`FilterError`]
pub fn apply() -> Result<(), FilterError> {
    apply_filter(&unknown_arguments())?;
    apply_filter(&program()?)?;
    Ok(())
}

/// How many calls are refused, by all or some arguments.
#[must_use]
pub fn refused() -> usize {
    rules().map_or(0, |rules| rules.len()) + UNKNOWN_ARGUMENTS.len()
}

fn program() -> Result<BpfProgram, FilterError> {
    let refuse = SeccompAction::Errno(libc::EPERM as u32);
    let architecture = std::env::consts::ARCH.try_into().map_err(|_| FilterError::Architecture)?;
    // A call by another architecture's numbers (int 0x80) ends the process.
    Ok(SeccompFilter::new(rules()?, SeccompAction::Allow, refuse, architecture)?.try_into()?)
}

fn rules() -> Result<BTreeMap<c_long, Vec<SeccompRule>>, BackendError> {
    let mut rules: BTreeMap<c_long, Vec<SeccompRule>> =
        REFUSED.iter().flat_map(|(_, calls)| *calls).map(|call| (*call, Vec::new())).collect();
    // A thread may be made, a process not.
    rules.insert(libc::SYS_clone, vec![when(0, Length::Qword, &[lacks(libc::CLONE_THREAD)])?]);
    // abort() and a panic's end signal the own process.
    let own = u64::from(std::process::id());
    for call in [libc::SYS_tgkill, libc::SYS_rt_tgsigqueueinfo] {
        rules.insert(call, vec![when(0, Length::Dword, &[(Is::Ne, own)])?]);
    }
    // What the agent writes are descriptors that it has. /proc/PID/mem is also a file.
    for (call, flags) in OPEN {
        rules.insert(*call, writing(*flags)?);
    }
    let other_commands: Vec<_> = BPF_COMMANDS.iter().map(|(_, command)| (Is::Ne, u64::from(*command))).collect();
    rules.insert(libc::SYS_bpf, vec![when(0, Length::Dword, &other_commands)?]);
    let typing = TYPING.iter().map(|request| when(1, Length::Dword, &[(Is::Eq, *request)]));
    rules.insert(libc::SYS_ioctl, typing.collect::<Result<_, _>>()?);
    Ok(rules)
}

/// Calls that open a file, and which argument has the flags.
const OPEN: &[(c_long, u8)] = &[
    (libc::SYS_openat, 2),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_open, 1),
];

/// One rule for each way to say that a file shall change.
fn writing(flags: u8) -> Result<Vec<SeccompRule>, BackendError> {
    // O_ACCMODE has one more bit in some C libraries.
    const READ_AND_WRITE: c_int = libc::O_WRONLY | libc::O_RDWR;
    let access = |mode: c_int| (Is::MaskedEq(READ_AND_WRITE as u64), mode as u64);
    let has = |flag: c_int| (Is::MaskedEq(flag as u64), flag as u64);
    [access(libc::O_WRONLY), access(libc::O_RDWR), access(READ_AND_WRITE), has(libc::O_CREAT), has(libc::O_TRUNC)]
        .into_iter()
        .map(|condition| when(flags, Length::Dword, &[condition]))
        .collect()
}

fn lacks(flag: c_int) -> (Is, u64) {
    (Is::MaskedEq(flag as u64), 0)
}

/// Holds if the argument is all of this.
fn when(argument: u8, length: Length, conditions: &[(Is, u64)]) -> Result<SeccompRule, BackendError> {
    let conditions = conditions
        .iter()
        .map(|(operator, value)| SeccompCondition::new(argument, length.clone(), operator.clone(), *value));
    SeccompRule::new(conditions.collect::<Result<_, _>>()?)
}

/// Calls whose arguments are in memory, where a filter cannot see them. "Not there" makes a C library take the older
/// call (clone, openat), whose arguments are seen.
const UNKNOWN_ARGUMENTS: [c_long; 2] = [libc::SYS_clone3, libc::SYS_openat2];

/// Also refuses the x32 calls of x86-64, which have numbers of their own for all of the above.
fn unknown_arguments() -> BpfProgram {
    const LOAD_WORD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    /// `__X32_SYSCALL_BIT`; no other architecture has numbers that large.
    const X32: u32 = 0x4000_0000;
    let [clone3, openat2] = UNKNOWN_ARGUMENTS.map(|call| call as u32);
    let step = |code, k, (jt, jf)| sock_filter { code, jt, jf, k };
    vec![
        // The number of the call is the first field of struct seccomp_data.
        step(LOAD_WORD, 0, (0, 0)),
        step(AT_LEAST, X32, (3, 0)),
        step(EQUAL, clone3, (2, 0)),
        step(EQUAL, openat2, (1, 0)),
        step(RETURN, libc::SECCOMP_RET_ALLOW, (0, 0)),
        step(RETURN, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32, (0, 0)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rules_are_a_program_that_the_kernel_could_take() {
        let program = program().expect("rules");
        // BPF_MAXINSNS, include/uapi/linux/bpf_common.h
        assert!(program.len() < 4096, "{}", program.len());
        assert!(refused() > 80);
    }

    #[test]
    fn no_call_stands_twice_in_the_list() {
        let mut calls: Vec<_> = REFUSED.iter().flat_map(|(_, calls)| *calls).collect();
        calls.extend(&UNKNOWN_ARGUMENTS);
        calls.sort_unstable();
        assert!(calls.windows(2).all(|pair| pair[0] != pair[1]), "{calls:?}");
    }

    #[test]
    fn what_creates_an_object_is_no_command_that_is_left() {
        // MAP_CREATE, PROG_LOAD, OBJ_PIN, PROG_ATTACH, PROG_GET_FD_BY_ID, RAW_TRACEPOINT_OPEN, BTF_LOAD
        for command in [0, 5, 6, 8, 13, 17, 18] {
            assert!(BPF_COMMANDS.iter().all(|(_, left)| *left != command), "{command}");
        }
    }
}
