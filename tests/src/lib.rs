//! What end-to-end tests stand on: the truth that workloads print, and the programs under
//! test as children of a test.
//!
//! The agent and the collector are known here only as binaries and by the files and frames
//! that they leave (`codec`). Everything that a test starts ends with it, lives in a
//! temporary directory and is waited for by a condition with a deadline.

pub mod acts;
pub mod campaign;
pub mod demo;
pub mod files;
pub mod fleet;
pub mod frames;
pub mod machine;
pub mod mark;
pub mod post;
pub mod program;
pub mod proxy;
pub mod records;
pub mod strace;
pub mod tally;
pub mod truth;
pub mod wait;

/// Any failure of a workload or a test: its text names the thing and the value.
pub type Error = Box<dyn std::error::Error + Send + Sync>;
/// What workloads and tests return.
pub type Result<T = ()> = std::result::Result<T, Error>;
