//! The tools that benchmarks compare with. They come from Debian's packages, but
//! into target/tools: a benchmark is no reason to change a system.

use std::env;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::programs::{Program, packages};
use super::{Step, debian};
use crate::toolchain::find_program;
use crate::workspace::Workspace;

/// A list of programs that are unpacked and not installed: their packages would start
/// servers, or change more of the system than a test needs.
#[derive(Debug)]
pub struct Packages {
    /// Folder below target/tools.
    folder: &'static str,
    /// What for, to complete 'installing X, '.
    why: &'static str,
    programs: &'static [Program],
    /// Packages that have no program, and that no program's depends on.
    besides: &'static [&'static str],
}

/// What the tests start.
pub const TESTED_WITH: Packages = Packages {
    folder: "servers",
    why: "which tests start",
    programs: &[
        Program { name: "nginx", package: "nginx" },
        Program { name: "socat", package: "socat" },
        Program { name: "nft", package: "nftables" },
        Program { name: "dnsmasq", package: "dnsmasq-base" },
        Program { name: "tshark", package: "tshark" },
    ],
    besides: &[],
};

/// What boots other kernels.
pub const EMULATOR: Packages = Packages {
    folder: "emulator",
    why: "which boots other kernels",
    programs: &[Program { name: "qemu-system-x86_64", package: "qemu-system-x86" }],
    besides: &[],
};

/// What builds for arm64 and boots its kernels.
pub const ARM64: Packages = Packages {
    folder: CROSS,
    why: "which builds for arm64 and boots its kernels",
    programs: &[
        Program { name: "aarch64-linux-gnu-gcc", package: "gcc-aarch64-linux-gnu" },
        Program { name: "aarch64-linux-gnu-ar", package: "binutils-aarch64-linux-gnu" },
        Program { name: "aarch64-linux-gnu-readelf", package: "binutils-aarch64-linux-gnu" },
        Program { name: "qemu-system-aarch64", package: "qemu-system-arm" },
    ],
    besides: &["libc6-dev-arm64-cross"],
};

/// Folder of the cross compiler, below target/tools.
pub const CROSS: &str = "cross";

/// What the benchmarks start.
pub const COMPARED_WITH: Packages = Packages {
    folder: "peers",
    why: "which benchmarks compare with",
    programs: &[
        Program { name: "bpftrace", package: "bpftrace" },
        Program { name: "bpftool", package: "bpftool" },
        Program { name: "execsnoop", package: "libbpf-tools" },
        Program { name: "runqlat", package: "libbpf-tools" },
        Program { name: "tcplife", package: "libbpf-tools" },
        Program { name: "wrk", package: "wrk" },
        Program { name: "iperf3", package: "iperf3" },
    ],
    besides: &[],
};

/// Those of a list that the system does not have, each as a script in
/// target/tools/bin that calls the unpacked program with its unpacked libraries.
#[derive(Debug)]
pub struct Unpacked {
    tools: PathBuf,
    packages: &'static Packages,
    programs: Vec<&'static Program>,
}

impl Unpacked {
    pub fn new(workspace: &Workspace, packages: &'static Packages) -> Self {
        let programs = packages.programs.iter().filter(|program| find_program(program.name).is_none()).collect();
        Self { tools: workspace.tools(), packages, programs }
    }

    fn script(&self, program: &Program) -> PathBuf {
        self.tools.join("bin").join(program.name)
    }
}

impl Step for Unpacked {
    fn what(&self) -> String {
        packages(&self.programs).join(", ")
    }

    fn why(&self) -> &'static str {
        self.packages.why
    }

    fn place(&self) -> PathBuf {
        self.tools.join(self.packages.folder)
    }

    fn is_ready(&self) -> bool {
        self.programs.iter().all(|program| {
            let inside = unpacked(&self.place(), program.name);
            inside.is_some_and(|inside| {
                let script = script_for(self.packages.folder, &inside);
                fs::read_to_string(self.script(program)).is_ok_and(|text| text == script)
            })
        })
    }

    fn install(&self) -> Result<()> {
        let names = [packages(&self.programs), self.packages.besides.to_vec()].concat();
        debian::unpack_with_dependencies(&self.place(), &names)
            .with_context(|| format!("or install it (Debian: {})", packages(&self.programs).join(" ")))?;
        for program in &self.programs {
            let inside = unpacked(&self.place(), program.name)
                .with_context(|| format!("package {} has no {}", program.package, program.name))?;
            let script = self.script(program);
            let named = || format!("cannot write {}", script.display());
            fs::create_dir_all(self.tools.join("bin")).with_context(named)?;
            fs::write(&script, script_for(self.packages.folder, &inside)).with_context(named)?;
            fs::set_permissions(&script, Permissions::from_mode(0o755)).with_context(named)?;
        }
        Ok(())
    }
}

/// Where the packages below `root` have a program, relative to `root`.
fn unpacked(root: &Path, name: &str) -> Option<PathBuf> {
    ["usr/sbin", "usr/bin"].iter().map(|folder| Path::new(folder).join(name)).find(|path| root.join(path).is_file())
}

/// A script that becomes the program: `exec`, so that it has the process id that its
/// caller knows. Relative to itself, so that the clone can be moved.
fn script_for(folder: &str, inside: &Path) -> String {
    format!(
        "#!/bin/sh\n\
         # Written by `cargo xtask setup`.\n\
         unpacked=$(dirname \"$0\")/../{folder}\n\
         libraries=$unpacked/usr/lib/{arch}-linux-gnu:$unpacked/lib/{arch}-linux-gnu\n\
         export LD_LIBRARY_PATH=\"$libraries${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}\"\n\
         exec \"$unpacked/{}\" \"$@\"\n",
        inside.display(),
        arch = env::consts::ARCH,
    )
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_script_calls_the_unpacked_program_with_its_arguments_and_libraries() {
        let tools = tempfile::tempdir().expect("a temporary folder");
        let (bin, root) = (tools.path().join("bin"), tools.path().join("servers"));
        fs::create_dir_all(&bin).expect("a folder");
        fs::create_dir_all(root.join("usr/sbin")).expect("a folder");
        let write = |path: &Path, text: &str| {
            fs::write(path, text).expect("a file");
            fs::set_permissions(path, Permissions::from_mode(0o755)).expect("executable");
        };
        write(&root.join("usr/sbin/peer"), "#!/bin/sh\necho \"$LD_LIBRARY_PATH|$1|$2\"\n");
        let inside = unpacked(&root, "peer").expect("it is there");
        write(&bin.join("peer"), &script_for("servers", &inside));

        let output = Command::new(bin.join("peer")).args(["a b", "c"]).env("LD_LIBRARY_PATH", "/own").output();
        let said = String::from_utf8(output.expect("starts").stdout).expect("text");
        let (libraries, arguments) = said.trim_end().split_once('|').expect("two parts");
        assert_eq!(arguments, "a b|c");
        assert!(libraries.contains("/bin/../servers/usr/lib/"), "{libraries}");
        assert!(libraries.ends_with(":/own"), "{libraries}");
        assert_eq!(unpacked(&root, "leaf-no-such-program"), None);
    }
}
