//! From a room's object file to maps and programs in the kernel: constants
//! are filled in, sizes set, filters written.

use super::{
    btf::{self, Btf},
    programs::Names,
    support,
};
use crate::{
    config,
    probes::{Descriptor, Tuning},
};
use agent_common::{ABSENT, COMM_LEN, Settings, Source};
use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{HashMap, MapError},
};
use std::{collections::BTreeMap, path::PathBuf};
use zerocopy::IntoBytes as _;

/// What the loader knows of the running kernel, read once for all rooms.
pub struct Kernel {
    /// For programs that attach by BTF; the reason if there is none.
    pub btf: Result<aya::Btf, String>,
    /// Where tracefs is mounted.
    pub tracefs: Option<PathBuf>,
    /// Values of each room's `OFFSETS`, by the room's name.
    offsets: BTreeMap<&'static str, Vec<u32>>,
    /// Enumerators of all enums that the rooms ask for.
    names: Names,
}

/// Why an object could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The object or one of its maps.
    #[error(transparent)]
    Object(#[from] EbpfError),
    /// A map cannot be used as what it should be.
    #[error("failed to use map {name}: {error}")]
    Map {
        /// `RING`
        name: &'static str,
        /// Why.
        error: MapError,
    },
    /// The object has no such map.
    #[error("the object has no map {0}")]
    NoMap(&'static str),
}

impl Kernel {
    /// Reads BTF and tracefs for `rooms`. What is not there is noted, and costs the rungs that need it.
    #[must_use]
    pub fn read(rooms: &[&'static Descriptor]) -> Self {
        // Needed up to 5.10, where locked memory and not the cgroup is charged; where it fails it is not needed.
        let no_limit = rustix::process::Rlimit { current: None, maximum: None };
        let _ = rustix::process::setrlimit(rustix::process::Resource::Memlock, no_limit);
        let tracefs = support::tracefs();
        let scanned = std::fs::read(btf::VMLINUX)
            .map_err(|error| format!("failed to read {}: {error}", btf::VMLINUX))
            .and_then(|data| Ok((scan(&data, rooms)?, aya_btf(&data)?)));
        let ((found, names), btf) = match scanned {
            Ok((found, btf)) => (found, Ok(btf)),
            Err(reason) => (Default::default(), Err(reason)),
        };
        let offsets = rooms
            .iter()
            .map(|room| {
                let from_btf = found.get(room.name);
                let values = room.sources.iter().enumerate().map(|(i, (_, source))| {
                    match from_btf.map_or(ABSENT, |values| values[i]) {
                        ABSENT => support::tracepoint_field(tracefs.as_deref(), source),
                        value => value,
                    }
                });
                (room.name, values.collect())
            })
            .collect();
        Self { btf, tracefs, offsets, names }
    }

    /// The enumerators that a room asks for.
    pub fn names(&self, room: &Descriptor) -> Names {
        let known = |name: &&'static str| self.names.get_key_value(*name);
        room.enums.iter().filter_map(known).map(|(name, values)| (*name, values.clone())).collect()
    }

    /// Creates the maps of a room; its programs are loaded when they are attached.
    ///
    /// # Errors
    /// [`LoadError`] if the kernel refuses a map or has none of its kind.
    pub fn load(&self, room: &Descriptor, settings: &config::Room, tuning: &Tuning) -> Result<Ebpf, LoadError> {
        let offsets = self.offsets.get(room.name).map_or(&[][..], Vec::as_slice).as_bytes();
        let constants = constants(settings);
        let mut loader = EbpfLoader::new();
        loader
            .btf(self.btf.as_ref().ok())
            .override_global("OFFSETS", offsets, true)
            .override_global("SETTINGS", constants.as_bytes(), true)
            .map_max_entries("RING", settings.ring_bytes);
        if !tuning.options.is_empty() {
            loader.override_global("OPTIONS", tuning.options.as_slice(), true);
        }
        for (map, entries) in &tuning.map_entries {
            loader.map_max_entries(map, *entries);
        }
        let mut ebpf = loader.load((room.object)())?;
        fill(&mut ebpf, "EXCLUDED_UIDS", settings.exclude_uids.iter().copied())?;
        fill(&mut ebpf, "EXCLUDED_COMMS", settings.exclude_comms.iter().map(|comm| padded(comm)))?;
        Ok(ebpf)
    }
}

/// Values of each room's offsets, and the enumerators.
type Found = (BTreeMap<&'static str, Vec<u32>>, Names);

fn scan(data: &[u8], rooms: &[&'static Descriptor]) -> Result<Found, String> {
    let unreadable = |error| format!("failed to read {}: {error}", btf::VMLINUX);
    let enums: Vec<Source> =
        rooms.iter().flat_map(|room| room.enums.iter().map(|name| Source::Enumerator(name, ""))).collect();
    let all = rooms.iter().flat_map(|room| room.sources.iter().map(|(_, source)| source)).chain(&enums);
    let btf = Btf::parse(data, all).map_err(unreadable)?;
    let offsets = rooms
        .iter()
        .map(|room| {
            let values = room.sources.iter().map(|(_, source)| btf.find(source)).collect::<Result<_, _>>();
            Ok((room.name, values.map_err(unreadable)?))
        })
        .collect::<Result<_, String>>()?;
    let names = rooms
        .iter()
        .flat_map(|room| room.enums)
        .map(|name| Ok((*name, btf.enumerators(name).map_err(unreadable)?)))
        .collect::<Result<_, String>>()?;
    Ok((offsets, names))
}

fn aya_btf(data: &[u8]) -> Result<aya::Btf, String> {
    aya::Btf::parse(data, aya::Endianness::default())
        .map_err(|error| format!("failed to read {}: {error}", btf::VMLINUX))
}

fn constants(settings: &config::Room) -> Settings {
    let rate_interval_ns = 1_000_000_000u64.checked_div(settings.rate_limit).unwrap_or(0);
    Settings {
        // In a pid namespace of its own it does not know its number, and filters nobody.
        agent_pid: if support::in_host_pid_namespace() { std::process::id() } else { 0 },
        filter_uids: u32::from(!settings.exclude_uids.is_empty()),
        filter_comms: u32::from(!settings.exclude_comms.is_empty()),
        wake_bytes: settings.ring_bytes / 4,
        rate_interval_ns,
        rate_burst_ns: rate_interval_ns.saturating_mul(settings.rate_burst),
    }
}

fn fill<K: aya::Pod>(ebpf: &mut Ebpf, name: &'static str, keys: impl Iterator<Item = K>) -> Result<(), LoadError> {
    let map = ebpf.map_mut(name).ok_or(LoadError::NoMap(name))?;
    let failed = |error| LoadError::Map { name, error };
    let mut map: HashMap<_, K, u8> = HashMap::try_from(map).map_err(failed)?;
    for key in keys {
        map.insert(key, 1, 0).map_err(failed)?;
    }
    Ok(())
}

/// As the kernel keeps `comm`: NUL to the end.
fn padded(comm: &str) -> [u8; COMM_LEN] {
    let mut bytes = [0; COMM_LEN];
    for (to, from) in bytes[..COMM_LEN - 1].iter_mut().zip(comm.bytes()) {
        *to = from;
    }
    bytes
}
