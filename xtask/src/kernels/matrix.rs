//! The kernels that Leaf is tested on, and how each is booted. This is the one list.

/// A kernel of Debian's.
#[derive(Debug)]
pub struct Kernel {
    /// How it is called on the command line, in the table and on disk.
    pub name: &'static str,
    /// Where Debian has it; the first suite that can be read.
    pub suites: &'static [&'static str],
    /// What it runs on. The package that leads to its newest build is `linux-image-cloud-<architecture>`:
    /// small, without drivers for hardware, and the same options otherwise.
    pub architecture: &'static Architecture,
    /// Booted only where it is named (`--kernel`): building for it takes long.
    pub on_demand: bool,
}

/// Oldest first. Each is the newest build of its suite.
pub const KERNELS: &[Kernel] = &[
    Kernel { name: "5.10", suites: &["bullseye-security", "bullseye"], architecture: &X86_64, on_demand: false },
    Kernel { name: "6.1", suites: &["bookworm"], architecture: &X86_64, on_demand: false },
    Kernel { name: "6.12", suites: &["trixie"], architecture: &X86_64, on_demand: false },
    Kernel { name: "newest", suites: &["trixie-backports", "sid"], architecture: &X86_64, on_demand: false },
    Kernel { name: "6.12-arm64", suites: &["trixie"], architecture: &AARCH64, on_demand: true },
];

/// Those of the short form: the oldest and the newest.
pub const SHORT: &[&str] = &["5.10", "newest"];

/// What a kernel runs on, and how that is emulated.
#[derive(Debug)]
pub struct Architecture {
    /// As Debian calls it.
    pub debian: &'static str,
    /// QEMU's program, and its arguments.
    pub qemu: &'static str,
    pub arguments: &'static [&'static str],
    /// The serial console.
    pub console: &'static str,
    /// What to build for, with the names of the C compiler's programs before their `-gcc`; `None`: for the host.
    pub cross: Option<Cross>,
}

/// How programs for another architecture are built.
#[derive(Debug)]
pub struct Cross {
    /// As rustc calls it.
    pub target: &'static str,
    /// `aarch64-linux-gnu`: of the C compiler's programs, and of the folder of libraries.
    pub triplet: &'static str,
}

/// All that TCG emulates, but for: cmpxchg16b, after which QEMU 7.2 may leave an address in the
/// flags (kernels from 6.5 on allocate memory by it, and end in a double fault); and five-level
/// page tables, which kernels set up before they can say what goes wrong.
const X86_64: Architecture = Architecture {
    debian: "amd64",
    qemu: "qemu-system-x86_64",
    arguments: &["-cpu", "max,cx16=off,la57=off"],
    console: "ttyS0",
    cross: None,
};

/// Pointers are authenticated by QEMU's own function: the standard's takes most of the time.
const AARCH64: Architecture = Architecture {
    debian: "arm64",
    qemu: "qemu-system-aarch64",
    arguments: &["-M", "virt", "-cpu", "max,pauth-impdef=on"],
    console: "ttyAMA0",
    cross: Some(Cross { target: "aarch64-unknown-linux-gnu", triplet: "aarch64-linux-gnu" }),
};

/// Packages with the programs that a guest of another architecture needs, and all that these are linked to.
pub const GUEST_PACKAGES: &[&str] = &[
    "coreutils",
    "dash",
    "iproute2",
    "libacl1",
    "libattr1",
    "libblkid1",
    "libbpf1",
    "libc6",
    "libcap-ng0",
    "libcap2",
    "libcom-err2",
    "libelf1t64",
    "libgcc-s1",
    "libgmp10",
    "libgssapi-krb5-2",
    "libk5crypto3",
    "libkeyutils1",
    "libkrb5-3",
    "libkrb5support0",
    "libmnl0",
    "libmount1",
    "libpcre2-8-0",
    "libselinux1",
    "libssl3t64",
    "libsystemd0",
    "libtirpc3t64",
    "libzstd1",
    "mount",
    "util-linux",
    "zlib1g",
];

/// Modules that a room uses and that are no part of the kernel itself.
pub const MODULES: &[&str] = &["inet_diag", "tcp_diag", "udp_diag"];

/// A way to boot a kernel.
#[derive(Debug)]
pub struct Machine {
    /// How it is called in the table.
    pub name: &'static str,
    /// Processors.
    pub cpus: u32,
    /// Added to the kernel's command line. What begins with `leaf.` is for the guest.
    pub parameters: &'static str,
    /// Which tests run: those whose name contains one of these; all if there is none.
    pub tests: &'static [&'static str],
}

impl Machine {
    /// The tests to run of those that `filter` names (parts of names, separated by commas), all if
    /// there is no filter; `None` if the machine is not to be booted for them.
    pub fn chosen(&self, filter: Option<&str>) -> Option<String> {
        let Some(filter) = filter else { return Some(self.tests.join(",")) };
        if self.is_plain() {
            return Some(filter.to_owned());
        }
        let is_named = |test: &&&str| filter.split(',').any(|name| test.contains(name));
        let chosen: Vec<&str> = self.tests.iter().filter(is_named).copied().collect();
        (!chosen.is_empty()).then(|| chosen.join(","))
    }

    /// Whether all tests run, for nothing is taken from it.
    pub fn is_plain(&self) -> bool {
        self.tests.is_empty()
    }
}

/// Every kernel is booted in each of these ways.
pub const MACHINES: &[Machine] = &[
    Machine { name: "plain", cpus: 2, parameters: "leaf.cgroup=v2", tests: &[] },
    Machine {
        name: "one CPU, cgroup v1 only",
        cpus: 1,
        parameters: "leaf.cgroup=v1",
        tests: &["process::auto", "network::auto"],
    },
    Machine {
        name: "lockdown=confidentiality",
        cpus: 2,
        parameters: "leaf.cgroup=v2 lockdown=confidentiality",
        tests: &["poor::lockdown"],
    },
];
