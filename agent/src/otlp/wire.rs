//! Protobuf's wire format, the few parts that OTLP needs, appended to a buffer.
//!
//! Source: protobuf.dev/programming-guides/encoding. Lengths are minimal
//! varints and fields come in the order of their numbers, so the bytes are the
//! same as any encoder's that follows the specification's serialisation order.

/// Wire type of integers.
const VARINT: u32 = 0;
/// Wire type of 8 bytes, little-endian.
const FIXED64: u32 = 1;
/// Wire type of length-prefixed bytes.
const LEN: u32 = 2;

/// Bytes that [`varint`] writes for `value`.
#[must_use]
pub const fn varint_len(value: u64) -> usize {
    // One byte for each 7 bits begun.
    (70 - (value | 1).leading_zeros() as usize) / 7
}

/// Appends `value` in base 128.
#[inline]
pub fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends the tag of a length-prefixed field and the length.
#[inline]
pub fn len_prefix(out: &mut Vec<u8>, field: u32, len: usize) {
    varint(out, u64::from(field << 3 | LEN));
    varint(out, len as u64);
}

/// Appends bytes or a string.
#[inline]
pub fn bytes(out: &mut Vec<u8>, field: u32, value: &[u8]) {
    len_prefix(out, field, value.len());
    out.extend_from_slice(value);
}

/// Appends an integer, an enumerator or a bool.
#[inline]
pub fn integer(out: &mut Vec<u8>, field: u32, value: u64) {
    varint(out, u64::from(field << 3 | VARINT));
    varint(out, value);
}

/// Appends 8 bytes, little-endian.
#[inline]
pub fn fixed64(out: &mut Vec<u8>, field: u32, value: u64) {
    varint(out, u64::from(field << 3 | FIXED64));
    out.extend_from_slice(&value.to_le_bytes());
}

/// Appends a message whose length is known only after `write` has written it.
///
/// Two bytes are kept for the length, which most records need; one that needs
/// more or fewer is moved.
#[inline]
pub fn message(out: &mut Vec<u8>, field: u32, write: impl FnOnce(&mut Vec<u8>)) {
    const KEPT: usize = 2;
    varint(out, u64::from(field << 3 | LEN));
    let start = out.len();
    out.extend_from_slice(&[0; KEPT]);
    write(out);
    let len = out.len() - start - KEPT;
    match varint_len(len as u64) {
        KEPT => {
            out[start] = len as u8 | 0x80;
            out[start + 1] = (len >> 7) as u8;
        }
        _ => move_message(out, start, len, KEPT),
    }
}

#[cold]
fn move_message(out: &mut Vec<u8>, start: usize, len: usize, kept: usize) {
    // Written behind the message first, since that takes no memory of its own.
    let end = out.len();
    varint(out, len as u64);
    let used = out.len() - end;
    let mut prefix = [0; 10];
    prefix[..used].copy_from_slice(&out[end..]);
    out.truncate(end);
    out.splice(start..start + kept, prefix[..used].iter().copied());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_varint_is_as_long_as_it_says(value: u64) {
            let mut out = Vec::new();
            varint(&mut out, value);
            prop_assert_eq!(out.len(), varint_len(value));
            prop_assert_eq!(prost::decode_length_delimiter(&out[..]).is_ok(), true);
        }

        #[test]
        fn a_message_of_any_length_is_what_prost_writes(len in 0usize..70_000) {
            let body = vec![7u8; len];
            let mut ours = Vec::new();
            message(&mut ours, 2, |out| out.extend_from_slice(&body));
            let mut theirs = Vec::new();
            prost::encoding::bytes::encode(2, &body, &mut theirs);
            prop_assert_eq!(ours, theirs);
        }
    }
}
