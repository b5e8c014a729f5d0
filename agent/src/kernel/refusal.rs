//! Why something better does not hold, in words: the cause, and the way out.

use super::{
    load::LoadError,
    support::{self, Capabilities},
};
use crate::{
    config,
    probes::{Descriptor, Rung, Way},
};
use aya::{
    EbpfError,
    maps::MapError,
    programs::{ProgramError, trace_point::TracePointError},
};
use serde::Serialize;
use std::{io, path::PathBuf};

/// Why a rung does not hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Refusal {
    /// `tp_btf`
    pub rung: &'static str,
    /// What was to be attached to.
    pub target: String,
    /// The cause.
    pub cause: String,
    /// What the user can do.
    pub way_out: String,
}

/// What is nobody's fault but ours.
pub const REPORT: &str = "report this as a bug of the agent";
const UNLOCK: &str = "boot it with lockdown=integrity, or without";
const NEWER: &str = "use a newer kernel";
const PRIVILEGE: &str = "run as root, or give the agent CAP_BPF and CAP_PERFMON";
const POLICY: &str = "allow bpf() in the security policy (lockdown, LSM or seccomp)";

/// Why this rung does not hold.
#[must_use]
pub fn refusal(rung: &Rung, cause: String, way_out: String) -> Refusal {
    Refusal { rung: rung.name(), target: rung.told(), cause, way_out }
}

/// Why an optional hook does not take a rung that may hold.
#[must_use]
pub fn disagrees(rung: &Rung) -> Refusal {
    let cause = "it tells objects by typed pointers, and the room's required hooks do so by addresses";
    refusal(rung, cause.into(), "whatever gives the required hooks a better rung".into())
}

/// Why a hook that has no such rung does not hold.
#[must_use]
pub fn unknown(hook: &str, forced: &str) -> Refusal {
    let cause = format!("{hook} has no rung of this name");
    Refusal {
        rung: "forced",
        target: forced.to_owned(),
        cause,
        way_out: format!("set the rung to {}", config::RUNG_AUTO),
    }
}

/// Why there are no classic tracepoints.
#[must_use]
pub fn no_tracefs(rung: &Rung) -> Refusal {
    let mounted = support::mounts("tracefs");
    let (cause, way_out) = match mounted.first() {
        _ if support::is_locked_down() => {
            ("the kernel is locked down, so tracefs cannot be read".into(), UNLOCK.into())
        }
        Some(path) => {
            (format!("tracefs is mounted at {path}, but not readable"), "give the agent CAP_DAC_READ_SEARCH".into())
        }
        None => ("tracefs is not mounted".into(), "mount -t tracefs tracefs /sys/kernel/tracing".into()),
    };
    refusal(rung, cause, way_out)
}

/// Why the kernel has not taken the program of a rung, or has not attached it.
#[must_use]
pub fn of_program(rung: &Rung, error: &ProgramError) -> Refusal {
    let (cause, way_out) = match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            let log = verifier_log.to_string();
            match last_lines(&log) {
                Some(last) if lacks_helper(last) && last.contains("bpf_probe_read") => {
                    (format!("the kernel is locked down, so no program may read its memory: {last}"), UNLOCK.into())
                }
                Some(last) => {
                    // Of a helper that is not there the log says no more.
                    let way_out = match lacks_helper(last) {
                        true => NEWER.to_owned(),
                        false => format!("{REPORT}; its log is {}", keep_log(rung.program, &log)),
                    };
                    (format!("the verifier refused the program: {last}"), way_out)
                }
                None => (format!("loading the program failed: {io_error}"), load_denied(rung, io_error)),
            }
        }
        ProgramError::SyscallError(error) => {
            let what = if error.io_error.kind() == io::ErrorKind::NotFound {
                "the kernel has no such tracepoint or function".to_owned()
            } else {
                format!("{} failed: {}", error.call, error.io_error)
            };
            let way_out = match error.call {
                call if call.starts_with("perf_event_open")
                    && error.io_error.kind() == io::ErrorKind::PermissionDenied
                    && !Capabilities::effective().has("CAP_SYS_ADMIN")
                    && support::perf_event_paranoid() > 2 =>
                {
                    "sysctl kernel.perf_event_paranoid=2, or give the agent CAP_SYS_ADMIN".into()
                }
                _ => denied(&error.io_error),
            };
            (what, way_out)
        }
        ProgramError::TracePointError(TracePointError::FileError { filename, io_error }) => {
            let cause = format!("failed to read {}: {io_error}", filename.display());
            (cause, denied(io_error))
        }
        ProgramError::KProbeError(error) => {
            (causes(error), "use a kernel that is built with CONFIG_KPROBE_EVENTS=y (and sysfs at /sys)".into())
        }
        ProgramError::Btf(error) => (error.to_string(), NEWER.into()),
        other => (causes(other), REPORT.into()),
    };
    refusal(rung, cause, way_out)
}

/// Whether this is how verifiers of all ages say that there is no such helper, or not for this program.
fn lacks_helper(line: &str) -> bool {
    const SAID: [&str; 3] = ["unknown func ", "invalid func ", "program of this type cannot use helper "];
    SAID.iter().any(|start| line.starts_with(start))
}

/// The way out where a program was refused without a word of the verifier.
fn load_denied(rung: &Rung, error: &io::Error) -> String {
    match rung.way {
        Way::FunctionEntry | Way::FunctionExit
            if error.kind() == io::ErrorKind::PermissionDenied && Capabilities::effective().can_load() =>
        {
            "a security policy refuses this kind of program (see /sys/kernel/security/lsm, lockdown), or the kernel is \
             built without CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS"
                .into()
        }
        _ => denied(error),
    }
}

/// The way out of an error of bpf().
fn denied(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied if Capabilities::effective().can_load() => POLICY.into(),
        io::ErrorKind::PermissionDenied => {
            match ["CAP_BPF", "CAP_PERFMON"].map(|name| Capabilities::effective().has(name)) {
                [true, false] => "give the agent CAP_PERFMON, too".into(),
                [false, true] => "give the agent CAP_BPF, too".into(),
                _ => PRIVILEGE.into(),
            }
        }
        io::ErrorKind::NotFound | io::ErrorKind::InvalidInput => NEWER.into(),
        _ => REPORT.into(),
    }
}

/// Why a room's object could not be loaded.
#[must_use]
pub fn of_room(room: &Descriptor, error: &LoadError) -> Refusal {
    let (cause, way_out) = match error {
        LoadError::Object(EbpfError::MapError(MapError::CreateError { name, io_error })) => {
            let way_out = match io_error.kind() {
                io::ErrorKind::InvalidInput => "use kernel 5.8 or newer, which has the ring buffer".into(),
                // Before 5.11 maps are charged to memory that a process may lock.
                io::ErrorKind::PermissionDenied
                    if support::kernel_is_older_than(5, 11)
                        && Capabilities::effective().can_load()
                        && !Capabilities::effective().has("CAP_SYS_RESOURCE") =>
                {
                    "give the agent CAP_SYS_RESOURCE, or start it with `ulimit -l unlimited`".into()
                }
                _ => denied(io_error),
            };
            let cause = match io_error.kind() {
                // It is no map in particular.
                io::ErrorKind::PermissionDenied => format!("BPF maps cannot be created: {io_error}"),
                _ => format!("failed to create map {name}: {io_error}"),
            };
            (cause, way_out)
        }
        _ => (causes(error), REPORT.into()),
    };
    Refusal { rung: "eBPF", target: room.name.into(), cause, way_out }
}

/// An error with its sources, each said once.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let cause = error.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
        next = error.source();
    }
    text
}

/// The last line of a verifier log that says why; its statistics come after.
fn last_lines(log: &str) -> Option<&str> {
    const STATISTICS: [&str; 3] = ["processed ", "verification time ", "stack depth "];
    let is_statistics = |line: &str| STATISTICS.iter().any(|start| line.starts_with(start));
    log.lines().map(str::trim).rfind(|line| !line.is_empty() && !is_statistics(line))
}

/// Writes a verifier log where the user can find it, in the place of an older one.
fn keep_log(program: &str, log: &str) -> String {
    use std::io::Write as _;
    let path: PathBuf = std::env::temp_dir().join(format!("leaf-verifier-{program}.log"));
    let _ = std::fs::remove_file(&path);
    // New, so that it is no link that somebody else has put there.
    let written = std::fs::OpenOptions::new().write(true).create_new(true).open(&path);
    match written.and_then(|mut file| file.write_all(log.as_bytes())) {
        Ok(()) => path.display().to_string(),
        Err(error) => format!("lost: failed to write {}: {error}", path.display()),
    }
}
