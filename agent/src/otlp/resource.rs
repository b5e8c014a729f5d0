//! Who sends: the resource of all signals and the scope of one room's.

use super::{Value, key_value, wire};

/// Attributes of the node and the service, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resource {
    /// Keys and values.
    pub attributes: Vec<(String, String)>,
}

impl Resource {
    /// Sets an attribute, in place of an older value of the same key.
    pub fn set(&mut self, key: &str, value: &str) {
        match self.attributes.iter_mut().find(|(k, _)| k == key) {
            Some((_, old)) => value.clone_into(old),
            None => self.attributes.push((key.to_owned(), value.to_owned())),
        }
    }

    /// The body of a `Resource` message.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for (key, value) in &self.attributes {
            key_value(&mut out, 1, key, Value::Text(value));
        }
        out
    }
}

/// The instrumentation scope of a room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// `leaf.<room>`
    pub name: String,
    /// The topic family of its events: `process`, `network` or `performance`.
    pub stream: &'static str,
    /// How its events come about: the rung of the ladder.
    pub source: &'static str,
}

impl Scope {
    /// Key of [`Scope::stream`] among the scope's attributes.
    pub const STREAM: &str = "leaf.stream";
    /// Key of [`Scope::source`] among the scope's attributes.
    pub const SOURCE: &str = "leaf.source";
    /// The scope's version is the agent's.
    pub const VERSION: &str = env!("CARGO_PKG_VERSION");

    /// The body of an `InstrumentationScope` message.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        wire::bytes(&mut out, 1, self.name.as_bytes());
        wire::bytes(&mut out, 2, Self::VERSION.as_bytes());
        key_value(&mut out, 3, Self::STREAM, Value::Text(self.stream));
        key_value(&mut out, 3, Self::SOURCE, Value::Text(self.source));
        out
    }
}
