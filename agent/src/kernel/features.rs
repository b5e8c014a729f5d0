//! Which kinds of maps and programs this kernel takes, found by trying.

use aya::{
    maps::MapType,
    programs::{ProgramError, ProgramType},
    sys::{SyscallError, is_map_supported, is_program_supported},
};
use serde::Serialize;
use std::path::Path;

/// A feature that rooms may use.
#[derive(Clone, Debug, Serialize)]
pub struct Feature {
    /// `ring buffer`
    pub name: &'static str,
    /// `None` if it could not be found out.
    pub supported: Option<bool>,
    /// Why it is not there or not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
}

/// What to try.
enum Probe {
    Map(MapType),
    Program(ProgramType),
    /// A source of perf events, by its folder in sysfs.
    EventSource(&'static str),
}

const PROBES: &[(&str, Probe)] = &[
    ("ring buffer", Probe::Map(MapType::RingBuf)),
    ("per-CPU maps", Probe::Map(MapType::PerCpuArray)),
    ("LRU maps", Probe::Map(MapType::LruHash)),
    ("stack maps", Probe::Map(MapType::StackTrace)),
    ("sockmap", Probe::Map(MapType::SockHash)),
    ("classic tracepoints", Probe::Program(ProgramType::TracePoint)),
    ("raw tracepoints", Probe::Program(ProgramType::RawTracePoint)),
    ("perf events", Probe::Program(ProgramType::PerfEvent)),
    ("kprobes", Probe::EventSource("kprobe")),
    ("uprobes", Probe::EventSource("uprobe")),
    ("XDP", Probe::Program(ProgramType::Xdp)),
    ("sk_msg", Probe::Program(ProgramType::SkMsg)),
];

/// Tries each feature; nothing stays in the kernel.
#[must_use]
pub fn features() -> Vec<Feature> {
    PROBES.iter().map(|(name, probe)| probe.run(name)).collect()
}

impl Probe {
    fn run(&self, name: &'static str) -> Feature {
        let found = match self {
            Self::Map(kind) => is_map_supported(*kind).map_err(|error| cause(&error)),
            Self::Program(kind) => is_program_supported(*kind).map_err(|error| match &error {
                ProgramError::SyscallError(error) => cause(error),
                other => other.to_string(),
            }),
            Self::EventSource(source) => Ok(Path::new("/sys/bus/event_source/devices").join(source).is_dir()),
        };
        match found {
            Ok(supported) => Feature { name, supported: Some(supported), cause: None },
            Err(cause) => Feature { name, supported: None, cause: Some(cause) },
        }
    }
}

fn cause(error: &SyscallError) -> String {
    format!("{} failed: {}", error.call, error.io_error)
}
