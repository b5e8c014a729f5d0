//! What the kernel side and the user side of Leaf agree on: the bytes in the
//! rings, the counters of the ledger and the list of kernel fields to find.
//!
//! One file per room; what all rooms share stands here.
#![no_std]
#![forbid(unsafe_code)]

mod fields;
pub mod network;
pub mod process;

pub use fields::{ABSENT, Source};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What one CPU did with the events of one room, in events.
///
/// `attempted = filtered + rate_limited + ring_full + sent` holds on every CPU
/// whenever no program of the room is running on it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct KernelLedger {
    /// Events that a hook saw and that belong to the room.
    pub attempted: u64,
    /// Not sent because the configuration excludes them, or because they are the agent's own.
    pub filtered: u64,
    /// Not sent because the room's token bucket was empty.
    pub rate_limited: u64,
    /// Not sent because the room's ring had no space.
    pub ring_full: u64,
    /// Submitted to the ring.
    pub sent: u64,
    /// Records that are no events (the path of a new cgroup), submitted to the ring.
    pub notes: u64,
    /// Such records that found no space: what they would have told must be looked up.
    pub notes_lost: u64,
}

/// Why an event was not sent: the kernel half of the ledger's reasons.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsent {
    /// Excluded by configuration, or the agent's own.
    Filtered,
    /// The token bucket was empty.
    RateLimited,
    /// `bpf_ringbuf_reserve` found no space.
    RingFull,
}

/// What the loader tells the programs of a room before they are verified.
/// They are constants to the verifier, so what is off costs nothing.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, IntoBytes, Immutable)]
pub struct Settings {
    /// Thread group id of the agent, whose own events are filtered.
    pub agent_pid: u32,
    /// Not 0: look the uid up in `EXCLUDED_UIDS`.
    pub filter_uids: u32,
    /// Not 0: look the command name up in `EXCLUDED_COMMS`.
    pub filter_comms: u32,
    /// Bytes waiting in the ring past which a submit wakes the reader.
    pub wake_bytes: u32,
    /// Nanoseconds between two events at the allowed rate; 0 is no limit.
    pub rate_interval_ns: u64,
    /// How far ahead of the clock the bucket may run, in nanoseconds: burst × interval.
    pub rate_burst_ns: u64,
}

/// Longest command name with its NUL, in bytes (`TASK_COMM_LEN`, include/linux/sched.h).
pub const COMM_LEN: usize = 16;
