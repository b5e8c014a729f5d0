//! A program that tests run to see it observed: `workload threads N MS CODE`
//! keeps N threads busy for so many milliseconds of CPU time each, and one of them, not the first,
//! ends the process with the code; `workload storm N PROGRAM` starts a program N
//! times as fast as it can, one after the other, and prints the nanoseconds it took;
//! `workload hold-socket` takes a socket from its standard input, says so with a byte,
//! waits until the sender has closed its own, and closes it; `workload connections N`
//! opens so many connections to itself, on addresses 127.0.1.x, says so with a byte, and
//! closes them when its standard input ends.
#![forbid(unsafe_code)]

use std::hint::black_box;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::{Command, exit};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize| arguments.get(at).and_then(|text| text.parse::<u64>().ok());
    match (arguments.first().map(String::as_str), number(1), number(2), number(3)) {
        (Some("threads"), Some(count), Some(milliseconds), Some(code)) => {
            let work = Duration::from_millis(milliseconds);
            let threads: Vec<_> = (1..count).map(|_| thread::spawn(move || busy(work))).collect();
            let last = thread::Builder::new().name("the-last".into()).spawn(move || {
                busy(work);
                threads.into_iter().for_each(|thread| drop(thread.join()));
                exit(i32::try_from(code).unwrap_or(255));
            });
            // The first thread waits for ever: the process ends by another.
            drop(last.map(thread::JoinHandle::join));
        }
        (Some("storm"), Some(count), ..) if arguments.len() == 3 => {
            let start = Instant::now();
            for _ in 0..count {
                // The standard library calls posix_spawn.
                if !Command::new(&arguments[2]).status().is_ok_and(|status| status.success()) {
                    exit(1);
                }
            }
            println!("{}", start.elapsed().as_nanos());
        }
        (Some("connections"), Some(count), ..) => {
            if let Err(error) = hold_connections(count) {
                eprintln!("{error}");
                exit(1);
            }
        }
        (Some("hold-socket"), ..) => {
            if let Err(error) = hold_socket() {
                eprintln!("{error}");
                exit(1);
            }
        }
        _ => {
            eprintln!(
                "usage: workload threads COUNT MILLISECONDS CODE\n       workload storm COUNT PROGRAM\n       workload hold-socket"
            );
            exit(2);
        }
    }
}

fn hold_connections(count: u64) -> std::io::Result<()> {
    let most = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most })?;
    let listener = |last| TcpListener::bind((Ipv4Addr::new(127, 0, 1, last), 0));
    let listeners: Vec<TcpListener> = (1..=16).map(listener).collect::<Result<_, _>>()?;
    let mut pairs = Vec::new();
    for listener in listeners.iter().cycle().take(usize::try_from(count).unwrap_or(usize::MAX)) {
        let client = TcpStream::connect(listener.local_addr()?)?;
        pairs.push((client, listener.accept()?.0));
    }
    std::io::stdout().write_all(b"!")?;
    std::io::stdout().flush()?;
    std::io::stdin().read_to_end(&mut Vec::new()).map(drop)
}

fn hold_socket() -> std::io::Result<()> {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    recvmsg(std::io::stdin(), &mut [std::io::IoSliceMut::new(&mut byte)], &mut ancillary, RecvFlags::empty())?;
    let mut sockets: Vec<OwnedFd> = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            sockets.extend(received);
        }
    }
    if sockets.is_empty() {
        return Err(std::io::Error::other("no socket came"));
    }
    std::io::stdout().write_all(b"!")?;
    std::io::stdout().flush()?;
    // Its end of the pair is closed after its own copy of the socket.
    std::io::stdin().read_exact(&mut byte).or_else(|error| match error.kind() {
        std::io::ErrorKind::UnexpectedEof => Ok(()),
        _ => Err(error),
    })
}

/// Works for so long by the thread's own clock, however busy the machine is.
fn busy(work: Duration) {
    let mut number = 0u64;
    loop {
        let spent = clock_gettime(ClockId::ThreadCPUTime);
        if Duration::new(spent.tv_sec.unsigned_abs(), spent.tv_nsec.unsigned_abs() as u32) >= work {
            break;
        }
        for _ in 0..1000 {
            number = black_box(number.wrapping_mul(31).wrapping_add(7));
        }
    }
}
