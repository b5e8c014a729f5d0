//! The configuration: defaults < YAML file < environment < flags.
#![forbid(unsafe_code)]

mod period;
mod sources;
mod validate;

pub use period::Period;
pub use sources::{CONFIG_VARIABLE, Flag, Loaded};

use crate::{
    enrich::redact::{CommandLine, Redactor},
    probes::{PROCFS, ROOMS, Way, network},
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::PathBuf, time::Duration};

/// Everything that can be set. Every field has a default.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `service.name` of the agent's telemetry.
    pub service_name: String,
    /// More attributes of the resource, in place of detected ones of the same key.
    pub resource_attributes: BTreeMap<String, String>,
    /// Rooms to run.
    pub probes: Vec<String>,
    /// Where signals go; `auto` is OTLP if an endpoint is set, else the console.
    pub exporter: Exporter,
    /// The console exporter.
    pub console: Console,
    /// The OTLP exporter.
    pub otlp: Otlp,
    /// When a batch is sent.
    pub batch: Batch,
    /// Batches that wait for the exporter.
    pub queue: Queue,
    /// The agent's metrics.
    pub metrics: Metrics,
    /// What leaves the node.
    pub privacy: Privacy,
    /// What `agent run` may do.
    pub privileges: Privileges,
    /// The network room.
    pub network: network::Options,
    /// Settings of each room by its name.
    pub rooms: BTreeMap<String, Room>,
    /// Least severe message logged: `error`, `warn`, `info`, `debug` or `trace`.
    pub log_level: LogLevel,
}

/// Where signals go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Exporter {
    /// OTLP if an endpoint is set, else the console.
    Auto,
    /// OTLP over gRPC.
    Otlp,
    /// Standard output.
    Console,
}

/// See [`Config::console`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Console {
    /// `auto` is text on a terminal, else JSON.
    pub format: Format,
}

/// How events are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Text on a terminal, else JSON.
    Auto,
    /// Aligned columns for people.
    Text,
    /// One envelope per line.
    Json,
}

/// See [`Config::otlp`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Otlp {
    /// `http://host:4317`, or `https://` for TLS; empty is none.
    pub endpoint: String,
    /// Metadata of every request.
    pub headers: BTreeMap<String, String>,
    /// Longest time for one request.
    pub timeout: Period,
    /// Compression of requests.
    pub compression: Compression,
    /// PEM file of certificates to trust in place of the system's.
    pub ca_file: Option<PathBuf>,
    /// PEM file of the client's certificate (mTLS).
    pub cert_file: Option<PathBuf>,
    /// PEM file of the client's key (mTLS).
    pub key_file: Option<PathBuf>,
    /// First wait before a request is tried again; it doubles with every failure.
    pub retry_initial: Period,
    /// Longest wait between two tries.
    pub retry_max: Period,
}

/// Compression of OTLP requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// As they are.
    None,
    /// gzip
    Gzip,
}

/// See [`Config::batch`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Batch {
    /// Bytes of records at which a batch is sent.
    pub max_bytes: usize,
    /// Age of its first record at which a batch is sent; the console's is 100 ms at most.
    pub max_age: Period,
}

/// See [`Config::queue`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Queue {
    /// Batches that may wait; what comes then is dropped and counted.
    pub max_batches: usize,
    /// Time to send what waits when the agent ends.
    pub flush_timeout: Period,
}

/// See [`Config::metrics`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metrics {
    /// Time between two exports.
    pub interval: Period,
}

/// See [`Config::privacy`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Privacy {
    /// `redacted`, `full`, or `executable` for the program's name only.
    pub command_line: CommandLine,
    /// Bytes kept of a command line.
    pub max_length: usize,
    /// Regular expressions; what they match in a command line is replaced.
    pub patterns: Vec<String>,
}

/// See [`Config::privileges`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Privileges {
    /// Once attached, give up what the work does not need. A program that embeds the library decides for itself.
    pub drop: bool,
}

/// See [`Config::rooms`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Room {
    /// Events of processes with these real user ids are not sent.
    pub exclude_uids: Vec<u32>,
    /// Events of processes with these command names are not sent.
    pub exclude_comms: Vec<String>,
    /// Events a second that are sent; 0 is no limit.
    pub rate_limit: u64,
    /// Events that may come at once above the rate.
    pub rate_burst: u64,
    /// Size of the ring between kernel and agent: a power of two.
    pub ring_bytes: u32,
    /// `auto`, or one rung of the ladder for tests: see [`rungs`].
    pub rung: String,
    /// On the /proc rung: time between two looks.
    pub poll_interval: Period,
}

/// See [`Config::log_level`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// [`Room::rung`] that lets the agent choose.
pub const RUNG_AUTO: &str = "auto";

impl Default for Config {
    fn default() -> Self {
        Self {
            service_name: "leaf".into(),
            resource_attributes: BTreeMap::new(),
            probes: ROOMS.iter().map(|room| room.name.to_owned()).collect(),
            exporter: Exporter::Auto,
            console: Console { format: Format::Auto },
            otlp: Otlp {
                endpoint: String::new(),
                headers: BTreeMap::new(),
                timeout: Period::seconds(10),
                compression: Compression::None,
                ca_file: None,
                cert_file: None,
                key_file: None,
                retry_initial: Period::seconds(1),
                retry_max: Period::seconds(30),
            },
            batch: Batch { max_bytes: 256 * 1024, max_age: Period::seconds(1) },
            queue: Queue { max_batches: 64, flush_timeout: Period::seconds(5) },
            metrics: Metrics { interval: Period::seconds(15) },
            privacy: Privacy { command_line: CommandLine::Redacted, max_length: 512, patterns: Vec::new() },
            privileges: Privileges { drop: true },
            network: network::Options::default(),
            rooms: ROOMS.iter().map(|room| (room.name.to_owned(), Room::default())).collect(),
            log_level: LogLevel::Info,
        }
    }
}

impl Default for Room {
    fn default() -> Self {
        Self {
            exclude_uids: Vec::new(),
            exclude_comms: Vec::new(),
            rate_limit: 0,
            rate_burst: 1000,
            ring_bytes: 2 << 20,
            rung: RUNG_AUTO.into(),
            poll_interval: Period(Duration::from_millis(250)),
        }
    }
}

impl Config {
    /// The settings of a room.
    #[must_use]
    pub fn room(&self, name: &str) -> Room {
        self.rooms.get(name).cloned().unwrap_or_default()
    }

    /// The exporter, with `auto` decided.
    #[must_use]
    pub fn exporter(&self) -> Exporter {
        match self.exporter {
            Exporter::Auto if self.otlp.endpoint.is_empty() => Exporter::Console,
            Exporter::Auto => Exporter::Otlp,
            chosen => chosen,
        }
    }
}

impl Privacy {
    /// What turns arguments into text. Patterns were checked when the configuration was loaded.
    #[must_use]
    pub fn redactor(&self) -> Redactor {
        let patterns = self.patterns.iter().filter_map(|pattern| regex::Regex::new(pattern).ok()).collect();
        Redactor::new(self.command_line, self.max_length, patterns)
    }
}

/// The values that [`Room::rung`] takes.
#[must_use]
pub fn rungs() -> Vec<&'static str> {
    let required = |way: &Way| {
        let mut hooks = ROOMS.iter().flat_map(|room| room.hooks).filter(|hook| hook.required);
        hooks.any(|hook| hook.rungs.iter().any(|rung| rung.way == *way))
    };
    [RUNG_AUTO].into_iter().chain(Way::ALL.into_iter().filter(required).map(Way::name)).chain([PROCFS]).collect()
}
