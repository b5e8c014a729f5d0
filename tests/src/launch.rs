//! Ways to start the agent with more or less than the test itself has.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use anyhow::Result;

use crate::agent;
use crate::place::Folder;

/// In a mount namespace of its own, with tracefs.
pub const WITH_TRACEFS: [&str; 6] =
    ["unshare", "--mount", "sh", "-c", "mount -t tracefs tracefs /sys/kernel/tracing && exec \"$@\"", "sh"];

/// In a mount namespace of its own, without tracefs, wherever it was.
pub const WITHOUT_TRACEFS: [&str; 6] = [
    "unshare",
    "--mount",
    "sh",
    "-c",
    "umount -l /sys/kernel/tracing /sys/kernel/debug 2>/dev/null; exec \"$@\"",
    "sh",
];

/// In a mount namespace of its own, where tracefs may only be read.
pub const WITH_READ_ONLY_TRACEFS: [&str; 6] = [
    "unshare",
    "--mount",
    "sh",
    "-c",
    "mount -t tracefs tracefs /sys/kernel/tracing && mount -o remount,ro,bind /sys/kernel/tracing && exec \"$@\"",
    "sh",
];

/// As the user `nobody`, without any capability.
pub const AS_NOBODY: [&str; 4] = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];

/// A copy of the agent that every user may run, wherever the workspace is.
#[derive(Debug)]
pub struct ForEveryone {
    folder: Folder,
}

impl ForEveryone {
    /// Makes the copy.
    ///
    /// # Errors
    /// If there is no agent or no space.
    pub fn new() -> Result<Self> {
        let folder = Folder::new("everyone")?;
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
        fs::copy(agent::binary(), folder.path().join("agent"))?;
        Ok(Self { folder })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("agent")
    }
}
