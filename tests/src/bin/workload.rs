//! A program that tests run to see it observed: `workload threads N MS CODE`
//! keeps N threads busy for so many milliseconds, and one of them, not the first,
//! ends the process with the code; `workload storm N PROGRAM` starts a program N
//! times as fast as it can, one after the other, and prints the nanoseconds it took.
#![forbid(unsafe_code)]

use std::hint::black_box;
use std::process::{Command, exit};
use std::thread;
use std::time::{Duration, Instant};

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
        _ => {
            eprintln!("usage: workload threads COUNT MILLISECONDS CODE\n       workload storm COUNT PROGRAM");
            exit(2);
        }
    }
}

/// Uses a CPU for some time.
fn busy(time: Duration) {
    let start = Instant::now();
    let mut sum = 0u64;
    while start.elapsed() < time {
        for number in 0..10_000u64 {
            sum = black_box(sum.wrapping_add(number));
        }
    }
}
