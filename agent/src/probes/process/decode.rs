//! Bytes from the ring -> a checked event, borrowed from them.

use crate::probes::{Malformed, record};
use agent_common::process::{CgroupMade, Exec, Exit, Fork, Task, kind};

/// A record of the process room.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// A process has a new program.
    Exec(&'a Exec),
    /// A process was made.
    Fork(&'a Fork),
    /// A process ended.
    Exit(&'a Exit),
    /// A control group was made.
    CgroupMade(&'a CgroupMade),
}

/// Reads one record.
///
/// # Errors
/// [`Malformed`] if the kind is unknown, the size is not that of the kind, or
/// a length is longer than its field.
pub fn decode(bytes: &[u8]) -> Result<Event<'_>, Malformed> {
    match record::kind(bytes)? {
        kind::EXEC => {
            let exec: &Exec = record::of(bytes)?;
            check_task(&exec.task)?;
            record::check_len("filename", exec.filename_len, exec.filename.len())?;
            record::check_len("cmdline", exec.cmdline_len, exec.cmdline.len())?;
            Ok(Event::Exec(exec))
        }
        kind::FORK => {
            let fork: &Fork = record::of(bytes)?;
            check_task(&fork.task)?;
            Ok(Event::Fork(fork))
        }
        kind::EXIT => {
            let exit: &Exit = record::of(bytes)?;
            check_task(&exit.task)?;
            Ok(Event::Exit(exit))
        }
        kind::CGROUP_MADE => {
            let made: &CgroupMade = record::of(bytes)?;
            record::check_len("path", made.path_len, made.path.len())?;
            Ok(Event::CgroupMade(made))
        }
        unknown => Err(Malformed::Kind(unknown)),
    }
}

fn check_task(task: &Task) -> Result<(), Malformed> {
    record::check_len("cgroup name", task.cgroup.name_len, task.cgroup.name.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use zerocopy::{FromZeros as _, IntoBytes as _};

    /// Bytes at an address that is a multiple of 8, as in the ring.
    fn aligned(bytes: &[u8]) -> Vec<u64> {
        let mut words = vec![0u64; bytes.len().div_ceil(8)];
        words.as_mut_bytes()[..bytes.len()].copy_from_slice(bytes);
        words
    }

    #[test]
    fn a_record_of_another_size_is_malformed() {
        let mut exec = Exec::new_zeroed();
        exec.task.kind = kind::EXEC;
        let bytes = exec.as_bytes();
        assert!(matches!(decode(bytes), Ok(Event::Exec(_))));
        assert_eq!(decode(&bytes[..bytes.len() - 8]).err(), Some(Malformed::Size(bytes.len() - 8)));
        let longer = aligned(&[bytes, &[0; 8]].concat());
        assert_eq!(decode(longer.as_bytes()).err(), Some(Malformed::Size(bytes.len() + 8)));
        assert_eq!(decode(&[]).err(), Some(Malformed::Size(0)));
        assert_eq!(decode(&[9, 0, 0, 0]).err(), Some(Malformed::Kind(9)));
    }

    #[test]
    fn a_length_past_its_field_is_malformed() {
        let mut exec = Exec::new_zeroed();
        exec.task.kind = kind::EXEC;
        exec.cmdline_len = 513;
        assert_eq!(decode(exec.as_bytes()).err(), Some(Malformed::Length("cmdline", 513)));
        exec.cmdline_len = 512;
        exec.task.cgroup.name_len = u32::MAX;
        assert_eq!(decode(exec.as_bytes()).err(), Some(Malformed::Length("cgroup name", u32::MAX)));
    }

    proptest! {
        #[test]
        fn random_bytes_are_an_event_or_malformed(kind in 0u32..6, len in 0usize..1100, fill: u8) {
            let mut bytes = vec![fill; len];
            if let Some(first) = bytes.first_chunk_mut() {
                *first = kind.to_ne_bytes();
            }
            let words = aligned(&bytes);
            let _ = decode(&words.as_bytes()[..len]);
        }

        #[test]
        fn a_record_of_the_right_size_and_random_content_never_panics(content in proptest::collection::vec(any::<u8>(), size_of::<Exec>())) {
            let mut words = aligned(&content);
            words.as_mut_bytes()[..4].copy_from_slice(&kind::EXEC.to_ne_bytes());
            let _ = decode(words.as_bytes());
        }
    }
}
