//! `agent run`: watch, and send or print, until told to stop.

use super::{Failure, File, Refused, say, start_logging};
use crate::{
    agent::{Agent, StartError},
    config::{Flag, Period},
    export::ExportError,
    kernel::support::ignores_hangup,
};
use tokio::signal::unix::{SignalKind, signal};

/// Watch this node, and send what is seen or print it.
///
/// With no OTLP endpoint configured it prints: text on a terminal, else one JSON
/// object per line. SIGINT and SIGTERM send what is left and print the ledger.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    file: File,
    /// Where signals go: auto, otlp or console
    #[arg(long, value_name = "KIND")]
    exporter: Option<String>,
    /// OTLP endpoint, as in http://localhost:4317
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
    /// How the console writes events: auto, text or json
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Rooms to run, separated by commas
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    probes: Option<Vec<String>>,
    /// Stop after this time, as in 10s or 5m
    #[arg(long, value_name = "TIME")]
    duration: Option<Period>,
    /// Least severe message logged: error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
}

impl Args {
    fn flags(&self) -> Vec<Flag> {
        let text = |name, key, value: &Option<String>| {
            value.as_ref().map(|value| Flag { name, key, value: value.as_str().into() })
        };
        let probes =
            self.probes.as_ref().map(|probes| Flag { name: "--probes", key: "probes", value: probes.clone().into() });
        [
            text("--exporter", "exporter", &self.exporter),
            text("--endpoint", "otlp.endpoint", &self.endpoint),
            text("--format", "console.format", &self.format),
            text("--log-level", "log_level", &self.log_level),
            probes,
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// Runs the command.
pub fn execute(args: Args) -> Result<(), Refused> {
    let config = args.file.read(args.flags())?.config;
    start_logging(config.log_level);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| (Failure::Failed, format!("failed to start the async runtime: {error}")))?;
    let ending = runtime.block_on(async {
        // Before the first event: a signal from then on is an orderly end.
        let end = end(args.duration)?;
        let start = if config.privileges.drop { Agent::start_confined } else { Agent::start };
        let agent = start(&config).map_err(|error| match error {
            StartError::NothingAttached(_) => (Failure::NothingAttached, error.to_string()),
            StartError::Export(ExportError::Endpoint { .. }) => (Failure::Configuration, error.to_string()),
            _ => (Failure::Failed, error.to_string()),
        })?;
        Ok(agent.run(end).await)
    });
    // A write to a pipe that nobody reads may never return.
    runtime.shutdown_background();
    let ending = ending?;
    if ending.drain_failed {
        say(&ending.ledger());
        return Err((Failure::Failed, "the drain thread has failed; report this as a bug of the agent".into()));
    }
    match ending.export {
        // As `head` does when it has seen enough.
        Err(ExportError::Closed) => Ok(()),
        Err(error) => Err((Failure::Failed, error.to_string())),
        Ok(()) => {
            say(&ending.ledger());
            Ok(())
        }
    }
}

/// Ends with SIGINT, SIGTERM, SIGHUP (the terminal is gone; not under nohup) or
/// when `duration` is over.
fn end(duration: Option<Period>) -> Result<impl Future<Output = ()>, Refused> {
    let failed = |error| (Failure::Failed, format!("failed to listen for signals: {error}"));
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    // To listen would undo what nohup has set.
    let mut hangup = match ignores_hangup() {
        true => None,
        false => Some(signal(SignalKind::hangup()).map_err(failed)?),
    };
    Ok(async move {
        let over = async {
            match duration {
                Some(Period(duration)) => tokio::time::sleep(duration).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = async { hangup.as_mut()?.recv().await }, if hangup.is_some() => {}
            () = over => {}
        }
    })
}
