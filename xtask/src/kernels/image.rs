//! What a guest boots into: a root file system in memory, as the kernel unpacks it
//! (`newc`, Documentation/driver-api/early-userspace/buffer-format.rst).

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::shell;
use crate::toolchain::find_program;

/// Files by their place in the guest, without the slash at the beginning.
#[derive(Debug, Default)]
pub struct Image {
    entries: BTreeMap<PathBuf, Entry>,
    root: Option<Root>,
}

/// Unpacked packages of another architecture.
#[derive(Debug, Clone)]
pub struct Root {
    pub folder: PathBuf,
    /// `aarch64-linux-gnu`
    pub triplet: &'static str,
    /// readelf(1) for it.
    pub readelf: PathBuf,
}

#[derive(Debug)]
enum Entry {
    Folder,
    File { content: Vec<u8>, mode: u32 },
}

impl Image {
    /// An empty one, whose programs and libraries come from `root`, or from the host.
    pub fn of(root: Option<Root>) -> Self {
        Self { root, ..Self::default() }
    }

    /// Adds a file of the host's at `to`.
    pub fn file(&mut self, from: &Path, to: impl AsRef<Path>) -> Result<()> {
        let named = || format!("cannot read {}", from.display());
        let content = fs::read(from).with_context(named)?;
        let mode = fs::metadata(from).with_context(named)?.permissions().mode() & 0o777;
        self.insert(to.as_ref(), Entry::File { content, mode });
        Ok(())
    }

    /// Adds a small file.
    pub fn text(&mut self, to: &str, text: &str) {
        self.insert(Path::new(to), Entry::File { content: text.as_bytes().to_vec(), mode: 0o644 });
    }

    /// Adds an empty folder.
    pub fn folder(&mut self, to: &str) {
        self.insert(Path::new(to), Entry::Folder);
    }

    /// Adds a program at `to`, with the libraries that it is linked to where it looks for them.
    pub fn program(&mut self, from: &Path, to: impl AsRef<Path>) -> Result<()> {
        self.file(from, to)?;
        let Some(root) = self.root.clone() else {
            // A static program has none, which is an error of ldd.
            let listing = shell::capture(Command::new("ldd").arg(from)).unwrap_or_default();
            for library in libraries(&listing) {
                self.file(&library, library.strip_prefix("/").unwrap_or(&library))?;
            }
            return Ok(());
        };
        let dynamic = shell::capture(Command::new(&root.readelf).arg("-d").arg(from))?;
        for name in needed(&dynamic) {
            let to = Path::new("lib").join(name);
            if !self.entries.contains_key(&to) {
                self.program(&root.folder.join("usr/lib").join(root.triplet).join(name), to)?;
            }
        }
        Ok(())
    }

    /// Adds programs, each in `bin`.
    pub fn programs(&mut self, names: &[&str]) -> Result<()> {
        for &name in names {
            let path = match &self.root {
                None => find_program(name).with_context(|| format!("no {name} in PATH for the guest"))?,
                // What Debian's alternatives make of it on an installed system.
                Some(root) => root.folder.join("usr/bin").join(if name == "sh" { "dash" } else { name }),
            };
            let path = fs::canonicalize(&path).with_context(|| format!("no {}", path.display()))?;
            self.program(&path, format!("bin/{name}"))?;
        }
        Ok(())
    }

    fn insert(&mut self, to: &Path, entry: Entry) {
        for folder in to.ancestors().skip(1).filter(|folder| !folder.as_os_str().is_empty()) {
            self.entries.entry(folder.to_owned()).or_insert(Entry::Folder);
        }
        self.entries.insert(to.to_owned(), entry);
    }

    /// The image as bytes.
    pub fn archive(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for (number, (path, entry)) in (1..).zip(&self.entries) {
            let path = path.to_string_lossy();
            match entry {
                Entry::Folder => append(&mut out, number, &path, 0o040_755, &[]),
                Entry::File { content, mode } => append(&mut out, number, &path, 0o100_000 | mode, content),
            }
        }
        append(&mut out, 0, "TRAILER!!!", 0, &[]);
        out
    }
}

/// Header of thirteen numbers, name, content; each padded to four bytes.
fn append(out: &mut Vec<u8>, number: u32, name: &str, mode: u32, content: &[u8]) {
    let pad = |out: &mut Vec<u8>| out.resize(out.len().next_multiple_of(4), 0);
    let size = u32::try_from(content.len()).unwrap_or(u32::MAX);
    let name_size = u32::try_from(name.len() + 1).unwrap_or(u32::MAX);
    out.extend_from_slice(b"070701");
    // Number, mode, uid, gid, links, time, size, device (2), its own device (2), name, checksum.
    for field in [number, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0] {
        out.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    out.extend_from_slice(name.as_bytes());
    out.push(0);
    pad(out);
    out.extend_from_slice(content);
    pad(out);
}

/// Names in the output of `readelf -d`: ` 0x1 (NEEDED)  Shared library: [libc.so.6]`
fn needed(dynamic: &str) -> Vec<&str> {
    let name = |line: &'_ str| -> Option<(usize, usize)> {
        let begin = line.find("Shared library: [")? + "Shared library: [".len();
        Some((begin, begin + line[begin..].find(']')?))
    };
    let lines = dynamic.lines().filter(|line| line.contains("(NEEDED)"));
    lines.filter_map(|line| name(line).map(|(begin, end)| &line[begin..end])).collect()
}

/// Libraries and loader in the output of ldd: `libc.so.6 => /lib/libc.so.6 (0x…)`, `/lib64/ld.so (0x…)`.
fn libraries(listing: &str) -> Vec<PathBuf> {
    let path = |line: &str| {
        let line = line.trim();
        let place = line.split_once(" => ").map_or(line, |(_, place)| place);
        let place = place.split(" (").next()?;
        place.starts_with('/').then(|| PathBuf::from(place))
    };
    listing.lines().filter_map(path).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_those_with_a_path() {
        let listing = "\tlinux-vdso.so.1 (0x00007ffc)\n\tlibc.so.6 => /lib/libc.so.6 (0x00007f)\n\
                       \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n\tlibgone.so => not found\n";
        assert_eq!(libraries(listing), [Path::new("/lib/libc.so.6"), Path::new("/lib64/ld-linux-x86-64.so.2")]);
    }

    #[test]
    fn what_a_program_needs_is_named_by_readelf() {
        let dynamic = "Dynamic section at offset 0x1 contains 3 entries:\n 0x0000000000000001 (NEEDED)             \
                       Shared library: [libc.so.6]\n 0x000000000000000c (INIT)               0x4001d0\n";
        assert_eq!(needed(dynamic), ["libc.so.6"]);
        assert_eq!(needed("There is no dynamic section in this file."), [""; 0]);
    }

    /// What cpio(1) reads from it, where there is one, and the layout by hand.
    #[test]
    fn an_archive_has_every_folder_before_its_files() {
        let mut image = Image::default();
        image.text("etc/leaf/name", "abc");
        image.folder("proc");
        let archive = image.archive();
        assert_eq!(archive.len() % 4, 0);
        assert_eq!(&archive[..6], b"070701");
        let text = String::from_utf8_lossy(&archive).into_owned();
        let at = |name: &str| text.find(&format!("{name}\0")).unwrap_or_else(|| panic!("no {name}"));
        assert!(at("etc") < at("etc/leaf") && at("etc/leaf") < at("etc/leaf/name") && at("proc") < at("TRAILER!!!"));
        // The name is 14 bytes with its end behind a header of 110: the content is at the next multiple of 4.
        let name = at("etc/leaf/name");
        assert_eq!(&archive[(name + 14).next_multiple_of(4)..][..3], b"abc");
    }
}
