//! What this kernel and this user allow, read without changing anything.

use agent_common::{ABSENT, Source};
use std::path::{Path, PathBuf};

/// Where tracefs may be mounted, the newer place first.
const TRACEFS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// Capabilities that eBPF may need, by their bit (include/uapi/linux/capability.h).
pub const CAPABILITIES: [(&str, u32); 7] = [
    ("CAP_BPF", 39),
    ("CAP_PERFMON", 38),
    ("CAP_SYS_ADMIN", 21),
    ("CAP_NET_ADMIN", 12),
    ("CAP_SYS_RESOURCE", 24),
    ("CAP_SYS_PTRACE", 19),
    ("CAP_DAC_READ_SEARCH", 2),
];

/// The effective capabilities of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities(u64);

impl Capabilities {
    /// Those of this process; none if /proc cannot be read.
    #[must_use]
    pub fn effective() -> Self {
        Self::parse(&std::fs::read_to_string("/proc/self/status").unwrap_or_default())
    }

    fn parse(status: &str) -> Self {
        let hex = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
        Self(hex.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0))
    }

    /// Whether the capability of this name is there.
    #[must_use]
    pub fn has(self, name: &str) -> bool {
        CAPABILITIES.iter().any(|(known, bit)| *known == name && self.0 >> bit & 1 == 1)
    }

    /// Whether programs may be loaded: `CAP_SYS_ADMIN` is `CAP_BPF` and `CAP_PERFMON` (5.8).
    #[must_use]
    pub fn can_load(self) -> bool {
        self.has("CAP_SYS_ADMIN") || (self.has("CAP_BPF") && self.has("CAP_PERFMON"))
    }
}

/// Whether SIGHUP is ignored, as nohup(1) sets it for its command.
#[must_use]
pub fn ignores_hangup() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    // Signal 1 is bit 0.
    ignored.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
}

/// The sysctl `kernel.perf_event_paranoid`: above 2, a level of distributions', perf events are
/// `CAP_SYS_ADMIN`'s alone. 0 if it cannot be read.
#[must_use]
pub fn perf_event_paranoid() -> i64 {
    let value = std::fs::read_to_string("/proc/sys/kernel/perf_event_paranoid");
    value.ok().and_then(|value| value.trim().parse().ok()).unwrap_or(0)
}

/// Whether the kernel keeps its memory from root, too (`lockdown=confidentiality`), as far as
/// securityfs says.
#[must_use]
pub fn is_locked_down() -> bool {
    std::fs::read_to_string("/sys/kernel/security/lockdown").is_ok_and(|levels| levels.contains("[confidentiality]"))
}

/// Where tracefs is mounted, if it is.
#[must_use]
pub fn tracefs() -> Option<PathBuf> {
    TRACEFS.iter().map(PathBuf::from).find(|path| path.join("events").is_dir())
}

/// Where a classic tracepoint keeps a field; `ABSENT` if it has none, or if
/// `source` is no such field.
#[must_use]
pub fn tracepoint_field(tracefs: Option<&Path>, source: &Source) -> u32 {
    let (Source::Tracepoint(event, field), Some(tracefs)) = (source, tracefs) else {
        return ABSENT;
    };
    std::fs::read_to_string(tracefs.join("events").join(event).join("format"))
        .ok()
        .and_then(|format| field_offset(&format, field))
        .unwrap_or(ABSENT)
}

/// `field:u64 id; offset:16; size:8; signed:0;`, Documentation/trace/events.rst
fn field_offset(format: &str, field: &str) -> Option<u32> {
    format.lines().find_map(|line| {
        let mut parts = line.trim().strip_prefix("field:")?.split(';');
        let declaration = parts.next()?;
        let name = declaration.rsplit([' ', '\t']).next()?.split('[').next()?;
        let offset = parts.find_map(|part| part.trim().strip_prefix("offset:"))?;
        (name == field).then(|| offset.parse().ok())?
    })
}

/// Whether this process sees the pids that the kernel's records hold. In a pid
/// namespace of its own it does not: /proc then speaks of other processes.
#[must_use]
pub fn in_host_pid_namespace() -> bool {
    /// `PROC_PID_INIT_INO`, include/linux/proc_ns.h
    const HOST: &str = "pid:[4026531836]";
    std::fs::read_link("/proc/self/ns/pid").is_ok_and(|link| link.as_os_str() == HOST)
}

/// The kernel's release, `6.1.0-18-amd64`.
#[must_use]
pub fn release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

/// Whether the running kernel is older than a version; not if its release is no version.
#[must_use]
pub fn kernel_is_older_than(major: u32, minor: u32) -> bool {
    is_older(&release(), (major, minor))
}

fn is_older(release: &str, than: (u32, u32)) -> bool {
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit()).map(str::parse::<u32>);
    matches!((numbers.next(), numbers.next()), (Some(Ok(major)), Some(Ok(minor))) if (major, minor) < than)
}

/// Whether the file system at `path` is mounted with an option, with any value but 0.
#[must_use]
pub fn mount_has_option(path: &str, option: &str) -> bool {
    has_option(&std::fs::read_to_string("/proc/self/mounts").unwrap_or_default(), path, option)
}

fn has_option(mounts: &str, path: &str, option: &str) -> bool {
    // The last mount on a path hides those before it.
    let mount = mounts.lines().rfind(|line| line.split(' ').nth(1) == Some(path));
    let options = mount.and_then(|line| line.split(' ').nth(3)).unwrap_or_default();
    options
        .split(',')
        .filter_map(|set| set.split_once('='))
        .any(|(name, value)| name == option && !matches!(value, "0" | "off"))
}

/// Where file systems of type `kind` are mounted.
#[must_use]
pub fn mounts(kind: &str) -> Vec<String> {
    mounts_in(&std::fs::read_to_string("/proc/self/mounts").unwrap_or_default(), kind)
}

fn mounts_in(mounts: &str, kind: &str) -> Vec<String> {
    mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let path = fields.next()?;
            (fields.next() == Some(kind)).then(|| path.to_owned())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn root_without_a_capability_is_told_by_its_bit() {
        let status = "Name:\tagent\nCapEff:\t000001fffeffffff\n";
        let capabilities = Capabilities::parse(status);
        assert!(capabilities.has("CAP_BPF") && capabilities.has("CAP_SYS_ADMIN") && capabilities.can_load());
        let user = Capabilities::parse("CapEff:\t0000000000000000\n");
        assert!(!user.has("CAP_BPF") && !user.can_load());
        let container = Capabilities::parse("CapEff:\t000000c000000000\n");
        assert!(container.can_load() && !container.has("CAP_SYS_ADMIN"));
        assert!(!Capabilities::parse("").can_load());
    }

    #[test]
    fn a_tracepoints_format_gives_offsets() {
        let format = "name: sched_process_exit\nID: 302\nformat:\n\
            \tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n\n\
            \tfield:char comm[16];\toffset:8;\tsize:16;\tsigned:0;\n\
            \tfield:__data_loc char[] filename;\toffset:12;\tsize:4;\tsigned:0;\n\
            \tfield:bool group_dead;\toffset:32;\tsize:1;\tsigned:0;\n";
        assert_eq!(field_offset(format, "comm"), Some(8));
        assert_eq!(field_offset(format, "filename"), Some(12));
        assert_eq!(field_offset(format, "group_dead"), Some(32));
        assert_eq!(field_offset(format, "prio"), None);
    }

    #[test]
    fn a_mount_is_found_by_its_kind() {
        let mounts = "sysfs /sys sysfs rw 0 0\ntracefs /sys/kernel/tracing tracefs rw 0 0\n";
        assert_eq!(mounts_in(mounts, "tracefs"), ["/sys/kernel/tracing"]);
        assert_eq!(mounts_in(mounts, "debugfs"), [""; 0]);
    }

    #[test]
    fn an_option_counts_where_it_is_in_force() {
        let mounts = "proc /proc proc rw,nosuid,hidepid=2 0 0\nproc /chroot/proc proc rw 0 0\n";
        assert!(has_option(mounts, "/proc", "hidepid") && !has_option(mounts, "/chroot/proc", "hidepid"));
        assert!(has_option("proc /proc proc rw,hidepid=invisible 0 0\n", "/proc", "hidepid"));
        assert!(!has_option("proc /proc proc rw,hidepid=off 0 0\n", "/proc", "hidepid"));
        assert!(!has_option(&format!("{mounts}proc /proc proc rw 0 0\n"), "/proc", "hidepid"));
        assert!(!has_option("", "/proc", "hidepid"));
    }

    #[test]
    fn a_kernel_is_older_by_its_release() {
        assert!(is_older("5.10.0-28-amd64", (5, 11)) && is_older("4.19.0", (5, 1)));
        assert!(!is_older("5.11-rc1", (5, 11)) && !is_older("6.1.0", (5, 11)) && !is_older("custom", (5, 11)));
    }

    proptest! {
        #[test]
        fn any_text_is_a_format_or_not(text in "\\PC{0,200}") {
            let _ = field_offset(&text, "x");
            let _ = Capabilities::parse(&text);
            let _ = mounts_in(&text, "x");
            let _ = has_option(&text, "x", "x");
            let _ = is_older(&text, (5, 11));
        }
    }
}
