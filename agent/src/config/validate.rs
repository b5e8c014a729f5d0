//! What a type cannot say: ranges, names and files that go together.

use super::{Config, rungs};
use crate::probes::ROOMS;
use std::{ops::RangeInclusive, path::Path, time::Duration};

/// Events a second, or at once, that a rate may allow: more is no limit.
const MOST_EVENTS: u64 = 10_000_000;
/// Entries of a table in the kernel: 16 million take gigabytes already.
const MOST_CONNECTIONS: u64 = 1 << 24;
/// Series of a metric.
const MOST_SERIES: u64 = 1_000_000;

/// The problems of a configuration, each with its key.
pub fn validate(config: &Config) -> Vec<(String, String)> {
    let mut problems = Vec::new();
    let mut problem = |key: &str, text: String| problems.push((key.to_owned(), text));
    let rooms = || ROOMS.iter().map(|room| room.name).collect::<Vec<_>>().join(", ");

    if config.probes.is_empty() {
        problem("probes", format!("the list is empty; known are {}", rooms()));
    }
    for name in config.probes.iter().filter(|name| ROOMS.iter().all(|room| room.name != **name)) {
        problem("probes", format!("there is no probe {name:?}; known are {}", rooms()));
    }
    for name in config.rooms.keys().filter(|name| ROOMS.iter().all(|room| room.name != **name)) {
        problem(&format!("rooms.{name}"), format!("unknown key; known are {}", rooms()));
    }
    for (name, room) in &config.rooms {
        let key = |field: &str| format!("rooms.{name}.{field}");
        if !room.ring_bytes.is_power_of_two() || !(4096..=1 << 30).contains(&room.ring_bytes) {
            problem(&key("ring_bytes"), format!("{} is not a power of two from 4096 to 1073741824", room.ring_bytes));
        }
        if !rungs().contains(&room.rung.as_str()) {
            problem(&key("rung"), format!("{:?} is none of {}", room.rung, rungs().join(", ")));
        }
        for (field, value) in [("rate_limit", room.rate_limit), ("rate_burst", room.rate_burst)] {
            if value > MOST_EVENTS {
                problem(&key(field), format!("{value} is more than {MOST_EVENTS}"));
            }
        }
        if room.rate_limit > 0 && room.rate_burst == 0 {
            problem(&key("rate_burst"), "0 with a rate limit lets no event through; set 1 or more".into());
        }
        for comm in room.exclude_comms.iter().filter(|comm| comm.is_empty() || comm.len() > 15) {
            problem(&key("exclude_comms"), format!("{comm:?} is no command name: those have 1 to 15 bytes"));
        }
        if room.exclude_uids.len() > 1024 || room.exclude_comms.len() > 1024 {
            problem(&key("exclude_uids"), "at most 1024 user ids and 1024 command names can be excluded".into());
        }
        period(&mut problem, &key("poll_interval"), room.poll_interval.0, 10..=60_000);
    }
    let network = &config.network;
    for (field, value, most) in [
        ("connections", u64::from(network.connections), MOST_CONNECTIONS),
        ("udp_table", u64::from(network.udp_table), MOST_CONNECTIONS),
        ("max_series", network.max_series as u64, MOST_SERIES),
    ] {
        if !(1..=most).contains(&value) {
            problem(&format!("network.{field}"), format!("{value} is not from 1 to {most}"));
        }
    }
    period(&mut problem, "network.report_interval", network.report_interval.0, 100..=86_400_000);
    if !network.stall_threshold.0.is_zero() {
        let mut problem = |key: &str, text: String| problem(key, format!("{text}; 0s tells no stalls"));
        period(&mut problem, "network.stall_threshold", network.stall_threshold.0, 1..=3_600_000);
    }
    period(&mut problem, "network.trouble_interval", network.trouble_interval.0, 100..=86_400_000);
    if config.service_name.is_empty() {
        problem("service_name", "is empty".into());
    }
    if config.exporter() == super::Exporter::Otlp && config.otlp.endpoint.is_empty() {
        problem("otlp.endpoint", "is empty, but the exporter is otlp; set it to http://HOST:4317".into());
    }
    if !config.otlp.endpoint.is_empty() {
        let uri = config.otlp.endpoint.parse::<http::Uri>();
        let scheme = uri.as_ref().ok().and_then(http::Uri::scheme_str);
        if uri.as_ref().is_ok_and(|uri| uri.authority().is_some_and(|authority| authority.as_str().contains('@'))) {
            problem("otlp.endpoint", "holds a user or a password; put them into otlp.headers".into());
        } else if !matches!(scheme, Some("http" | "https")) || uri.is_ok_and(|uri| uri.host().is_none()) {
            problem(
                "otlp.endpoint",
                format!("{:?} is not of the form http://HOST:PORT or https://HOST:PORT", config.otlp.endpoint),
            );
        }
    }
    for (name, value) in &config.otlp.headers {
        if name.parse::<tonic::metadata::MetadataKey<tonic::metadata::Ascii>>().is_err() {
            problem("otlp.headers", format!("{name:?} is no header name (lower-case letters, digits, -, _ and .)"));
        } else if value.parse::<tonic::metadata::MetadataValue<tonic::metadata::Ascii>>().is_err() {
            problem("otlp.headers", format!("the value of {name:?} is not visible ASCII"));
        }
    }
    for (key, file) in [
        ("otlp.ca_file", &config.otlp.ca_file),
        ("otlp.cert_file", &config.otlp.cert_file),
        ("otlp.key_file", &config.otlp.key_file),
    ] {
        if let Some(file) = file
            && let Err(error) = std::fs::File::open(Path::new(file))
        {
            problem(key, format!("failed to open {}: {error}", file.display()));
        }
    }
    if config.otlp.cert_file.is_some() != config.otlp.key_file.is_some() {
        problem("otlp.cert_file", "a client certificate needs both otlp.cert_file and otlp.key_file".into());
    }
    for pattern in &config.privacy.patterns {
        if let Err(error) = regex::Regex::new(pattern) {
            problem("privacy.patterns", format!("{pattern:?} is no regular expression: {error}"));
        }
    }
    range(&mut problem, "privacy.max_length", config.privacy.max_length, 0..=4096);
    range(&mut problem, "batch.max_bytes", config.batch.max_bytes, 4096..=3 << 20);
    range(&mut problem, "queue.max_batches", config.queue.max_batches, 1..=65_536);
    period(&mut problem, "batch.max_age", config.batch.max_age.0, 1..=3_600_000);
    period(&mut problem, "otlp.timeout", config.otlp.timeout.0, 1..=600_000);
    period(&mut problem, "otlp.retry_initial", config.otlp.retry_initial.0, 1..=600_000);
    period(&mut problem, "otlp.retry_max", config.otlp.retry_max.0, 1..=3_600_000);
    period(&mut problem, "queue.flush_timeout", config.queue.flush_timeout.0, 0..=600_000);
    period(&mut problem, "metrics.interval", config.metrics.interval.0, 100..=3_600_000);
    problems
}

fn range(problem: &mut impl FnMut(&str, String), key: &str, value: usize, allowed: RangeInclusive<usize>) {
    if !allowed.contains(&value) {
        problem(key, format!("{value} is not from {} to {}", allowed.start(), allowed.end()));
    }
}

fn period(problem: &mut impl FnMut(&str, String), key: &str, value: Duration, allowed_ms: RangeInclusive<u64>) {
    let (least, most) = (Duration::from_millis(*allowed_ms.start()), Duration::from_millis(*allowed_ms.end()));
    if value < least || value > most {
        let text = |duration| humantime::format_duration(duration);
        problem(key, format!("{} is not from {} to {}", text(value), text(least), text(most)));
    }
}
