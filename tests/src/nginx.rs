//! A real nginx on loopback, and wrk to ask it.

use std::fs;
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use crate::daemon::Daemon;
use crate::place::{self, Folder};
use crate::skip::has_program;

/// Whether nginx can be started.
#[must_use]
pub fn available() -> bool {
    has_program("nginx")
}

/// A running server; it ends with this.
#[derive(Debug)]
pub struct Nginx {
    daemon: Daemon,
    port: u16,
    folder: Folder,
}

/// What wrk measured.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Requests that were answered.
    pub requests: u64,
    /// Requests a second.
    pub rate: f64,
    /// 99 of 100 requests were faster, ms.
    pub p99_ms: f64,
}

impl Nginx {
    /// Starts a master with `workers` workers that each have a listening socket of their own
    /// (`SO_REUSEPORT`) and serve one small page.
    ///
    /// # Errors
    /// If there is no nginx, or it does not listen within ten seconds.
    pub fn start(workers: u32) -> Result<Self> {
        Self::start_with(workers, "access_log off;")
    }

    /// The same, with a log of who answered each request.
    ///
    /// # Errors
    /// As [`Nginx::start`].
    pub fn start_logging(workers: u32) -> Result<Self> {
        Self::start_with(workers, "log_format who '$remote_port $pid'; access_log access.log who;")
    }

    fn start_with(workers: u32, log: &str) -> Result<Self> {
        let folder = Folder::new("nginx")?;
        let root = folder.path();
        // The workers are another user.
        fs::set_permissions(root, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        fs::write(root.join("index.html"), "a small page\n")?;
        let port = place::free_port()?;
        let (path, file) = (root.display(), root.join("nginx.conf"));
        let settings = format!(
            "daemon off;\nworker_processes {workers};\npid {path}/pid;\nerror_log {path}/error.log;\n\
             events {{ worker_connections 4096; }}\n\
             http {{\n  {log}\n  client_body_temp_path {path}/body;\n  proxy_temp_path {path}/proxy;\n  \
             fastcgi_temp_path {path}/fastcgi;\n  uwsgi_temp_path {path}/uwsgi;\n  scgi_temp_path {path}/scgi;\n  \
             server {{ listen 127.0.0.1:{port} reuseport; location / {{ root {path}; }} }}\n}}\n"
        );
        fs::write(&file, settings)?;
        let mut command = Command::new(place::program("nginx").context("no nginx")?);
        command.arg("-p").arg(root).arg("-e").arg(root.join("error.log")).arg("-c").arg(&file);
        let mut daemon = Daemon::start("nginx", command, root)?;
        daemon.wait_until("a listening socket", Duration::from_secs(10), |_| {
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        })?;
        Ok(Self { daemon, port, folder })
    }

    /// Process id of the master.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.daemon.pid()
    }

    /// Where it listens, on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What its own log says of each request: the port that it came from, and the worker.
    ///
    /// # Errors
    /// If there is no log, or a line is not as expected.
    pub fn log(&self) -> Result<Vec<(u16, u32)>> {
        let text = fs::read_to_string(self.folder.path().join("access.log"))?;
        let line = |line: &str| -> Result<(u16, u32)> {
            let (port, pid) = line.split_once(' ').with_context(|| format!("the line {line:?}"))?;
            Ok((port.parse()?, pid.parse()?))
        };
        text.lines().map(line).collect()
    }

    /// Asks for so many seconds over 64 connections at once, with a new one for
    /// each request if `close`.
    ///
    /// # Errors
    /// If there is no wrk, or it fails.
    pub fn load(&self, seconds: u32, close: bool) -> Result<Load> {
        let mut command = Command::new(place::program("wrk").context("no wrk")?);
        command.args(["-t2", "-c64", "--latency"]).arg(format!("-d{seconds}s"));
        if close {
            command.args(["-H", "Connection: close"]);
        }
        let output = command.arg(format!("http://127.0.0.1:{}/", self.port)).output()?;
        ensure!(output.status.success(), "wrk failed: {}", String::from_utf8_lossy(&output.stderr));
        parse(&String::from_utf8(output.stdout)?)
    }
}

impl Drop for Nginx {
    /// Killed at once, the master would leave its workers behind.
    fn drop(&mut self) {
        // An error is a master that has ended already.
        let _ = self.daemon.signal(Signal::TERM);
        let _ = self.daemon.wait(Duration::from_secs(5));
    }
}

/// Reads wrk's report.
fn parse(report: &str) -> Result<Load> {
    let after = |what: &str| {
        let line = report.lines().find_map(|line| line.trim().strip_prefix(what));
        line.map(str::trim).with_context(|| format!("no {what:?} in {report}"))
    };
    let requests = report.lines().find_map(|line| line.trim().split_once(" requests in ")).context("no requests")?;
    let p99 = after("99%")?;
    let split = p99.find(|c: char| c.is_ascii_alphabetic()).context("no unit")?;
    let scale = match &p99[split..] {
        "us" => 0.001,
        "ms" => 1.0,
        "s" => 1000.0,
        unit => anyhow::bail!("the unit {unit} of {p99}"),
    };
    Ok(Load {
        requests: requests.0.parse()?,
        rate: after("Requests/sec:")?.parse()?,
        p99_ms: p99[..split].parse::<f64>()? * scale,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_of_wrk_is_read() {
        let report = "Running 4s test @ http://127.0.0.1:1/\n  2 threads and 64 connections\n  \
            Latency Distribution\n     50%    1.20ms\n     99%  950.00us\n  \
            86220 requests in 4.00s, 20.00MB read\nRequests/sec:  21531.75\nTransfer/sec:      5.06MB\n";
        let load = parse(report).expect("a report");
        assert_eq!((load.requests, load.rate), (86_220, 21_531.75));
        assert!((load.p99_ms - 0.95).abs() < 1e-9);
    }
}
