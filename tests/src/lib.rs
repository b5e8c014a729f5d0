//! What the integration tests stand on: the real agent, a real collector with the
//! project's own `otel-collector.yaml`, a real Kafka broker, a real container.
//!
//! Whatever a test starts ends with it, by process id, when it passes and when it
//! panics. Its folder goes too, unless the test failed: then its path is printed.
//! Servers listen on loopback only.
#![forbid(unsafe_code)]

pub mod agent;
pub mod collector;
pub mod compile;
pub mod container;
pub mod daemon;
pub mod kafka;
pub mod launch;
pub mod ledger;
pub mod netns;
pub mod nginx;
pub mod otlp;
pub mod peer;
pub mod pipeline;
pub mod place;
pub mod skip;
pub mod ss;
pub mod told;
pub mod truth;
pub mod tshark;
pub mod verifier;
pub mod watch;
pub mod workload;
