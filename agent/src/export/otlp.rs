//! OTLP over gRPC. A batch is sent as the bytes that it is.
//!
//! Which answers are tried again, and what a partial success is:
//! opentelemetry.io/docs/specs/otlp, "Failures" and "Partial Success".

use super::ExportError;
use crate::{
    config::{self, Compression},
    otlp::{Signal, batch::Block},
};
use bytes::{Buf as _, BufMut as _, Bytes};
use opentelemetry_proto::tonic::collector::{
    logs::v1::ExportLogsServiceResponse, metrics::v1::ExportMetricsServiceResponse,
    trace::v1::ExportTraceServiceResponse,
};
use prost::Message as _;
use std::{
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};
use tonic::{
    Code, Request, Status,
    client::Grpc,
    codec::{Codec, CompressionEncoding, DecodeBuf, Decoder, EncodeBuf, Encoder},
    metadata::{Ascii, MetadataKey, MetadataMap, MetadataValue},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

/// Sends batches, each until the collector has answered.
pub struct Otlp {
    client: Grpc<Channel>,
    metadata: MetadataMap,
    settings: config::Otlp,
    news: Mutex<News>,
}

/// What the user was told of the collector, so that nothing is told twice.
#[derive(Default)]
struct News {
    outage: Option<Outage>,
    /// The last refusal.
    refusal: String,
}

/// A time in which requests do not get through.
struct Outage {
    since: Instant,
    tries: u64,
    /// Requests that have failed and have no answer yet.
    requests: u32,
}

/// What the collector did with a batch.
#[derive(Debug, Default, PartialEq, Eq)]
struct Answer {
    rejected: u64,
    message: String,
}

impl Otlp {
    /// Prepares a connection; it is made when the first batch comes.
    ///
    /// # Errors
    /// [`ExportError::Endpoint`] if the endpoint or a certificate cannot be used.
    pub fn new(settings: &config::Otlp) -> Result<Self, ExportError> {
        let channel =
            channel(settings).map_err(|cause| ExportError::Endpoint { endpoint: settings.endpoint.clone(), cause })?;
        let mut client = Grpc::new(channel).accept_compressed(CompressionEncoding::Gzip);
        if settings.compression == Compression::Gzip {
            client = client.send_compressed(CompressionEncoding::Gzip);
        }
        Ok(Self { client, metadata: metadata(settings), settings: settings.clone(), news: Mutex::default() })
    }

    /// Sends batches of one signal in one request, and again while the collector is away;
    /// `waiting` batches are behind them. What it refuses for good is sent once more batch by
    /// batch, so that one bad batch, or a limit on the size of requests, costs no other.
    pub async fn export(&self, blocks: Vec<Block>, waiting: usize) {
        match self.deliver(&blocks, waiting).await {
            Ok(answer) => self.answered(blocks, &answer),
            Err(status) if blocks.len() == 1 => self.refused(blocks, &status),
            Err(_) => {
                for block in blocks {
                    let block = vec![block];
                    match self.deliver(&block, waiting).await {
                        Ok(answer) => self.answered(block, &answer),
                        Err(status) => self.refused(block, &status),
                    }
                }
            }
        }
    }

    /// The answer to a request, however often that must be sent; an error is for good.
    async fn deliver(&self, blocks: &[Block], waiting: usize) -> Result<Answer, Status> {
        let mut pause = self.settings.retry_initial.0;
        let mut tries = 0;
        loop {
            match self.send(blocks).await {
                Err(status) if is_retryable(&status) => {
                    self.failed(tries == 0, &status, waiting);
                    tries += 1;
                    tokio::time::sleep(jittered(pause)).await;
                    pause = (pause * 2).min(self.settings.retry_max.0);
                }
                settled => {
                    if tries > 0 {
                        self.recovered();
                    }
                    return settled;
                }
            }
        }
    }

    fn answered(&self, blocks: Vec<Block>, answer: &Answer) {
        if answer.rejected > 0 || !answer.message.is_empty() {
            let (rejected, records) = (answer.rejected, records(&blocks));
            let reason = if answer.message.is_empty() { "it gave no reason" } else { &answer.message };
            self.tell(&format!("rejected {rejected} of {records} records"), reason);
        }
        settle(blocks, answer.rejected);
    }

    fn refused(&self, blocks: Vec<Block>, status: &Status) {
        let records = records(&blocks);
        self.tell(&format!("refused a batch for good, its {records} records are lost"), &reason(status));
        settle(blocks, records);
    }

    async fn send(&self, blocks: &[Block]) -> Result<Answer, Status> {
        let Some(signal) = blocks.first().map(|block| block.signal) else {
            return Ok(Answer::default());
        };
        let timeout = self.settings.timeout.0;
        let mut request = Request::new(blocks.iter().map(|block| block.bytes.clone()).collect());
        *request.metadata_mut() = self.metadata.clone();
        let mut client = self.client.clone();
        let call = async {
            let ready = client.ready().await;
            ready.map_err(|error| Status::from_error(Box::new(error)))?;
            client.unary(request, http::uri::PathAndQuery::from_static(path(signal)), Raw).await
        };
        let response = tokio::time::timeout(timeout, call)
            .await
            .map_err(|_| Status::deadline_exceeded(format!("no answer in {}", config::Period(timeout))))??;
        Ok(answer(signal, response.into_inner()))
    }

    fn news(&self) -> MutexGuard<'_, News> {
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A try failed; `first`, the first one of its request.
    fn failed(&self, first: bool, status: &Status, waiting: usize) {
        let mut news = self.news();
        let begins = news.outage.is_none();
        let outage = news.outage.get_or_insert(Outage { since: Instant::now(), tries: 0, requests: 0 });
        outage.tries += 1;
        outage.requests += u32::from(first);
        if begins {
            tracing::warn!(
                "failed to send to {}: {}; trying again until it answers ({waiting} batches wait)",
                self.settings.endpoint,
                reason(status)
            );
        } else {
            tracing::debug!("try {} failed: {}", outage.tries, reason(status));
        }
    }

    /// A request that had failed has its answer.
    fn recovered(&self) {
        let mut news = self.news();
        let Some(outage) = &mut news.outage else {
            return;
        };
        outage.requests = outage.requests.saturating_sub(1);
        if outage.requests == 0 {
            let seconds = Duration::from_secs(outage.since.elapsed().as_secs());
            tracing::info!(
                "{} answers again, after {} failed tries in {}",
                self.settings.endpoint,
                outage.tries,
                config::Period(seconds)
            );
            news.outage = None;
        }
    }

    /// Warns, but not for the same reason again.
    fn tell(&self, what: &str, reason: &str) {
        let mut news = self.news();
        if reason != news.refusal {
            tracing::warn!("{} {what}: {reason}; this is told once, the ledger counts on", self.settings.endpoint);
            reason.clone_into(&mut news.refusal);
        }
    }
}

fn channel(settings: &config::Otlp) -> Result<Channel, String> {
    let mut endpoint = Endpoint::from_shared(settings.endpoint.clone())
        .map_err(|error| error.to_string())?
        .connect_timeout(settings.timeout.0)
        .user_agent(concat!("leaf-agent/", env!("CARGO_PKG_VERSION")))
        .map_err(|error| error.to_string())?;
    if endpoint.uri().scheme_str() == Some("https") {
        endpoint = endpoint.tls_config(tls(settings)?).map_err(|error| causes(&error))?;
    }
    Ok(endpoint.connect_lazy())
}

fn tls(settings: &config::Otlp) -> Result<ClientTlsConfig, String> {
    let read = |path: &Path| std::fs::read(path).map_err(|error| format!("failed to read {}: {error}", path.display()));
    let mut tls = match &settings.ca_file {
        Some(file) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(file)?)),
        None => ClientTlsConfig::new().with_native_roots(),
    };
    if let (Some(cert), Some(key)) = (&settings.cert_file, &settings.key_file) {
        tls = tls.identity(Identity::from_pem(read(cert)?, read(key)?));
    }
    Ok(tls)
}

/// The configured headers; validation has checked them.
fn metadata(settings: &config::Otlp) -> MetadataMap {
    let mut metadata = MetadataMap::new();
    for (name, value) in &settings.headers {
        if let (Ok(name), Ok(mut value)) = (name.parse::<MetadataKey<Ascii>>(), value.parse::<MetadataValue<Ascii>>()) {
            value.set_sensitive(true);
            metadata.insert(name, value);
        }
    }
    metadata
}

fn path(signal: Signal) -> &'static str {
    match signal {
        Signal::Logs => "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
        Signal::Traces => "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
        Signal::Metrics => "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
    }
}

/// Reads an `Export…ServiceResponse`. One that cannot be read came with a
/// status of success, so the batch was taken.
fn answer(signal: Signal, bytes: Bytes) -> Answer {
    let (rejected, message) = match signal {
        Signal::Logs => ExportLogsServiceResponse::decode(bytes)
            .ok()
            .and_then(|response| response.partial_success)
            .map(|partial| (partial.rejected_log_records, partial.error_message)),
        Signal::Traces => ExportTraceServiceResponse::decode(bytes)
            .ok()
            .and_then(|response| response.partial_success)
            .map(|partial| (partial.rejected_spans, partial.error_message)),
        Signal::Metrics => ExportMetricsServiceResponse::decode(bytes)
            .ok()
            .and_then(|response| response.partial_success)
            .map(|partial| (partial.rejected_data_points, partial.error_message)),
    }
    .unwrap_or_default();
    Answer { rejected: u64::try_from(rejected).unwrap_or(0), message }
}

fn is_retryable(status: &Status) -> bool {
    // Not an answer but a connection that failed, whatever code stands for it.
    if std::error::Error::source(status).is_some() {
        return true;
    }
    match status.code() {
        Code::Cancelled
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unavailable
        | Code::DataLoss => true,
        // Only where the server says that it can recover.
        Code::ResourceExhausted => contains(status.details(), b"google.rpc.RetryInfo"),
        _ => false,
    }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// What went wrong, with its innermost cause.
fn reason(status: &Status) -> String {
    match std::error::Error::source(status) {
        Some(source) => causes(source),
        None => format!("{:?}: {}", status.code(), status.message()),
    }
}

fn causes(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    let (outer, inner) = (error.to_string(), innermost.to_string());
    if outer.contains(&inner) { outer } else { format!("{outer}: {inner}") }
}

/// Half to all of `pause`, so that many agents do not come back at once.
fn jittered(pause: Duration) -> Duration {
    let nanos = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().subsec_nanos();
    pause.mul_f64(0.5 + f64::from(nanos % 1_000_000) / 2_000_000.0)
}

/// They are of one ledger: it is all the same which of them the rejected ones were in.
fn settle(blocks: Vec<Block>, mut rejected: u64) {
    for block in blocks {
        let here = rejected.min(block.records());
        rejected -= here;
        block.settle(here);
    }
}

fn records(blocks: &[Block]) -> u64 {
    blocks.iter().map(Block::records).sum()
}

/// A codec for bytes that are protobuf already. Messages that stand one behind the
/// other are one message with the lists of all (protobuf.dev, "Encoding": repeated elements are concatenated).
struct Raw;

impl Codec for Raw {
    type Encode = Vec<Bytes>;
    type Decode = Bytes;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Vec<Bytes>;
    type Error = Status;

    fn encode(&mut self, item: Vec<Bytes>, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.reserve(item.iter().map(Bytes::len).sum());
        for message in item {
            to.put(message);
        }
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let len = from.remaining();
        Ok(Some(from.copy_to_bytes(len)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_may_be_sent_again_is_what_the_specification_says() {
        for code in [Code::Unavailable, Code::DeadlineExceeded, Code::Aborted, Code::DataLoss] {
            assert!(is_retryable(&Status::new(code, "")), "{code:?}");
        }
        for code in [Code::InvalidArgument, Code::Unauthenticated, Code::PermissionDenied, Code::Unimplemented] {
            assert!(!is_retryable(&Status::new(code, "")), "{code:?}");
        }
        assert!(!is_retryable(&Status::resource_exhausted("quota")));
        let details = Bytes::from_static(b"\x12\x2btype.googleapis.com/google.rpc.RetryInfo");
        assert!(is_retryable(&Status::with_details(Code::ResourceExhausted, "later", details)));
    }

    #[test]
    fn a_partial_success_says_how_many_were_rejected() {
        use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsPartialSuccess;
        let response = ExportLogsServiceResponse {
            partial_success: Some(ExportLogsPartialSuccess {
                rejected_log_records: 3,
                error_message: "too old".into(),
            }),
        };
        let expected = Answer { rejected: 3, message: "too old".into() };
        assert_eq!(answer(Signal::Logs, response.encode_to_vec().into()), expected);
        assert_eq!(answer(Signal::Traces, Bytes::new()), Answer::default());
    }

    #[test]
    fn a_request_of_two_batches_is_one_with_the_records_of_both() {
        use opentelemetry_proto::tonic::{
            collector::logs::v1::ExportLogsServiceRequest,
            logs::v1::{ResourceLogs, ScopeLogs},
        };
        let request = |name: &str| ExportLogsServiceRequest {
            resource_logs: vec![ResourceLogs {
                scope_logs: vec![ScopeLogs { schema_url: name.into(), ..Default::default() }],
                ..Default::default()
            }],
        };
        let both = [request("a").encode_to_vec(), request("b").encode_to_vec()].concat();
        let read = ExportLogsServiceRequest::decode(&*both).expect("a request");
        assert_eq!(read.resource_logs, [request("a").resource_logs, request("b").resource_logs].concat());
    }

    #[test]
    fn a_pause_is_never_longer_than_it_may_be() {
        let pause = Duration::from_secs(4);
        let jittered = jittered(pause);
        assert!(jittered >= pause / 2 && jittered <= pause);
    }

    proptest! {
        #[test]
        fn any_answer_is_read(bytes: Vec<u8>) {
            for signal in [Signal::Logs, Signal::Traces, Signal::Metrics] {
                let _ = answer(signal, bytes.clone().into());
            }
        }
    }
}
