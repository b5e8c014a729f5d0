//! What tshark sees on an interface: the truth of packets.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use crate::daemon::Daemon;
use crate::place::{self, Folder};

const PATIENCE: Duration = Duration::from_secs(20);

/// A running capture.
#[derive(Debug)]
pub struct Capture {
    daemon: Daemon,
    folder: Folder,
}

/// A capture that has ended.
#[derive(Debug)]
pub struct Captured {
    folder: Folder,
}

impl Capture {
    /// Captures what passes `interface`; `command` is tshark, here or in a namespace.
    ///
    /// # Errors
    /// If it does not begin.
    pub fn start(mut command: Command, interface: &str) -> Result<Self> {
        let folder = Folder::new("tshark")?;
        command.args(["-i", interface, "-w"]).arg(file(&folder));
        let mut daemon = Daemon::start("tshark", command, folder.path())?;
        // The message comes before the capture, whose file begins with a header.
        daemon.wait_until("a capture", PATIENCE, |_| file(&folder).metadata().is_ok_and(|file| file.len() > 0))?;
        Ok(Self { daemon, folder })
    }

    /// Ends it, when what has passed has reached the file.
    ///
    /// # Errors
    /// If it does not end in time.
    pub fn stop(mut self) -> Result<Captured> {
        std::thread::sleep(Duration::from_millis(500));
        self.daemon.signal(Signal::INT)?;
        self.daemon.wait(PATIENCE)?;
        Ok(Captured { folder: self.folder })
    }
}

impl Captured {
    /// These fields of all packets that `filter` lets through; an absent field is empty.
    ///
    /// # Errors
    /// If tshark does not understand the filter or a field.
    pub fn fields(&self, filter: &str, fields: &[&str]) -> Result<Vec<Vec<String>>> {
        let mut command = Command::new(place::program("tshark").context("no tshark")?);
        command.arg("-r").arg(file(&self.folder)).args(["-Y", filter, "-T", "fields"]);
        for field in fields {
            command.args(["-e", field]);
        }
        let output = command.output()?;
        ensure!(output.status.success(), "tshark failed: {}", String::from_utf8_lossy(&output.stderr));
        let line = |line: &str| line.split('\t').map(str::to_owned).collect();
        Ok(String::from_utf8(output.stdout)?.lines().map(line).collect())
    }
}

fn file(folder: &Folder) -> PathBuf {
    folder.path().join("capture.pcapng")
}
