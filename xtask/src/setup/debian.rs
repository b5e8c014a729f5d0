//! Debian packages: installed by apt-get, unpacked into a folder of ours, or one
//! unpacked from another suite.

use std::env;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::shell;
use crate::toolchain::find_program;

/// Suites that carry newer packages than a stable Debian, nearest first.
const SUITES: [&str; 3] = ["trixie-backports", "testing", "unstable"];

/// Installs packages into the system.
///
/// # Errors
/// Without root's rights or without apt-get, and if apt-get fails.
pub fn install(packages: &[&str]) -> Result<()> {
    if find_program("apt-get").is_none() {
        bail!("there is no apt-get here");
    }
    if !is_root() {
        bail!("that takes root: `sudo apt-get install {}`", packages.join(" "));
    }
    let install = || {
        shell::capture(
            Command::new("apt-get")
                .args(["install", "--yes", "--no-install-recommends", "--quiet=2"])
                .args(packages)
                .env("DEBIAN_FRONTEND", "noninteractive"),
        )
    };
    if install().is_ok() {
        return Ok(());
    }
    // The lists may be missing (a fresh container) or too old.
    shell::capture(Command::new("apt-get").args(["update", "--quiet=2"]))?;
    install().map(drop)
}

/// Unpacks packages, with what they depend on and the system lacks, below `folder`.
/// It takes no root, and the system's packages do not change.
///
/// # Errors
/// Without apt-get, and if a package is not to be had.
pub fn unpack_with_dependencies(folder: &Path, packages: &[&str]) -> Result<()> {
    if find_program("apt-get").is_none() {
        bail!("there is no apt-get here");
    }
    let named = || format!("cannot write {}", folder.display());
    let partial = folder.with_extension("partial");
    for old in [folder, &partial] {
        if old.exists() {
            fs::remove_dir_all(old).with_context(named)?;
        }
    }
    for made in ["apt/lists/partial", "apt/cache/archives/partial", "root"] {
        fs::create_dir_all(partial.join(made)).with_context(named)?;
    }
    let apt = |own_lists: bool, arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command.arg("-o").arg(format!("Dir::Cache={}", partial.join("apt/cache").display()));
        if own_lists {
            command.arg("-o").arg(format!("Dir::State::lists={}", partial.join("apt/lists").display()));
        }
        // Nothing of the system changes, so nothing needs its locks, which are root's.
        command.args(["-o", "Debug::NoLocking=1", "-o", "APT::Sandbox::User=root", "--quiet=2"]);
        shell::capture(command.args(arguments))
    };
    let download = [&["install", "--download-only", "--yes", "--no-install-recommends"], packages].concat();
    if apt(false, &download).is_err() {
        // The system's lists are missing (a fresh container) or too old.
        apt(true, &["update"])?;
        apt(true, &download)?;
    }
    for archive in archives(&partial.join("apt/cache/archives"))? {
        shell::capture(Command::new("dpkg").arg("-x").arg(archive).arg(partial.join("root")))?;
    }
    fs::rename(partial.join("root"), folder).with_context(named)?;
    // Only space is lost if it stays.
    let _ = fs::remove_dir_all(partial);
    Ok(())
}

/// The packages that apt-get has left in a folder.
fn archives(folder: &Path) -> Result<Vec<PathBuf>> {
    let files = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    Ok(files
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .collect())
}

/// Unpacks the package with `upstream` as its version below `folder`, from the first
/// suite that has it. Neither the system's packages nor its package lists change.
pub fn unpack(folder: &Path, package: &str, upstream: &str) -> Result<PathBuf> {
    if find_program("apt-get").is_none() {
        bail!("there is no apt-get here");
    }
    let entry = system_entry()?;
    let mut tried = Vec::new();
    for suite in SUITES {
        let apt = PrivateApt::new(&folder.join(suite), &entry.with_suite(suite))?;
        match apt.version(package, upstream) {
            Ok(Some(version)) => return apt.unpack(package, &version, &folder.join("unpacked")),
            Ok(None) => tried.push(format!("{suite} has no {package} {upstream}")),
            Err(error) => tried.push(format!("{suite}: {error:#}")),
        }
    }
    bail!("{}", tried.join("; "))
}

/// Which packages to unpack.
pub enum Names<'a> {
    /// These.
    Only(&'a [&'a str]),
    /// Of what a package depends on, what the function says.
    Below(&'a str, &'a dyn Fn(&str) -> bool),
}

/// Unpacks packages for an architecture as one of `suites` has them, the first that can be read, into the
/// folder `to`. Neither the system's packages nor its package lists change.
///
/// # Errors
/// Without apt-get, and if no suite has them.
pub fn unpack_from(to: &Path, suites: &[&str], architecture: &str, names: &Names<'_>) -> Result<()> {
    if find_program("apt-get").is_none() {
        bail!("there is no apt-get here");
    }
    let entry = system_entry()?;
    let mut tried = Vec::new();
    for suite in suites {
        let folder = to.with_extension("apt");
        let attempt = PrivateApt::new(&folder, &entry.with_suite(suite)).and_then(|apt| {
            let apt = PrivateApt { architecture: Some(architecture.to_owned()), ..apt };
            let names = match names {
                Names::Only(names) => {
                    shell::capture(apt.command("apt-get").args(["update", "--quiet=2"]))?;
                    names.iter().map(|&name| name.to_owned()).collect()
                }
                Names::Below(package, wanted) => apt.dependencies(package, wanted)?,
            };
            apt.unpack_all(&names, to)
        });
        match attempt {
            Ok(()) => return Ok(()),
            Err(error) => tried.push(format!("{suite}: {error:#}")),
        }
    }
    bail!("{}", tried.join("; "))
}

/// apt with a source and lists of its own.
struct PrivateApt {
    folder: PathBuf,
    /// Other than the system's, as Debian calls it.
    architecture: Option<String>,
}

impl PrivateApt {
    fn new(folder: &Path, source: &str) -> Result<Self> {
        let named = || format!("cannot write {}", folder.display());
        fs::create_dir_all(folder.join("lists/partial")).with_context(named)?;
        fs::create_dir_all(folder.join("cache/archives/partial")).with_context(named)?;
        fs::write(folder.join("debian.sources"), source).with_context(named)?;
        // What the system has installed is of its own architecture.
        fs::write(folder.join("status"), "").with_context(named)?;
        Ok(Self { folder: folder.to_owned(), architecture: None })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.folder);
        for (option, value) in [
            ("Dir::Etc::sourcelist", self.path("debian.sources")),
            ("Dir::Etc::sourceparts", "-".into()),
            ("Dir::State::lists", self.path("lists")),
            ("Dir::Cache", self.path("cache")),
            // The user that root's apt downloads as may not write below a home folder.
            ("APT::Sandbox::User", "root".into()),
        ] {
            command.arg("-o").arg(format!("{option}={value}"));
        }
        if let Some(architecture) = &self.architecture {
            command.arg("-o").arg(format!("APT::Architecture={architecture}"));
            command.arg("-o").arg(format!("APT::Architectures::={architecture}"));
            command.arg("-o").arg(format!("Dir::State::status={}", self.path("status")));
        }
        command
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    /// The package's full version, if the suite has one made from `upstream`.
    fn version(&self, package: &str, upstream: &str) -> Result<Option<String>> {
        shell::capture(self.command("apt-get").args(["update", "--quiet=2"]))?;
        let table = shell::capture(self.command("apt-cache").args(["madison", package]))?;
        Ok(matching_version(&table, upstream).map(str::to_owned))
    }

    /// Those packages that `package` leads to and that are `wanted`.
    fn dependencies(&self, package: &str, wanted: impl Fn(&str) -> bool) -> Result<Vec<String>> {
        shell::capture(self.command("apt-get").args(["update", "--quiet=2"]))?;
        let mut depends = self.command("apt-cache");
        depends.args(["depends", "--recurse", "--no-recommends", "--no-suggests", "--no-conflicts"]);
        depends.args(["--no-breaks", "--no-replaces", "--no-enhances", package]);
        let listing = shell::capture(&mut depends)?;
        // A package stands at the start of a line, what it depends on further in.
        let names = listing.lines().filter(|line| !line.starts_with([' ', '<', '|']) && wanted(line));
        let names: Vec<String> = names.map(str::to_owned).collect();
        if names.is_empty() {
            bail!("{package} leads to no package that is looked for");
        }
        Ok(names)
    }

    fn unpack(&self, package: &str, version: &str, to: &Path) -> Result<PathBuf> {
        self.unpack_all(&[format!("{package}={version}")], to)?;
        Ok(to.to_owned())
    }

    /// Downloads packages and unpacks them into one new folder.
    fn unpack_all(&self, packages: &[String], to: &Path) -> Result<()> {
        shell::capture(self.command("apt-get").args(["download", "--quiet=2"]).args(packages))?;
        if to.exists() {
            fs::remove_dir_all(to)?;
        }
        for archive in archives(&self.folder)? {
            shell::capture(Command::new("dpkg").arg("-x").arg(&archive).arg(to))?;
        }
        fs::remove_dir_all(&self.folder)?;
        Ok(())
    }
}

/// The version in the output of `apt-cache madison` whose upstream part is `upstream`.
fn matching_version<'a>(madison: &'a str, upstream: &str) -> Option<&'a str> {
    madison
        .lines()
        .filter_map(|line| line.split('|').nth(1))
        .map(str::trim)
        // `1.95.0+dfsg1-2`, but neither `1.95.0~beta.1-1` nor `1.95.01-1`.
        .find(|version| version.strip_prefix(upstream).is_some_and(|rest| rest.starts_with(['+', '-'])))
}

/// Where this machine gets its packages from: a mirror and the keys that it trusts.
#[derive(Debug, PartialEq)]
struct SourceEntry {
    address: String,
    signed_by: Option<String>,
}

impl SourceEntry {
    /// An apt source for another suite of the same mirror.
    fn with_suite(&self, suite: &str) -> String {
        // The security archive stands beside the main one.
        let address = match suite.ends_with("-security") {
            true => format!("{}-security", self.address.trim_end_matches('/')),
            false => self.address.clone(),
        };
        let mut text = format!("Types: deb\nURIs: {address}\nSuites: {suite}\nComponents: main\n");
        if let Some(keys) = &self.signed_by {
            text.push_str(&format!("Signed-By: {keys}\n"));
        }
        text
    }

    /// The first entry of a deb822 file (`*.sources`) that is a Debian archive.
    fn in_deb822(text: &str) -> Option<Self> {
        text.split("\n\n").find_map(|stanza| {
            let field = |name: &str| {
                stanza.lines().find_map(|line| {
                    let (key, value) = line.split_once(':')?;
                    key.trim().eq_ignore_ascii_case(name).then(|| value.trim())
                })
            };
            let enabled = field("Enabled").is_none_or(|value| !value.eq_ignore_ascii_case("no"));
            let binary = field("Types")?.split_whitespace().any(|kind| kind == "deb");
            let address = field("URIs")?.split_whitespace().next()?;
            (enabled && binary && is_archive(address)).then(|| Self {
                address: address.to_owned(),
                signed_by: field("Signed-By").filter(|keys| !keys.is_empty()).map(str::to_owned),
            })
        })
    }

    /// The first entry of a one-line file (`*.list`) that is a Debian archive.
    fn in_list(text: &str) -> Option<Self> {
        text.lines().find_map(|line| {
            let rest = line.trim().strip_prefix("deb ")?.trim_start();
            let (options, rest) = match rest.strip_prefix('[') {
                Some(rest) => rest.split_once(']')?,
                None => ("", rest),
            };
            let address = rest.split_whitespace().next()?;
            is_archive(address).then(|| Self {
                address: address.to_owned(),
                signed_by: options
                    .split_whitespace()
                    .find_map(|option| option.strip_prefix("signed-by="))
                    .map(str::to_owned),
            })
        })
    }
}

/// Debian's main archive, not its security archive nor another distribution's.
fn is_archive(address: &str) -> bool {
    address.trim_end_matches('/').ends_with("/debian")
}

fn system_entry() -> Result<SourceEntry> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(folder) = fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(folder.filter_map(|entry| Some(entry.ok()?.path())));
    }
    files.sort();
    files
        .iter()
        .find_map(|file| {
            let text = fs::read_to_string(file).ok()?;
            match file.extension()?.to_str()? {
                "sources" => SourceEntry::in_deb822(&text),
                "list" => SourceEntry::in_list(&text),
                _ => None,
            }
        })
        .context("no source of Debian's archive in /etc/apt")
}

/// Are we root? Asked of the kernel: the owner of our own /proc entry.
fn is_root() -> bool {
    fs::metadata(Path::new("/proc").join(std::process::id().to_string()))
        .map(|process| process.uid() == 0)
        .unwrap_or_else(|_| env::var_os("USER").is_some_and(|user| user == "root"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCES: &str = "\
Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Signed-By: /keys/security.gpg

Types: deb deb-src
# a comment
URIs: http://mirror.example/debian/
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /keys/archive.gpg
";

    #[test]
    fn a_private_source_takes_mirror_and_keys_from_the_system() {
        let entry = SourceEntry::in_deb822(SOURCES).expect("an archive");
        assert_eq!(
            entry.with_suite("trixie-backports"),
            "Types: deb\nURIs: http://mirror.example/debian/\nSuites: trixie-backports\n\
             Components: main\nSigned-By: /keys/archive.gpg\n"
        );
    }

    #[test]
    fn a_security_suite_is_in_the_security_archive() {
        let entry = SourceEntry::in_deb822(SOURCES).expect("an archive");
        let source = entry.with_suite("bullseye-security");
        assert!(
            source.contains("URIs: http://mirror.example/debian-security\nSuites: bullseye-security\n"),
            "{source}"
        );
    }

    #[test]
    fn disabled_and_foreign_entries_are_passed_over() {
        let disabled = SOURCES.replace("# a comment", "Enabled: no");
        assert_eq!(SourceEntry::in_deb822(&disabled), None);
        let foreign = SOURCES.replace("/debian/", "/ubuntu/");
        assert_eq!(SourceEntry::in_deb822(&foreign), None);
    }

    #[test]
    fn a_one_line_source_is_read_with_and_without_options() {
        let text = "# deb http://old.example/debian stretch main\n\
                    deb [arch=amd64 signed-by=/keys/a.gpg] http://mirror.example/debian bookworm main\n";
        let entry = SourceEntry::in_list(text).expect("an archive");
        assert_eq!(entry.address, "http://mirror.example/debian");
        assert_eq!(entry.signed_by.as_deref(), Some("/keys/a.gpg"));
        let plain = SourceEntry::in_list("deb http://mirror.example/debian sid main");
        assert_eq!(plain.expect("an archive").signed_by, None);
    }

    #[test]
    fn only_the_same_upstream_version_matches() {
        let table = " rust-src | 1.95.0~beta.3+dfsg1-1 | http://mirror.example\n \
                     rust-src | 1.95.0+dfsg1-2~bpo13+1 | http://mirror.example\n \
                     rust-src | 1.85.0+dfsg3-1 | http://mirror.example\n";
        assert_eq!(matching_version(table, "1.95.0"), Some("1.95.0+dfsg1-2~bpo13+1"));
        assert_eq!(matching_version(table, "1.9"), None);
        assert_eq!(matching_version("", "1.95.0"), None);
    }
}
