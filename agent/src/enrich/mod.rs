//! Who a record is about: the node, the process, the container. One copy of
//! this knowledge serves all rooms.
#![forbid(unsafe_code)]

pub mod clock;
pub mod container;
pub mod host;
pub mod identity;
pub mod process;
pub mod procfs;
pub mod redact;

use clock::Clock;
use container::Cgroups;
use process::ProcessTable;
use std::path::PathBuf;

/// What the agent knows about the node while it runs.
pub struct Node {
    /// Where /proc speaks of the processes of events; `None` in a pid namespace
    /// that is not the host's, where it speaks of others.
    pub proc: Option<PathBuf>,
    /// Boot clock to Unix time.
    pub clock: Clock,
    /// Live processes and the recently dead.
    pub processes: ProcessTable,
    /// Control groups by number.
    pub cgroups: Cgroups,
}
