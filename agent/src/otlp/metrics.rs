//! Metrics, sent every few seconds: built from opentelemetry-proto's own types.

use super::{
    histogram::Histogram,
    resource::{Resource, Scope},
};
use opentelemetry_proto::tonic::{
    collector::metrics::v1::ExportMetricsServiceRequest,
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value},
    metrics::v1::{
        self as proto, AggregationTemporality, ExponentialHistogram, ExponentialHistogramDataPoint, NumberDataPoint,
        ResourceMetrics, ScopeMetrics, Sum, metric, number_data_point,
    },
    resource::v1,
};
use prost::Message as _;

/// Attributes of a series.
pub type Labels = Vec<(&'static str, String)>;

/// One instrument with its series.
pub struct Metric {
    /// Semantic convention, or `leaf.*`.
    pub name: &'static str,
    /// UCUM, as in `{process}`.
    pub unit: &'static str,
    /// One sentence.
    pub description: &'static str,
    /// A value for each set of attributes.
    pub data: Data,
}

impl Metric {
    /// A counter of one series without attributes.
    #[must_use]
    pub fn count(name: &'static str, unit: &'static str, description: &'static str, value: u64) -> Self {
        Self { name, unit, description, data: Data::Counter(vec![(Labels::new(), value)]) }
    }
}

/// What kind of instrument it is, and its series.
pub enum Data {
    /// Only grows.
    Counter(Vec<(Labels, u64)>),
    /// Goes up and down; series may be added up.
    UpDownCounter(Vec<(Labels, u64)>),
    /// A distribution.
    Histogram(Vec<(Labels, Histogram)>),
}

impl Data {
    /// Data points.
    fn len(&self) -> usize {
        match self {
            Data::Counter(series) | Data::UpDownCounter(series) => series.len(),
            Data::Histogram(series) => series.len(),
        }
    }
}

/// The metrics of one room as an `ExportMetricsServiceRequest`, and the number of its points.
#[must_use]
pub fn encode(resource: &Resource, scope: &Scope, metrics: Vec<Metric>, start: u64, now: u64) -> (Vec<u8>, u64) {
    let points = metrics.iter().map(|metric| metric.data.len() as u64).sum();
    let metrics = metrics.into_iter().map(|metric| encode_metric(metric, start, now)).collect();
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

fn encode_metric(metric: Metric, start: u64, now: u64) -> proto::Metric {
    let cumulative = AggregationTemporality::Cumulative.into();
    let data = match metric.data {
        Data::Counter(series) => metric::Data::Sum(Sum {
            data_points: numbers(series, start, now),
            aggregation_temporality: cumulative,
            is_monotonic: true,
        }),
        Data::UpDownCounter(series) => metric::Data::Sum(Sum {
            data_points: numbers(series, start, now),
            aggregation_temporality: cumulative,
            is_monotonic: false,
        }),
        Data::Histogram(series) => metric::Data::ExponentialHistogram(ExponentialHistogram {
            data_points: series.into_iter().map(|(labels, values)| distribution(&labels, values, start, now)).collect(),
            aggregation_temporality: cumulative,
        }),
    };
    proto::Metric {
        name: metric.name.to_owned(),
        description: metric.description.to_owned(),
        unit: metric.unit.to_owned(),
        data: Some(data),
        ..Default::default()
    }
}

fn numbers(series: Vec<(Labels, u64)>, start: u64, now: u64) -> Vec<NumberDataPoint> {
    series
        .into_iter()
        .map(|(labels, value)| NumberDataPoint {
            attributes: attributes(&labels),
            start_time_unix_nano: start,
            time_unix_nano: now,
            value: Some(number_data_point::Value::AsInt(value as i64)),
            ..Default::default()
        })
        .collect()
}

fn distribution(labels: &Labels, values: Histogram, start: u64, now: u64) -> ExponentialHistogramDataPoint {
    let (min, max) = (values.count() > 0).then(|| values.range()).unzip();
    ExponentialHistogramDataPoint {
        attributes: attributes(labels),
        start_time_unix_nano: start,
        time_unix_nano: now,
        count: values.count(),
        sum: Some(values.sum()),
        min,
        max,
        scale: Histogram::SCALE,
        zero_count: values.zeros(),
        positive: Some(proto::exponential_histogram_data_point::Buckets {
            offset: values.offset(),
            bucket_counts: values.into_buckets(),
        }),
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
