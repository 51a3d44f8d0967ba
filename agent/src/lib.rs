//! The agent of SysFlow Edge. Each module is one station of the data path or one of its
//! servants; `pipeline` alone knows them all.

pub mod arguments;
pub mod batch;
pub mod budget;
pub mod check;
pub mod config;
pub mod confinement;
pub mod day_budget;
pub mod engine;
pub mod entity;
pub mod flow;
pub mod ladder;
pub mod logger;
pub mod names;
pub mod pipeline;
pub mod privacy;
pub mod privileges;
pub mod procfs;
pub mod run_state;
pub mod sketch;
pub mod slots;
pub mod spool;
pub mod status;
pub mod supervisor;
pub mod syncer;
pub mod table;
pub mod texts;
pub mod tls;
pub mod tombstones;
pub mod untold;
pub mod upload;
pub mod wear;
