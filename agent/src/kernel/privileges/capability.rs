//! Which capability the agent needs for what, and how it gives up the rest.

use crate::{
    kernel::{attach::RoomReport, support},
    probes::{self, PROCFS, Way},
};
use rustix::{
    io::{self, Errno},
    thread::{
        CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set, clear_ambient_capability_set,
        remove_capability_from_bounding_set, set_capabilities,
    },
};

/// A capability, and what takes it.
pub struct Need {
    /// One bit.
    pub capability: CapabilitySet,
    /// What for.
    pub purpose: &'static str,
    /// Until when.
    pub lasts: Lasts,
    /// Whether this agent does it.
    pub when: fn(&Work) -> bool,
}

/// Until when a capability is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lasts {
    /// Until the rooms are attached.
    Start,
    /// As long as the agent runs.
    Run,
}

/// All that the agent ever does with a capability. What stands here decides what `agent run` keeps, and what
/// `agent doctor --security-context` asks for.
pub const NEEDS: &[Need] = &[
    Need {
        capability: CapabilitySet::BPF,
        purpose: "create maps and load programs",
        lasts: Lasts::Start,
        when: Work::by_ebpf,
    },
    Need {
        capability: CapabilitySet::PERFMON,
        purpose: "load programs that read kernel memory, and attach them",
        lasts: Lasts::Start,
        when: Work::by_ebpf,
    },
    Need {
        capability: CapabilitySet::SYS_RESOURCE,
        purpose: "lock the memory of maps (before kernel 5.11)",
        lasts: Lasts::Start,
        when: |work| work.by_ebpf() && work.locks_memory,
    },
    Need {
        capability: CapabilitySet::DAC_READ_SEARCH,
        purpose: "read tracefs, which is root's",
        lasts: Lasts::Start,
        when: |work| work.tracefs && !work.root,
    },
    Need {
        capability: CapabilitySet::BPF,
        purpose: "read maps (this kernel lets nobody else call bpf())",
        lasts: Lasts::Run,
        when: |work| work.by_ebpf() && work.bpf_is_privileged,
    },
    Need {
        capability: CapabilitySet::SYS_PTRACE,
        purpose: "executables of other users' processes",
        lasts: Lasts::Run,
        when: |work| work.runs(probes::process::DESCRIPTOR.name),
    },
    Need {
        capability: CapabilitySet::SYS_PTRACE,
        purpose: "processes that /proc hides (hidepid)",
        lasts: Lasts::Run,
        when: |work| work.hidden_processes,
    },
    Need {
        capability: CapabilitySet::SYS_PTRACE,
        purpose: "owners of sockets in /proc/PID/fd",
        lasts: Lasts::Run,
        when: |work| work.polls(probes::network::DESCRIPTOR.name),
    },
    Need {
        capability: CapabilitySet::DAC_READ_SEARCH,
        purpose: "owners of sockets in /proc/PID/fd",
        lasts: Lasts::Run,
        when: |work| work.polls(probes::network::DESCRIPTOR.name),
    },
];

/// What an agent does, as far as a capability depends on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Rooms by their names, and whether each has eBPF.
    pub rooms: Vec<(&'static str, bool)>,
    /// Some hook is attached by its classic tracepoint.
    pub tracefs: bool,
    /// It runs as user 0, who may read root's files.
    pub root: bool,
    /// Maps are charged to locked memory and not to the control group (before 5.11).
    pub locks_memory: bool,
    /// Every command of bpf() takes CAP_BPF, not only those that create (before 5.19 where
    /// kernel.unprivileged_bpf_disabled is set).
    pub bpf_is_privileged: bool,
    /// /proc is mounted with hidepid.
    pub hidden_processes: bool,
}

impl Work {
    /// Of rooms that are attached, as this kernel and user are.
    #[must_use]
    pub fn of(reports: &[RoomReport]) -> Self {
        let classic = |report: &RoomReport| report.hooks.iter().any(|hook| hook.rung == Some(Way::Tracepoint.name()));
        Self {
            rooms: reports.iter().map(|report| (report.room, report.source != PROCFS)).collect(),
            tracefs: reports.iter().any(classic),
            ..Self::here()
        }
    }

    /// Of no room, as this kernel and user are.
    #[must_use]
    pub fn here() -> Self {
        Self {
            root: rustix::process::geteuid().is_root(),
            locks_memory: support::kernel_is_older_than(5, 11),
            bpf_is_privileged: bpf_is_privileged(),
            hidden_processes: support::mount_has_option("/proc", "hidepid"),
            ..Self::default()
        }
    }

    fn by_ebpf(&self) -> bool {
        self.rooms.iter().any(|(_, ebpf)| *ebpf)
    }

    fn runs(&self, room: &str) -> bool {
        self.rooms.iter().any(|(name, _)| *name == room)
    }

    fn polls(&self, room: &str) -> bool {
        self.rooms.iter().any(|(name, ebpf)| *name == room && !ebpf)
    }

    /// What it needs, in the order of the table.
    pub fn needs(&self) -> impl Iterator<Item = &'static Need> {
        NEEDS.iter().filter(|need| (need.when)(self))
    }

    /// What it needs as long as it runs.
    #[must_use]
    pub fn needs_running(&self) -> CapabilitySet {
        self.needs().filter(|need| need.lasts == Lasts::Run).map(|need| need.capability).collect()
    }
}

/// What became of a thread's capabilities.
#[derive(Clone, Copy, Debug)]
pub struct Reduced {
    /// Still there: effective and permitted.
    pub kept: CapabilitySet,
    /// Were there before.
    pub gone: CapabilitySet,
    /// Why the bounding set is what it was. It only says what execve() could give.
    pub bounding: io::Result<()>,
}

/// Leaves the calling thread, and threads that it makes from now on, with none but these capabilities, and with no
/// way to get one.
///
/// # Errors
/// If the kernel refuses; the capabilities may then be what they were.
pub fn reduce_to(only: CapabilitySet) -> io::Result<Reduced> {
    let before = capabilities(None)?;
    // Needs CAP_SETPCAP, so it comes first.
    let bounding = empty_bounding_set();
    clear_ambient_capability_set()?;
    let kept = before.permitted & only;
    set_capabilities(None, CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() })?;
    Ok(Reduced { kept, gone: before.permitted - kept, bounding })
}

fn empty_bounding_set() -> io::Result<()> {
    for number in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        match capability_is_in_bounding_set(capability) {
            Ok(true) => remove_capability_from_bounding_set(capability)?,
            Ok(false) => {}
            // The kernel knows no more.
            Err(_) => break,
        }
    }
    Ok(())
}

/// `CAP_BPF CAP_PERFMON`; one that has no name yet by its number.
#[must_use]
pub fn names(set: CapabilitySet) -> Vec<String> {
    (0..u64::BITS)
        .map(|number| CapabilitySet::from_bits_retain(1 << number))
        .filter(|capability| set.contains(*capability))
        .map(|capability| {
            capability.iter_names().next().map_or_else(
                || format!("capability {}", capability.bits().trailing_zeros()),
                |(name, _)| format!("CAP_{name}"),
            )
        })
        .collect()
}

/// Whether bpf() refuses even what creates nothing to who has not CAP_BPF. Tried, because distributions have taken
/// the change of 5.19 into older kernels.
fn bpf_is_privileged() -> bool {
    let Ok(before) = capabilities(None) else {
        return true;
    };
    let without =
        CapabilitySets { effective: before.effective - CapabilitySet::BPF - CapabilitySet::SYS_ADMIN, ..before };
    if set_capabilities(None, without).is_err() {
        return true;
    }
    // There is no such map: who may ask is told so.
    let refused = look_into_no_map() == Errno::PERM;
    let _ = set_capabilities(None, before);
    refused
}

/// The error of a look into the map of a descriptor that is none.
fn look_into_no_map() -> Errno {
    /// enum bpf_cmd, include/uapi/linux/bpf.h
    const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
    // `map_fd` and padding, `key`, `value`, `flags` of union bpf_attr.
    let question = [u64::from(u32::MAX), 0, 0, 0];
    // SAFETY: the kernel reads so many bytes of the question, and writes nothing since there is no map.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_MAP_LOOKUP_ELEM, question.as_ptr(), size_of_val(&question) as libc::c_long)
    };
    match result {
        -1 => std::io::Error::last_os_error().raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error),
        _ => Errno::IO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn work(rooms: &[(&'static str, bool)]) -> Work {
        Work { rooms: rooms.to_vec(), root: true, ..Work::default() }
    }

    #[test]
    fn only_what_the_rooms_go_on_to_do_is_kept() {
        let attached = work(&[("process", true), ("network", true)]);
        assert_eq!(attached.needs_running(), CapabilitySet::SYS_PTRACE);
        let network = work(&[("network", true)]);
        assert_eq!(network.needs_running(), CapabilitySet::empty());
        let hidden = Work { hidden_processes: true, ..network.clone() };
        assert_eq!(hidden.needs_running(), CapabilitySet::SYS_PTRACE);
        let older = Work { bpf_is_privileged: true, ..network };
        assert_eq!(older.needs_running(), CapabilitySet::BPF);
        let polls = Work { bpf_is_privileged: true, ..work(&[("network", false)]) };
        assert_eq!(polls.needs_running(), CapabilitySet::SYS_PTRACE | CapabilitySet::DAC_READ_SEARCH);
    }

    #[test]
    fn attaching_needs_more_than_running() {
        let needs = |work: &Work| work.needs().map(|need| need.capability).collect::<CapabilitySet>();
        let all = CapabilitySet::BPF | CapabilitySet::PERFMON | CapabilitySet::SYS_PTRACE;
        assert_eq!(needs(&work(&[("process", true), ("network", true)])), all);
        assert_eq!(needs(&work(&[("process", false)])), CapabilitySet::SYS_PTRACE);
        let user = Work { tracefs: true, root: false, ..work(&[("process", true)]) };
        assert_eq!(needs(&user), all | CapabilitySet::DAC_READ_SEARCH);
        let old = Work { locks_memory: true, ..work(&[("network", true)]) };
        assert_eq!(needs(&old), CapabilitySet::BPF | CapabilitySet::PERFMON | CapabilitySet::SYS_RESOURCE);
    }

    #[test]
    fn a_capability_is_named_as_its_manual_names_it() {
        let set = CapabilitySet::BPF | CapabilitySet::DAC_READ_SEARCH | CapabilitySet::from_bits_retain(1 << 60);
        assert_eq!(names(set), ["CAP_DAC_READ_SEARCH", "CAP_BPF", "capability 60"]);
        assert_eq!(names(CapabilitySet::empty()), [""; 0]);
    }
}
