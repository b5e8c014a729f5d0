//! Control groups by number, and what their paths say about containers.

use rustc_hash::FxHashMap;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// Groups remembered; past this the table starts anew.
const MAX_CGROUPS: usize = 32_768;

/// A group in a hierarchy: the hierarchy's number (0 is cgroup v2) and the
/// inode number of the group's folder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct CgroupId {
    /// `hierarchy_id`, the first field of a line of /proc/PID/cgroup.
    pub hierarchy: u32,
    /// `kernfs_node.id`
    pub id: u64,
}

/// What is known about a control group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cgroup {
    /// Path below the hierarchy's root; only the last part if `partial`.
    pub path: String,
    /// The path came from the kernel's record of a process: its parents are unknown.
    pub partial: bool,
    /// The container, if the path is one's.
    pub container: Option<Container>,
    /// Kubernetes' id of the pod.
    pub pod_uid: Option<String>,
}

/// A container, as far as a path tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// 64 hexadecimal digits.
    pub id: String,
    /// `docker`, `containerd`, `cri-o` or `podman`, where the path says so.
    pub runtime: Option<&'static str>,
}

impl Cgroup {
    /// Reads a path.
    #[must_use]
    pub fn from_path(path: &str) -> Self {
        Self { path: path.to_owned(), partial: false, container: container(path), pod_uid: pod_uid(path) }
    }
}

/// All control groups met so far.
#[derive(Default)]
pub struct Cgroups {
    known: FxHashMap<CgroupId, Arc<Cgroup>>,
}

impl Cgroups {
    /// Notes a group's full path.
    pub fn made(&mut self, id: CgroupId, path: &str) {
        self.keep(id, Arc::new(Cgroup::from_path(path)));
    }

    /// The group of this number, if it was met.
    #[must_use]
    pub fn get(&self, id: CgroupId) -> Option<&Arc<Cgroup>> {
        self.known.get(&id)
    }

    fn keep(&mut self, id: CgroupId, cgroup: Arc<Cgroup>) {
        if self.known.len() >= MAX_CGROUPS {
            self.known.clear();
        }
        self.known.insert(id, cgroup);
    }

    /// Notes the groups that there are: those of cgroup v2 and of the v1 memory
    /// hierarchy, as far as they are mounted; returns how many.
    pub fn seed(&mut self, mounts: &str, own_cgroups: &str) -> usize {
        for (root, hierarchy) in hierarchies(mounts, own_cgroups) {
            self.walk(Path::new(root), "/".to_owned(), hierarchy);
        }
        self.known.len()
    }

    /// Notes a group and those below it. The inode number of its folder is the
    /// kernel's id of it (`kernfs_node.id`, 5.5).
    fn walk(&mut self, root: &Path, path: String, hierarchy: u32) {
        use std::os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _};
        let folder = root.join(path.trim_start_matches('/'));
        let Ok(entries) = std::fs::read_dir(&folder) else {
            return;
        };
        if let Ok(metadata) = folder.metadata() {
            self.made(CgroupId { hierarchy, id: metadata.ino() }, &path);
        }
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) && self.known.len() < MAX_CGROUPS {
                let name = entry.file_name();
                let name = String::from_utf8_lossy(name.as_bytes());
                self.walk(root, format!("{}/{name}", path.trim_end_matches('/')), hierarchy);
            }
        }
    }

    /// The group of a process: known, or found in its folder in /proc while it lives, or its parent's if that has the same name, or at worst
    /// the last part of its path, which the record carries.
    pub fn resolve<'a>(
        &mut self,
        id: CgroupId,
        process: impl FnOnce() -> Option<PathBuf>,
        leaf: &str,
        parent: impl FnOnce() -> Option<&'a Arc<Cgroup>>,
    ) -> Arc<Cgroup> {
        let known = self.known.get(&id);
        if let Some(known) = known.filter(|known| !known.partial) {
            return Arc::clone(known);
        }
        // The process may have moved since: the name must fit.
        let fits = |path: &str| leaf.is_empty() || path.rsplit('/').next() == Some(leaf);
        let found = process()
            .and_then(|folder| std::fs::read_to_string(folder.join("cgroup")).ok())
            .and_then(|text| path_in_hierarchy(&text, id.hierarchy).map(str::to_owned))
            .filter(|path| fits(path))
            .or_else(|| parent().map(|parent| parent.path.clone()).filter(|path| !leaf.is_empty() && fits(path)));
        let cgroup = Arc::new(match found {
            Some(path) => Cgroup::from_path(&path),
            None => Cgroup { partial: true, ..Cgroup::from_path(leaf) },
        });
        self.keep(id, Arc::clone(&cgroup));
        cgroup
    }

    /// The group that /proc/PID/cgroup tells of a process: v2, or where that is the root, v1 memory.
    #[must_use]
    pub fn of_process(text: &str) -> Cgroup {
        let unified = path_in_hierarchy(text, 0).filter(|path| *path != "/");
        let memory = || {
            text.lines().find_map(|line| {
                let mut parts = line.splitn(3, ':').skip(1);
                let controllers = parts.next()?;
                controllers.split(',').any(|c| c == "memory").then(|| parts.next())?
            })
        };
        Cgroup::from_path(unified.or_else(memory).unwrap_or("/"))
    }
}

/// Mount points and numbers of the hierarchies that say what container a
/// process is in, from the text of /proc/self/mounts and /proc/self/cgroup.
fn hierarchies<'a>(mounts: &'a str, own_cgroups: &str) -> Vec<(&'a str, u32)> {
    let memory = own_cgroups.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':');
        let number = parts.next()?.parse().ok()?;
        parts.next()?.split(',').any(|controller| controller == "memory").then_some(number)
    });
    mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let (path, kind, options) = (fields.next()?, fields.next()?, fields.next()?);
            match kind {
                "cgroup2" => Some((path, 0)),
                "cgroup" if options.split(',').any(|option| option == "memory") => Some((path, memory?)),
                _ => None,
            }
        })
        .collect()
}

/// The path of a hierarchy in the text of /proc/PID/cgroup.
fn path_in_hierarchy(text: &str, hierarchy: u32) -> Option<&str> {
    text.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':');
        let number: u32 = parts.next()?.parse().ok()?;
        (number == hierarchy).then(|| parts.nth(1))?
    })
}

/// Prefixes of scope and folder names, the runtime each stands for; `None`:
/// the monitor of a container and not the container.
const NAMED: &[(&str, Option<&str>)] = &[
    ("crio-conmon-", None),
    ("libpod-conmon-", None),
    ("docker-", Some("docker")),
    ("cri-containerd-", Some("containerd")),
    ("nerdctl-", Some("containerd")),
    ("crio-", Some("cri-o")),
    ("libpod-", Some("podman")),
];

/// Folders whose children are containers of one runtime.
const PARENTS: &[(&str, &str)] = &[("docker", "docker"), ("libpod_parent", "podman"), ("default", "containerd")];

/// The innermost container of a path.
fn container(path: &str) -> Option<Container> {
    let mut parts = path.rsplit('/').peekable();
    while let Some(part) = parts.next() {
        // `…:cri-containerd:<id>`: a systemd name taken literally by a runtime set to cgroupfs.
        if let Some((before, id)) = part.rsplit_once(':')
            && is_id(id)
        {
            let runtime = match before.rsplit(':').next() {
                Some("cri-containerd") => Some("containerd"),
                Some("crio") => Some("cri-o"),
                Some("docker") => Some("docker"),
                _ => None,
            };
            return Some(Container { id: id.to_owned(), runtime });
        }
        let name = part.strip_suffix(".scope").unwrap_or(part);
        if is_id(name) {
            let parent = parts.peek().copied().unwrap_or_default();
            let runtime = PARENTS.iter().find(|(folder, _)| *folder == parent).map(|(_, runtime)| *runtime);
            return Some(Container { id: name.to_owned(), runtime });
        }
        for (prefix, runtime) in NAMED {
            if let Some(id) = name.strip_prefix(prefix)
                && is_id(id)
            {
                return runtime.map(|_| Container { id: id.to_owned(), runtime: *runtime });
            }
        }
    }
    None
}

/// Runtimes make ids of 32 random bytes in hexadecimal.
fn is_id(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// `…/pod<uid>/…` (cgroupfs) or `kubepods-burstable-pod<uid>.slice` (systemd, with `_` for `-`).
fn pod_uid(path: &str) -> Option<String> {
    if !path.contains("kubepods") {
        return None;
    }
    path.split(['/', ':']).rev().find_map(|part| {
        let name = part.strip_suffix(".slice").unwrap_or(part);
        let uid = match name.strip_prefix("kubepods-") {
            Some(rest) => rest.strip_prefix("pod").or_else(|| rest.split_once("-pod").map(|(_, uid)| uid))?,
            None => name.strip_prefix("pod")?,
        };
        let uid = uid.replace('_', "-");
        // A uuid, or the 32 digits of a static pod.
        let digits = uid.bytes().filter(u8::is_ascii_hexdigit).count();
        (digits == 32 && uid.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-')).then_some(uid)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn every_runtime_writes_its_path_in_its_own_way() {
        let uid = "8dbc5577-d0e2-4706-8787-57d52c03ddf2";
        let low = uid.replace('-', "_");
        let docker = Some("docker");
        let containerd = Some("containerd");
        for (path, runtime, pod) in [
            (format!("/docker/{ID}"), docker, None),
            (format!("/system.slice/docker-{ID}.scope"), docker, None),
            (format!("/system.slice/docker-{ID}.scope/init.scope"), docker, None),
            (format!("/docker/{ID}/docker/{ID}/system.slice/cron.service"), docker, None),
            (format!("/system.slice/nerdctl-{ID}.scope"), containerd, None),
            (format!("/default/{ID}"), containerd, None),
            (format!("/kubepods/burstable/pod{uid}/{ID}"), None, Some(uid)),
            (format!("/kubepods.slice/kubepods-pod{low}.slice/cri-containerd-{ID}.scope"), containerd, Some(uid)),
            (
                format!("/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{low}.slice/crio-{ID}.scope"),
                Some("cri-o"),
                Some(uid),
            ),
            (
                format!("/system.slice/containerd.service/kubepods-burstable-pod{low}.slice:cri-containerd:{ID}"),
                containerd,
                Some(uid),
            ),
            (format!("/machine.slice/libpod-{ID}.scope"), Some("podman"), None),
            (format!("/machine.slice/libpod-{ID}.scope/container"), Some("podman"), None),
            (format!("/libpod_parent/libpod-{ID}"), Some("podman"), None),
            (
                format!("/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope/container"),
                Some("podman"),
                None,
            ),
        ] {
            let cgroup = Cgroup::from_path(&path);
            assert_eq!(cgroup.container, Some(Container { id: ID.into(), runtime }), "{path}");
            assert_eq!(cgroup.pod_uid.as_deref(), pod, "{path}");
        }
    }

    #[test]
    fn what_is_no_container_has_no_id() {
        for path in [
            "/",
            "",
            "/system.slice/ssh.service",
            "/user.slice/user-0.slice/session-1.scope",
            "/process_api/68b8de821002ab5e610c457fc2fc14bf",
            &format!("/machine.slice/libpod-conmon-{ID}.scope"),
            &format!("/kubepods.slice/crio-conmon-{ID}.scope"),
            &format!("/docker/{}", ID.to_uppercase()),
        ] {
            assert_eq!(Cgroup::from_path(path).container, None, "{path}");
        }
    }

    #[test]
    fn a_path_is_read_from_the_right_hierarchy() {
        let text = "9:name=systemd:/s\n4:cpu,memory:/m:with:colons\n0::/\n";
        assert_eq!(path_in_hierarchy(text, 4), Some("/m:with:colons"));
        assert_eq!(path_in_hierarchy(text, 0), Some("/"));
        assert_eq!(path_in_hierarchy(text, 7), None);
        assert_eq!(Cgroups::of_process(text).path, "/m:with:colons");
        assert_eq!(Cgroups::of_process("0::/user.slice\n").path, "/user.slice");
    }

    #[test]
    fn a_made_group_needs_no_proc() {
        let mut cgroups = Cgroups::default();
        let id = CgroupId { hierarchy: 0, id: 77 };
        cgroups.made(id, &format!("/docker/{ID}"));
        let cgroup = cgroups.resolve(id, || None, ID, || None);
        assert_eq!(cgroup.container.as_ref().map(|c| c.id.as_str()), Some(ID));
        assert!(!cgroup.partial);
        let unknown =
            cgroups.resolve(CgroupId { hierarchy: 0, id: 78 }, || None, &format!("docker-{ID}.scope"), || None);
        assert!(unknown.partial);
        assert_eq!(unknown.container.as_ref().and_then(|c| c.runtime), Some("docker"));
    }

    #[test]
    fn a_group_that_is_not_known_is_its_parents_if_the_name_fits() {
        let mut cgroups = Cgroups::default();
        let parent = Arc::new(Cgroup::from_path("/system.slice/ssh.service"));
        let child = cgroups.resolve(CgroupId { hierarchy: 0, id: 1 }, || None, "ssh.service", || Some(&parent));
        assert_eq!(child.path, "/system.slice/ssh.service");
        let other = cgroups.resolve(CgroupId { hierarchy: 0, id: 2 }, || None, "cron.service", || Some(&parent));
        assert_eq!((other.path.as_str(), other.partial), ("cron.service", true));
    }

    #[test]
    fn the_hierarchies_that_tell_of_containers_are_found() {
        let mounts = "cgroup2 /sys/fs/cgroup/unified cgroup2 rw,nsdelegate 0 0\n\
                      cgroup /sys/fs/cgroup/memory cgroup rw,nosuid,memory 0 0\n\
                      cgroup /sys/fs/cgroup/cpu cgroup rw,cpu,cpuacct 0 0\n";
        let found = hierarchies(mounts, "5:cpu,cpuacct:/\n4:memory:/x\n0::/\n");
        assert_eq!(found, [("/sys/fs/cgroup/unified", 0), ("/sys/fs/cgroup/memory", 4)]);
    }

    proptest! {
        #[test]
        fn any_text_is_a_path_or_a_list_of_hierarchies(text in "[a-f0-9/:._a-z\\PC\n -]{0,200}") {
            let _ = Cgroup::from_path(&text);
            let _ = Cgroups::of_process(&text);
            let _ = hierarchies(&text, &text);
        }
    }
}
