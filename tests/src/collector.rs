//! The real collector with the project's own `otel-collector.yaml`. Only environment
//! variables differ from what a user runs.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use crate::daemon::Daemon;
use crate::place::{self, Folder};

const START: Duration = Duration::from_secs(30);
const STOP: Duration = Duration::from_secs(30);

/// A running collector.
#[derive(Debug)]
pub struct Collector {
    daemon: Daemon,
    grpc: SocketAddr,
    http: SocketAddr,
    metrics: SocketAddr,
    _folder: Folder,
}

impl Collector {
    /// Whether setup has brought the collector.
    #[must_use]
    pub fn available() -> bool {
        binary().is_file()
    }

    /// Starts a collector that publishes to the broker at `bootstrap`, and waits for
    /// its health endpoint.
    ///
    /// # Errors
    /// If it does not become healthy; the error shows the end of its log.
    pub fn start(bootstrap: &str) -> Result<Self> {
        let folder = Folder::new("collector")?;
        let [grpc, http, health, metrics] = [address()?, address()?, address()?, address()?];
        let mut command = Command::new(binary());
        command
            .arg("--config")
            .arg(config_path())
            .env("KAFKA_BROKERS", bootstrap)
            .env("OTELCOL_OTLP_GRPC", grpc.to_string())
            .env("OTELCOL_OTLP_HTTP", http.to_string())
            .env("OTELCOL_HEALTH_ENDPOINT", health.to_string())
            .env("OTELCOL_METRICS_HOST", metrics.ip().to_string())
            .env("OTELCOL_METRICS_PORT", metrics.port().to_string())
            .env("OTELCOL_QUEUE_DIRECTORY", folder.path().join("queue"));
        let mut daemon = Daemon::start("collector", command, folder.path())?;
        daemon.wait_until("a healthy answer", START, |_| {
            get(health, "/").is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
        })?;
        Ok(Self { daemon, grpc, http, metrics, _folder: folder })
    }

    /// Where it takes OTLP over gRPC, as `OTEL_EXPORTER_OTLP_ENDPOINT` wants it.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.grpc)
    }

    /// Where it takes OTLP over HTTP.
    #[must_use]
    pub fn http_endpoint(&self) -> String {
        format!("http://{}", self.http)
    }

    /// The collector's own metrics, in Prometheus text format.
    ///
    /// # Errors
    /// If the endpoint does not answer.
    pub fn metrics(&self) -> Result<String> {
        get(self.metrics, "/metrics")
    }

    /// What it has logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.daemon.stderr()
    }

    /// Ends it as a service manager would, and gives back its log.
    ///
    /// # Errors
    /// If it does not end in time, or ends with a failure.
    pub fn stop(mut self) -> Result<String> {
        self.daemon.signal(Signal::TERM)?;
        let status = self.daemon.wait(STOP)?;
        ensure!(status.success(), "the collector ended with {status}\n{}", self.daemon.tail());
        Ok(self.log())
    }
}

/// The text of `otel-collector.yaml`.
///
/// # Errors
/// If it cannot be read.
pub fn config() -> Result<String> {
    let path = config_path();
    std::fs::read_to_string(&path).with_context(|| format!("failed to read {}", path.display()))
}

/// The attributes that `otel-collector.yaml` renames, each with its field of the
/// envelope, in the file's order.
///
/// # Errors
/// If the file cannot be read, or has a copy of an attribute to another without the
/// removal of the first right after it, or a removal without a copy: half a rename.
pub fn renames() -> Result<Vec<(String, String)>> {
    let config = config()?;
    let mut lines = config.lines().map(str::trim).peekable();
    let mut renames = Vec::new();
    while let Some(line) = lines.next() {
        ensure!(removed(line).is_none(), "a removal without a copy before it: {line}");
        if let Some((attribute, field)) = copied(line) {
            let removal = lines.next_if(|next| removed(next) == Some(attribute));
            ensure!(removal.is_some(), "no removal right after the copy: {line}");
            renames.push((attribute.to_owned(), field.to_owned()));
        }
    }
    Ok(renames)
}

/// Source and destination of `- set(log.attributes["…"], log.attributes["…"])`.
fn copied(line: &str) -> Option<(&str, &str)> {
    let (field, attribute) = line.strip_prefix("- set(log.attributes[\"")?.split_once("\"], log.attributes[\"")?;
    Some((attribute.split_once('"')?.0, field))
}

/// What `- delete_key(log.attributes, "…")` removes.
fn removed(line: &str) -> Option<&str> {
    Some(line.strip_prefix("- delete_key(log.attributes, \"")?.split_once('"')?.0)
}

fn binary() -> std::path::PathBuf {
    place::tool("collector/otelcol-leaf")
}

fn config_path() -> std::path::PathBuf {
    place::workspace().join("otel-collector.yaml")
}

fn address() -> Result<SocketAddr> {
    Ok((Ipv4Addr::LOCALHOST, place::free_port()?).into())
}

/// An HTTP GET of a server on this machine: status line, headers and body as they come.
fn get(address: SocketAddr, path: &str) -> Result<String> {
    let patience = Duration::from_secs(2);
    let mut stream = TcpStream::connect_timeout(&address, patience)?;
    stream.set_read_timeout(Some(patience))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
