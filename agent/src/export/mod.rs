//! Where closed batches go: a bounded queue, then the collector or the
//! console. Knows no room.
#![forbid(unsafe_code)]

pub mod console;
pub mod envelope;
mod lanes;
pub mod otlp;
pub mod queue;
pub mod text;

use crate::{
    config::{self, Config},
    otlp::batch::Block,
};
use console::Console;
use otlp::Otlp;
use tokio::sync::mpsc;

/// What takes batches.
pub enum Exporter {
    /// A collector.
    Otlp(Box<Otlp>),
    /// Standard output.
    Console(Console),
}

/// Why nothing can be exported any more.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The endpoint or its certificates cannot be used.
    #[error("failed to prepare sending to {endpoint}: {cause}")]
    Endpoint {
        /// As configured.
        endpoint: String,
        /// Why.
        cause: String,
    },
    /// Nobody reads standard output any more. That is no failure.
    #[error("standard output was closed")]
    Closed,
    /// Standard output cannot be written.
    #[error("failed to write to standard output: {0}")]
    Output(std::io::Error),
}

impl Exporter {
    /// The configured one.
    ///
    /// # Errors
    /// [`ExportError::Endpoint`]; nothing is connected yet.
    pub fn new(config: &Config) -> Result<Self, ExportError> {
        Ok(match config.exporter() {
            config::Exporter::Otlp => Self::Otlp(Box::new(Otlp::new(&config.otlp)?)),
            _ => Self::Console(Console::new(config.console.format)),
        })
    }

    /// Whether it takes spans and metrics, and not log events only.
    #[must_use]
    pub fn takes_all_signals(&self) -> bool {
        matches!(self, Self::Otlp(_))
    }

    /// Sends what comes until the queue ends.
    ///
    /// # Errors
    /// If it can send nothing any more; what waits in the queue is then lost, and counted.
    pub async fn work(self, mut queue: mpsc::Receiver<Block>) -> Result<(), ExportError> {
        match self {
            Self::Otlp(otlp) => lanes::send(&otlp, queue).await,
            Self::Console(mut console) => {
                while let Some(block) = queue.recv().await {
                    console = console.export(block).await?;
                }
            }
        }
        Ok(())
    }
}
