//! Metrics, sent every few seconds: built from opentelemetry-proto's own types.

use super::resource::{Resource, Scope};
use opentelemetry_proto::tonic::{
    collector::metrics::v1::ExportMetricsServiceRequest,
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value},
    metrics::v1::{
        AggregationTemporality, Metric, NumberDataPoint, ResourceMetrics, ScopeMetrics, Sum, metric, number_data_point,
    },
    resource::v1,
};
use prost::Message as _;

/// A counter that only grows, and one of its series per set of attributes.
pub struct Counter {
    /// Semantic convention, or `leaf.*`.
    pub name: &'static str,
    /// UCUM, as in `{process}`.
    pub unit: &'static str,
    /// One sentence.
    pub description: &'static str,
    /// Attributes and value of each series.
    pub series: Vec<(Vec<(&'static str, String)>, u64)>,
}

/// The counters of one room as an `ExportMetricsServiceRequest`, and the number of its points.
#[must_use]
pub fn encode(resource: &Resource, scope: &Scope, counters: Vec<Counter>, start: u64, now: u64) -> (Vec<u8>, u64) {
    let mut points = 0;
    let metrics = counters
        .into_iter()
        .map(|counter| {
            points += counter.series.len() as u64;
            metric(counter, start, now)
        })
        .collect();
    let request = ExportMetricsServiceRequest {
        resource_metrics: vec![ResourceMetrics {
            resource: Some(v1::Resource { attributes: attributes(&resource.attributes), ..Default::default() }),
            scope_metrics: vec![ScopeMetrics {
                scope: Some(InstrumentationScope {
                    name: scope.name.clone(),
                    version: Scope::VERSION.to_owned(),
                    attributes: attributes(&[(Scope::STREAM, scope.stream), (Scope::SOURCE, scope.source)]),
                    ..Default::default()
                }),
                metrics,
                ..Default::default()
            }],
            ..Default::default()
        }],
    };
    (request.encode_to_vec(), points)
}

fn metric(counter: Counter, start: u64, now: u64) -> Metric {
    let data_points = counter
        .series
        .into_iter()
        .map(|(labels, value)| NumberDataPoint {
            attributes: attributes(&labels),
            start_time_unix_nano: start,
            time_unix_nano: now,
            value: Some(number_data_point::Value::AsInt(value as i64)),
            ..Default::default()
        })
        .collect();
    Metric {
        name: counter.name.to_owned(),
        description: counter.description.to_owned(),
        unit: counter.unit.to_owned(),
        data: Some(metric::Data::Sum(Sum {
            data_points,
            aggregation_temporality: AggregationTemporality::Cumulative.into(),
            is_monotonic: true,
        })),
        ..Default::default()
    }
}

fn attributes<K: AsRef<str>, V: AsRef<str>>(pairs: &[(K, V)]) -> Vec<KeyValue> {
    pairs
        .iter()
        .map(|(key, value)| KeyValue {
            key: key.as_ref().to_owned(),
            value: Some(AnyValue { value: Some(any_value::Value::StringValue(value.as_ref().to_owned())) }),
            ..Default::default()
        })
        .collect()
}
