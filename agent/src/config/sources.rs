//! Where values come from: the file, the environment, the flags. Each single
//! value keeps its source, so that an error and `config show` can name it.

use super::{Config, validate::validate};
use crate::enrich::redact::{REDACTED, is_secret};
use figment::{
    Error, Figment, Metadata, Profile, Provider,
    error::Kind,
    providers::{Format as _, Serialized, Yaml},
    value::{Dict, Map, Value},
};
use std::path::Path;

/// The prefix of the agent's own environment variables.
const PREFIX: &str = "LEAF_";

/// A variable that names the configuration file and is no key.
pub const CONFIG_VARIABLE: &str = "LEAF_CONFIG";

/// A value given on the command line.
pub struct Flag {
    /// `--exporter`
    pub name: &'static str,
    /// `exporter`
    pub key: &'static str,
    /// As typed.
    pub value: Value,
}

/// A configuration with the source of each value.
#[derive(Debug)]
pub struct Loaded {
    /// The effective values.
    pub config: Config,
    figment: Figment,
}

/// One value from one place.
struct Entry {
    source: String,
    key: String,
    value: Value,
}

impl Provider for Entry {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.source.clone())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, Error> {
        let nested = figment::util::nest(&self.key, self.value.clone());
        let dict = nested.into_dict().unwrap_or_default();
        Ok(Profile::Default.collect(dict))
    }
}

impl Loaded {
    /// Reads all sources. `environment` is the process's, or a test's.
    ///
    /// # Errors
    /// All problems found, a line each, naming key, value and source.
    pub fn read(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
        flags: Vec<Flag>,
    ) -> Result<Self, Vec<String>> {
        let mut figment = Figment::from(Serialized::defaults(Config::default()));
        if let Some(path) = file {
            std::fs::File::open(path)
                .map_err(|error| vec![format!("failed to open configuration file {}: {error}", path.display())])?;
            figment = figment.merge(Yaml::file_exact(path));
        }
        let keys = keys(&figment);
        let mut problems = Vec::new();
        let (mut own, mut standard): (Vec<Entry>, Vec<Entry>) = (Vec::new(), Vec::new());
        for (name, value) in environment {
            if let Some(entry) = standard_variable(&name, &value) {
                match entry {
                    Ok((key, value)) => standard.push(Entry { source: variable(&name), key: key.to_owned(), value }),
                    Err(problem) => problems.push(format!("{problem}\n  from environment variable {name}")),
                }
            } else if name.starts_with(PREFIX) && name != CONFIG_VARIABLE && !is_service_variable(&name) {
                match keys.iter().find(|key| variable_of(key) == name) {
                    Some(key) => {
                        own.push(Entry { source: variable(&name), key: key.clone(), value: own_value(key, &value) });
                    }
                    None => problems.push(format!(
                        "unknown environment variable {name}={}: no setting has this name; `agent config show` lists all",
                        shown(&name, &value)
                    )),
                }
            }
        }
        let flags = flags.into_iter().map(|flag| Entry {
            source: format!("flag {}", flag.name),
            key: flag.key.to_owned(),
            value: flag.value,
        });
        for entry in standard.into_iter().chain(own).chain(flags) {
            figment = figment.merge(entry);
        }
        let config: Config = match figment.extract() {
            Ok(config) => config,
            Err(errors) => {
                problems.extend(errors.into_iter().map(|error| describe(&figment, &error)));
                return Err(problems);
            }
        };
        problems.extend(
            validate(&config)
                .into_iter()
                .map(|(key, problem)| format!("{key}: {problem}\n  from {}", source_of(&figment, &key))),
        );
        if problems.is_empty() { Ok(Self { config, figment }) } else { Err(problems) }
    }

    /// Each setting: key, value, source.
    #[must_use]
    pub fn settings(&self) -> Vec<(String, String, String)> {
        keys(&self.figment)
            .into_iter()
            .map(|key| {
                let value = self.figment.find_value(&key).map(|value| display(&value)).unwrap_or_default();
                let value = if key == SECRET && value != "{}" { REDACTED.to_owned() } else { value };
                let source = source_of(&self.figment, &key);
                (key, value, source)
            })
            .collect()
    }
}

/// Headers carry tokens: they are not shown.
const SECRET: &str = "otlp.headers";

/// A value in a message; what could be a secret is not repeated there.
fn shown<'a>(name: &str, value: &'a str) -> &'a str {
    if name.ends_with("HEADERS") || is_secret(name) { REDACTED } else { value }
}

/// Kubernetes puts variables for each Service into each pod; those of `leaf`,
/// `leaf-collector` and so on begin as ours do. None of our settings has these words.
fn is_service_variable(name: &str) -> bool {
    let ends = ["_SERVICE_HOST", "_SERVICE_PORT", "_PORT"];
    ends.iter().any(|end| name.ends_with(end)) || ["_SERVICE_PORT_", "_PORT_"].iter().any(|part| name.contains(part))
}

fn variable(name: &str) -> String {
    format!("environment variable {name}")
}

fn variable_of(key: &str) -> String {
    format!("{PREFIX}{}", key.replace('.', "_").to_uppercase())
}

/// Dotted paths of all settings; a map or list that is a setting's value counts as one.
fn keys(figment: &Figment) -> Vec<String> {
    const WHOLE: &[&str] = &["resource_attributes", "otlp.headers"];
    fn walk(prefix: &str, value: &Value, out: &mut Vec<String>) {
        match value.as_dict() {
            Some(dict) if !WHOLE.contains(&prefix) => {
                for (key, value) in dict {
                    let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                    walk(&path, value, out);
                }
            }
            _ => out.push(prefix.to_owned()),
        }
    }
    let mut out = Vec::new();
    if let Ok(map) = figment.data() {
        for dict in map.values() {
            for (key, value) in dict {
                walk(key, value, &mut out);
            }
        }
    }
    out
}

/// Maps are written `a=b,c=d`, lists `a,b`; what else figment reads by itself.
fn own_value(key: &str, text: &str) -> Value {
    let last = key.rsplit('.').next().unwrap_or(key);
    match last {
        "headers" | "resource_attributes" => pairs(text).map_or_else(|_| Value::from(text), dict),
        "probes" | "exclude_uids" | "exclude_comms" if !text.trim_start().starts_with('[') => {
            let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
            Value::from(parts.map(|part| plain(last == "exclude_uids", part)).collect::<Vec<Value>>())
        }
        // One pattern, which may hold commas and brackets.
        "patterns" => Value::from(vec![Value::from(text)]),
        "service_name" | "endpoint" | "rung" => Value::from(text),
        _ => text.parse().unwrap_or_else(|_| Value::from(text)),
    }
}

fn plain(number: bool, text: &str) -> Value {
    match text.parse::<u64>() {
        Ok(value) if number => Value::from(value),
        _ => Value::from(text),
    }
}

/// OpenTelemetry's own variables (specification: "Environment Variable
/// Specification" and "OTLP Exporter Configuration"). `None`: not one of them.
fn standard_variable(name: &str, value: &str) -> Option<Result<(&'static str, Value), String>> {
    const EXPORTER: &str = "OTEL_EXPORTER_OTLP_";
    /// What a signal would need a way of its own for.
    const SIGNAL_SETTINGS: &[&str] =
        &["ENDPOINT", "HEADERS", "PROTOCOL", "CERTIFICATE", "CLIENT_KEY", "COMPRESSION", "TIMEOUT", "INSECURE"];
    let text = |key| Some(Ok((key, Value::from(value))));
    let millis = |key: &'static str| {
        Some(match value.parse::<u64>() {
            Ok(millis) => Ok((key, Value::from(format!("{millis}ms")))),
            Err(_) => Err(format!("{key}: {value:?} is not a number of milliseconds")),
        })
    };
    let map = |key: &'static str| {
        Some(pairs(value).map(|pairs| (key, dict(pairs))).map_err(|problem| format!("{key}: {problem}")))
    };
    // An empty variable is the same as none (specification, "Parsing empty value").
    if value.is_empty() {
        return None;
    }
    match name {
        "OTEL_SERVICE_NAME" => text("service_name"),
        "OTEL_RESOURCE_ATTRIBUTES" => map("resource_attributes"),
        "OTEL_METRIC_EXPORT_INTERVAL" => millis("metrics.interval"),
        _ => match name.strip_prefix(EXPORTER)? {
            "ENDPOINT" => text("otlp.endpoint"),
            "HEADERS" => map("otlp.headers"),
            "TIMEOUT" => millis("otlp.timeout"),
            "COMPRESSION" => text("otlp.compression"),
            "CERTIFICATE" => text("otlp.ca_file"),
            "CLIENT_CERTIFICATE" => text("otlp.cert_file"),
            "CLIENT_KEY" => text("otlp.key_file"),
            "PROTOCOL" if value == "grpc" => None,
            "PROTOCOL" => Some(Err(format!("protocol {value:?} is not supported: set it to \"grpc\""))),
            "INSECURE" => None,
            // How others aggregate metrics is not our matter.
            other if SIGNAL_SETTINGS.iter().all(|end| !other.ends_with(end)) => None,
            other => Some(Err(format!(
                "{EXPORTER}{other} is not supported: all signals go to one endpoint, set {EXPORTER}ENDPOINT"
            ))),
        },
    }
}

/// `a=b,c=d` with percent-encoded values, as in W3C Baggage.
fn pairs(text: &str) -> Result<Vec<(String, String)>, String> {
    text.split(',')
        .map(str::trim)
        .filter(|pair| !pair.is_empty())
        .enumerate()
        .map(|(at, pair)| {
            // By its number: what it says may be a secret.
            let wrong = || format!("entry {} is not of the form key=value", at + 1);
            let (key, value) = pair.split_once('=').ok_or_else(wrong)?;
            Ok((key.trim().to_owned(), percent_decoded(value.trim())))
        })
        .collect()
}

fn percent_decoded(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let hex = tail.first_chunk::<2>().filter(|_| first == b'%');
        let byte = hex.and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        out.push(byte.unwrap_or(first));
        rest = if byte.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn dict(pairs: Vec<(String, String)>) -> Value {
    Value::from(pairs.into_iter().map(|(key, value)| (key, Value::from(value))).collect::<Dict>())
}

/// Where a key's value comes from, in words.
fn source_of(figment: &Figment, key: &str) -> String {
    let name = figment.find_metadata(key).map(|metadata| match &metadata.source {
        Some(figment::Source::File(path)) => format!("file {}", path.display()),
        _ => metadata.name.to_string(),
    });
    match name {
        // figment names the provider of the defaults by its type.
        Some(name) if !name.contains("Config") => name,
        _ => "default".to_owned(),
    }
}

/// An error of figment with key, value and source.
fn describe(figment: &Figment, error: &Error) -> String {
    let mut path = error.path.join(".");
    let problem = match &error.kind {
        Kind::UnknownField(field, expected) => {
            let nearest =
                if expected.is_empty() { String::new() } else { format!("; known are {}", expected.join(", ")) };
            if path.is_empty() || path.ends_with(field.as_str()) {
                path = if path.is_empty() { field.clone() } else { path };
            } else {
                path = format!("{path}.{field}");
            }
            format!("unknown key{nearest}")
        }
        _ if path.starts_with(SECRET) => "is not of the form key=value,key=value".to_owned(),
        kind => kind.to_string(),
    };
    let value = figment.find_value(&path).map(|value| format!(" (value {})", display(&value))).unwrap_or_default();
    let value = if path.starts_with(SECRET) { String::new() } else { value };
    let source = match &error.metadata {
        Some(metadata) => match &metadata.source {
            Some(figment::Source::File(file)) => format!("file {}", file.display()),
            _ => metadata.name.to_string(),
        },
        None => source_of(figment, &path),
    };
    if path.is_empty() {
        format!("{problem}\n  from {source}")
    } else {
        format!("{path}: {problem}{value}\n  from {source}")
    }
}

/// A value as it would be written in the file.
fn display(value: &Value) -> String {
    match value {
        Value::String(_, text) => text.clone(),
        other => serde_json::to_string(other).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    fn environment(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::Builder::new().suffix(".yaml").tempfile().expect("a file");
        std::fs::write(file.path(), text).expect("written");
        file
    }

    #[test]
    fn flags_win_over_the_environment_over_the_file_over_defaults() {
        let file = file("service_name: from-file\nqueue:\n  max_batches: 7\nbatch:\n  max_age: 3s\n");
        let loaded = Loaded::read(
            Some(file.path()),
            environment(&[("OTEL_SERVICE_NAME", "from-otel"), ("LEAF_BATCH_MAX_AGE", "4s"), ("LEAF_EXPORTER", "otlp")]),
            vec![Flag { name: "--exporter", key: "exporter", value: "console".into() }],
        )
        .expect("valid");
        let config = &loaded.config;
        assert_eq!(config.service_name, "from-otel");
        assert_eq!(config.queue.max_batches, 7);
        assert_eq!(config.batch.max_age.0, Duration::from_secs(4));
        assert_eq!(config.exporter, super::super::Exporter::Console);
        let source = |key: &str| loaded.settings().into_iter().find(|(k, ..)| k == key).expect("listed").2;
        assert_eq!(source("service_name"), "environment variable OTEL_SERVICE_NAME");
        assert_eq!(source("queue.max_batches"), format!("file {}", file.path().display()));
        assert_eq!(source("batch.max_age"), "environment variable LEAF_BATCH_MAX_AGE");
        assert_eq!(source("exporter"), "flag --exporter");
        assert_eq!(source("batch.max_bytes"), "default");
    }

    #[test]
    fn an_error_names_key_value_and_source() {
        let file = file("batch:\n  max_bites: 5\n");
        let problem = Loaded::read(Some(file.path()), [], vec![]).expect_err("unknown key").join("\n");
        assert!(problem.contains("batch.max_bites") && problem.contains("unknown key"), "{problem}");
        assert!(problem.contains(&file.path().display().to_string()), "{problem}");

        let problem = Loaded::read(None, environment(&[("LEAF_QUEUE_MAX_BATCHES", "many")]), vec![])
            .expect_err("type")
            .join("\n");
        for part in ["queue.max_batches", "many", "environment variable LEAF_QUEUE_MAX_BATCHES"] {
            assert!(problem.contains(part), "{part} in {problem}");
        }

        let problem = Loaded::read(None, environment(&[("LEAF_QUEUE_MAX_BATCHES", "0")]), vec![]).expect_err("range");
        assert!(problem[0].contains("queue.max_batches") && problem[0].contains('0'), "{problem:?}");
        assert!(problem[0].contains("environment variable LEAF_QUEUE_MAX_BATCHES"), "{problem:?}");

        let problem = Loaded::read(None, environment(&[("LEAF_NO_SUCH", "1")]), vec![]).expect_err("unknown");
        assert!(problem[0].contains("LEAF_NO_SUCH=1"), "{problem:?}");

        let problem = Loaded::read(Some(Path::new("/no/such.yaml")), [], vec![]).expect_err("missing");
        assert!(problem[0].contains("/no/such.yaml"), "{problem:?}");
    }

    #[test]
    fn the_standard_variables_mean_what_the_specification_says() {
        let loaded = Loaded::read(
            None,
            environment(&[
                ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4317"),
                ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20x,tenant=a"),
                ("OTEL_EXPORTER_OTLP_TIMEOUT", "2500"),
                ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
                ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=prod,team=core"),
                ("OTEL_SERVICE_NAME", ""),
            ]),
            vec![],
        )
        .expect("valid");
        let config = &loaded.config;
        assert_eq!(config.otlp.headers["authorization"], "Bearer x");
        assert_eq!(config.otlp.timeout.0, Duration::from_millis(2500));
        assert_eq!(config.resource_attributes["deployment.environment.name"], "prod");
        assert_eq!(config.service_name, "leaf");
        assert_eq!(config.exporter(), super::super::Exporter::Otlp);
        let shown = loaded.settings().into_iter().find(|(key, ..)| key == "otlp.headers").expect("listed");
        assert!(!shown.1.contains("Bearer"), "{shown:?}");
        for name in ["OTEL_EXPORTER_OTLP_HEADERS", "LEAF_OTLP_HEADERS", "LEAF_API_TOKEN"] {
            let problem = Loaded::read(None, environment(&[(name, "Bearer s3cr3t")]), vec![]).expect_err("refused");
            assert!(problem[0].contains(name) && !problem[0].contains("s3cr3t"), "{problem:?}");
        }
        let service = [
            ("LEAF_SERVICE_HOST", "10.0.0.7"),
            ("LEAF_PORT_4317_TCP", "tcp://10.0.0.7:4317"),
            ("LEAF_COLLECTOR_SERVICE_PORT", "4317"),
            ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "delta"),
        ];
        assert!(Loaded::read(None, environment(&service), vec![]).is_ok(), "Kubernetes sets these by itself");
        let refused = Loaded::read(None, environment(&[("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")]), vec![]);
        assert!(refused.expect_err("unsupported")[0].contains("http/json"));
    }

    #[test]
    fn lists_are_written_with_commas() {
        let loaded = Loaded::read(
            None,
            environment(&[
                ("LEAF_ROOMS_PROCESS_EXCLUDE_UIDS", "33,1000"),
                ("LEAF_ROOMS_PROCESS_EXCLUDE_COMMS", "cron,sh"),
            ]),
            vec![],
        )
        .expect("valid");
        assert_eq!(loaded.config.room("process").exclude_uids, [33, 1000]);
        assert_eq!(loaded.config.room("process").exclude_comms, ["cron", "sh"]);
    }

    proptest! {
        #[test]
        fn any_file_is_a_configuration_or_an_error(text in "\\PC{0,200}") {
            let file = file(&text);
            let _ = Loaded::read(Some(file.path()), [], vec![]);
        }
    }
}
