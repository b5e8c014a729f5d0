//! The user side of a room's ring and ledger, and the wait for the next record.

use super::load::LoadError;
use agent_common::KernelLedger;
use aya::{
    Ebpf,
    maps::{Array, Map, MapData, MapError, PerCpuArray, RingBuf},
};
use rustix::{
    event::{EventfdFlags, Timespec, epoll, eventfd},
    fd::{AsFd, OwnedFd},
    io,
};
use std::{mem::MaybeUninit, sync::Arc, time::Duration};
use zerocopy::FromBytes as _;

/// Words of a [`KernelLedger`].
const WORDS: usize = size_of::<KernelLedger>() / 8;

/// What an event of the epoll says: the order to stop, or a ring.
const STOP: u64 = 0;
const RING: u64 = 1;

/// A room's ring, with the word that asks its programs for a wakeup.
pub struct Ring {
    records: RingBuf<MapData>,
    sleeping: Array<MapData, u32>,
    ledger: PerCpuArray<MapData, [u64; WORDS]>,
    taken: u64,
}

impl Ring {
    /// Takes the maps that every room's object has.
    ///
    /// # Errors
    /// If one is not there or not of its type.
    pub fn take(ebpf: &mut Ebpf) -> Result<Self, LoadError> {
        fn map<M: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, name: &'static str) -> Result<M, LoadError> {
            let map = ebpf.take_map(name).ok_or(LoadError::NoMap(name))?;
            map.try_into().map_err(|error| LoadError::Map { name, error })
        }
        Ok(Self {
            records: map(ebpf, "RING")?,
            sleeping: map(ebpf, "SLEEPING")?,
            ledger: map(ebpf, "LEDGER")?,
            taken: 0,
        })
    }

    /// The oldest record, if there is one; it leaves the ring when `each` returns.
    #[inline]
    pub fn next(&mut self, each: impl FnOnce(&[u8])) -> bool {
        match self.records.next() {
            Some(record) => {
                self.taken += 1;
                each(&record);
                true
            }
            None => false,
        }
    }

    /// Records taken so far.
    #[must_use]
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// Asks the programs for a wakeup with their next record.
    pub fn ask_for_wakeup(&mut self) {
        // A failure leaves the reader to its next tick.
        let _ = self.sleeping.set(0, 1, 0);
    }

    /// What the programs have counted, summed over the CPUs.
    #[must_use]
    pub fn ledger(&self) -> KernelLedger {
        let mut sum = [0u64; WORDS];
        if let Ok(values) = self.ledger.get(&0, 0) {
            for cpu in values.iter() {
                for (total, value) in sum.iter_mut().zip(cpu) {
                    *total += value;
                }
            }
        }
        KernelLedger::read_from_bytes(zerocopy::IntoBytes::as_bytes(&sum)).unwrap_or_default()
    }
}

/// Why a wait is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// Its time is, or a signal came.
    Nothing,
    /// A program woke us for a record, which it may still be writing.
    Record,
    /// The order to stop was given.
    Stop,
}

/// Waits for records of any ring, or for the order to stop.
pub struct Waiter {
    epoll: OwnedFd,
    stop: Arc<OwnedFd>,
}

/// Ends the wait of a [`Waiter`], from any thread.
#[derive(Clone)]
pub struct Stop(Arc<OwnedFd>);

impl Stop {
    /// Gives the order. It stays given.
    pub fn now(&self) {
        let _ = io::write(&*self.0, &1u64.to_ne_bytes());
    }
}

impl Waiter {
    /// Waits for nothing yet.
    ///
    /// # Errors
    /// If the kernel gives no descriptor.
    pub fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        epoll::add(&epoll, &*stop, epoll::EventData::new_u64(STOP), epoll::EventFlags::IN)?;
        Ok(Self { epoll, stop })
    }

    /// The other end of the order to stop.
    #[must_use]
    pub fn stop(&self) -> Stop {
        Stop(Arc::clone(&self.stop))
    }

    /// Wakes up for this ring too.
    ///
    /// Edge-triggered: only a program's wakeup counts. Level-triggered, the
    /// wait would end at once whenever there is a record, and a storm would be
    /// read one record at a time.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn add(&self, ring: &Ring) -> io::Result<()> {
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&self.epoll, ring.records.as_fd(), epoll::EventData::new_u64(RING), flags)
    }

    /// Returns after `timeout`, a wakeup, a signal or the order to stop.
    pub fn wait(&self, timeout: Duration) -> Woken {
        let timeout = Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        };
        let mut space = [MaybeUninit::<epoll::Event>::uninit(); 4];
        match epoll::wait(&self.epoll, &mut space, Some(&timeout)) {
            Ok((events, _)) if events.iter().any(|event| event.data.u64() == STOP) => Woken::Stop,
            Ok((events, _)) if !events.is_empty() => Woken::Record,
            _ => Woken::Nothing,
        }
    }
}
