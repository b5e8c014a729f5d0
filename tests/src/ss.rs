//! What `ss -ti` says of a socket: the truth that connections are compared with.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// One line of `ss -tinpO`.
#[derive(Debug, Clone)]
pub struct Socket {
    /// `address:port`
    pub local: String,
    /// `address:port`
    pub peer: String,
    /// Processes that hold it.
    pub pids: Vec<u32>,
    /// `bytes_sent:5000` and the like.
    fields: BTreeMap<String, String>,
}

impl Socket {
    /// A counter; `ss` leaves out those that are 0.
    ///
    /// # Panics
    /// If it is no number.
    #[must_use]
    pub fn count(&self, name: &str) -> u64 {
        self.fields.get(name).map_or(0, |text| {
            text.split('/').next_back().and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("{name}:{text}"))
        })
    }

    /// A time in ns, of one in ms; the first of `rtt:0.052/0.04`.
    ///
    /// # Panics
    /// If it is not there.
    #[must_use]
    pub fn nanos(&self, name: &str) -> f64 {
        let text = self.fields.get(name).unwrap_or_else(|| panic!("no {name} in {self:?}"));
        let millis: f64 = text.split('/').next().and_then(|text| text.parse().ok()).expect("a number");
        millis * 1e6
    }
}

/// The TCP sockets whose local or remote port is `port`, listening ones left out.
///
/// # Errors
/// If there is no `ss`.
pub fn sockets(port: u16) -> Result<Vec<Socket>> {
    let filter = format!("( sport = :{port} or dport = :{port} )");
    let output = Command::new("ss").args(["-tinpOH", &filter]).output().context("failed to start ss (iproute2)")?;
    ensure!(output.status.success(), "ss failed: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout)?.lines().map(parse).collect()
}

fn parse(line: &str) -> Result<Socket> {
    let mut words = line.split_whitespace().skip(3);
    let (local, peer) = (words.next().context(line.to_owned())?, words.next().context(line.to_owned())?);
    let mut socket =
        Socket { local: local.to_owned(), peer: peer.to_owned(), pids: Vec::new(), fields: BTreeMap::new() };
    // A command name may hold spaces: the processes are not one word.
    socket.pids = line.split("pid=").skip(1).filter_map(|rest| rest.split(',').next()?.parse().ok()).collect();
    for (name, value) in words.filter_map(|word| word.split_once(':')) {
        socket.fields.insert(name.to_owned(), value.to_owned());
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_ss_is_read() {
        let line = "ESTAB 0      0      127.0.0.1:18080 127.0.0.1:36874 users:((\"python3\",pid=2802,fd=5),(\"a b\",pid=7,fd=1)) cubic wscale:7,7 rto:201 rtt:0.052/0.04 bytes_sent:5000 retrans:0/3 minrtt:0.005";
        let socket = parse(line).expect("a socket");
        assert_eq!((socket.local.as_str(), socket.peer.as_str()), ("127.0.0.1:18080", "127.0.0.1:36874"));
        assert_eq!(socket.pids, [2802, 7]);
        assert_eq!((socket.count("bytes_sent"), socket.count("retrans"), socket.count("lost")), (5000, 3, 0));
        assert!((socket.nanos("rtt") - 52_000.0).abs() < 1.0 && (socket.nanos("minrtt") - 5_000.0).abs() < 1.0);
    }
}
