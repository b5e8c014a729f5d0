//! Which events are sent, and the count of those that are not.

use crate::{constant, memory::increment};
use agent_common::{COMM_LEN, KernelLedger, Settings, Unsent};
use aya_ebpf::{
    helpers::generated::bpf_ktime_get_boot_ns,
    macros::map,
    maps::{Array, HashMap, PerCpuArray},
};

/// Filled by the loader.
#[unsafe(no_mangle)]
pub static SETTINGS: Settings = Settings {
    agent_pid: 0,
    filter_uids: 0,
    filter_comms: 0,
    wake_bytes: u32::MAX,
    rate_interval_ns: 0,
    rate_burst_ns: 0,
};

#[map]
static LEDGER: PerCpuArray<KernelLedger> = PerCpuArray::with_max_entries(1, 0);

#[map]
static EXCLUDED_UIDS: HashMap<u32, u8> = HashMap::with_max_entries(1024, 0);

#[map]
static EXCLUDED_COMMS: HashMap<[u8; COMM_LEN], u8> = HashMap::with_max_entries(1024, 0);

/// Boot clock in ns at which the token bucket is full again.
#[map]
static BUCKET: Array<u64> = Array::with_max_entries(1, 0);

/// Counts one event by what became of it. The result is a program's return value.
#[inline(always)]
pub fn account(outcome: Result<(), Unsent>) -> i32 {
    if let Some(ledger) = LEDGER.get_ptr_mut(0) {
        // SAFETY: this CPU's slot of the map; atomics because a program may be preempted.
        unsafe {
            increment(&raw mut (*ledger).attempted);
            increment(match outcome {
                Ok(()) => &raw mut (*ledger).sent,
                Err(Unsent::Filtered) => &raw mut (*ledger).filtered,
                Err(Unsent::RateLimited) => &raw mut (*ledger).rate_limited,
                Err(Unsent::RingFull) => &raw mut (*ledger).ring_full,
            });
        }
    }
    0
}

/// Counts a record that is no event. The result is a program's return value.
#[inline(always)]
pub fn note(outcome: Result<(), Unsent>) -> i32 {
    if let Some(ledger) = LEDGER.get_ptr_mut(0) {
        // SAFETY: as in `account`.
        unsafe {
            increment(match outcome {
                Ok(()) => &raw mut (*ledger).notes,
                Err(_) => &raw mut (*ledger).notes_lost,
            });
        }
    }
    0
}

/// The room's filters and its rate, in that order.
#[inline(always)]
pub fn admit(pid: u32, uid: u32, comm: &[u8; COMM_LEN], now: u64) -> Result<(), Unsent> {
    if pid == constant!(SETTINGS.agent_pid) {
        return Err(Unsent::Filtered);
    }
    // SAFETY: the entry is only tested for presence.
    if constant!(SETTINGS.filter_uids) != 0 && unsafe { EXCLUDED_UIDS.get(uid) }.is_some() {
        return Err(Unsent::Filtered);
    }
    // SAFETY: as above.
    if constant!(SETTINGS.filter_comms) != 0 && unsafe { EXCLUDED_COMMS.get(comm) }.is_some() {
        return Err(Unsent::Filtered);
    }
    take_token(now)
}

/// A token bucket kept as one number, the time at which it is full again (the
/// generic cell rate algorithm, ITU-T I.371). CPUs that race may let a few
/// more events through; each is counted as what it was.
#[inline(always)]
fn take_token(now: u64) -> Result<(), Unsent> {
    let interval = constant!(SETTINGS.rate_interval_ns);
    if interval == 0 {
        return Ok(());
    }
    let Some(full_at) = BUCKET.get_ptr_mut(0) else {
        return Ok(());
    };
    // SAFETY: an array's value lives as long as the map.
    unsafe {
        let seen = core::ptr::read_volatile(full_at);
        let next = if seen > now { seen } else { now } + interval;
        if next > now + constant!(SETTINGS.rate_burst_ns) {
            return Err(Unsent::RateLimited);
        }
        core::ptr::write_volatile(full_at, next);
    }
    Ok(())
}

/// The clock of every record: ns since boot, suspend included (5.8).
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: no arguments, no side effect.
    unsafe { bpf_ktime_get_boot_ns() }
}
