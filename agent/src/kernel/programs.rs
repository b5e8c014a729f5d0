//! A room's programs in the kernel, and what the room may ask of them besides
//! the records in its ring.

use super::load::LoadError;
use aya::{
    Ebpf,
    maps::Array,
    programs::{Iter, ProgramError, links::LinkError},
};
use std::io::{self, Read as _};

/// Bytes read at once: the kernel's own page for an iterator is 32 KiB.
const PAGE: usize = 64 * 1024;

/// Loaded and attached programs: dropping them detaches.
pub struct Programs {
    ebpf: Ebpf,
    page: Vec<u64>,
}

/// Why a look was not possible.
#[derive(Debug, thiserror::Error)]
pub enum LookError {
    /// The room has attached no iterator of this name.
    #[error("the program {0} is not loaded")]
    NotLoaded(&'static str),
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
    pub fn new(ebpf: Ebpf) -> Self {
        Self { ebpf, page: Vec::new() }
    }

    /// Runs an iterator over all that there is: `question` goes into the first
    /// element of `map` for the program to read, and each of its records, of
    /// `size` bytes, a multiple of 8, to `each`.
    ///
    /// # Errors
    /// [`LookError`]; records that came before it have been given.
    pub fn look<const WORDS: usize>(
        &mut self,
        program: &'static str,
        (map, question): (&'static str, [u64; WORDS]),
        size: usize,
        mut each: impl FnMut(&[u8]),
    ) -> Result<(), LookError> {
        use zerocopy::IntoBytes as _;
        let asked = self.ebpf.map_mut(map).ok_or(LoadError::NoMap(map))?;
        let failed = |error| LoadError::Map { name: map, error };
        let mut asked: Array<_, [u64; WORDS]> = Array::try_from(asked).map_err(failed)?;
        asked.set(0, question, 0).map_err(failed)?;
        let iterator = self.ebpf.program_mut(program).ok_or(LookError::NotLoaded(program))?;
        let iterator: &mut Iter = iterator.try_into()?;
        let link = iterator.attach()?;
        let mut file = iterator.take_link(link)?.into_file()?;
        self.page.resize(PAGE / 8, 0);
        let page = self.page.as_mut_bytes();
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
        // Looks are rare, and the page is as large as the rest of a small agent's heap.
        self.page = Vec::new();
        Ok(())
    }
}
