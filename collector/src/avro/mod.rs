//! Avro object container files (`.sf`) of SysFlow schema version 5.
//!
//! `write` makes them, `read` takes them apart, `encode` and `decode` know the bytes of each
//! record and `schema` the text that stands in every file. Only what `.sf` files use of Avro is here:
//! one fixed schema, the codecs `null` and `deflate`.

mod decode;
mod encode;
mod read;
mod schema;
mod write;

pub(crate) use read::Reader;
pub(crate) use write::Writer;

const MAGIC: [u8; 4] = *b"Obj\x01";
const SYNC_BYTES: usize = 16;

#[cfg(test)]
mod tests;
