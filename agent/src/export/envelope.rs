//! A log record as the flat JSON object that consumers of the event topics
//! read. `otel-collector.yaml` makes the same.

use crate::otlp::{attribute::field_of, resource::Scope};
use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, KeyValue, any_value},
    logs::v1::LogRecord,
};
use serde_json::{Map, Value, json};

/// Where a record comes from.
pub struct Origin<'a> {
    /// `host.name` of the resource.
    pub hostname: &'a str,
    /// `leaf.stream` of the scope.
    pub stream: &'a str,
}

impl<'a> Origin<'a> {
    /// Of the attributes of a resource and a scope.
    #[must_use]
    pub fn of(resource: &'a [KeyValue], scope: &'a [KeyValue]) -> Self {
        Self { hostname: text_of(resource, "host.name"), stream: text_of(scope, Scope::STREAM) }
    }
}

/// The envelope of a record.
#[must_use]
pub fn envelope(origin: &Origin<'_>, record: LogRecord) -> Value {
    let mut data = Map::with_capacity(record.attributes.len() + 1);
    data.insert("type".into(), record.event_name.into());
    for attribute in record.attributes {
        data.insert(field_of(&attribute.key), json_of(attribute.value));
    }
    json!({
        "type": origin.stream,
        "timestamp": record.time_unix_nano,
        "hostname": origin.hostname,
        "data": data,
    })
}

fn text_of<'a>(attributes: &'a [KeyValue], key: &str) -> &'a str {
    attributes
        .iter()
        .find(|attribute| attribute.key == key)
        .and_then(|attribute| match &attribute.value.as_ref()?.value {
            Some(any_value::Value::StringValue(text)) => Some(text.as_str()),
            _ => None,
        })
        .unwrap_or_default()
}

fn json_of(value: Option<AnyValue>) -> Value {
    match value.and_then(|value| value.value) {
        Some(any_value::Value::StringValue(text)) => text.into(),
        Some(any_value::Value::BoolValue(yes)) => yes.into(),
        Some(any_value::Value::IntValue(int)) => int.into(),
        Some(any_value::Value::DoubleValue(number)) => number.into(),
        Some(any_value::Value::ArrayValue(array)) => {
            array.values.into_iter().map(|value| json_of(Some(value))).collect::<Vec<_>>().into()
        }
        // The agent sends no other kind.
        _ => Value::Null,
    }
}
