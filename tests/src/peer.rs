//! A tool to compare the agent with: bpftrace, or one of libbpf-tools.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::daemon::Daemon;
use crate::place;
use crate::skip::{has_program, is_root};

/// What the tools expect to find mounted, and the agent does not need.
const MOUNT: &str = "mount -t tracefs tracefs /sys/kernel/tracing
mount -t debugfs debugfs /sys/kernel/debug
exec \"$@\"";

/// Whether a tool can be run here.
#[must_use]
pub fn available(name: &str) -> bool {
    is_root() && has_program(name) && has_program("unshare")
}

/// Starts a tool; its output goes to files in `folder`. It has a mount namespace of its
/// own, so that what it needs mounted is not there for others, nor when it has ended.
///
/// # Errors
/// If there is no such tool or it cannot be started.
pub fn start(name: &str, args: &[&str], folder: &Path) -> Result<Daemon> {
    let program =
        place::program(name).with_context(|| format!("there is no {name}: run `cargo xtask setup --bench`"))?;
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", MOUNT, "sh"]).arg(program).args(args);
    Daemon::start(name, command, folder)
}
