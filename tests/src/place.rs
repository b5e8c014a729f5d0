//! Where things are: the workspace, the tools that `cargo xtask setup` brings, a
//! test's own folder, a free port.

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

/// The root of the workspace.
#[must_use]
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// A file or folder under `target/tools`, where setup puts what the tests run.
#[must_use]
pub fn tool(relative: &str) -> PathBuf {
    workspace().join("target/tools").join(relative)
}

/// A program: one that setup has brought, else one of the system's. The folders of
/// root's programs count, too, which the `PATH` of a user or of a service may lack.
#[must_use]
pub fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::iter::once(tool("bin"))
        .chain(std::env::split_paths(&path))
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
}

/// A folder of a test's own. It stays, and says where, when the test panics.
#[derive(Debug)]
pub struct Folder(Option<TempDir>);

impl Folder {
    /// Makes `leaf-<what>-…` in the system's folder for temporary files.
    ///
    /// # Errors
    /// If the folder cannot be made.
    pub fn new(what: &str) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix(&format!("leaf-{what}-"))
            .tempdir()
            .with_context(|| format!("failed to make a folder for {what}"))?;
        Ok(Self(Some(folder)))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.0.as_ref().map_or(Path::new("."), TempDir::path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(folder) = self.0.take()
        {
            eprintln!("the files of the failed test are in {}", folder.keep().display());
        }
    }
}

/// A loopback port that nobody listens on.
///
/// It lies below the range from which the kernel takes the ports of outgoing
/// connections, or one of those could be given the number before the server has it.
///
/// # Errors
/// If a thousand ports in a row are taken.
pub fn free_port() -> Result<u16> {
    const FIRST: u32 = 10_000;
    const COUNT: u32 = 20_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Test binaries that run side by side start at different places.
    let start = std::process::id().wrapping_mul(97);
    for _ in 0..1000 {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = u16::try_from(FIRST + start.wrapping_add(step) % COUNT)?;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free port on 127.0.0.1")
}
