//! Leaf: a sidecar-free node agent for OpenTelemetry.
//!
//! eBPF programs and, below them, /proc tell what happens on a node; rooms turn
//! that into log events, spans and metrics; an exporter ships these as OTLP or
//! prints them. `docs/architecture.md` has the picture.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let agent = leaf::agent::Agent::start(&leaf::config::Config::default())?;
//! let ending = agent.run(tokio::time::sleep(std::time::Duration::from_secs(5))).await;
//! eprintln!("{}", ending.ledger());
//! # Ok(())
//! # }
//! ```
#![deny(unsafe_code)]

pub mod agent;
pub mod cli;
pub mod config;
mod drain;
pub mod enrich;
pub mod export;
pub mod health;
pub mod kernel;
pub mod otlp;
pub mod probes;
