//! `agent doctor --security-context`: the least privilege that a configuration takes, as Kubernetes and systemd want
//! it told. The table in `kernel::privileges` decides.

use crate::{
    config::{Config, RUNG_AUTO},
    kernel::{
        btf,
        privileges::{
            Work,
            capability::{self, Lasts, Need},
        },
    },
    probes::{ROOMS, Rung, Way},
};
use serde::Serialize;
use std::{collections::BTreeMap, fmt::Write as _, path::Path};

/// What `--json` prints.
#[derive(Debug, Serialize)]
pub struct Context {
    /// To start in a container, as user 0.
    container: Vec<Capability>,
    /// To start as another user.
    user: Vec<Capability>,
    /// Folders of the host that a container needs, read-only, and what for.
    host_paths: Vec<HostPath>,
}

#[derive(Debug, Serialize)]
struct Capability {
    /// `CAP_BPF`
    capability: String,
    /// What takes it.
    purposes: Vec<&'static str>,
    /// Given up once the rooms are attached.
    only_to_start: bool,
}

#[derive(Debug, Serialize)]
struct HostPath {
    name: &'static str,
    path: &'static str,
    purpose: &'static str,
}

const CGROUPS: HostPath =
    HostPath { name: "cgroup", path: "/sys/fs/cgroup", purpose: "the control groups of all containers" };
const TRACEFS: HostPath = HostPath { name: "tracing", path: "/sys/kernel/tracing", purpose: "classic tracepoints" };

/// What an agent with this configuration will do on this kernel, if it gets what it needs.
pub fn planned(config: &Config, has_btf: bool) -> Work {
    let classic = Way::Tracepoint.name();
    let mut work = Work::here();
    for room in ROOMS.iter().filter(|room| config.probes.iter().any(|name| name == room.name)) {
        let rung = config.room(room.name).rung;
        let required = room.hooks.iter().filter(|hook| hook.required);
        let is_possible = |known: &Rung| (rung == RUNG_AUTO || rung == known.name()) && (has_btf || !known.needs_btf);
        work.rooms.push((room.name, required.clone().all(|hook| hook.rungs.iter().any(is_possible))));
        let is_classic = |known: &Rung| known.name() == classic && is_possible(known);
        let has_classic = required.clone().any(|hook| hook.rungs.iter().any(is_classic));
        work.tracefs |= has_classic && (rung == classic || !has_btf);
    }
    work
}

impl Context {
    /// Of a configuration, on this kernel.
    pub fn of(config: &Config) -> Self {
        let work = planned(config, Path::new(btf::VMLINUX).exists());
        let mut host_paths = vec![CGROUPS];
        if work.tracefs {
            host_paths.push(TRACEFS);
        }
        Self {
            container: capabilities(&Work { root: true, ..work.clone() }),
            user: capabilities(&Work { root: false, ..work }),
            host_paths,
        }
    }

    /// Both, to be pasted.
    pub fn text(&self) -> String {
        format!("{}\n{}", self.kubernetes(), self.systemd())
    }

    fn kubernetes(&self) -> String {
        let mut out = String::from(
            "# Kubernetes, in the pod's spec. The kernel tells the host's process ids, hence hostPID.\n\
             # For the addresses and interfaces of the host also set hostNetwork: true.\n",
        );
        let mut line = |text: &str| out.push_str(&format!("{text}\n"));
        line("hostPID: true");
        line("containers:");
        line("  - name: leaf");
        line("    securityContext:");
        line("      # Another user gets no capability from a container runtime.");
        line("      runAsUser: 0");
        line("      privileged: false");
        line("      allowPrivilegeEscalation: false");
        line("      readOnlyRootFilesystem: true");
        line("      capabilities:");
        line("        drop: [ALL]");
        line("        add:");
        for capability in &self.container {
            let name = capability.capability.trim_start_matches("CAP_");
            line(&format!("          - {:<16} # {}", name, capability.told()));
        }
        if self.container.is_empty() {
            line("          []");
        }
        line(
            "      # If the runtime's profile does not know CAP_BPF and refuses bpf(): Unconfined. The agent then still",
        );
        line("      # has its own filter.");
        line("      seccompProfile: {type: RuntimeDefault}");
        line("      # Where the runtime's AppArmor profile closes /proc/PID/exe of other containers:");
        line("      # appArmorProfile: {type: Unconfined}");
        line("    volumeMounts:");
        for HostPath { name, path, purpose } in &self.host_paths {
            line(&format!("      # {purpose}"));
            line(&format!("      - {{name: {name}, mountPath: {path}, readOnly: true}}"));
        }
        line("volumes:");
        for HostPath { name, path, .. } in &self.host_paths {
            line(&format!("  - {{name: {name}, hostPath: {{path: {path}}}}}"));
        }
        out
    }

    fn systemd(&self) -> String {
        let names: Vec<_> = self.user.iter().map(|capability| capability.capability.as_str()).collect();
        let names = names.join(" ");
        let mut out = String::from(
            "# systemd, in the unit. The files that otlp.key_file and the like name must be readable by\n# the unit's user: LoadCredential= does that.\n[Service]\nDynamicUser=yes\n",
        );
        for capability in &self.user {
            let _ = writeln!(out, "# {}: {}", capability.capability, capability.told());
        }
        let _ = write!(out, "AmbientCapabilities={names}\nCapabilityBoundingSet={names}\n{HARDENING}");
        out
    }
}

/// Settings of systemd that take nothing from the agent.
const HARDENING: &str = "\
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=read-only
PrivateTmp=yes
PrivateDevices=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
SystemCallArchitectures=native
# Not these, which hide what the agent watches: ProtectProc=, ProcSubset=, PrivateNetwork=, PrivateUsers=, PrivatePIDs=.
# Nor SystemCallFilter=@system-service, which has no bpf(): the agent has a filter of its own.
";

/// What `work` needs, each capability once.
fn capabilities(work: &Work) -> Vec<Capability> {
    let mut found: BTreeMap<String, Vec<&'static Need>> = BTreeMap::new();
    for need in work.needs() {
        for name in capability::names(need.capability) {
            found.entry(name).or_default().push(need);
        }
    }
    found
        .into_iter()
        .map(|(capability, needs)| Capability {
            capability,
            purposes: needs.iter().map(|need| need.purpose).collect(),
            only_to_start: needs.iter().all(|need| need.lasts == Lasts::Start),
        })
        .collect()
}

impl Capability {
    fn told(&self) -> String {
        let until = if self.only_to_start { "; given up after that" } else { "" };
        format!("{}{until}", self.purposes.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probes::PROCFS;

    fn names(capabilities: &[Capability]) -> Vec<&str> {
        capabilities.iter().map(|capability| capability.capability.as_str()).collect()
    }

    #[test]
    fn rooms_and_rungs_of_the_configuration_decide() {
        let mut config = Config::default();
        let of = |config: &Config, has_btf| {
            let here = Work {
                bpf_is_privileged: false,
                locks_memory: false,
                hidden_processes: false,
                ..planned(config, has_btf)
            };
            (capabilities(&Work { root: true, ..here.clone() }), capabilities(&Work { root: false, ..here }))
        };
        let all = ["CAP_BPF", "CAP_PERFMON", "CAP_SYS_PTRACE"];
        let (container, user) = of(&config, true);
        assert_eq!((names(&container), names(&user)), (all.to_vec(), all.to_vec()));
        // Without BTF the network room polls, and reads whose a connection is from /proc.
        let (container, user) = of(&config, false);
        let polling = ["CAP_BPF", "CAP_DAC_READ_SEARCH", "CAP_PERFMON", "CAP_SYS_PTRACE"];
        assert_eq!((names(&container), names(&user)), (polling.to_vec(), polling.to_vec()));
        // Classic tracepoints are for root to read, or for who may read everything.
        config.rooms.get_mut("network").expect("a room").rung = "tracepoint".into();
        assert_eq!(names(&of(&config, true).0), all);
        assert_eq!(names(&of(&config, true).1), polling);
        config.rooms.get_mut("network").expect("a room").rung = RUNG_AUTO.into();
        config.probes = vec!["network".into()];
        assert_eq!(names(&of(&config, true).0), ["CAP_BPF", "CAP_PERFMON"]);
        config.rooms.get_mut("network").expect("a room").rung = PROCFS.into();
        assert_eq!(names(&of(&config, true).0), ["CAP_DAC_READ_SEARCH", "CAP_SYS_PTRACE"]);
    }

    #[test]
    fn what_takes_no_capability_says_so_in_valid_yaml() {
        let context = Context { container: Vec::new(), user: Vec::new(), host_paths: vec![CGROUPS] };
        assert!(context.kubernetes().contains("add:\n          []\n"), "{}", context.kubernetes());
        assert!(context.systemd().contains("\nAmbientCapabilities=\n"), "{}", context.systemd());
    }
}
