//! The attributes that Leaf sends, in one table: the OpenTelemetry key, and
//! the field that stands for it in the flat JSON envelope.

/// An attribute of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attribute {
    /// Semantic convention, or `leaf.*` where there is none.
    pub key: &'static str,
    /// Name in the envelope's `data`.
    pub field: &'static str,
}

macro_rules! attributes {
    ($( $(#[$doc:meta])* $name:ident = $key:literal, $field:literal; )*) => {
        $( $(#[$doc])* pub const $name: Attribute = Attribute { key: $key, field: $field }; )*
        /// Every attribute.
        pub const ALL: &[Attribute] = &[$($name),*];
    };
}

attributes! {
    /// Thread group id.
    PROCESS_PID = "process.pid", "pid";
    /// Thread that made the event.
    THREAD_ID = "thread.id", "tid";
    /// Thread group id of the parent.
    PROCESS_PARENT_PID = "process.parent_pid", "ppid";
    /// Real user id.
    PROCESS_USER_ID = "process.user.id", "uid";
    /// Real group id.
    PROCESS_GROUP_ID = "leaf.process.group.id", "gid";
    /// Command name, 15 bytes at most.
    PROCESS_COMM = "leaf.process.comm", "comm";
    /// Path of the program.
    PROCESS_EXECUTABLE_PATH = "process.executable.path", "filename";
    /// Arguments, redacted.
    PROCESS_COMMAND_LINE = "process.command_line", "cmdline";
    /// ISO 8601, UTC.
    PROCESS_CREATION_TIME = "process.creation.time", "start_time";
    /// Path of the control group.
    PROCESS_CGROUP = "process.linux.cgroup", "cgroup";
    /// Number of the control group in its hierarchy.
    CGROUP_ID = "leaf.cgroup.id", "cgroup_id";
    /// Id of the container.
    CONTAINER_ID = "container.id", "container_id";
    /// What runs the container.
    CONTAINER_RUNTIME = "container.runtime.name", "container_runtime";
    /// Kubernetes' id of the pod.
    POD_UID = "k8s.pod.uid", "pod_uid";
    /// Exit code, where the process ended by itself.
    EXIT_CODE = "process.exit.code", "exit_code";
    /// Name of the signal that ended the process.
    EXIT_SIGNAL = "leaf.process.exit.signal", "signal";
    /// Whether a core was dumped.
    EXIT_CORE_DUMPED = "leaf.process.exit.core_dumped", "core_dumped";
    /// User CPU time of all threads, ns.
    CPU_USER_TIME = "leaf.process.cpu.user_time", "utime_ns";
    /// System CPU time of all threads, ns.
    CPU_SYSTEM_TIME = "leaf.process.cpu.system_time", "stime_ns";
    /// Page faults served without I/O.
    FAULTS_MINOR = "leaf.process.faults.minor", "minor_faults";
    /// Page faults that needed I/O.
    FAULTS_MAJOR = "leaf.process.faults.major", "major_faults";
    /// Threads whose CPU time and faults are not in the sums.
    THREADS_UNCOUNTED = "leaf.process.threads.uncounted", "threads_uncounted";
    /// Address of the end that connects.
    SOURCE_ADDRESS = "source.address", "src_ip";
    /// Port of the end that connects.
    SOURCE_PORT = "source.port", "src_port";
    /// Address of the end that accepts.
    DESTINATION_ADDRESS = "destination.address", "dst_ip";
    /// Port of the end that accepts.
    DESTINATION_PORT = "destination.port", "dst_port";
    /// `tcp` or `udp`.
    NETWORK_TRANSPORT = "network.transport", "transport";
    /// `ipv4` or `ipv6`.
    NETWORK_TYPE = "network.type", "ip_version";
    /// Which end the process is: `client` or `server`.
    CONNECTION_ROLE = "leaf.connection.role", "role";
    /// State of the socket: at a close, the one before.
    CONNECTION_STATE = "network.connection.state", "state";
    /// Which end closed first: `client` or `server`.
    CONNECTION_CLOSED_BY = "leaf.connection.closed_by", "closed_by";
    /// Whether it was closed by a reset.
    CONNECTION_RESET = "leaf.connection.reset", "reset";
    /// From connect() or accept to the end, ns.
    CONNECTION_DURATION = "leaf.connection.duration", "duration_ns";
    /// From connect() to the end of the handshake, or to its failure, ns.
    CONNECT_TIME = "leaf.connection.connect_time", "connect_ns";
    /// Payload bytes sent, each once.
    SENT_BYTES = "leaf.connection.sent.bytes", "sent_bytes";
    /// Payload bytes received.
    RECEIVED_BYTES = "leaf.connection.received.bytes", "received_bytes";
    /// Packets sent, those without payload included.
    SENT_PACKETS = "leaf.connection.sent.packets", "sent_packets";
    /// Packets received, those without payload included.
    RECEIVED_PACKETS = "leaf.connection.received.packets", "received_packets";
    /// Packets sent again.
    RETRANSMITS = "leaf.connection.retransmits", "retransmits";
    /// Smoothed round-trip time, ns.
    RTT = "leaf.connection.rtt", "rtt_ns";
    /// Smallest round-trip time of the last minutes, ns.
    RTT_MIN = "leaf.connection.rtt_min", "rtt_min_ns";
    /// Inode number of the network namespace.
    NETWORK_NAMESPACE = "leaf.network.namespace", "netns";
    /// Name of the accepting end, as it was asked for.
    SERVER_ADDRESS = "server.address", "server";
    /// Whether a flow has fallen silent.
    FLOW_ENDED = "leaf.flow.ended", "ended";
    /// The name that was asked for.
    DNS_NAME = "dns.question.name", "dns_name";
    /// What was asked for: `A`, `AAAA`, …
    DNS_TYPE = "leaf.dns.question.type", "dns_type";
    /// `NOERROR`, `NXDOMAIN`, …
    DNS_CODE = "leaf.dns.response_code", "dns_code";
    /// Addresses in the answer.
    DNS_ANSWERS = "leaf.dns.answers.count", "dns_answers";
    /// From question to answer, ns.
    DNS_LATENCY = "leaf.dns.latency", "latency_ns";
    /// What kind of trouble an event tells of: its name once more.
    EVENT_TYPE = "leaf.event.type", "event_type";
    /// What it happened to: an interface, a process or a connection.
    ENTITY_ID = "leaf.entity.id", "entity_id";
    /// How much: Mbit/s, or what and how often.
    EVENT_VALUE = "leaf.event.value", "value";
    /// Which way: `transmit` or `receive`.
    NETWORK_IO_DIRECTION = "network.io.direction", "direction";
    /// Time that sends or receives were held up, in all, ns.
    STALL_TIME = "leaf.stall.time", "stall_ns";
    /// Name of the network interface.
    INTERFACE_NAME = "network.interface.name", "interface";
    /// Name of the error, as `ECONNREFUSED`.
    ERROR_TYPE = "error.type", "error";
}

/// The field of the envelope for an attribute's key: by the table, else by
/// rule (a leading `leaf.` goes, dots become underscores).
#[must_use]
pub fn field_of(key: &str) -> String {
    match ALL.iter().find(|attribute| attribute.key == key) {
        Some(attribute) => attribute.field.to_owned(),
        None => key.strip_prefix("leaf.").unwrap_or(key).replace('.', "_"),
    }
}
