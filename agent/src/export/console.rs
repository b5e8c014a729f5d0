//! Standard output as exporter: log events as text for a person, or as one
//! envelope per line for a program.

use super::{
    ExportError,
    envelope::{Origin, envelope},
    text::Text,
};
use crate::{
    config::Format,
    otlp::{Signal, batch::Block},
};
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use prost::Message as _;
use std::io::{self, IsTerminal as _, Write as _};

/// Writes to standard output.
pub struct Console {
    /// `None`: JSON.
    text: Option<Text>,
}

impl Console {
    /// `Auto` is decided by what standard output is.
    #[must_use]
    pub fn new(format: Format) -> Self {
        let terminal = io::stdout().is_terminal();
        let text = match format {
            Format::Auto => terminal,
            Format::Text => true,
            Format::Json => false,
        };
        Self { text: text.then(|| Text::new(terminal)) }
    }

    /// Writes a batch. On a thread of its own, since a pipe may block for any time.
    ///
    /// # Errors
    /// [`ExportError::Closed`] if nobody reads any more; [`ExportError::Output`] otherwise.
    pub async fn export(mut self, block: Block) -> Result<Self, ExportError> {
        let written = tokio::task::spawn_blocking(move || {
            self.write(block)?;
            Ok(self)
        });
        match written.await {
            Ok(Ok(console)) => Ok(console),
            Ok(Err(error)) => Err(error),
            Err(error) => Err(ExportError::Output(io::Error::other(error))),
        }
    }

    fn write(&mut self, block: Block) -> Result<(), ExportError> {
        if block.signal != Signal::Logs {
            block.settle(0);
            return Ok(());
        }
        let lines = self
            .render(&block)
            .map_err(|error| ExportError::Output(io::Error::new(io::ErrorKind::InvalidData, error)))?;
        let mut stdout = io::stdout().lock();
        match stdout.write_all(&lines).and_then(|()| stdout.flush()) {
            Ok(()) => {
                block.settle(0);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(ExportError::Closed),
            Err(error) => Err(ExportError::Output(error)),
        }
    }

    fn render(&mut self, block: &Block) -> Result<Vec<u8>, prost::DecodeError> {
        let mut lines = Vec::with_capacity(block.bytes.len());
        for resource_logs in ExportLogsServiceRequest::decode(block.bytes.clone())?.resource_logs {
            let resource = resource_logs.resource.unwrap_or_default();
            for scope_logs in resource_logs.scope_logs {
                let scope = scope_logs.scope.unwrap_or_default();
                let origin = Origin::of(&resource.attributes, &scope.attributes);
                for record in scope_logs.log_records {
                    let envelope = envelope(&origin, record);
                    match &mut self.text {
                        Some(text) => text.line(&envelope, &mut lines),
                        None => lines.extend_from_slice(envelope.to_string().as_bytes()),
                    }
                    lines.push(b'\n');
                }
            }
        }
        Ok(lines)
    }
}
