//! The bytes that the writers append are those that opentelemetry-proto's own
//! types encode to.

use leaf::{
    health::ledger::Ledger,
    otlp::{
        Signal, SpanContext,
        attribute::{self, Attribute},
        batch::Batch,
        logs::{self, LogEvent},
        resource::{Resource, Scope},
        spans::{self, Kind, Span},
    },
};
use opentelemetry_proto::tonic::{
    collector::{logs::v1::ExportLogsServiceRequest, trace::v1::ExportTraceServiceRequest},
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value},
    logs::v1::{LogRecord, ResourceLogs, ScopeLogs},
    resource::v1,
    trace::v1::{ResourceSpans, ScopeSpans, Span as ProtoSpan, Status, span::Link},
};
use proptest::{collection::vec, prelude::*};
use prost::Message as _;
use std::{sync::Arc, time::Instant};

/// An attribute as our writers and as prost's types take it.
#[derive(Clone, Debug)]
enum Given {
    Text(Attribute, String),
    Int(Attribute, i64),
    Bool(Attribute, bool),
}

impl Given {
    fn write(&self, to: &mut leaf::otlp::Attributes<'_>) {
        match self {
            Given::Text(attribute, text) => to.text(*attribute, text),
            Given::Int(attribute, int) => to.int(*attribute, *int),
            Given::Bool(attribute, yes) => to.bool(*attribute, *yes),
        }
    }

    fn proto(&self) -> Option<KeyValue> {
        Some(match self {
            // Nothing to say is not said.
            Given::Text(_, text) if text.is_empty() => return None,
            Given::Text(attribute, text) => key_value(attribute.key, any_value::Value::StringValue(text.clone())),
            Given::Int(attribute, int) => key_value(attribute.key, any_value::Value::IntValue(*int)),
            Given::Bool(attribute, yes) => key_value(attribute.key, any_value::Value::BoolValue(*yes)),
        })
    }
}

fn key_value(key: &str, value: any_value::Value) -> KeyValue {
    KeyValue { key: key.into(), value: Some(AnyValue { value: Some(value) }), ..Default::default() }
}

fn text(key: &str, value: &str) -> KeyValue {
    key_value(key, any_value::Value::StringValue(value.into()))
}

fn given() -> impl Strategy<Value = Given> {
    let attribute = || prop::sample::select(attribute::ALL.to_vec());
    prop_oneof![
        (attribute(), "\\PC{0,300}").prop_map(|(attribute, text)| Given::Text(attribute, text)),
        (attribute(), any::<i64>()).prop_map(|(attribute, int)| Given::Int(attribute, int)),
        (attribute(), any::<bool>()).prop_map(|(attribute, yes)| Given::Bool(attribute, yes)),
    ]
}

fn who(texts: &[(String, String)]) -> (Resource, Scope) {
    let mut resource = Resource::default();
    for (key, value) in texts {
        resource.set(key, value);
    }
    (resource, Scope { name: "leaf.process".into(), stream: "process", source: "tp_btf" })
}

fn proto_resource(resource: &Resource) -> Option<v1::Resource> {
    let attributes = resource.attributes.iter().map(|(key, value)| text(key, value)).collect();
    Some(v1::Resource { attributes, ..Default::default() })
}

fn proto_scope(scope: &Scope) -> Option<InstrumentationScope> {
    Some(InstrumentationScope {
        name: scope.name.clone(),
        version: Scope::VERSION.into(),
        attributes: vec![text("leaf.stream", scope.stream), text("leaf.source", scope.source)],
        ..Default::default()
    })
}

fn batch(signal: Signal, resource: &Resource, scope: &Scope) -> Batch {
    Batch::new(signal, resource, scope, 4096, Arc::new(Ledger::new("test")))
}

proptest! {
    #[test]
    fn a_batch_of_log_events_is_what_prost_encodes(
        texts in vec(("[a-z.]{1,20}", "\\PC{1,40}"), 0..12),
        records in vec((vec(given(), 0..25), "[a-z_]{1,20}", 1..u64::MAX, any::<u128>(), any::<u64>()), 1..5),
    ) {
        let (resource, scope) = who(&texts);
        let mut batch = batch(Signal::Logs, &resource, &scope);
        let mut log_records = Vec::new();
        for (attributes, name, time, trace_id, span_id) in &records {
            let span = SpanContext { trace_id: *trace_id, span_id: *span_id };
            let event = LogEvent { name, time: *time, observed: time / 2 + 1, span };
            batch.push(Instant::now(), |out| logs::write(out, &event, |to| attributes.iter().for_each(|a| a.write(to))));
            let placed = *span_id != 0;
            log_records.push(LogRecord {
                time_unix_nano: *time,
                observed_time_unix_nano: time / 2 + 1,
                severity_number: 9,
                severity_text: "INFO".into(),
                attributes: attributes.iter().filter_map(Given::proto).collect(),
                trace_id: if placed { trace_id.to_be_bytes().to_vec() } else { Vec::new() },
                span_id: if placed { span_id.to_be_bytes().to_vec() } else { Vec::new() },
                event_name: name.clone(),
                ..Default::default()
            });
        }
        let request = ExportLogsServiceRequest {
            resource_logs: vec![ResourceLogs {
                resource: proto_resource(&resource),
                scope_logs: vec![ScopeLogs { scope: proto_scope(&scope), log_records, ..Default::default() }],
                ..Default::default()
            }],
        };
        let block = batch.take().expect("records");
        prop_assert_eq!(block.records(), records.len() as u64);
        prop_assert_eq!(&block.bytes[..], request.encode_to_vec());
    }

    #[test]
    fn a_batch_of_spans_is_what_prost_encodes(
        texts in vec(("[a-z.]{1,20}", "\\PC{1,40}"), 0..12),
        records in vec((vec(given(), 0..25), "\\PC{1,20}", 1..u64::MAX, any::<u128>(), any::<[u64; 2]>(), prop::option::of("\\PC{1,30}"), prop::option::of(any::<(u128, u64)>())), 1..5),
    ) {
        let (resource, scope) = who(&texts);
        let mut batch = batch(Signal::Traces, &resource, &scope);
        let mut spans = Vec::new();
        for (attributes, name, start, trace_id, [span_id, parent], error, link) in &records {
            let span = Span {
                context: SpanContext { trace_id: *trace_id, span_id: *span_id },
                parent: *parent,
                name,
                kind: Kind::Internal,
                start: *start,
                end: start.saturating_add(1),
                error: error.as_deref(),
                link: link.map(|(trace_id, span_id)| SpanContext { trace_id, span_id }),
            };
            batch.push(Instant::now(), |out| spans::write(out, &span, |to| attributes.iter().for_each(|a| a.write(to))));
            spans.push(ProtoSpan {
                trace_id: trace_id.to_be_bytes().to_vec(),
                span_id: span_id.to_be_bytes().to_vec(),
                parent_span_id: if *parent == 0 { Vec::new() } else { parent.to_be_bytes().to_vec() },
                name: name.clone(),
                kind: 1,
                start_time_unix_nano: *start,
                end_time_unix_nano: start.saturating_add(1),
                attributes: attributes.iter().filter_map(Given::proto).collect(),
                links: link
                    .iter()
                    .map(|(trace_id, span_id)| Link {
                        trace_id: trace_id.to_be_bytes().to_vec(),
                        span_id: span_id.to_be_bytes().to_vec(),
                        ..Default::default()
                    })
                    .collect(),
                status: error.as_ref().map(|error| Status { message: error.clone(), code: 2 }),
                ..Default::default()
            });
        }
        let request = ExportTraceServiceRequest {
            resource_spans: vec![ResourceSpans {
                resource: proto_resource(&resource),
                scope_spans: vec![ScopeSpans { scope: proto_scope(&scope), spans, ..Default::default() }],
                ..Default::default()
            }],
        };
        let block = batch.take().expect("records");
        prop_assert_eq!(&block.bytes[..], request.encode_to_vec());
    }
}
