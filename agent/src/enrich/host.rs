//! The node as resource attributes: host, operating system, kernel, service.

use crate::otlp::resource::{Resource, Scope};
use std::path::Path;

/// Describes this machine. What cannot be read is left out.
#[must_use]
pub fn resource(service_name: &str) -> Resource {
    let uname = rustix::system::uname();
    let mut resource = Resource::default();
    resource.set("service.name", service_name);
    resource.set("service.version", Scope::VERSION);
    resource.set("host.name", &uname.nodename().to_string_lossy());
    if let Some(id) = host_id(Path::new("/")) {
        resource.set("host.id", &id);
    }
    resource.set("host.arch", arch(&uname.machine().to_string_lossy()));
    resource.set("os.type", "linux");
    for (key, value) in os_release(&read("/etc/os-release").or_else(|| read("/usr/lib/os-release")).unwrap_or_default())
    {
        resource.set(key, &value);
    }
    resource.set("leaf.kernel.release", &uname.release().to_string_lossy());
    resource
}

/// `host.name` of a resource.
#[must_use]
pub fn name(resource: &Resource) -> &str {
    resource.attributes.iter().find(|(key, _)| key == "host.name").map_or("", |(_, name)| name)
}

/// The systemd machine id, as the semantic conventions say for `host.id` on Linux.
fn host_id(root: &Path) -> Option<String> {
    ["etc/machine-id", "var/lib/dbus/machine-id"]
        .iter()
        .filter_map(|file| std::fs::read_to_string(root.join(file)).ok())
        .map(|id| id.trim().to_owned())
        .find(|id| !id.is_empty())
}

/// `host.arch` by the semantic conventions, from `uname -m`.
fn arch(machine: &str) -> &str {
    match machine {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "i686" | "i386" => "x86",
        "armv7l" => "arm32",
        other => other,
    }
}

fn os_release(text: &str) -> Vec<(&'static str, String)> {
    let value = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
            .map(|value| value.trim_matches(['"', '\'']).to_owned())
    };
    [("os.name", "NAME"), ("os.version", "VERSION_ID"), ("os.description", "PRETTY_NAME")]
        .into_iter()
        .filter_map(|(key, name)| Some((key, value(name)?)))
        .collect()
}

fn read(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_os_release_gives_name_and_version() {
        let text =
            "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nNAME=\"Debian GNU/Linux\"\nVERSION_ID=\"12\"\nID=debian\n";
        assert_eq!(
            os_release(text),
            [
                ("os.name", "Debian GNU/Linux".to_owned()),
                ("os.version", "12".to_owned()),
                ("os.description", "Debian GNU/Linux 12 (bookworm)".to_owned())
            ]
        );
    }

    #[test]
    fn the_host_name_is_what_the_kernel_says() {
        let kernel = std::fs::read_to_string("/proc/sys/kernel/hostname").expect("procfs");
        assert_eq!(name(&resource("leaf")), kernel.trim());
    }
}
