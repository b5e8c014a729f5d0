//! The list of kernel fields a room reads, as data: the loader finds where each
//! one is on the running kernel, the programs read the answer as a constant.

/// The value of an offset that the running kernel does not have.
pub const ABSENT: u32 = u32::MAX;

/// Where the loader finds the number that a program needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Byte offset of a member (a dotted path enters nested structs) in a struct, from BTF.
    Member(&'static str, &'static str),
    /// Value of an enumerator, from BTF.
    Enumerator(&'static str, &'static str),
    /// Number of arguments of a tracepoint, from the BTF typedef `btf_trace_<name>`.
    Arguments(&'static str),
    /// Byte offset of a field in a classic tracepoint's record, from tracefs.
    Tracepoint(&'static str, &'static str),
}

/// Declares a struct of offsets (all `u32`) together with the source of each.
macro_rules! offsets {
    (
        $(#[$meta:meta])*
        pub struct $name:ident {
            $( $(#[$field_meta:meta])* $field:ident : $source:expr, )*
        }
    ) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable)]
        pub struct $name {
            $( $(#[$field_meta])* #[doc = concat!("`", stringify!($source), "`")] pub $field: u32, )*
        }

        impl $name {
            /// Where each field comes from, in the order of the struct.
            pub const SOURCES: &'static [(&'static str, $crate::Source)] =
                &[ $( (stringify!($field), $source), )* ];

            /// Nothing found yet.
            pub const ABSENT: Self = Self { $( $field: $crate::ABSENT, )* };
        }
    };
}

pub(crate) use offsets;
