//! An envelope as a line of aligned columns, with colour on a terminal.

use serde_json::{Map, Value};
use std::{fmt::Write as _, time::Duration};

/// Fields with a column of their own: name, heading, width (negative: to the right).
const COLUMNS: &[(&str, &str, i32)] = &[
    ("type", "EVENT", 14),
    ("pid", "PID", -8),
    ("ppid", "PPID", -8),
    ("uid", "UID", -6),
    ("comm", "COMM", 16),
    ("container_id", "CONTAINER", 12),
];

/// Fields that say little to a person, or that another field says better.
const HIDDEN: &[&str] = &[
    "tid",
    "gid",
    "start_time",
    "cgroup",
    "cgroup_id",
    "container_runtime",
    "pod_uid",
    "filename",
    "cmdline",
    "src_ip",
    "src_port",
    "dst_ip",
    "dst_port",
    "server",
    "ip_version",
    "netns",
    "event_type",
];

/// Fields that are said only if they are not this.
const USUAL: &[(&str, &str)] = &[("transport", "tcp"), ("reset", "false"), ("retransmits", "0")];

/// What the line ends with: the first of these that the event has.
const LAST: &[&str] = &["cmdline", "filename"];

/// Headings are repeated after this many lines.
const PAGE: u64 = 40;

const BOLD: &str = "\x1b[1m";
const RED: &str = "\x1b[31m";
const RESET: &str = "\x1b[0m";

/// Writes lines; remembers when a heading is due.
pub struct Text {
    colour: bool,
    /// Cells of the terminal; `None`: lines are not cut.
    width: Option<usize>,
    lines: u64,
}

impl Text {
    /// For a terminal, or not.
    #[must_use]
    pub fn new(terminal: bool) -> Self {
        let colour = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let width = rustix::termios::tcgetwinsize(std::io::stdout()).ok().map(|size| usize::from(size.ws_col));
        Self { colour, width: width.filter(|width| terminal && *width >= 40), lines: 0 }
    }

    /// Appends an event without its line end.
    pub fn line(&mut self, envelope: &Value, out: &mut Vec<u8>) {
        if self.lines.is_multiple_of(PAGE) && (self.lines == 0 || self.width.is_some()) {
            self.paint(BOLD, heading().trim_end(), out);
            out.push(b'\n');
        }
        self.lines += 1;
        let mut line = clock(envelope["timestamp"].as_u64().unwrap_or(0));
        let empty = Map::new();
        let data = envelope["data"].as_object().unwrap_or(&empty);
        for (field, _, width) in COLUMNS {
            let text = data.get(*field).map(plain).unwrap_or_default();
            line.push_str("  ");
            pad(&mut line, &text, *width);
        }
        if let Some(ends) = ends(data) {
            line.push_str("  ");
            line.push_str(&ends);
        }
        for (field, value) in data {
            if USUAL.iter().any(|(usual, text)| usual == field && plain(value) == *text) {
                continue;
            }
            if !HIDDEN.contains(&field.as_str()) && COLUMNS.iter().all(|(column, ..)| column != field) {
                let _ = match (field.rsplit_once('_'), value.as_u64()) {
                    (Some((name, "ns")), Some(ns)) => write!(line, "  {name}={}", duration(ns)),
                    (Some((name, "bytes")), Some(count)) => write!(line, "  {name}={}", bytes(count)),
                    _ => write!(line, "  {field}={}", plain(value)),
                };
            }
        }
        if let Some(last) = LAST.iter().find_map(|field| data.get(*field)) {
            line.push_str("  ");
            line.push_str(&plain(last));
        }
        let shown = match self.width {
            Some(width) => line.chars().take(width).collect(),
            None => line,
        };
        self.paint(colour(data), shown.trim_end(), out);
    }

    fn paint(&self, colour: &str, text: &str, out: &mut Vec<u8>) {
        if !self.colour || colour.is_empty() {
            return out.extend_from_slice(text.as_bytes());
        }
        for part in [colour, text, RESET] {
            out.extend_from_slice(part.as_bytes());
        }
    }
}

/// Who connects to whom, the latter by its name if it is known.
fn ends(data: &Map<String, Value>) -> Option<String> {
    let end = |address: &str, port: &str, name: Option<&Value>| {
        let address = plain(data.get(address)?);
        let bracketed = if address.contains(':') { format!("[{address}]") } else { address };
        let port = data.get(port).map(plain).unwrap_or_default();
        Some(match name {
            Some(name) => format!("{}:{port} ({bracketed})", plain(name)),
            None => format!("{bracketed}:{port}"),
        })
    };
    Some(format!("{} -> {}", end("src_ip", "src_port", None)?, end("dst_ip", "dst_port", data.get("server"))?))
}

fn heading() -> String {
    let mut line = format!("{:<12}", "TIME");
    for (_, heading, width) in COLUMNS {
        line.push_str("  ");
        pad(&mut line, heading, *width);
    }
    line
}

fn pad(line: &mut String, text: &str, width: i32) {
    let cells = width.unsigned_abs() as usize;
    let text: String = text.chars().take(cells).collect();
    let _ = if width < 0 { write!(line, "{text:>cells$}") } else { write!(line, "{text:<cells$}") };
}

/// What failed stands out.
fn colour(data: &Map<String, Value>) -> &'static str {
    let failed = data.contains_key("signal")
        || data.contains_key("error")
        || data.get("reset").is_some_and(|reset| reset == true)
        || data.get("exit_code").is_some_and(|code| code != 0);
    if failed { RED } else { "" }
}

/// Unix ns as the time of day in UTC.
fn clock(unix_ns: u64) -> String {
    let text = crate::otlp::time::iso8601(unix_ns);
    text.as_str().get(11..23).unwrap_or_default().to_owned()
}

/// A value without what would drive a terminal: control characters are escaped.
fn plain(value: &Value) -> String {
    let text = match value {
        Value::String(text) => text.as_str(),
        other => return other.to_string(),
    };
    let mut out = String::with_capacity(text.len());
    for char in text.chars() {
        if char.is_control() { out.extend(char.escape_default()) } else { out.push(char) }
    }
    out
}

/// Nanoseconds with the unit that suits them.
fn duration(ns: u64) -> String {
    if ns == 0 {
        return "0".to_owned();
    }
    format!("{:.1?}", Duration::from_nanos(ns))
}

/// Bytes with the decimal unit that suits them.
fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if count < 1000 {
        return format!("{count}B");
    }
    let mut value = count as f64 / 1000.0;
    let mut unit = UNITS[0];
    for larger in &UNITS[1..] {
        if value < 1000.0 {
            break;
        }
        (value, unit) = (value / 1000.0, larger);
    }
    format!("{value:.1}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_connection_is_told_as_who_to_whom_with_its_name_and_readable_amounts() {
        let lines = lines(&[json!({
            "timestamp": 0,
            "data": {"type": "tcp_close", "pid": 7, "comm": "curl", "transport": "tcp", "ip_version": "ipv4",
                     "src_ip": "10.0.0.1", "src_port": 40_000, "dst_ip": "10.0.0.2", "dst_port": 443,
                     "server": "example.org", "role": "client", "duration_ns": 2_500_000_000u64, "sent_bytes": 85,
                     "received_bytes": 1_234_567, "retransmits": 0, "rtt_ns": 12_000_000, "closed_by": "client",
                     "reset": false},
        })]);
        let expected = "10.0.0.1:40000 -> example.org:443 (10.0.0.2)  role=client  duration=2.5s  sent=85B  \
                        received=1.2MB  rtt=12.0ms  closed_by=client";
        assert!(lines[1].ends_with(expected), "{}", lines[1]);
        let ends = |data| ends(&serde_json::from_value::<Map<_, _>>(data).expect("a map"));
        let six = json!({"src_ip": "::1", "src_port": 1, "dst_ip": "fe80::2", "dst_port": 2});
        assert_eq!(ends(six).as_deref(), Some("[::1]:1 -> [fe80::2]:2"));
    }

    fn lines(events: &[Value]) -> Vec<String> {
        let mut text = Text { colour: false, width: None, lines: 0 };
        let mut out = Vec::new();
        for event in events {
            text.line(event, &mut out);
            out.push(b'\n');
        }
        String::from_utf8(out).expect("utf-8").lines().map(str::to_owned).collect()
    }

    #[test]
    fn columns_stand_below_their_headings() {
        let lines = lines(&[json!({
            "type": "process", "timestamp": 1_704_806_400_123_456_789u64, "hostname": "web-1",
            "data": {"type": "process_exit", "pid": 7, "ppid": 1, "uid": 0, "comm": "sh", "exit_code": 3,
                     "utime_ns": 1_200_000, "tid": 7, "cmdline": "sh -c 'exit 3'"},
        })]);
        assert!(lines[1].starts_with("13:20:00.123  process_exit"), "{}", lines[1]);
        let end = |line: &str, text: &str| line.find(text).expect("there") + text.len();
        assert_eq!(end(&lines[0], " PID"), end(&lines[1], " 7"));
        assert_eq!(lines[0].find("COMM"), lines[1].find("sh  "));
        assert!(lines[1].ends_with("exit_code=3  utime=1.2ms  sh -c 'exit 3'"), "{}", lines[1]);
    }

    #[test]
    fn a_name_cannot_drive_the_terminal() {
        let lines = lines(&[json!({"timestamp": 0, "data": {"type": "process_exec", "comm": "a\u{1b}[2Jb\nc"}})]);
        assert_eq!(lines.len(), 2);
        assert!(lines[1].contains(r"a\u{1b}[2Jb\nc"), "{}", lines[1]);
    }
}
