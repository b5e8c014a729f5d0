//! A real container, run by `runc` from a root file system with one program in it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::compile;
use crate::place::{self, Folder};
use crate::skip::{has_program, is_root};

/// What runs in the container: it prints its control groups, sleeps for so many
/// milliseconds and exits with a code.
const PROGRAM: &str = r#"
fn main() {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse::<u32>());
    let (Some(Ok(milliseconds)), Some(Ok(code))) = (arguments.next(), arguments.next()) else {
        std::process::exit(2);
    };
    print!("{}", std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default());
    std::thread::sleep(std::time::Duration::from_millis(milliseconds.into()));
    std::process::exit(code as i32);
}
"#;

/// The program's name, in the container and so in the kernel's `comm`.
pub const COMMAND: &str = "leaf-worker";

/// What is to be run. The container shares the host's network.
#[derive(Debug, Clone)]
pub struct Container {
    /// 64 hexadecimal digits, as container engines use.
    pub id: String,
    /// The cgroup above the container's own, such as `docker`; the path of the
    /// container's ends in its id. It is removed afterwards if it is empty, so
    /// containers that run at the same time need different ones.
    pub cgroup_parent: String,
    /// How long the process lives, in milliseconds.
    pub milliseconds: u32,
    /// What it exits with.
    pub exit_code: u8,
}

/// What was seen of a container's process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// The process id on the host, as `runc` gives it.
    pub pid: u32,
    /// The exit code that `runc` saw.
    pub exit_code: i32,
    /// The process's own `/proc/self/cgroup`, in the names of the host.
    pub cgroups: String,
}

impl Container {
    /// What is missing where a container is not [`available`](Self::available).
    pub const NEEDS: &'static str = "a container takes root, and runc: run `cargo xtask setup --tests`";

    /// Whether containers can be run here.
    #[must_use]
    pub fn available() -> bool {
        is_root() && has_program("runc")
    }

    /// A container that lives for 10 ms and exits with `exit_code`.
    ///
    /// The id is made of `seed`, and so is known before the container runs.
    #[must_use]
    pub fn new(seed: u64, exit_code: u8) -> Self {
        Self {
            id: format!("1eaf{seed:060x}"),
            cgroup_parent: format!("leaf-tests-{seed:x}"),
            milliseconds: 10,
            exit_code,
        }
    }

    /// Runs the container to its end.
    ///
    /// # Errors
    /// If the program cannot be built or `runc` fails.
    pub fn run(&self) -> Result<Ended> {
        let bundle = Folder::new("container")?;
        let rootfs = bundle.path().join("rootfs");
        for folder in ["proc", "dev", "sys"] {
            fs::create_dir_all(rootfs.join(folder))?;
        }
        fs::copy(compile::program(COMMAND, PROGRAM)?, rootfs.join(COMMAND)).context("failed to copy the program")?;
        fs::write(bundle.path().join("config.json"), self.config().to_string())?;

        let (state, pid) = (bundle.path().join("state"), bundle.path().join("pid"));
        let _removal = Removal { state: &state, container: self };
        let output = runc(&state)?
            .arg("run")
            .arg("--pid-file")
            .args([&pid, Path::new("--bundle"), bundle.path(), Path::new(&self.id)])
            .output()
            .context("failed to start runc")?;
        // runc itself fails with 1 and a message; the program writes no errors.
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(said.trim().is_empty(), "runc failed: {said}");
        Ok(Ended {
            pid: fs::read_to_string(&pid).context("runc wrote no process id")?.trim().parse()?,
            exit_code: output.status.code().context("runc was killed")?,
            cgroups: String::from_utf8(output.stdout)?,
        })
    }

    /// An OCI runtime configuration: no more privileges than to run.
    fn config(&self) -> serde_json::Value {
        json!({
            "ociVersion": "1.0.2",
            "process": {
                "terminal": false,
                "user": {"uid": 0, "gid": 0},
                "args": [
                    format!("/{COMMAND}"),
                    self.milliseconds.to_string(),
                    self.exit_code.to_string()
                ],
                "env": [],
                "cwd": "/",
                "noNewPrivileges": true
            },
            "root": {"path": "rootfs", "readonly": true},
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
            "linux": {
                "cgroupsPath": format!("/{}/{}", self.cgroup_parent, self.id),
                "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}]
            }
        })
    }
}

/// Removes the container, also when the test panics.
struct Removal<'a> {
    state: &'a Path,
    container: &'a Container,
}

impl Drop for Removal<'_> {
    fn drop(&mut self) {
        // There is nothing to remove after a run that went well.
        if let Ok(mut runc) = runc(self.state) {
            let _ = runc.args(["delete", "--force", &self.container.id]).output();
        }
        // runc leaves the cgroups above the container's. They go only when they are
        // empty, so those of another container, or of an engine, stay.
        let parents = Path::new(self.container.cgroup_parent.trim_matches('/'));
        for hierarchy in cgroup_hierarchies() {
            for parent in parents.ancestors() {
                let _ = fs::remove_dir(hierarchy.join(parent));
            }
        }
    }
}

/// Where the hierarchies of control groups are mounted, v1 and v2.
fn cgroup_hierarchies() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let hierarchy = |line: &str| {
        let mut fields = line.split(' ').skip(1);
        let (folder, kind) = (fields.next()?, fields.next()?);
        kind.starts_with("cgroup").then(|| folder.into())
    };
    mounts.lines().filter_map(hierarchy).collect()
}

fn runc(state: &Path) -> Result<Command> {
    let mut runc = Command::new(place::program("runc").context(Container::NEEDS)?);
    runc.arg("--root").arg(state);
    Ok(runc)
}

#[cfg(test)]
mod tests {
    use std::process;

    use super::*;
    use crate::skip::require;

    #[test]
    fn a_container_of_ten_milliseconds_is_in_cgroups_of_its_id_and_gives_back_its_exit_code() -> Result<()> {
        if !require(Container::available(), Container::NEEDS) {
            return Ok(());
        }
        let container = Container::new(u64::from(process::id()), 7);
        assert_eq!((container.id.len(), container.milliseconds), (64, 10));
        let ended = container.run()?;
        assert_eq!(ended.exit_code, 7);
        // In its own namespace it is 1.
        assert!(ended.pid > 1, "{ended:?}");
        let path = format!(":/{}/{}", container.cgroup_parent, container.id);
        assert!(ended.cgroups.lines().any(|line| line.ends_with(&path)), "{}", ended.cgroups);
        for hierarchy in cgroup_hierarchies() {
            let left = hierarchy.join(&container.cgroup_parent);
            assert!(!left.exists(), "{} is left", left.display());
        }
        Ok(())
    }
}
