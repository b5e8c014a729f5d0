//! A receiver of OTLP that costs next to nothing while a measurement runs: it
//! acknowledges every request and keeps the bytes. They are decoded afterwards.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use bytes::Bytes;
use h2::server::{self, SendResponse};
use http::{HeaderMap, Request, Response};
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use prost::Message as _;
use tokio::net::{TcpListener, TcpStream};

/// Bytes of a gRPC message before the message: compression flag and length.
const PREFIX: usize = 5;

/// Requests with log records.
type Logs = Arc<Mutex<Vec<Vec<u8>>>>;

/// A running receiver; it ends with the process.
pub struct Sink {
    /// `http://127.0.0.1:port`
    pub endpoint: String,
    logs: Logs,
}

impl Sink {
    /// Listens on a free port of loopback.
    pub fn start() -> Result<Self> {
        Self::start_with(true)
    }

    /// The same, but it keeps nothing, which costs less.
    pub fn forgetful() -> Result<Self> {
        Self::start_with(false)
    }

    fn start_with(keeps: bool) -> Result<Self> {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
        listener.set_nonblocking(true)?;
        let endpoint = format!("http://{}", listener.local_addr()?);
        let logs = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&logs);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name("sink".into()).spawn(move || {
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener)?;
                loop {
                    let (stream, _) = listener.accept().await?;
                    tokio::spawn(connection(stream, keeps.then(|| Arc::clone(&kept))));
                }
                #[allow(unreachable_code, reason = "names the error type")]
                Ok::<(), std::io::Error>(())
            })
        })?;
        Ok(Self { endpoint, logs })
    }

    /// Takes the log records received so far.
    pub fn take(&self) -> Result<Vec<LogRecord>> {
        let requests = std::mem::take(&mut *self.logs.lock().unwrap_or_else(PoisonError::into_inner));
        let mut records = Vec::new();
        for request in requests {
            let message = request.get(PREFIX..).context("a request without a message")?;
            for resource in ExportLogsServiceRequest::decode(message)?.resource_logs {
                records.extend(resource.scope_logs.into_iter().flat_map(|scope| scope.log_records));
            }
        }
        Ok(records)
    }
}

async fn connection(stream: TcpStream, logs: Option<Logs>) -> Result<(), h2::Error> {
    let mut connection = server::Builder::new()
        .initial_window_size(1 << 24)
        .initial_connection_window_size(1 << 24)
        .handshake::<_, Bytes>(stream)
        .await?;
    while let Some(request) = connection.accept().await {
        let (request, respond) = request?;
        tokio::spawn(answer(request, respond, logs.clone()));
    }
    Ok(())
}

async fn answer(
    request: Request<h2::RecvStream>,
    mut respond: SendResponse<Bytes>,
    logs: Option<Logs>,
) -> Result<(), h2::Error> {
    let logs = logs.filter(|_| request.uri().path().contains("LogsService"));
    let mut body = request.into_body();
    let mut bytes = Vec::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk?;
        body.flow_control().release_capacity(chunk.len())?;
        if logs.is_some() {
            bytes.extend_from_slice(&chunk);
        }
    }
    if let Some(logs) = logs {
        logs.lock().unwrap_or_else(PoisonError::into_inner).push(bytes);
    }
    let mut response = Response::new(());
    response.headers_mut().insert("content-type", http::HeaderValue::from_static("application/grpc"));
    let mut stream = respond.send_response(response, false)?;
    // An empty message: all was taken.
    stream.send_data(Bytes::from_static(&[0; PREFIX]), false)?;
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
    stream.send_trailers(trailers)
}
