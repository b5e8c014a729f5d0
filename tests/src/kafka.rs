//! A Kafka broker: a single node on loopback, and a consumer of what it holds.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::daemon::Daemon;
use crate::place::{self, Folder};
use crate::skip::has_program;

const START: Duration = Duration::from_secs(90);

/// Partitions of each topic: enough to see that a key keeps to one.
pub const PARTITIONS: u32 = 4;

/// Any 16 bytes in URL-safe base64 do as the id of a cluster. These read `leaf-tests-kafka`.
const CLUSTER: &str = "bGVhZi10ZXN0cy1rYWZrYQ";

/// Flags for a Java process that lives for seconds: it must start soon, not run fast.
const BRIEF: [&str; 3] = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto"];

/// A record as the broker holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The partition that the key chose.
    pub partition: u32,
    /// Its place in the partition.
    pub offset: u64,
    /// The key, or `None` for a record without one.
    pub key: Option<Vec<u8>>,
    /// The value.
    pub value: Vec<u8>,
}

impl Record {
    /// The key as text; empty if there is none.
    #[must_use]
    pub fn key_text(&self) -> String {
        String::from_utf8_lossy(self.key.as_deref().unwrap_or_default()).into_owned()
    }
}

/// A running broker.
#[derive(Debug)]
pub struct Kafka {
    _daemon: Daemon,
    broker: SocketAddr,
    folder: Folder,
}

impl Kafka {
    /// Whether Java is here and setup has brought Kafka.
    #[must_use]
    pub fn available() -> bool {
        libraries().is_dir() && has_program("java")
    }

    /// Starts a broker that makes a topic when it is first spoken of, with four partitions.
    ///
    /// # Errors
    /// If it does not come up; the error shows the end of its log.
    pub fn start() -> Result<Self> {
        let folder = Folder::new("kafka")?;
        let broker = SocketAddr::from((Ipv4Addr::LOCALHOST, place::free_port()?));
        let controller = SocketAddr::from((Ipv4Addr::LOCALHOST, place::free_port()?));
        let properties = folder.path().join("server.properties");
        fs::write(&properties, settings(broker, controller, folder.path()))
            .context("failed to write the broker's settings")?;

        let format = java("64m", "kafka.tools.StorageTool")
            .args(["format", "--cluster-id", CLUSTER, "--config"])
            .arg(&properties)
            .output()
            .context("failed to start java")?;
        ensure!(
            format.status.success(),
            "failed to format Kafka's storage:\n{}{}",
            String::from_utf8_lossy(&format.stdout),
            String::from_utf8_lossy(&format.stderr)
        );

        let mut command = java("512m", "kafka.Kafka");
        command.arg(&properties);
        let mut daemon = Daemon::start("kafka", command, folder.path())?;
        daemon.wait_until("started broker", START, |kafka| {
            kafka.stderr().contains("Kafka Server started") && TcpStream::connect(broker).is_ok()
        })?;
        Ok(Self { _daemon: daemon, broker, folder })
    }

    /// `host:port`, as clients want it.
    #[must_use]
    pub fn bootstrap(&self) -> String {
        self.broker.to_string()
    }

    /// Reads a topic from its beginning until `done` is content with what has come.
    /// Order holds within a partition only.
    ///
    /// # Errors
    /// If the time is over first; the error shows how many came and the last of them.
    pub fn records(&self, topic: &str, done: impl Fn(&[Record]) -> bool, timeout: Duration) -> Result<Vec<Record>> {
        let start = Instant::now();
        let log = tempfile::Builder::new().prefix("consumer-").suffix(".err").tempfile_in(self.folder.path())?;
        let mut consumer = Consumer(self.consumer(topic, log.reopen()?)?);
        let stdout = consumer.0.stdout.take().context("the consumer has no output")?;
        // A thread reads, because a read of a pipe cannot time out. It ends with the pipe.
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines() {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });

        let mut records = Vec::new();
        loop {
            if done(&records) {
                return Ok(records);
            }
            match lines.recv_timeout(timeout.saturating_sub(start.elapsed())) {
                Ok(line) => records.push(parse(&line?)?),
                Err(RecvTimeoutError::Timeout) => bail!(
                    "{topic}: not done after {timeout:?} with {} records, the last {}",
                    records.len(),
                    records
                        .last()
                        .map_or_else(|| "never".into(), |record| String::from_utf8_lossy(&record.value).into_owned())
                ),
                Err(RecvTimeoutError::Disconnected) => {
                    bail!("{topic}: the consumer ended\n{}", fs::read_to_string(log.path()).unwrap_or_default())
                }
            }
        }
    }

    /// Kafka's own console consumer. As printed by `BytesDeserializer`, whatever is
    /// not plain text is escaped (`\x0A`), so a record is a line, whatever is in it.
    fn consumer(&self, topic: &str, log: fs::File) -> Result<Child> {
        let mut command = java("128m", "org.apache.kafka.tools.consumer.ConsoleConsumer");
        command.args(["--bootstrap-server", &self.bootstrap(), "--topic", topic]).args([
            "--from-beginning",
            "--command-property",
            "enable.auto.commit=false",
        ]);
        for property in [
            "print.partition=true",
            "print.offset=true",
            "print.key=true",
            // Never the print of a real key, where a backslash is `\x5C`.
            "null.literal=\\null",
            "key.deserializer=org.apache.kafka.common.serialization.BytesDeserializer",
            "value.deserializer=org.apache.kafka.common.serialization.BytesDeserializer",
        ] {
            command.args(["--formatter-property", property]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).spawn().context("failed to start java")
    }
}

/// Ends with the test that reads, also when it panics.
struct Consumer(Child);

impl Drop for Consumer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `Partition:0<tab>Offset:7<tab>key<tab>value`
fn parse(line: &str) -> Result<Record> {
    let mut fields = line.splitn(4, '\t');
    let mut next = |prefix| fields.next().and_then(|field| field.strip_prefix(prefix));
    let (Some(partition), Some(offset), Some(key), Some(value)) =
        (next("Partition:"), next("Offset:"), next(""), next(""))
    else {
        bail!("the consumer printed a line that is no record: {line:?}");
    };
    Ok(Record {
        partition: partition.parse()?,
        offset: offset.parse()?,
        key: match key {
            "\\null" => None,
            key => Some(unescape(key)?),
        },
        value: unescape(value)?,
    })
}

/// The bytes that Kafka's `Bytes.toString` printed: Latin-1, the rest as `\xNN`.
fn unescape(printed: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(printed.len());
    let mut rest = printed.chars();
    while let Some(char) = rest.next() {
        if char == '\\' {
            let code: String = rest.by_ref().skip(1).take(2).collect();
            bytes.push(u8::from_str_radix(&code, 16).context("a broken escape")?);
        } else {
            bytes.push(u8::try_from(char).context("a character that is no byte")?);
        }
    }
    Ok(bytes)
}

fn libraries() -> PathBuf {
    place::tool("kafka/lib")
}

fn java(heap: &str, class: &str) -> Command {
    let mut command = Command::new("java");
    command.arg(format!("-Xmx{heap}")).args(BRIEF).arg("-cp").arg(libraries().join("*")).arg(class);
    command
}

fn settings(broker: SocketAddr, controller: SocketAddr, folder: &Path) -> String {
    let logs = folder.join("logs");
    format!(
        "process.roles=broker,controller\n\
         node.id=1\n\
         controller.quorum.voters=1@{controller}\n\
         controller.listener.names=CONTROLLER\n\
         listeners=PLAINTEXT://{broker},CONTROLLER://{controller}\n\
         advertised.listeners=PLAINTEXT://{broker}\n\
         listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT\n\
         log.dirs={}\n\
         auto.create.topics.enable=true\n\
         num.partitions={PARTITIONS}\n\
         default.replication.factor=1\n\
         offsets.topic.num.partitions=1\n\
         offsets.topic.replication.factor=1\n\
         transaction.state.log.replication.factor=1\n\
         transaction.state.log.min.isr=1\n\
         group.initial.rebalance.delay.ms=0\n",
        logs.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_printed_record_gives_back_the_bytes_of_key_and_value() -> Result<()> {
        let record = parse("Partition:3\tOffset:12\té\\x00\\x5Cn\t{\"a\":\"\\x09\"}")?;
        assert_eq!((record.partition, record.offset), (3, 12));
        assert_eq!(record.key.as_deref(), Some(&b"\xe9\x00\\n"[..]));
        assert_eq!(record.value, b"{\"a\":\"\t\"}");
        Ok(())
    }

    #[test]
    fn a_record_without_a_key_is_not_one_with_the_key_null() -> Result<()> {
        assert_eq!(parse("Partition:0\tOffset:0\t\\null\tv")?.key, None);
        let null = parse("Partition:0\tOffset:0\tnull\tv")?.key;
        assert_eq!(null.as_deref(), Some(&b"null"[..]));
        Ok(())
    }
}
