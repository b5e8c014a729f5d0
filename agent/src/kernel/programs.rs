//! A room's programs in the kernel, and what the room may ask of them besides
//! the records in its ring.

use super::load::LoadError;
use aya::{
    Ebpf,
    maps::{Array, HashMap, MapData, PerCpuArray},
    programs::{Iter, ProgramError, links::LinkError},
};
use std::{
    collections::BTreeMap,
    io::{self, Read as _},
};

/// Bytes read at once: the kernel's own page for an iterator is 32 KiB.
const PAGE: usize = 64 * 1024;

/// Loaded and attached programs: dropping them detaches.
pub struct Programs {
    ebpf: Ebpf,
    names: Names,
    held: Held,
}

/// The program that holds, by the name of its hook.
pub type Held = BTreeMap<&'static str, &'static str>;

/// Enumerators of the kernel's enums, by the name of the enum: value and name of each.
pub type Names = BTreeMap<&'static str, Vec<(u32, String)>>;

/// Key and value of a map, as words, which are all that maps know.
pub type Entry<const KEY: usize, const VALUE: usize> = ([u64; KEY], [u64; VALUE]);

/// Why a look was not possible.
#[derive(Debug, thiserror::Error)]
pub enum LookError {
    /// The room has attached no iterator of this name.
    #[error("no iterator holds for {0}")]
    NotHeld(&'static str),
    /// See [`LoadError`].
    #[error(transparent)]
    Map(#[from] LoadError),
    /// The kernel refuses the iterator.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// As above.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// In the middle.
    #[error("failed to read the iterator: {0}")]
    Read(#[from] io::Error),
}

impl Programs {
    /// Programs that are attached already.
    #[must_use]
    pub fn new(ebpf: Ebpf, names: Names, held: Held) -> Self {
        Self { ebpf, names, held }
    }

    /// Name of a value of a kernel enum that the room has asked for.
    #[must_use]
    pub fn name_of(&self, of: &str, value: u32) -> Option<&str> {
        self.names.get(of)?.iter().find(|(known, _)| *known == value).map(|(_, name)| name.as_str())
    }

    /// All entries of a hash map, of keys and values that are so many words long.
    ///
    /// # Errors
    /// [`LoadError`] if there is no such map.
    pub fn entries<const KEY: usize, const VALUE: usize>(
        &mut self,
        map: &'static str,
    ) -> Result<Vec<Entry<KEY, VALUE>>, LoadError> {
        // One that goes or comes in between is for the next time.
        Ok(self.hash_map(map)?.iter().flatten().collect())
    }

    /// Removes entries of a hash map.
    ///
    /// # Errors
    /// As [`Programs::entries`].
    pub fn remove<const KEY: usize, const VALUE: usize>(
        &mut self,
        map: &'static str,
        keys: &[[u64; KEY]],
    ) -> Result<(), LoadError> {
        let mut entries: HashMap<&mut MapData, [u64; KEY], [u64; VALUE]> = self.hash_map(map)?;
        for key in keys {
            // It was there when it was read, and only we remove.
            let _ = entries.remove(key);
        }
        Ok(())
    }

    fn hash_map<const KEY: usize, const VALUE: usize>(
        &mut self,
        map: &'static str,
    ) -> Result<HashMap<&mut MapData, [u64; KEY], [u64; VALUE]>, LoadError> {
        let found = self.ebpf.map_mut(map).ok_or(LoadError::NoMap(map))?;
        HashMap::try_from(found).map_err(|error| LoadError::Map { name: map, error })
    }

    /// The first word of a per-CPU array, summed over the CPUs.
    ///
    /// # Errors
    /// As [`Programs::entries`].
    pub fn sum(&mut self, map: &'static str) -> Result<u64, LoadError> {
        let found = self.ebpf.map_mut(map).ok_or(LoadError::NoMap(map))?;
        let failed = |error| LoadError::Map { name: map, error };
        let array: PerCpuArray<_, u64> = PerCpuArray::try_from(found).map_err(failed)?;
        Ok(array.get(&0, 0).map_err(failed)?.iter().sum())
    }

    /// Runs a hook's iterator over all that there is: `question` goes into the first
    /// element of `map` for the program to read, and each of its records, of
    /// `size` bytes, a multiple of 8, to `each`.
    ///
    /// # Errors
    /// [`LookError`]; records that came before it have been given.
    pub fn look<const WORDS: usize>(
        &mut self,
        hook: &'static str,
        (map, question): (&'static str, [u64; WORDS]),
        size: usize,
        mut each: impl FnMut(&[u8]),
    ) -> Result<(), LookError> {
        use zerocopy::IntoBytes as _;
        let asked = self.ebpf.map_mut(map).ok_or(LoadError::NoMap(map))?;
        let failed = |error| LoadError::Map { name: map, error };
        let mut asked: Array<_, [u64; WORDS]> = Array::try_from(asked).map_err(failed)?;
        asked.set(0, question, 0).map_err(failed)?;
        let program = self.held.get(hook).ok_or(LookError::NotHeld(hook))?;
        let iterator = self.ebpf.program_mut(program).ok_or(LookError::NotHeld(hook))?;
        let iterator: &mut Iter = iterator.try_into()?;
        let link = iterator.attach()?;
        let mut file = iterator.take_link(link)?.into_file()?;
        // Not kept: looks are rare, and it is as large as the rest of a small agent's heap.
        let mut page = vec![0u64; PAGE / 8];
        let page = page.as_mut_bytes();
        let mut filled = 0;
        loop {
            let read = file.read(&mut page[filled..])?;
            if read == 0 {
                break;
            }
            filled += read;
            let whole = filled - filled % size;
            page[..whole].chunks_exact(size).for_each(&mut each);
            page.copy_within(whole..filled, 0);
            filled -= whole;
        }
        Ok(())
    }
}
