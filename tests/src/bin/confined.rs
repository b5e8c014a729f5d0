//! A program that tests run to see what an agent cannot do once it is attached: `confined free FOLDER` tries what an
//! intruder would try and prints a JSON object with the outcome of each (`ok`, or the error); `confined drop FOLDER`
//! first gives up what an agent gives up, but for CAP_BPF, so that the refusals of bpf() are the filter's. All of it
//! is harmless where it is allowed.
#![forbid(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::net::ToSocketAddrs as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use leaf::kernel::features;
use leaf::kernel::privileges::{Work, confine};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::{ptrace, signal::kill};
use nix::unistd::{Pid, chroot, setuid};
use serde_json::{Map, Value};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [how, folder] = arguments.as_slice() else {
        eprintln!("usage: confined free|drop FOLDER");
        std::process::exit(2);
    };
    let folder = Path::new(folder);
    let kept = folder.join("kept");
    // A child of our own to look into, made while one can be made. It ends with us: then its input does.
    let mut child = Command::new("/bin/cat");
    let child = child.stdin(Stdio::piped()).stdout(Stdio::null());
    let Ok(child) = fs::write(&kept, "text").and_then(|()| child.spawn()) else {
        eprintln!("failed to prepare");
        std::process::exit(1);
    };
    if how == "drop" {
        let work = Work { rooms: vec![("process", true)], bpf_is_privileged: true, ..Work::default() };
        let confinement = confine(&work);
        if !confinement.problems.is_empty() {
            eprintln!("{:?}", confinement.problems);
            std::process::exit(1);
        }
    }
    let outcomes = attempts(folder, &kept, child.id());
    println!("{}", Value::Object(outcomes));
}

fn attempts(folder: &Path, kept: &Path, child: u32) -> Map<String, Value> {
    let mut outcomes = Map::new();
    let mut tried = |what: &str, outcome: io::Result<()>| {
        let text = match outcome {
            Ok(()) => "ok".to_owned(),
            Err(error) => {
                error.raw_os_error().map_or_else(|| error.to_string(), |code| format!("{:?}", Errno::from_raw(code)))
            }
        };
        outcomes.insert(what.to_owned(), text.into());
    };
    let unit = |result: nix::Result<()>| result.map_err(io::Error::from);
    let process = Path::new("/proc").join(child.to_string());
    let pid = Pid::from_raw(i32::try_from(child).unwrap_or(i32::MAX));

    // What the agent goes on to do.
    tried("read a file", fs::read(kept).map(drop));
    tried("read the executable of a process", fs::read_link(process.join("exe")).map(drop));
    tried(
        "start a thread",
        thread::Builder::new().spawn(|| ()).and_then(|thread| thread.join().map_err(|_| ErrorKind::Other.into())),
    );
    tried("resolve a name", ("localhost", 80).to_socket_addrs().map(drop));
    tried("open a socket", std::net::TcpListener::bind(("127.0.0.1", 0)).map(drop));

    // What it does not.
    tried("open a file for writing", OpenOptions::new().write(true).open(kept).map(drop));
    tried("open a file for both", OpenOptions::new().read(true).write(true).open(kept).map(drop));
    tried("append to a file", OpenOptions::new().append(true).open(kept).map(drop));
    tried("make a file", File::create(folder.join("made")).map(drop));
    tried("make a folder", fs::create_dir(folder.join("made-too")));
    tried(
        "rename a file",
        fs::rename(kept, folder.join("renamed")).and_then(|()| fs::rename(folder.join("renamed"), kept)),
    );
    tried("link a file", fs::hard_link(kept, folder.join("linked")));
    tried("link a path", std::os::unix::fs::symlink(kept, folder.join("path")));
    tried(
        "change a file's mode",
        fs::metadata(kept).and_then(|metadata| fs::set_permissions(kept, metadata.permissions())),
    );
    tried("change a file's owner", std::os::unix::fs::chown(kept, Some(0), Some(0)));
    tried("write a process's memory", OpenOptions::new().write(true).open(process.join("mem")).map(drop));
    tried(
        "look into a process",
        unit(
            ptrace::attach(pid)
                .and_then(|()| nix::sys::wait::waitpid(pid, None))
                .and_then(|_| ptrace::detach(pid, None)),
        ),
    );
    tried("signal a process", unit(kill(pid, None)));
    tried("mount", unit(mount(None::<&str>, "/nowhere", None::<&str>, MsFlags::empty(), None::<&str>)));
    tried("change the root", unit(chroot("/")));
    tried(
        "enter a namespace",
        File::open("/proc/self/ns/uts").and_then(|own| unit(setns(own, CloneFlags::CLONE_NEWUTS))),
    );
    tried("make a namespace", unit(unshare(CloneFlags::CLONE_NEWUTS)));
    tried("become a user", unit(setuid(nix::unistd::getuid())));
    for feature in features::features()
        .into_iter()
        .filter(|feature| ["ring buffer", "classic tracepoints"].contains(&feature.name))
    {
        let denied = feature.cause.as_deref().is_some_and(|cause| cause.contains("not permitted"));
        let outcome = match feature.supported {
            Some(true) => Ok(()),
            _ if denied => Err(io::Error::from(Errno::EPERM)),
            _ => Err(io::Error::other(format!("{:?}", feature.cause))),
        };
        tried(&format!("load {}", feature.name), outcome);
    }
    tried("start a program", Command::new("/bin/true").status().map(drop));
    tried("remove a file", fs::remove_file(kept));
    // Last, for where it is allowed it does not return but by an error of its own.
    tried("become a program", Err(Command::new("/nowhere").exec()));
    outcomes
}
