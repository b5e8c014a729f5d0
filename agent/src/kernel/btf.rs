//! Finds where the running kernel keeps the struct members a room reads: one
//! pass over its BTF serves all rooms.
//!
//! Format: Documentation/bpf/btf.rst. Kernel 7.2 widens `vlen` to 24 bits and
//! `kind` to 7 (commit f7a6b9eaff3e); the bits they take were zero before. The
//! section of type sizes that 7.1 adds (`btf_layout`) is not read.

use agent_common::{ABSENT, Source};
use rustc_hash::{FxHashMap, FxHashSet};

/// Where the kernel shows its own BTF.
pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xeb9f;
const KIND_INT: u32 = 1;
const KIND_PTR: u32 = 2;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_TYPEDEF: u32 = 8;
const KIND_VOLATILE: u32 = 9;
const KIND_CONST: u32 = 10;
const KIND_RESTRICT: u32 = 11;
const KIND_FUNC_PROTO: u32 = 13;
const KIND_VAR: u32 = 14;
const KIND_DATASEC: u32 = 15;
const KIND_DECL_TAG: u32 = 17;
const KIND_TYPE_TAG: u32 = 18;
const KIND_ENUM64: u32 = 19;
/// Typedefs and qualifiers nest a few levels; more is a loop.
const MAX_DEPTH: u32 = 16;

/// Why BTF bytes could not be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BtfError {
    /// Not BTF, or of the other byte order.
    #[error("the BTF header is not valid (magic {0:#06x})")]
    Magic(u16),
    /// An offset or a length points past the end.
    #[error("the BTF is cut off at byte {0}")]
    Truncated(usize),
    /// A type of a kind that this version does not know, whose size is therefore unknown.
    #[error("the BTF has a type of unknown kind {0}")]
    Kind(u32),
}

/// BTF bytes with an index of their types: 4 bytes of memory per type.
pub struct Btf<'a> {
    strings: &'a [u8],
    types: &'a [u8],
    /// Byte offset of each type in `types`; type 0 is void.
    offsets: Vec<u32>,
    /// Type ids by name, for the names that were asked for.
    named: FxHashMap<(&'a [u8], u32), u32>,
}

#[derive(Clone, Copy)]
struct Type {
    name: u32,
    kind: u32,
    vlen: u32,
    kind_flag: bool,
    size_or_type: u32,
    /// Byte offset of what follows the 12 common bytes.
    rest: usize,
}

impl<'a> Btf<'a> {
    /// Reads the header and walks all types once, noting those that `sources` name.
    ///
    /// # Errors
    /// [`BtfError`] if the bytes are no complete BTF of this machine's byte order.
    pub fn parse<'s>(data: &'a [u8], sources: impl IntoIterator<Item = &'s Source>) -> Result<Self, BtfError> {
        let magic = u16::from_ne_bytes(array(data, 0)?);
        if magic != MAGIC {
            return Err(BtfError::Magic(magic));
        }
        let header_len = word(data, 4)? as usize;
        let section = |at: usize| -> Result<&'a [u8], BtfError> {
            let start = header_len.saturating_add(word(data, at)? as usize);
            let len = word(data, at + 4)? as usize;
            data.get(start..start.saturating_add(len)).ok_or(BtfError::Truncated(data.len()))
        };
        let mut btf = Btf { types: section(8)?, strings: section(16)?, offsets: vec![0], named: FxHashMap::default() };
        let mut wanted: Vec<(String, u32)> = sources.into_iter().filter_map(wanted_type).collect();
        wanted.sort();
        wanted.dedup();
        let mut at = 0;
        while at < btf.types.len() {
            let id = btf.offsets.len() as u32;
            btf.offsets.push(at as u32);
            let ty = read_type(btf.types, at)?;
            if ty.name != 0 && matches!(ty.kind, KIND_STRUCT | KIND_ENUM | KIND_TYPEDEF) {
                let name = btf.string(ty.name)?;
                if wanted.binary_search_by(|(n, k)| (n.as_bytes(), *k).cmp(&(name, ty.kind))).is_ok() {
                    btf.named.entry((name, ty.kind)).or_insert(id);
                }
            }
            at = ty.rest + rest_len(&ty)?;
        }
        if at > btf.types.len() {
            return Err(BtfError::Truncated(at));
        }
        Ok(btf)
    }

    /// The number that `source` asks for; `ABSENT` if this kernel has no such
    /// thing, or if BTF cannot tell (a tracepoint's record).
    ///
    /// # Errors
    /// [`BtfError`] if the bytes contradict themselves.
    pub fn find(&self, source: &Source) -> Result<u32, BtfError> {
        match *source {
            Source::Member(of, path) => Ok(self.member_path(of, path)?.unwrap_or(ABSENT)),
            Source::Enumerator(of, name) => Ok(self.enumerator(of, name)?.unwrap_or(ABSENT)),
            Source::Arguments(tracepoint) => Ok(self.arguments(tracepoint)?.unwrap_or(ABSENT)),
            Source::Tracepoint(..) => Ok(ABSENT),
        }
    }

    fn member_path(&self, of: &str, path: &str) -> Result<Option<u32>, BtfError> {
        let Some(&id) = self.named.get(&(of.as_bytes(), KIND_STRUCT)) else {
            return Ok(None);
        };
        let (mut id, mut bits) = (id, 0);
        for name in path.split('.') {
            let Some((member, offset)) = self.member(id, name.as_bytes())? else {
                return Ok(None);
            };
            id = member;
            bits += offset;
        }
        Ok(u32::try_from(bits / 8).ok())
    }

    /// Type and bit offset of a member, also one inside an anonymous struct or union.
    fn member(&self, id: u32, name: &[u8]) -> Result<Option<(u32, u64)>, BtfError> {
        // Each type is entered once: bytes that nest it in itself come to an end, too.
        let mut entered = FxHashSet::default();
        let mut open = vec![(id, 0)];
        while let Some((id, start)) = open.pop() {
            let ty = self.resolved(id)?;
            if !matches!(ty.kind, KIND_STRUCT | KIND_UNION) || !entered.insert(ty.rest) {
                continue;
            }
            for i in 0..ty.vlen as usize {
                let at = ty.rest + i * 12;
                let (member_name, member_type) = (word(self.types, at)?, word(self.types, at + 4)?);
                let mut bits = word(self.types, at + 8)?;
                if ty.kind_flag {
                    bits &= 0x00ff_ffff;
                }
                let bits = start + u64::from(bits);
                if member_name == 0 {
                    open.push((member_type, bits));
                } else if self.string(member_name)? == name {
                    return Ok(Some((member_type, bits)));
                }
            }
        }
        Ok(None)
    }

    fn enumerator(&self, of: &str, name: &str) -> Result<Option<u32>, BtfError> {
        Ok(self.enumerators(of)?.into_iter().find(|(_, known)| known == name).map(|(value, _)| value))
    }

    /// Values and names of an enum that a [`Source::Enumerator`] named; none if this kernel has none.
    ///
    /// # Errors
    /// [`BtfError`] if the bytes contradict themselves.
    pub fn enumerators(&self, of: &str) -> Result<Vec<(u32, String)>, BtfError> {
        let Some(&id) = self.named.get(&(of.as_bytes(), KIND_ENUM)) else {
            return Ok(Vec::new());
        };
        let ty = self.ty(id)?;
        (0..ty.vlen as usize)
            .map(|i| {
                let at = ty.rest + i * 8;
                let name = String::from_utf8_lossy(self.string(word(self.types, at)?)?).into_owned();
                Ok((word(self.types, at + 4)?, name))
            })
            .collect()
    }

    fn arguments(&self, tracepoint: &str) -> Result<Option<u32>, BtfError> {
        let name = format!("btf_trace_{tracepoint}");
        let Some(&id) = self.named.get(&(name.as_bytes(), KIND_TYPEDEF)) else {
            return Ok(None);
        };
        let pointer = self.resolved(id)?;
        if pointer.kind != KIND_PTR {
            return Ok(None);
        }
        let proto = self.resolved(pointer.size_or_type)?;
        Ok((proto.kind == KIND_FUNC_PROTO).then_some(proto.vlen))
    }

    /// The type behind typedefs and qualifiers.
    fn resolved(&self, id: u32) -> Result<Type, BtfError> {
        let mut ty = self.ty(id)?;
        for _ in 0..MAX_DEPTH {
            match ty.kind {
                KIND_TYPEDEF | KIND_VOLATILE | KIND_CONST | KIND_RESTRICT | KIND_TYPE_TAG => {
                    ty = self.ty(ty.size_or_type)?;
                }
                _ => break,
            }
        }
        Ok(ty)
    }

    fn ty(&self, id: u32) -> Result<Type, BtfError> {
        if id == 0 {
            return Ok(Type { name: 0, kind: 0, vlen: 0, kind_flag: false, size_or_type: 0, rest: 0 });
        }
        let at = self.offsets.get(id as usize).ok_or(BtfError::Truncated(id as usize))?;
        read_type(self.types, *at as usize)
    }

    fn string(&self, at: u32) -> Result<&'a [u8], BtfError> {
        let tail = self.strings.get(at as usize..).ok_or(BtfError::Truncated(at as usize))?;
        tail.iter().position(|&b| b == 0).map(|end| &tail[..end]).ok_or(BtfError::Truncated(at as usize))
    }
}

/// The named type that a source needs to be found by.
fn wanted_type(source: &Source) -> Option<(String, u32)> {
    match *source {
        Source::Member(of, _) => Some((of.into(), KIND_STRUCT)),
        Source::Enumerator(of, _) => Some((of.into(), KIND_ENUM)),
        Source::Arguments(tracepoint) => Some((format!("btf_trace_{tracepoint}"), KIND_TYPEDEF)),
        Source::Tracepoint(..) => None,
    }
}

fn read_type(types: &[u8], at: usize) -> Result<Type, BtfError> {
    let info = word(types, at + 4)?;
    Ok(Type {
        name: word(types, at)?,
        kind: (info >> 24) & 0x7f,
        vlen: info & 0x00ff_ffff,
        kind_flag: info >> 31 == 1,
        size_or_type: word(types, at + 8)?,
        rest: at + 12,
    })
}

/// Bytes after the 12 common ones.
fn rest_len(ty: &Type) -> Result<usize, BtfError> {
    let vlen = ty.vlen as usize;
    Ok(match ty.kind {
        KIND_INT | KIND_VAR | KIND_DECL_TAG => 4,
        KIND_ARRAY => 12,
        KIND_STRUCT | KIND_UNION | KIND_DATASEC | KIND_ENUM64 => vlen * 12,
        KIND_ENUM | KIND_FUNC_PROTO => vlen * 8,
        // pointer, forward, typedef, qualifiers, function, float, type tag
        KIND_PTR | 7..=12 | 16 | KIND_TYPE_TAG => 0,
        unknown => return Err(BtfError::Kind(unknown)),
    })
}

fn array<const N: usize>(data: &[u8], at: usize) -> Result<[u8; N], BtfError> {
    data.get(at..).and_then(|tail| tail.first_chunk()).copied().ok_or(BtfError::Truncated(at))
}

fn word(data: &[u8], at: usize) -> Result<u32, BtfError> {
    array(data, at).map(u32::from_ne_bytes)
}
