//! The kernels that Leaf is tested on, and how each is booted. This is the one list.

/// A kernel of Debian's.
#[derive(Debug)]
pub struct Kernel {
    /// How it is called on the command line, in the table and on disk.
    pub name: &'static str,
    /// Where Debian has it; the first suite that can be read.
    pub suites: &'static [&'static str],
    /// The package that leads to its newest build there.
    pub package: &'static str,
}

/// Oldest first. Each is the newest build of its suite.
pub const KERNELS: &[Kernel] = &[
    Kernel { name: "5.10", suites: &["bullseye-security", "bullseye"], package: CLOUD },
    Kernel { name: "6.1", suites: &["bookworm"], package: CLOUD },
    Kernel { name: "6.12", suites: &["trixie"], package: CLOUD },
    Kernel { name: "newest", suites: &["trixie-backports", "sid"], package: CLOUD },
];

/// Those of the short form: the oldest and the newest.
pub const SHORT: &[&str] = &["5.10", "newest"];

/// Small, without drivers for hardware, and the same options otherwise.
const CLOUD: &str = "linux-image-cloud-amd64";

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
    /// The kernels that are booted in this way; all if there is none.
    pub kernels: &'static [&'static str],
}

/// Every kernel is booted in each of these ways.
pub const MACHINES: &[Machine] = &[
    Machine { name: "plain", cpus: 2, parameters: "leaf.cgroup=v2", tests: &[], kernels: &[] },
    Machine {
        name: "one CPU, cgroup v1 only",
        cpus: 1,
        parameters: "leaf.cgroup=v1",
        tests: &["process::auto", "network::auto"],
        kernels: &[],
    },
    Machine {
        name: "lockdown=confidentiality",
        cpus: 2,
        parameters: "leaf.cgroup=v2 lockdown=confidentiality",
        tests: &["poor::lockdown"],
        kernels: &[],
    },
];
