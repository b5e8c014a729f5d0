//! A distribution in buckets whose bounds grow by a fixed factor:
//! OpenTelemetry's base-2 exponential histogram.
//!
//! Bucket `i` holds `base^i < value <= base^(i + 1)`, `base = 2^(2^-scale)`
//! (OpenTelemetry metrics data model, "Exponential Buckets").

/// Buckets between two powers of two.
const PER_OCTAVE: i32 = 1 << Histogram::SCALE;

/// Values counted by size.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Histogram {
    /// Index of the first bucket.
    offset: i32,
    buckets: Vec<u64>,
    zeros: u64,
    count: u64,
    sum: f64,
    min: f64,
    max: f64,
}

impl Histogram {
    /// Four buckets to an octave: a bucket is 19 % wide.
    pub const SCALE: i32 = 2;

    /// Counts a value; one that is negative or no number is counted as 0.
    pub fn record(&mut self, value: f64) {
        let value = if value.is_finite() && value > 0.0 { value } else { 0.0 };
        (self.min, self.max) = match self.count {
            0 => (value, value),
            _ => (self.min.min(value), self.max.max(value)),
        };
        self.count += 1;
        self.sum += value;
        if value < f64::MIN_POSITIVE {
            self.zeros += 1;
            return;
        }
        let index = index(value);
        if self.buckets.is_empty() {
            self.offset = index;
        } else if index < self.offset {
            let more = (self.offset - index) as usize;
            self.buckets.splice(0..0, std::iter::repeat_n(0, more));
            self.offset = index;
        }
        let place = (index - self.offset) as usize;
        if place >= self.buckets.len() {
            self.buckets.resize(place + 1, 0);
        }
        self.buckets[place] += 1;
    }

    /// Values counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Values that were 0.
    #[must_use]
    pub fn zeros(&self) -> u64 {
        self.zeros
    }

    /// All values added up.
    #[must_use]
    pub fn sum(&self) -> f64 {
        self.sum
    }

    /// The smallest and the largest value; both 0 if there is none.
    #[must_use]
    pub fn range(&self) -> (f64, f64) {
        (self.min, self.max)
    }

    /// Index of the first bucket.
    #[must_use]
    pub fn offset(&self) -> i32 {
        self.offset
    }

    /// Counts, the bucket of index [`Histogram::offset`] first.
    #[must_use]
    pub fn into_buckets(self) -> Vec<u64> {
        self.buckets
    }
}

/// The bucket of a value: its exponent says the octave, its fraction the part of it.
fn index(value: f64) -> i32 {
    /// `2^(k/4)` for k = 1, 2, 3, as fractions of a double.
    const BOUNDS: [f64; PER_OCTAVE as usize - 1] =
        [1.189_207_115_002_721, std::f64::consts::SQRT_2, 1.681_792_830_507_429];
    const FRACTION: u32 = 52;
    const BIAS: i32 = 1023;
    let bits = value.to_bits();
    let exponent = (bits >> FRACTION) as i32 - BIAS;
    let fraction = f64::from_bits(bits & ((1 << FRACTION) - 1) | (BIAS as u64) << FRACTION);
    if fraction <= 1.0 {
        // A power of two is the upper bound of the bucket below.
        return exponent * PER_OCTAVE - 1;
    }
    exponent * PER_OCTAVE + BOUNDS.iter().filter(|bound| fraction > **bound).count() as i32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_histogram_counts_what_it_was_given() {
        let mut histogram = Histogram::default();
        for value in [0.0, 4.0, 0.001, 3.0, f64::NAN, -1.0] {
            histogram.record(value);
        }
        assert_eq!((histogram.count(), histogram.zeros(), histogram.range()), (6, 3, (0.0, 4.0)));
        assert!((histogram.sum() - 7.001).abs() < 1e-9);
        // 2^-10 < 0.001 <= 2^-9.75
        assert_eq!(histogram.offset(), -40);
        let buckets = histogram.into_buckets();
        assert_eq!(buckets.iter().sum::<u64>(), 3);
        // 3 in (2^1.5, 2^1.75], 4 in (2^1.75, 2^2].
        assert_eq!((buckets[46], buckets[47], buckets.len()), (1, 1, 48));
    }

    proptest! {
        #[test]
        fn a_value_lies_between_the_bounds_of_its_bucket(value in 1e-9f64..1e9) {
            let base = 2f64.powf(1.0 / f64::from(PER_OCTAVE));
            let index = index(value);
            // powf is not exact at the bounds.
            prop_assert!(base.powi(index) * (1.0 - 1e-9) < value && value <= base.powi(index + 1) * (1.0 + 1e-9));
        }
    }
}
