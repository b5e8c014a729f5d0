//! What tests of connections share: an agent that watches, what it has told, and
//! connections of our own.

use std::io::{Read, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::agent::{AgentProcess, Finished};
use crate::daemon::Daemon;
use crate::ledger::Line;
use crate::netns::Namespace;
use crate::place::{self, Folder};
use crate::ss::{self, Socket};
use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::Value;

/// Why a test is skipped.
pub const ROOT: &str = "eBPF takes root";
/// Why a test is skipped.
pub const NETNS: &str = "no network namespaces: they take root and iproute2";
/// Why a test is skipped.
pub const SERVERS: &str = "no socat, nft, dnsmasq or tshark: run `cargo xtask setup --tests`";

/// For an agent to start or stop, a server to answer.
pub const STOP: Duration = Duration::from_secs(20);

/// An agent that prints the events of connections, from when it watches.
pub fn watching(env: &[(&str, &str)]) -> Result<AgentProcess> {
    started(env, "network: watching")
}

/// An agent that prints the events of connections, from when it has said this.
pub fn started(env: &[(&str, &str)], said: &str) -> Result<AgentProcess> {
    let arguments = ["run", "--exporter", "console", "--format", "json", "--probes", "network"];
    let mut agent = AgentProcess::start(&arguments, env)?;
    agent.wait_for_stderr(said, STOP)?;
    Ok(agent)
}

/// All events that the agent has printed, after it has ended in order and lost nothing.
pub fn all_events(agent: AgentProcess) -> Result<Vec<Value>> {
    events_of(&agent.terminate(STOP)?)
}

/// The same of an agent that has ended.
pub fn events_of(finished: &Finished) -> Result<Vec<Value>> {
    ensure!(finished.status.success(), "the agent failed: {}", finished.stderr);
    Line::of(&finished.stderr, "network events")?.assert_all_delivered();
    let data = |line: &str| -> Result<Value> {
        let envelope: Value = serde_json::from_str(line).with_context(|| format!("not JSON: {line}"))?;
        assert_eq!(envelope["type"], "network", "{envelope}");
        let mut data = envelope["data"].clone();
        data["timestamp"] = envelope["timestamp"].clone();
        Ok(data)
    };
    finished.stdout.lines().map(data).collect()
}

/// Of [`all_events`] those of connections to one port. Troubles have no role.
pub fn events(agent: AgentProcess, port: u16) -> Result<Vec<Value>> {
    let mut events = all_events(agent)?;
    events.retain(|event| event["dst_port"] == port && !event["role"].is_null());
    Ok(events)
}

/// The only event of this type of the connection from `source`, seen from one end.
pub fn one<'a>(events: &'a [Value], kind: &str, source: SocketAddr, role: &str) -> &'a Value {
    let is = |event: &&Value| event["type"] == kind && event["src_port"] == source.port() && event["role"] == role;
    let found: Vec<_> = events.iter().filter(is).collect();
    assert_eq!(found.len(), 1, "{kind} of {source} as {role} in {events:#?}");
    found[0]
}

/// A listener on loopback, and its port.
pub fn listen() -> Result<(TcpListener, u16)> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let port = listener.local_addr()?.port();
    Ok((listener, port))
}

/// What `ss` says of the connection from `source` to `port` when the peer has acknowledged so many bytes, and the SYN.
pub fn acknowledged(source: SocketAddr, port: u16, bytes: u64) -> Result<Socket> {
    let begin = Instant::now();
    loop {
        let sockets = ss::sockets(port)?;
        let socket = sockets.into_iter().find(|socket| socket.local == source.to_string()).context("not in ss")?;
        if socket.count("bytes_acked") > bytes {
            return Ok(socket);
        }
        ensure!(begin.elapsed() < STOP, "the bytes do not arrive: {socket:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Both ends of a new connection to a listener of ours.
pub fn connect(listener: &TcpListener) -> Result<(TcpStream, TcpStream)> {
    let client = TcpStream::connect(listener.local_addr()?)?;
    Ok((client, listener.accept()?.0))
}

/// Connects to a server that may not listen yet.
pub fn connect_soon(address: &str) -> Result<TcpStream> {
    let begin = Instant::now();
    loop {
        match TcpStream::connect(address) {
            Ok(stream) => return Ok(stream),
            Err(error) if begin.elapsed() > STOP => return Err(error).context("nobody listens"),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// Reads so many bytes.
///
/// # Errors
/// If the peer closes before.
pub fn read_exactly(from: &mut TcpStream, bytes: usize) -> Result<()> {
    from.read_exact(&mut vec![0; bytes]).context("fewer bytes than were sent")
}

/// Closes, and waits until the peer has, too: the kernel is then done with both ends.
pub fn close_first(first: TcpStream, mut second: TcpStream) -> Result<()> {
    drop(first);
    assert_eq!(second.read(&mut [0])?, 0);
    drop(second);
    std::thread::sleep(Duration::from_millis(50));
    Ok(())
}

/// A connection that its server ends with a reset, for it closes with unread data (RFC 2525, 2.17).
/// Returns the client's address.
///
/// # Errors
/// If it does not come about.
pub fn reset_by_server(listener: &TcpListener) -> Result<SocketAddr> {
    let (mut client, server) = connect(listener)?;
    let source = client.local_addr()?;
    client.write_all(b"unread")?;
    while server.peek(&mut [0; 6])? < 6 {}
    drop(server);
    let error = client.read(&mut [0]).map_err(|error| error.kind());
    ensure!(error == Err(std::io::ErrorKind::ConnectionReset), "{error:?}");
    Ok(source)
}

/// A program beside the test, with its folder.
pub struct Server {
    /// The running program.
    pub daemon: Daemon,
    _folder: Folder,
}

impl Server {
    /// Starts `command` as it stands.
    pub fn start(name: &str, mut command: Command) -> Result<Self> {
        let folder = Folder::new(name)?;
        // A group of its own, to be ended with all that it has forked.
        command.process_group(0);
        Ok(Self { daemon: Daemon::start(name, command, folder.path())?, _folder: folder })
    }

    /// `socat` with these arguments; `command` is the program, here or in a namespace.
    pub fn socat(mut command: Command, arguments: &[&str]) -> Result<Self> {
        command.args(arguments);
        Self::start("socat", command)
    }

    /// In a namespace, a server at this port that reads all and says nothing.
    pub fn reader(namespace: &Namespace, port: u16) -> Result<Self> {
        let listen = format!("TCP-LISTEN:{port},fork,reuseaddr");
        Self::socat(namespace.command("socat")?, &["-u", &listen, "OPEN:/dev/null"])
    }

    /// The program of this name in our own namespace.
    pub fn command(program: &str) -> Result<Command> {
        Ok(Command::new(place::program(program).with_context(|| format!("no {program}"))?))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Nobody has waited for it yet, so its number is still its own.
        if let Some(group) = i32::try_from(self.daemon.pid()).ok().and_then(Pid::from_raw) {
            // An error is a group that has ended already.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}
