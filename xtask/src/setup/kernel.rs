//! The kernels of the matrix, unpacked and not installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::debian::Names;
use super::programs::Program;
use super::stamp::Stamp;
use super::{Step, debian};
use crate::kernels::matrix::{Architecture, GUEST_PACKAGES, Kernel, MODULES};
use crate::shell;
use crate::workspace::Workspace;

/// Brings one kernel: its image as `vmlinuz`, and those of its modules that a guest needs as
/// `modules/<name>.ko`.
#[derive(Debug)]
pub struct UnpackedKernel {
    place: PathBuf,
    stamp: Stamp,
    kernel: &'static Kernel,
}

impl UnpackedKernel {
    pub fn new(workspace: &Workspace, kernel: &'static Kernel) -> Self {
        let version = format!("{} {} {}", package(kernel), kernel.suites.join(" "), MODULES.join(" "));
        Self {
            place: folder(workspace, kernel),
            stamp: Stamp::new(&workspace.tools(), &format!("kernel-{}", kernel.name), version),
            kernel,
        }
    }
}

/// Where a kernel is.
pub fn folder(workspace: &Workspace, kernel: &Kernel) -> PathBuf {
    workspace.tools().join("kernels").join(kernel.name)
}

impl Step for UnpackedKernel {
    fn what(&self) -> String {
        format!("kernel {} ({})", self.kernel.name, self.kernel.suites[0])
    }

    fn why(&self) -> &'static str {
        "which tests boot in a virtual machine"
    }

    fn place(&self) -> PathBuf {
        self.place.clone()
    }

    fn needs(&self) -> &'static [Program] {
        const XZ: &[Program] = &[Program { name: "xz", package: "xz-utils" }];
        XZ
    }

    fn is_ready(&self) -> bool {
        self.stamp.is_current() && self.place.join("vmlinuz").is_file()
    }

    fn install(&self) -> Result<()> {
        let unpacked = self.place.with_extension("unpacked");
        let names = Names::Below(&package(self.kernel), &is_of_a_kernel);
        debian::unpack_from(&unpacked, self.kernel.suites, self.kernel.architecture.debian, &names)?;
        take(&unpacked, &self.place)?;
        fs::remove_dir_all(&unpacked).with_context(|| format!("cannot remove {}", unpacked.display()))?;
        self.stamp.write()
    }
}

/// The package that leads to the newest build.
fn package(kernel: &Kernel) -> String {
    format!("linux-image-cloud-{}", kernel.architecture.debian)
}

/// `linux-image-6.1.0-50-cloud-amd64`, and what newer packages split off from that.
fn is_of_a_kernel(package: &str) -> bool {
    ["linux-image-", "linux-binary-", "linux-modules-"].iter().any(|start| {
        package.strip_prefix(start).is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_digit()))
    })
}

/// Takes from a package's files what is needed.
fn take(unpacked: &Path, to: &Path) -> Result<()> {
    let named = || format!("cannot write {}", to.display());
    let image = find(unpacked, &|name| name == "vmlinuz" || name.starts_with("vmlinuz-"))?
        .with_context(|| format!("no kernel image below {}", unpacked.display()))?;
    fs::create_dir_all(to.join("modules")).with_context(named)?;
    for module in MODULES {
        let file = find(unpacked, &|name| {
            name.split_once('.').is_some_and(|(stem, rest)| stem == *module && rest.starts_with("ko"))
        })?;
        let Some(file) = file else {
            // `kernel/net/ipv4/tcp_diag.ko`, a part of the kernel itself.
            let list = find(unpacked, &|name| name == "modules.builtin")?;
            let list = list.map_or_else(String::new, |path| fs::read_to_string(path).unwrap_or_default());
            if list.lines().any(|line| line.ends_with(&format!("/{module}.ko"))) {
                continue;
            }
            bail!("the kernel has no module {module}");
        };
        let target = to.join(format!("modules/{module}.ko"));
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("ko") => fs::copy(&file, &target).map(drop).with_context(named)?,
            Some("xz") => {
                let output = fs::File::create(&target).with_context(named)?;
                shell::run(Command::new("xz").args(["--decompress", "--stdout"]).arg(&file).stdout(output))?;
            }
            _ => bail!("a module of unknown kind: {}", file.display()),
        }
    }
    fs::copy(&image, to.join("vmlinuz")).map(drop).with_context(named)
}

/// Where programs and libraries of another architecture are, for its guests.
pub fn root_folder(workspace: &Workspace, architecture: &Architecture) -> PathBuf {
    workspace.tools().join("kernels").join(format!("root-{}", architecture.debian))
}

/// Brings them.
#[derive(Debug)]
pub struct GuestRoot {
    place: PathBuf,
    stamp: Stamp,
    kernel: &'static Kernel,
}

impl GuestRoot {
    pub fn new(workspace: &Workspace, kernel: &'static Kernel) -> Self {
        let architecture = kernel.architecture;
        let stamp = Stamp::new(&workspace.tools(), &format!("root-{}", architecture.debian), GUEST_PACKAGES.join(" "));
        Self { place: root_folder(workspace, architecture), stamp, kernel }
    }
}

impl Step for GuestRoot {
    fn what(&self) -> String {
        format!("programs for {}", self.kernel.architecture.debian)
    }

    fn why(&self) -> &'static str {
        "which tests call in a virtual machine"
    }

    fn place(&self) -> PathBuf {
        self.place.clone()
    }

    fn is_ready(&self) -> bool {
        self.stamp.is_current() && self.place.is_dir()
    }

    fn install(&self) -> Result<()> {
        let names = Names::Only(GUEST_PACKAGES);
        debian::unpack_from(&self.place, self.kernel.suites, self.kernel.architecture.debian, &names)?;
        self.stamp.write()
    }
}

/// The first file below a folder whose name is `wanted`.
fn find(folder: &Path, wanted: &dyn Fn(&str) -> bool) -> Result<Option<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut folders = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot read {}", folder.display()))?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            folders.push(entry.path());
        } else if kind.is_file() && wanted(&entry.file_name().to_string_lossy()) {
            return Ok(Some(entry.path()));
        }
    }
    for folder in folders {
        if let Some(found) = find(&folder, wanted)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_packages_of_one_release_are_of_a_kernel() {
        for package in ["linux-image-6.1.0-50-cloud-amd64", "linux-modules-7.3.4+deb13-cloud-amd64"] {
            assert!(is_of_a_kernel(package), "{package}");
        }
        for package in ["linux-image-cloud-amd64", "linux-base", "linux-modules-cloud-amd64", "kmod"] {
            assert!(!is_of_a_kernel(package), "{package}");
        }
    }

    #[test]
    fn image_and_modules_are_taken_from_wherever_a_package_has_them() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        let modules = from.join("lib/modules/6.1/kernel/net/ipv4");
        fs::create_dir_all(&modules).expect("a folder");
        fs::create_dir_all(from.join("boot")).expect("a folder");
        fs::write(from.join("boot/vmlinuz-6.1"), "image").expect("a file");
        fs::write(modules.join("tcp_diag.ko"), "module").expect("a file");
        fs::write(modules.join("tcp_bbr.ko"), "another").expect("a file");
        let missing = take(&from, &to).expect_err("two are missing").to_string();
        assert_eq!(missing, "the kernel has no module inet_diag");
        let builtin = "kernel/net/ipv4/inet_diag.ko\nkernel/net/ipv4/udp_diag.ko\n";
        fs::write(from.join("lib/modules/6.1/modules.builtin"), builtin).expect("a file");
        take(&from, &to).expect("taken");
        assert_eq!(fs::read_to_string(to.join("vmlinuz")).expect("a file"), "image");
        assert_eq!(fs::read_to_string(to.join("modules/tcp_diag.ko")).expect("a file"), "module");
        assert_eq!(fs::read_dir(to.join("modules")).expect("a folder").count(), 1);
    }
}
