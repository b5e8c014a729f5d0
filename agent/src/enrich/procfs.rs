//! What /proc says of a process: to seed the table, and as the rung below eBPF.

use std::{fs, io, path::Path};

/// `_SC_CLK_TCK`: the unit of times in /proc/PID/stat. 100 on every Linux
/// architecture but alpha and ia64 (`USER_HZ`).
pub const TICK_NS: u64 = 10_000_000;

/// The fields of /proc/PID/stat that Leaf uses (proc_pid_stat(5)).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stat {
    /// Command name, 15 bytes at most, any bytes.
    pub comm: Vec<u8>,
    /// `R`, `S`, `D`, `Z`, …
    pub state: u8,
    /// Parent's pid.
    pub ppid: u32,
    /// Page faults served without I/O.
    pub minor_faults: u64,
    /// Page faults that needed I/O.
    pub major_faults: u64,
    /// User time, ns, a multiple of [`TICK_NS`].
    pub utime_ns: u64,
    /// System time, ns, a multiple of [`TICK_NS`].
    pub stime_ns: u64,
    /// Start, ns since boot, a multiple of [`TICK_NS`].
    pub start_ns: u64,
    /// As waitpid gives it; 0 unless the process is a zombie that we may trace.
    pub exit_code: i32,
}

/// A process as /proc shows it.
#[derive(Clone, Debug, Default)]
pub struct ProcProcess {
    /// Process id.
    pub pid: u32,
    /// /proc/PID/stat
    pub stat: Stat,
    /// Real user id.
    pub uid: u32,
    /// Real group id.
    pub gid: u32,
    /// Target of /proc/PID/exe; empty if it may not be read or is a kernel thread's.
    pub exe: Vec<u8>,
    /// /proc/PID/cmdline: arguments, each ended by NUL.
    pub cmdline: Vec<u8>,
    /// Text of /proc/PID/cgroup.
    pub cgroup: String,
}

/// The pids in `proc` (`/proc`), in its order.
///
/// # Errors
/// If the folder cannot be read.
pub fn pids(proc: &Path) -> io::Result<impl Iterator<Item = u32>> {
    Ok(fs::read_dir(proc)?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()))
}

/// Reads a process; `None` if it is gone or its stat is not as expected.
#[must_use]
pub fn read(proc: &Path, pid: u32) -> Option<ProcProcess> {
    let folder = proc.join(pid.to_string());
    let stat = parse_stat(&fs::read(folder.join("stat")).ok()?)?;
    let (uid, gid) = fs::read(folder.join("status")).map(|status| parse_ids(&status)).unwrap_or_default();
    Some(ProcProcess {
        pid,
        stat,
        uid,
        gid,
        exe: fs::read_link(folder.join("exe")).map(path_bytes).unwrap_or_default(),
        cmdline: fs::read(folder.join("cmdline")).unwrap_or_default(),
        cgroup: fs::read_to_string(folder.join("cgroup")).unwrap_or_default(),
    })
}

/// Only /proc/PID/stat: what a poll needs of a process that it knows.
#[must_use]
pub fn read_stat(proc: &Path, pid: u32) -> Option<Stat> {
    parse_stat(&fs::read(proc.join(pid.to_string()).join("stat")).ok()?)
}

fn path_bytes(path: std::path::PathBuf) -> Vec<u8> {
    use std::os::unix::ffi::OsStringExt as _;
    let mut bytes = path.into_os_string().into_vec();
    // The kernel appends this to the name of an unlinked file.
    if bytes.ends_with(b" (deleted)") {
        bytes.truncate(bytes.len() - b" (deleted)".len());
    }
    bytes
}

/// Parses /proc/PID/stat. The command name may hold anything, also `)` and spaces.
#[must_use]
pub fn parse_stat(text: &[u8]) -> Option<Stat> {
    let open = text.iter().position(|&b| b == b'(')?;
    let close = text.iter().rposition(|&b| b == b')')?;
    let comm = text.get(open + 1..close)?.to_vec();
    let fields: Vec<&str> = std::str::from_utf8(text.get(close + 1..)?).ok()?.split_ascii_whitespace().collect();
    // `fields[0]` is field 3 of the manual page.
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    Some(Stat {
        comm,
        state: *fields.first()?.as_bytes().first()?,
        ppid: number(4)? as u32,
        minor_faults: number(10)?,
        major_faults: number(12)?,
        utime_ns: number(14)?.saturating_mul(TICK_NS),
        stime_ns: number(15)?.saturating_mul(TICK_NS),
        start_ns: number(22)?.saturating_mul(TICK_NS),
        exit_code: number(52).unwrap_or(0) as i32,
    })
}

/// Real user and group id from /proc/PID/status.
fn parse_ids(status: &[u8]) -> (u32, u32) {
    let first = |name: &[u8]| {
        status
            .split(|&b| b == b'\n')
            .find_map(|line| line.strip_prefix(name))
            .and_then(|rest| std::str::from_utf8(rest).ok()?.split_ascii_whitespace().next()?.parse().ok())
            .unwrap_or(0)
    };
    (first(b"Uid:"), first(b"Gid:"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_command_name_may_hold_parentheses_and_spaces() {
        let text = b"42 (a) b (c) R 7 42 42 0 -1 4194304 11 0 2 0 3 4 0 0 20 0 1 0 500 0 0";
        let stat = parse_stat(text).expect("well-formed");
        assert_eq!(stat.comm, b"a) b (c");
        assert_eq!((stat.state, stat.ppid, stat.minor_faults, stat.major_faults), (b'R', 7, 11, 2));
        assert_eq!((stat.utime_ns, stat.stime_ns, stat.start_ns), (30_000_000, 40_000_000, 5_000_000_000));
    }

    #[test]
    fn this_process_is_what_the_kernel_says() {
        let me = read(Path::new("/proc"), std::process::id()).expect("our own process");
        assert_eq!(me.stat.ppid, std::os::unix::process::parent_id());
        assert_eq!(me.uid, rustix::process::getuid().as_raw());
        assert_eq!(Path::new(std::str::from_utf8(&me.exe).expect("utf-8")), std::env::current_exe().expect("exe"));
        assert!(me.cmdline.ends_with(b"\0"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_stat_or_none(bytes: Vec<u8>) {
            let _ = parse_stat(&bytes);
            let _ = parse_ids(&bytes);
        }
    }
}
