//! Who holds a socket: the process with a descriptor of it.

use crate::enrich::procfs;
use agent_common::network::Owner;
use rustc_hash::{FxHashMap, FxHashSet};
use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

/// A search may take one part in so many of the time.
const SHARE: u32 = 4;

/// Searches /proc.
#[derive(Debug, Default)]
pub struct Owners {
    next: Option<Instant>,
}

impl Owners {
    /// The processes in `proc` that have descriptors of these inodes, without their
    /// users; `None` if a search now would cost too much. Where several have one,
    /// it is the first in the order of /proc.
    pub fn find(&mut self, proc: &Path, inodes: &FxHashSet<u32>) -> Option<FxHashMap<u32, Owner>> {
        let begin = Instant::now();
        if inodes.is_empty() || self.next.is_some_and(|next| begin < next) {
            return None;
        }
        let found = search(proc, inodes);
        let took: Duration = begin.elapsed();
        self.next = Some(begin + took * SHARE);
        Some(found)
    }
}

fn search(proc: &Path, inodes: &FxHashSet<u32>) -> FxHashMap<u32, Owner> {
    let mut found: FxHashMap<u32, Owner> = FxHashMap::default();
    for pid in procfs::pids(proc).into_iter().flatten() {
        // Refused for those of other users.
        let Ok(descriptors) = fs::read_dir(proc.join(pid.to_string()).join("fd")) else {
            continue;
        };
        let mut owner = None;
        for descriptor in descriptors.flatten() {
            let link = fs::read_link(descriptor.path());
            let Some(inode) = link.ok().and_then(|link| inode(link.to_str()?)) else {
                continue;
            };
            if inodes.contains(&inode)
                && !found.contains_key(&inode)
                && let Some(owner) = owner.get_or_insert_with(|| of(proc, pid))
            {
                found.insert(inode, *owner);
            }
        }
        if found.len() == inodes.len() {
            break;
        }
    }
    found
}

fn of(proc: &Path, pid: u32) -> Option<Owner> {
    let stat = procfs::read_stat(proc, pid)?;
    let mut owner = Owner { start_ns: stat.start_ns, pid, ..Owner::default() };
    // One byte is left for the NUL.
    let len = stat.comm.len().min(owner.comm.len() - 1);
    owner.comm[..len].copy_from_slice(&stat.comm[..len]);
    Some(owner)
}

/// `socket:[4711]`
fn inode(link: &str) -> Option<u32> {
    link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}
