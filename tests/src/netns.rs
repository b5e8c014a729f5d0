//! A network namespace of a test's own, joined to ours by a pair of interfaces.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};

use anyhow::{Context, Result, ensure};

use crate::place;
use crate::skip::{has_program, is_root};

/// Whether one can be made.
#[must_use]
pub fn available() -> bool {
    is_root() && has_program("ip")
}

/// It goes when this is dropped, with all that is in it but running processes.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    number: u8,
}

impl Namespace {
    /// Makes one. Our end has [`Namespace::here`], its own has [`Namespace::there`].
    ///
    /// # Errors
    /// If the kernel or `ip` refuses.
    pub fn new() -> Result<Self> {
        static NEXT: AtomicU8 = AtomicU8::new(0);
        // Test binaries that run side by side use other networks.
        let number = (std::process::id() as u8).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed).wrapping_mul(101));
        let namespace = Self { name: format!("leaf-{}-{number}", std::process::id()), number };
        let (name, ours) = (namespace.name.as_str(), namespace.interface());
        let [here, there] = [namespace.here(), namespace.there()].map(|address| format!("{address}/24"));
        ip(&["netns", "add", name])?;
        ip(&["link", "add", &ours, "type", "veth", "peer", "name", "eth0", "netns", name])?;
        ip(&["address", "add", &here, "dev", &ours])?;
        ip(&["link", "set", &ours, "up"])?;
        ip(&["-n", name, "address", "add", &there, "dev", "eth0"])?;
        ip(&["-n", name, "link", "set", "eth0", "up"])?;
        ip(&["-n", name, "link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    /// Address of our end.
    #[must_use]
    pub fn here(&self) -> String {
        format!("10.231.{}.1", self.number)
    }

    /// Address of its end.
    #[must_use]
    pub fn there(&self) -> String {
        format!("10.231.{}.2", self.number)
    }

    /// Name of the interface that is our end.
    #[must_use]
    pub fn interface(&self) -> String {
        format!("leaf{}", self.number)
    }

    /// Number of the namespace: the inode of its file.
    ///
    /// # Errors
    /// If it is gone.
    pub fn inode(&self) -> Result<u64> {
        let path = Path::new("/run/netns").join(&self.name);
        Ok(fs::metadata(&path).with_context(|| format!("no {}", path.display()))?.ino())
    }

    /// A command that runs inside.
    ///
    /// # Errors
    /// If there is no such program.
    pub fn command(&self, program: &str) -> Result<Command> {
        let path = place::program(program).with_context(|| format!("no {program}"))?;
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(path);
        Ok(command)
    }

    /// Lets programs inside ask this name server (`ip netns exec` mounts the file).
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn set_name_server(&self, address: &str) -> Result<()> {
        fs::create_dir_all(self.folder())?;
        Ok(fs::write(self.folder().join("resolv.conf"), format!("nameserver {address}\n"))?)
    }

    /// Takes the pair of interfaces away.
    ///
    /// # Errors
    /// If `ip` refuses.
    pub fn cut(&self) -> Result<()> {
        ip(&["link", "delete", &self.interface()])
    }

    fn folder(&self) -> PathBuf {
        PathBuf::from("/etc/netns").join(&self.name)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Nothing can be done about an error here; the interfaces go with the namespace.
        let _ = ip(&["netns", "delete", &self.name]);
        let _ = fs::remove_dir_all(self.folder());
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(arguments).output().context("failed to start ip")?;
    ensure!(output.status.success(), "ip {arguments:?} failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
