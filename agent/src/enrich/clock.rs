//! The kernel side stamps records with the boot clock; OTLP wants Unix time.

use rustix::time::{ClockId, Timespec, clock_gettime};

/// A moment on both clocks. What is told more than once is kept as one, since
/// the offset between the clocks is not twice the same to the nanosecond.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moment {
    /// Boot clock, ns.
    pub boot: u64,
    /// Unix ns.
    pub unix: u64,
}

/// The difference between the two clocks, measured again at every tick, since
/// NTP and an operator may step Unix time.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    offset_ns: i64,
}

impl Clock {
    /// Measures the offset now.
    #[must_use]
    pub fn new() -> Self {
        let mut clock = Self { offset_ns: 0 };
        clock.measure();
        clock
    }

    /// Reads Unix time between two readings of the boot clock and takes their middle.
    pub fn measure(&mut self) {
        let before = nanos(clock_gettime(ClockId::Boottime));
        let unix = nanos(clock_gettime(ClockId::Realtime));
        let after = nanos(clock_gettime(ClockId::Boottime));
        self.offset_ns = unix - (before + (after - before) / 2);
    }

    /// Unix ns of a boot-clock time in ns.
    #[inline]
    #[must_use]
    pub fn unix(&self, boot_ns: u64) -> u64 {
        boot_ns.wrapping_add_signed(self.offset_ns)
    }

    /// A boot-clock time in ns on both clocks.
    #[inline]
    #[must_use]
    pub fn moment(&self, boot: u64) -> Moment {
        Moment { boot, unix: self.unix(boot) }
    }

    /// The boot clock now, ns.
    #[must_use]
    pub fn boot_now() -> u64 {
        nanos(clock_gettime(ClockId::Boottime)).unsigned_abs()
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

fn nanos(time: Timespec) -> i64 {
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}
