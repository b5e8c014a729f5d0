//! What every room's decoder asks of bytes from the kernel, before it trusts them.

use super::Malformed;
use zerocopy::{FromBytes, Immutable, KnownLayout};

/// What a record says it is: its first four bytes.
///
/// # Errors
/// [`Malformed::Size`] if there are fewer.
pub fn kind(bytes: &[u8]) -> Result<u32, Malformed> {
    bytes.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes)).ok_or(Malformed::Size(bytes.len()))
}

/// The bytes as a record of one kind.
///
/// # Errors
/// [`Malformed::Size`] if they are more or fewer than it has.
pub fn of<T: FromBytes + KnownLayout + Immutable>(bytes: &[u8]) -> Result<&T, Malformed> {
    T::ref_from_bytes(bytes).map_err(|_| Malformed::Size(bytes.len()))
}

/// Whether a field that has `max` bytes can have `len` of them in use.
///
/// # Errors
/// [`Malformed::Length`]
pub fn check_len(field: &'static str, len: u32, max: usize) -> Result<(), Malformed> {
    if len as usize <= max { Ok(()) } else { Err(Malformed::Length(field, len)) }
}
