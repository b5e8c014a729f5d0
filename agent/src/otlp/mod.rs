//! The writers of the signals: from values to OTLP bytes. Knows protobuf and
//! no kernel.
//!
//! Field numbers: opentelemetry-proto 1.10, `logs.proto`, `trace.proto`,
//! `common.proto`, `resource.proto`.
#![forbid(unsafe_code)]

pub mod attribute;
pub mod batch;
pub mod histogram;
pub mod logs;
pub mod metrics;
pub mod resource;
pub mod spans;
pub mod time;
pub mod wire;

use attribute::Attribute;

/// What a block of bytes holds: which OTLP service takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Signal {
    /// `ExportLogsServiceRequest`
    Logs,
    /// `ExportTraceServiceRequest`
    Traces,
    /// `ExportMetricsServiceRequest`
    Metrics,
}

/// The value of an attribute.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// UTF-8 text.
    Text(&'a str),
    /// Signed 64 bits.
    Int(i64),
    /// True or false.
    Bool(bool),
    /// A double.
    Double(f64),
}

/// Appends a `KeyValue` as field `field` of the message that is being written.
///
/// Inlined into each place that names its attribute, where the key is a
/// constant: most are so short that every length is one byte.
#[inline(always)]
pub fn key_value(out: &mut Vec<u8>, field: u32, key: &str, value: Value<'_>) {
    /// A length below this is a varint of one byte.
    const ONE_BYTE: usize = 128;
    /// Bytes around key and text: tag and length of pair, key, value and text.
    const AROUND: usize = 6;
    match value {
        Value::Text(text) if key.len() + text.len() + AROUND < ONE_BYTE && field < 16 => {
            let tag = (field << 3) as u8 | 2;
            let pair = (key.len() + text.len() + AROUND) as u8;
            out.reserve(usize::from(pair) + 2);
            out.extend_from_slice(&[tag, pair, 0x0a, key.len() as u8]);
            out.extend_from_slice(key.as_bytes());
            out.extend_from_slice(&[0x12, text.len() as u8 + 2, 0x0a, text.len() as u8]);
            out.extend_from_slice(text.as_bytes());
        }
        Value::Int(int) if key.len() + 16 < ONE_BYTE && field < 16 => {
            let tag = (field << 3) as u8 | 2;
            let len = wire::varint_len(int as u64);
            out.reserve(key.len() + 20);
            out.extend_from_slice(&[tag, (key.len() + len + 5) as u8, 0x0a, key.len() as u8]);
            out.extend_from_slice(key.as_bytes());
            out.extend_from_slice(&[0x12, len as u8 + 1, 0x18]);
            wire::varint(out, int as u64);
        }
        _ => long_key_value(out, field, key, value),
    }
}

/// The same for any length.
fn long_key_value(out: &mut Vec<u8>, field: u32, key: &str, value: Value<'_>) {
    let value_len = match value {
        Value::Text(text) => 1 + wire::varint_len(text.len() as u64) + text.len(),
        Value::Int(int) => 1 + wire::varint_len(int as u64),
        Value::Bool(_) => 2,
        Value::Double(_) => 9,
    };
    let len = 1 + wire::varint_len(key.len() as u64) + key.len() + 1 + wire::varint_len(value_len as u64) + value_len;
    wire::len_prefix(out, field, len);
    wire::bytes(out, 1, key.as_bytes());
    wire::len_prefix(out, 2, value_len);
    match value {
        Value::Text(text) => wire::bytes(out, 1, text.as_bytes()),
        Value::Bool(yes) => wire::integer(out, 2, u64::from(yes)),
        Value::Double(number) => wire::fixed64(out, 4, number.to_bits()),
        Value::Int(int) => wire::integer(out, 3, int as u64),
    }
}

/// The attributes of a record that is being written.
pub struct Attributes<'a> {
    out: &'a mut Vec<u8>,
    field: u32,
}

impl Attributes<'_> {
    /// Text; an empty one says nothing and is left out.
    #[inline(always)]
    pub fn text(&mut self, attribute: Attribute, value: &str) {
        if !value.is_empty() {
            key_value(self.out, self.field, attribute.key, Value::Text(value));
        }
    }

    /// An integer.
    #[inline(always)]
    pub fn int(&mut self, attribute: Attribute, value: i64) {
        key_value(self.out, self.field, attribute.key, Value::Int(value));
    }

    /// A double.
    #[inline]
    pub fn double(&mut self, attribute: Attribute, value: f64) {
        key_value(self.out, self.field, attribute.key, Value::Double(value));
    }

    /// A bool.
    #[inline]
    pub fn bool(&mut self, attribute: Attribute, value: bool) {
        key_value(self.out, self.field, attribute.key, Value::Bool(value));
    }
}

/// Where a record stands in a trace. All zero is no place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpanContext {
    /// 16 bytes, big-endian.
    pub trace_id: u128,
    /// 8 bytes, big-endian.
    pub span_id: u64,
}
