//! The rung below eBPF: the same events, from looking at /proc again and again.
//!
//! Its limits, which no polling can overcome: a process that lives shorter
//! than the interval is not seen; an exec is seen by a new command name with
//! new arguments; the exit code only of a zombie that was caught and that we
//! may trace; the times of execs and exits are those of the look, CPU time and
//! faults those of the last look before.

use crate::{
    config::Config,
    enrich::{
        process::until_nul,
        procfs::{self, ProcProcess, Stat},
    },
    probes::admission::Admission,
};
use agent_common::{
    Unsent,
    process::{CMDLINE_LEN, Exec, Exit, FILENAME_LEN, Fork, Task, kind, missing},
};
use rustc_hash::{FxBuildHasher, FxHashMap};
use std::{hash::BuildHasher as _, path::Path, time::Duration};
use zerocopy::FromZeros as _;

use super::decode::Event;

/// What was seen at the last look.
pub struct Poller {
    known: FxHashMap<u32, Known>,
    admission: Admission,
}

#[derive(Clone, Debug, Default)]
struct Known {
    stat: Stat,
    uid: u32,
    gid: u32,
    /// Hash of its command line.
    arguments: u64,
    looked: u64,
}

/// One difference between two looks.
#[derive(Debug)]
pub enum Change {
    /// A process that was not there; `true` if its program is not its parent's.
    New(ProcProcess, bool),
    /// A process with a new program.
    Changed(ProcProcess),
    /// A process that is no more, as last seen.
    Gone(u32, Stat, u32, u32),
}

/// A record as the kernel side would have made it.
pub enum Record {
    /// See [`Exec`].
    Exec(Box<Exec>),
    /// See [`Fork`].
    Fork(Fork),
    /// See [`Exit`].
    Exit(Exit),
}

impl Record {
    /// As the decoder gives it.
    pub fn event(&self) -> Event<'_> {
        match self {
            Record::Exec(exec) => Event::Exec(exec),
            Record::Fork(fork) => Event::Fork(fork),
            Record::Exit(exit) => Event::Exit(exit),
        }
    }
}

impl Event<'_> {
    /// The process it is about.
    pub fn task(&self) -> Option<&Task> {
        match self {
            Event::Exec(exec) => Some(&exec.task),
            Event::Fork(fork) => Some(&fork.task),
            Event::Exit(exit) => Some(&exit.task),
            Event::CgroupMade(_) => None,
        }
    }
}

impl Poller {
    /// Knows nothing yet.
    pub fn new(config: &Config) -> Self {
        Self { known: FxHashMap::default(), admission: Admission::new(&config.room("process")) }
    }

    /// Whether it has never looked: all that the first look finds is new to it.
    pub fn is_first(&self) -> bool {
        self.known.is_empty()
    }

    /// What changed in `proc` since the last look: the gone first, then the new by age.
    pub fn look(&mut self, proc: &Path) -> Vec<Change> {
        let Ok(pids) = procfs::pids(proc) else {
            return Vec::new();
        };
        let look = self.known.values().map(|known| known.looked).max().unwrap_or(0) + 1;
        let (mut gone, mut new) = (Vec::new(), Vec::new());
        for pid in pids {
            let Some(stat) = procfs::read_stat(proc, pid) else {
                continue;
            };
            match self.known.get_mut(&pid) {
                Some(known) if known.stat.start_ns == stat.start_ns => {
                    let renamed = known.stat.comm != stat.comm && stat.state != b'Z';
                    known.stat = stat;
                    known.looked = look;
                    // A thread may rename itself too, and kernel threads do: a new program has new arguments.
                    if renamed
                        && let Some(process) = read(proc, pid)
                        && known.arguments != hash(&process.cmdline)
                    {
                        known.arguments = hash(&process.cmdline);
                        new.push(Change::Changed(process));
                    }
                }
                earlier => {
                    if let Some(earlier) = earlier {
                        gone.push(Change::Gone(pid, earlier.stat.clone(), earlier.uid, earlier.gid));
                    }
                    let Some(process) = read(proc, pid) else {
                        continue;
                    };
                    let known = Known {
                        stat: process.stat.clone(),
                        uid: process.uid,
                        gid: process.gid,
                        arguments: hash(&process.cmdline),
                        looked: look,
                    };
                    self.known.insert(pid, known);
                    new.push(Change::New(process, false));
                }
            }
        }
        self.known.retain(|pid, known| {
            if known.looked != look {
                gone.push(Change::Gone(*pid, known.stat.clone(), known.uid, known.gid));
            }
            known.looked == look
        });
        new.sort_by_key(|change| change.process().map(|process| process.stat.start_ns));
        for change in &mut new {
            if let Change::New(process, executed) = change {
                let parent = procfs::read(proc, process.stat.ppid);
                *executed = parent.is_none_or(|parent| parent.exe != process.exe || parent.cmdline != process.cmdline);
            }
        }
        gone.extend(new);
        gone
    }

    /// Whether the event of a process is wanted.
    pub fn admit(&mut self, task: Option<&Task>, now: u64) -> Result<(), Unsent> {
        match task {
            Some(task) => self.admission.admit(task.pid, task.uid, until_nul(&task.comm), now),
            None => Ok(()),
        }
    }
}

impl Change {
    /// The process as it is now, if it still is.
    pub fn process(&self) -> Option<&ProcProcess> {
        match self {
            Change::New(process, _) | Change::Changed(process) => Some(process),
            Change::Gone(..) => None,
        }
    }

    /// Whether the process was not there before.
    pub fn is_new(&self) -> bool {
        matches!(self, Change::New(..))
    }

    /// The records that the kernel side would have sent; `now` is the boot clock, ns.
    pub fn records(&self, now: u64) -> Vec<Record> {
        match self {
            Change::New(process, executed) => {
                let fork = Fork {
                    task: task(kind::FORK, process.pid, &process.stat, process.uid, process.gid, process.stat.start_ns),
                };
                let exec = executed.then(|| exec(process, process.stat.start_ns));
                std::iter::once(Record::Fork(fork)).chain(exec).collect()
            }
            Change::Changed(process) => vec![exec(process, now)],
            Change::Gone(pid, stat, uid, gid) => {
                let mut exit = Exit::new_zeroed();
                exit.task = task(kind::EXIT, *pid, stat, *uid, *gid, now);
                if stat.state == b'Z' {
                    exit.status = stat.exit_code;
                }
                // A zero may also mean that we may not know.
                if exit.status == 0 {
                    exit.task.missing |= missing::STATUS;
                }
                exit.utime_ns = stat.utime_ns;
                exit.stime_ns = stat.stime_ns;
                exit.runtime_ns = stat.utime_ns + stat.stime_ns;
                exit.minor_faults = stat.minor_faults;
                exit.major_faults = stat.major_faults;
                if stat.state == 0 {
                    exit.task.missing |= missing::USAGE;
                }
                vec![Record::Exit(exit)]
            }
        }
    }
}

fn task(kind: u32, pid: u32, stat: &Stat, uid: u32, gid: u32, time_ns: u64) -> Task {
    let mut task = Task::new_zeroed();
    (task.kind, task.missing, task.time_ns) = (kind, missing::CGROUP_NAME, time_ns);
    (task.start_ns, task.pid, task.tid, task.ppid) = (stat.start_ns, pid, pid, stat.ppid);
    (task.uid, task.gid) = (uid, gid);
    copy(&stat.comm, &mut task.comm[..15]);
    task
}

fn exec(process: &ProcProcess, time_ns: u64) -> Record {
    let mut exec = Box::new(Exec::new_zeroed());
    exec.task = task(kind::EXEC, process.pid, &process.stat, process.uid, process.gid, time_ns);
    exec.filename_len = copy(&process.exe, &mut exec.filename[..FILENAME_LEN - 1]);
    exec.cmdline_len = copy(&process.cmdline, &mut exec.cmdline[..CMDLINE_LEN]);
    Record::Exec(exec)
}

/// Reads a process. In the middle of an exec it has its new name and no
/// arguments yet; then it is read once more. Kernel threads never have any.
fn read(proc: &Path, pid: u32) -> Option<ProcProcess> {
    const KTHREADD: u32 = 2;
    let process = procfs::read(proc, pid)?;
    if process.cmdline.is_empty() && process.stat.state != b'Z' && pid != KTHREADD && process.stat.ppid != KTHREADD {
        std::thread::sleep(Duration::from_millis(1));
        return procfs::read(proc, pid);
    }
    Some(process)
}

fn hash(bytes: &[u8]) -> u64 {
    FxBuildHasher.hash_one(bytes)
}

/// Copies what fits; returns how much.
fn copy(from: &[u8], to: &mut [u8]) -> u32 {
    let len = from.len().min(to.len());
    to[..len].copy_from_slice(&from[..len]);
    len as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_seen_to_come_and_to_go() {
        let mut poller = Poller::new(&Config::default());
        poller.look(Path::new("/proc"));
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("sleep");
        let pid = child.id();
        // exec has happened once /proc says so.
        while procfs::read_stat(Path::new("/proc"), pid).expect("alive").comm != b"sleep" {
            std::thread::yield_now();
        }
        let came = poller.look(Path::new("/proc"));
        let new = came.iter().find(|c| c.process().is_some_and(|p| p.pid == pid)).expect("seen");
        assert!(matches!(new, Change::New(process, true) if process.cmdline == b"sleep\x0060\0"), "{new:?}");
        child.kill().expect("killed");
        child.wait().expect("reaped");
        let gone = poller.look(Path::new("/proc"));
        assert!(gone.iter().any(|c| matches!(c, Change::Gone(gone, ..) if *gone == pid)));
    }
}
