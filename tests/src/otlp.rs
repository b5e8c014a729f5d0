//! OTLP by hand: what a test sends to a collector without an agent.

use anyhow::{Context, Result, ensure};
use opentelemetry_proto::tonic::collector::logs::v1::{
    ExportLogsServiceRequest, logs_service_client::LogsServiceClient,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsServiceRequest, metrics_service_client::MetricsServiceClient,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, trace_service_client::TraceServiceClient,
};
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs};
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Metric, NumberDataPoint, ResourceMetrics, ScopeMetrics, Sum, metric::Data,
    number_data_point::Value as Number,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use tokio::runtime::Runtime;
use tonic::transport::Channel;

/// A connection to a collector. Calls block until it has answered.
#[derive(Debug)]
pub struct Client {
    runtime: Runtime,
    channel: Channel,
}

impl Client {
    /// Connects to `endpoint` (`http://host:port`).
    ///
    /// # Errors
    /// If nobody answers there.
    pub fn connect(endpoint: &str) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let channel = runtime
            .block_on(Channel::from_shared(endpoint.to_owned())?.connect())
            .with_context(|| format!("failed to connect to {endpoint}"))?;
        Ok(Self { runtime, channel })
    }

    /// Sends log records.
    ///
    /// # Errors
    /// If the collector refuses all or some of them.
    pub fn logs(&self, request: ExportLogsServiceRequest) -> Result<()> {
        let mut client = LogsServiceClient::new(self.channel.clone());
        let answer = self.runtime.block_on(client.export(request))?.into_inner();
        let refused = answer.partial_success.map_or(0, |part| part.rejected_log_records);
        ensure!(refused == 0, "{refused} log records were refused");
        Ok(())
    }

    /// Sends metrics.
    ///
    /// # Errors
    /// If the collector refuses all or some of them.
    pub fn metrics(&self, request: ExportMetricsServiceRequest) -> Result<()> {
        let mut client = MetricsServiceClient::new(self.channel.clone());
        let answer = self.runtime.block_on(client.export(request))?.into_inner();
        let refused = answer.partial_success.map_or(0, |part| part.rejected_data_points);
        ensure!(refused == 0, "{refused} data points were refused");
        Ok(())
    }

    /// Sends spans.
    ///
    /// # Errors
    /// If the collector refuses all or some of them.
    pub fn spans(&self, request: ExportTraceServiceRequest) -> Result<()> {
        let mut client = TraceServiceClient::new(self.channel.clone());
        let answer = self.runtime.block_on(client.export(request))?.into_inner();
        let refused = answer.partial_success.map_or(0, |part| part.rejected_spans);
        ensure!(refused == 0, "{refused} spans were refused");
        Ok(())
    }
}

/// An attribute. `&str`, `i64` and `bool` are values.
pub fn attribute(key: &str, value: impl Into<Scalar>) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value.into().0) }), ..KeyValue::default() }
}

/// The value of an attribute.
#[derive(Debug)]
pub struct Scalar(Value);

impl From<&str> for Scalar {
    fn from(text: &str) -> Self {
        Self(Value::StringValue(text.to_owned()))
    }
}

impl From<i64> for Scalar {
    fn from(number: i64) -> Self {
        Self(Value::IntValue(number))
    }
}

impl From<bool> for Scalar {
    fn from(truth: bool) -> Self {
        Self(Value::BoolValue(truth))
    }
}

/// The resource of an agent on the machine called `host`.
#[must_use]
pub fn resource(host: &str) -> Resource {
    Resource {
        attributes: vec![
            attribute("service.name", "leaf"),
            attribute("host.name", host),
            attribute("host.id", "0123456789abcdef"),
            attribute("os.type", "linux"),
        ],
        ..Resource::default()
    }
}

/// An event, as an agent sends it: a name, a time in Unix nanoseconds, attributes, no body.
#[must_use]
pub fn event(name: &str, time: u64, attributes: Vec<KeyValue>) -> LogRecord {
    LogRecord { time_unix_nano: time, event_name: name.to_owned(), attributes, ..LogRecord::default() }
}

/// Events of one family (`stream`: process, network or performance) from one host.
#[must_use]
pub fn events(host: &str, stream: &str, log_records: Vec<LogRecord>) -> ExportLogsServiceRequest {
    ExportLogsServiceRequest {
        resource_logs: vec![ResourceLogs {
            resource: Some(resource(host)),
            scope_logs: vec![scope(stream, log_records)],
            ..ResourceLogs::default()
        }],
    }
}

/// Events of one family, for a request that carries several.
#[must_use]
pub fn scope(stream: &str, log_records: Vec<LogRecord>) -> ScopeLogs {
    ScopeLogs {
        scope: Some(InstrumentationScope {
            name: format!("leaf.{stream}"),
            attributes: vec![attribute("leaf.stream", stream), attribute("leaf.source", "tp_btf")],
            ..InstrumentationScope::default()
        }),
        log_records,
        ..ScopeLogs::default()
    }
}

/// A counter that stands at `value`.
#[must_use]
pub fn counter(name: &str, value: i64) -> Metric {
    Metric {
        name: name.to_owned(),
        data: Some(Data::Sum(Sum {
            data_points: vec![NumberDataPoint {
                time_unix_nano: 1,
                value: Some(Number::AsInt(value)),
                ..NumberDataPoint::default()
            }],
            aggregation_temporality: AggregationTemporality::Cumulative.into(),
            is_monotonic: true,
        })),
        ..Metric::default()
    }
}

/// Metrics from one host.
#[must_use]
pub fn metrics(host: &str, metrics: Vec<Metric>) -> ExportMetricsServiceRequest {
    ExportMetricsServiceRequest {
        resource_metrics: vec![ResourceMetrics {
            resource: Some(resource(host)),
            scope_metrics: vec![ScopeMetrics { metrics, ..ScopeMetrics::default() }],
            ..ResourceMetrics::default()
        }],
    }
}

/// A span whose ids repeat one byte each.
#[must_use]
pub fn span(trace: u8, id: u8) -> Span {
    Span {
        trace_id: vec![trace; 16],
        span_id: vec![id; 8],
        name: "process".to_owned(),
        start_time_unix_nano: 1,
        end_time_unix_nano: 2,
        ..Span::default()
    }
}

/// Spans from one host.
#[must_use]
pub fn spans(host: &str, spans: Vec<Span>) -> ExportTraceServiceRequest {
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(resource(host)),
            scope_spans: vec![ScopeSpans { spans, ..ScopeSpans::default() }],
            ..ResourceSpans::default()
        }],
    }
}
