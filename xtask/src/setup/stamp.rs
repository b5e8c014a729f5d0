//! A file that says which version of a tool is installed.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// Written as the last act of an installation: half an installation has none.
#[derive(Debug)]
pub struct Stamp {
    path: PathBuf,
    version: String,
}

impl Stamp {
    /// The stamp of `tool`, below the folder of tools.
    pub fn new(tools: &Path, tool: &str, version: impl Into<String>) -> Self {
        Self { path: tools.join("stamps").join(tool), version: version.into() }
    }

    /// Is this very version installed?
    pub fn is_current(&self) -> bool {
        fs::read_to_string(&self.path).is_ok_and(|version| version.trim_end() == self.version)
    }

    /// This version is installed from now on.
    pub fn write(&self) -> Result<()> {
        let named = || format!("cannot write {}", self.path.display());
        if let Some(folder) = self.path.parent() {
            fs::create_dir_all(folder).with_context(named)?;
        }
        fs::write(&self.path, format!("{}\n", self.version)).with_context(named)
    }
}

/// FNV-1a of 64 bits, as hex: to tell versions of a file apart, not to resist forgery.
pub fn fingerprint(text: &str) -> String {
    let hash = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_current_only_for_the_version_that_was_written() {
        let tools = tempfile::tempdir().expect("a temporary folder");
        let old = Stamp::new(tools.path(), "tool", "1.0");
        assert!(!old.is_current());
        old.write().expect("writes");
        assert!(old.is_current());
        assert!(!Stamp::new(tools.path(), "tool", "1.1").is_current());
    }

    /// Values of the reference implementation, <http://www.isthe.com/chongo/tech/comp/fnv/>.
    #[test]
    fn the_fingerprint_is_fnv_1a() {
        assert_eq!(fingerprint(""), "cbf29ce484222325");
        assert_eq!(fingerprint("a"), "af63dc4c8601ec8c");
        assert_eq!(fingerprint("foobar"), "85944171f73967e8");
    }
}
