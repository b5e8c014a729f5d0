//! Broker and collector together, shared by the tests of a file that run at the same time.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::collector::Collector;
use crate::kafka::{Kafka, Record};
use crate::skip::require;

/// How long a test waits for a record. It takes less than a second; the rest is for a
/// slow machine.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// A collector that publishes to a broker.
#[derive(Debug)]
pub struct Pipeline {
    /// The collector. It stands first to end first: without a broker it would retry.
    pub collector: Collector,
    /// The broker.
    pub kafka: Kafka,
}

impl Pipeline {
    /// Starts both.
    ///
    /// # Errors
    /// If one of them does not come up.
    pub fn start() -> Result<Self> {
        let kafka = Kafka::start()?;
        let collector = Collector::start(&kafka.bootstrap())?;
        Ok(Self { collector, kafka })
    }

    /// The events of `host` in a topic, each with its JSON, once there are `count` of them.
    ///
    /// # Errors
    /// If there are fewer after [`PATIENCE`], or more.
    pub fn events(&self, topic: &str, host: &str, count: usize) -> Result<Vec<(Record, Value)>> {
        let of_host = |record: &Record| {
            let value: Value = serde_json::from_slice(&record.value).ok()?;
            (value["hostname"] == host).then(|| (record.clone(), value))
        };
        let enough = |records: &[Record]| records.iter().filter_map(of_host).count() >= count;
        let records = self.kafka.records(topic, enough, PATIENCE)?;
        let events: Vec<_> = records.iter().filter_map(of_host).collect();
        ensure!(events.len() == count, "more than {count} events: {events:?}");
        Ok(events)
    }

    /// The pipeline that another test of this process has started, or a new one.
    /// Topics are shared: a test looks for its own records only. Nothing is held for
    /// longer than a test, for a static is never dropped and its servers would stay.
    /// `None` if the tools are not there; the test is then noted as skipped.
    ///
    /// # Errors
    /// If the pipeline does not come up.
    pub fn shared() -> Result<Option<Arc<Self>>> {
        static SHARED: Mutex<Weak<Pipeline>> = Mutex::new(Weak::new());
        let here = Kafka::available() && Collector::available();
        if !require(here, "no collector or no Kafka: run `cargo xtask setup`") {
            return Ok(None);
        }
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pipeline) = shared.upgrade() {
            return Ok(Some(pipeline));
        }
        let pipeline = Arc::new(Self::start()?);
        *shared = Arc::downgrade(&pipeline);
        Ok(Some(pipeline))
    }
}

/// What stands two levels down in a request as OTLP JSON.
#[must_use]
pub fn items(request: &[u8], resources: &str, scopes: &str, items: &str) -> Vec<Value> {
    let request: Value = serde_json::from_slice(request).unwrap_or_default();
    let list = |value: &Value, key: &str| value[key].as_array().cloned().unwrap_or_default();
    list(&request, resources)
        .iter()
        .flat_map(|resource| list(resource, scopes))
        .flat_map(|scope| list(&scope, items))
        .collect()
}

/// An attribute as text.
#[must_use]
pub fn attribute(of: &Value, key: &str) -> Option<String> {
    let attributes = of["attributes"].as_array()?;
    let value = &attributes.iter().find(|attribute| attribute["key"] == key)?["value"];
    ["stringValue", "intValue"].iter().find_map(|kind| value[kind].as_str().map(str::to_owned))
}
