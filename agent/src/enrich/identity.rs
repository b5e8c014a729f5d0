//! The attributes that say who a record is about: the same on all signals of
//! all rooms.

use super::{container::Cgroup, process::Process};
use crate::otlp::{
    Attributes,
    attribute::{self as key},
};

/// What signals that are not about a process say of whose they are, besides its
/// pid: enough to read them alone. The rest is in the events and the span of the
/// process; trace and parent span lead there.
pub fn owner(attributes: &mut Attributes<'_>, process: &Process) {
    attributes.int(key::PROCESS_USER_ID, i64::from(process.uid));
    attributes.text(key::PROCESS_COMM, &process.comm);
    if let Some(cgroup) = &process.cgroup {
        container(attributes, cgroup);
    }
}

/// What every signal about a process says of it, besides its pid.
pub fn identity(attributes: &mut Attributes<'_>, process: &Process) {
    // Init and kthreadd have none, and some rungs cannot tell.
    if process.ppid != 0 {
        attributes.int(key::PROCESS_PARENT_PID, i64::from(process.ppid));
    }
    attributes.int(key::PROCESS_USER_ID, i64::from(process.uid));
    attributes.int(key::PROCESS_GROUP_ID, i64::from(process.gid));
    attributes.text(key::PROCESS_COMM, &process.comm);
    attributes.text(key::PROCESS_EXECUTABLE_PATH, &process.executable);
    attributes.text(key::PROCESS_COMMAND_LINE, &process.command_line);
    if process.start.boot != 0 {
        attributes.text(key::PROCESS_CREATION_TIME, process.created.as_str());
    }
    if let Some(cgroup) = &process.cgroup {
        attributes.text(key::PROCESS_CGROUP, &cgroup.path);
        container(attributes, cgroup);
    }
}

/// What a control group says of the container and the pod.
pub fn container(attributes: &mut Attributes<'_>, cgroup: &Cgroup) {
    if let Some(container) = &cgroup.container {
        attributes.text(key::CONTAINER_ID, &container.id);
        attributes.text(key::CONTAINER_RUNTIME, container.runtime.unwrap_or_default());
    }
    attributes.text(key::POD_UID, cgroup.pod_uid.as_deref().unwrap_or_default());
}
