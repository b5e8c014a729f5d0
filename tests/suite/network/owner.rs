//! Whose a connection is.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use leaf_tests::place;
use leaf_tests::skip::{has_program, is_root, require};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use leaf_tests::watch::{ROOT, Server, connect, connect_soon, events, listen, one, watching};

/// Longer than an agent looks for owners of accepted connections.
const A_WHILE: Duration = Duration::from_secs(3);

#[test]
fn the_owner_is_who_handles_the_connection_and_not_who_accepted_it() -> Result<()> {
    let needs = "no socat: run `cargo xtask setup --tests`";
    if !require(is_root(), ROOT) || !require(has_program("socat"), needs) {
        return Ok(());
    }
    let port = place::free_port()?;
    let agent = watching(&[])?;
    // It accepts, and forks a child for the connection, which forks the one that calls the shell.
    let listen = format!("TCP-LISTEN:{port},bind=127.0.0.1,fork,reuseaddr");
    let parent = "SYSTEM:read -r pid name state parent rest < /proc/$PPID/stat; echo $parent";
    let server = Server::socat(Server::command("socat")?, &[&listen, parent])?;
    let mut client = connect_soon(&format!("127.0.0.1:{port}"))?;
    let source = client.local_addr()?;
    let mut said = String::new();
    client.read_to_string(&mut said)?;
    drop(client);
    std::thread::sleep(Duration::from_millis(200));
    let child: u32 = said.trim().parse()?;
    assert_ne!(child, server.daemon.pid());
    let events = events(agent, port)?;
    assert_eq!(one(&events, "tcp_close", source, "server")["pid"], child, "{events:#?}");
    Ok(())
}

#[test]
fn a_socket_that_was_passed_on_belongs_to_who_closes_it() -> Result<()> {
    if !require(is_root(), ROOT) {
        return Ok(());
    }
    let (listener, port) = listen()?;
    let agent = watching(&[])?;
    let (client, server) = connect(&listener)?;
    let source = client.local_addr()?;
    let (ours, theirs) = UnixStream::pair()?;
    let mut holder = Command::new(env!("CARGO_BIN_EXE_workload"))
        .arg("hold-socket")
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::piped())
        .spawn()?;
    let sockets = [client.as_fd()];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(&sockets)));
    sendmsg(&ours, &[std::io::IoSlice::new(b"!")], &mut ancillary, SendFlags::empty())?;
    // It says when it has it; then it closes and ends.
    holder.stdout.take().context("piped")?.read_exact(&mut [0])?;
    drop(client);
    drop(ours);
    assert!(holder.wait()?.success());
    drop(server);
    std::thread::sleep(Duration::from_millis(50));
    let events = events(agent, port)?;
    assert_eq!(one(&events, "tcp_connect", source, "client")["pid"], std::process::id());
    let closed = one(&events, "tcp_close", source, "client");
    assert_eq!((&closed["pid"], &closed["comm"]), (&holder.id().into(), &"workload".into()), "{closed}");
    assert_eq!(one(&events, "tcp_close", source, "server")["pid"], std::process::id());
    Ok(())
}

#[test]
fn an_accepted_connection_that_stays_open_is_told_with_its_owner() -> Result<()> {
    if !require(is_root(), ROOT) {
        return Ok(());
    }
    let (listener, port) = listen()?;
    let mut agent = watching(&[])?;
    let (client, server) = connect(&listener)?;
    let source = client.local_addr()?;
    agent.wait_for_stdout("tcp_accept", A_WHILE)?;
    let events = events(agent, port)?;
    assert_eq!(one(&events, "tcp_accept", source, "server")["pid"], std::process::id());
    assert_eq!(events.len(), 2, "{events:#?}");
    drop((client, server));
    Ok(())
}
