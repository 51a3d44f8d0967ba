//! The one developer tool of SysFlow Edge, `cargo xtask VERB`.
//!
//! Verbs are thin: they install what is missing, call cargo, and run what lives in `tests/`.
//! CI calls the same verbs and nothing else. Errors are sentences for the person at the
//! terminal; children never outlive the tool.

pub mod btf;
pub mod build;
pub mod campaign;
pub mod check;
pub mod child;
pub mod collector;
pub mod crates;
pub mod cross;
pub mod deb;
pub mod debian;
pub mod demo;
pub mod image;
pub mod kernels;
pub mod mutations;
pub mod notices;
pub mod packages;
pub mod parts;
pub mod pki;
pub mod reproduce;
pub mod sbom;
pub mod setup;
pub mod standard_library;
pub mod suite;
pub mod targets;
pub mod userland;
pub mod vm;
pub mod workspace;
pub mod zig;

/// Any failure of a verb: its text says what failed, on what, and what to do.
pub type Error = Box<dyn std::error::Error + Send + Sync>;
/// What verbs return.
pub type Result<T = ()> = std::result::Result<T, Error>;
