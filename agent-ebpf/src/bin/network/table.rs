//! The table of connections: a plain array that is found by the socket's key.

use crate::{OPTIONS, socket::Socket};
use agent_common::network::{Bucket, Connection, SLOTS};
use agent_ebpf::constant;
use aya_ebpf::{helpers::bpf_get_current_pid_tgid, macros::map, maps::Array};

/// The loader sets the size from the configuration.
#[map]
static CONNECTIONS: Array<Bucket> = Array::with_max_entries(1, 0);

/// Cookies are given in runs: neighbours share a bucket, and runs lie in memory one behind the other.
#[inline(always)]
fn first_bucket(key: u64) -> Option<*mut Bucket> {
    CONNECTIONS.get_ptr_mut((key / SLOTS as u64) as u32 & constant!(OPTIONS.bucket_mask))
}

/// Where a connection goes whose first bucket is full, for an old one is in it
/// (Fibonacci hashing): behind all the others, for runs fill those to the last slot.
#[inline(always)]
fn second_bucket(key: u64) -> Option<*mut Bucket> {
    let hash = (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u32;
    CONNECTIONS.get_ptr_mut(constant!(OPTIONS.bucket_mask) + 1 + (hash & constant!(OPTIONS.overflow_mask)))
}

#[inline(always)]
pub fn find(key: u64) -> Option<*mut Connection> {
    let bucket = first_bucket(key)?;
    // SAFETY: an array's value lives as long as the map.
    unsafe {
        let usual = usual_slot(bucket, key);
        if (*usual).key == key {
            return Some(usual);
        }
        if let Some(entry) = scan(bucket, key) {
            return Some(entry);
        }
        scan(second_bucket(key)?, key)
    }
}

/// A new entry, all 0 but for its key; `None` if both buckets are full.
#[inline(always)]
pub fn insert(key: u64) -> Option<*mut Connection> {
    let bucket = first_bucket(key)?;
    // SAFETY: an array's value lives as long as the map. Two CPUs that take
    // the same entry: the later one has it, the other is not held.
    unsafe {
        let usual = usual_slot(bucket, key);
        let entry = if (*usual).key == 0 {
            usual
        } else if let Some(entry) = scan(bucket, 0) {
            entry
        } else {
            scan(second_bucket(key)?, 0)?
        };
        renew(entry, key);
        Some(entry)
    }
}

/// All 0 but for its key.
#[inline(always)]
unsafe fn renew(entry: *mut Connection, key: u64) {
    unsafe {
        core::ptr::write_bytes(entry.cast::<u8>(), 0, size_of::<Connection>());
        (*entry).key = key;
    }
}

/// The entry of a socket that begins: one that is left of another socket with this key is of no use.
#[inline(always)]
pub fn begin<M: Socket>(key: u64) -> Option<*mut Connection> {
    if M::KEYS_COME_AGAIN
        && let Some(left) = find(key)
    {
        // SAFETY: an array's value lives as long as the map.
        unsafe { renew(left, key) };
        return Some(left);
    }
    insert(key)
}

/// Frees an entry.
#[inline(always)]
pub fn forget(entry: *mut Connection) {
    // SAFETY: an array's value lives as long as the map.
    unsafe { core::ptr::write_volatile(&raw mut (*entry).key, 0) };
}

#[inline(always)]
unsafe fn usual_slot(bucket: *mut Bucket, key: u64) -> *mut Connection {
    let slot = (key as usize) & (SLOTS - 1);
    // SAFETY: the slot is in the array.
    unsafe { (&raw mut (*bucket).slots).cast::<Connection>().add(slot) }
}

/// An entry of this key. From the last slot on: the next ones after an occupied
/// place are about to be taken by the keys that follow, perhaps on another CPU.
#[inline(always)]
unsafe fn scan(bucket: *mut Bucket, key: u64) -> Option<*mut Connection> {
    let slots: *mut Connection = (unsafe { &raw mut (*bucket).slots }).cast();
    let mut slot = SLOTS;
    while slot > 0 {
        slot -= 1;
        // SAFETY: the slot is in the array.
        if unsafe { (*slots.add(slot)).key } == key {
            return Some(unsafe { slots.add((slot ^ zero()) & (SLOTS - 1)) });
        }
    }
    None
}

/// 0, which the verifier does not know: to it a slot that was found is one of the bucket's,
/// and it follows what comes after once and not for each of them. (A thread group id has 22 bits.)
#[inline(always)]
fn zero() -> usize {
    (bpf_get_current_pid_tgid() >> 61) as usize
}
