//! The agent of SysFlow Edge. Each module is one station of the data path or one of its
//! servants; `pipeline` alone knows them all.

pub mod arguments;
pub mod check;
pub mod config;
pub mod logger;
pub mod run_state;
pub mod slots;
pub mod spool;
pub mod status;
pub mod tls;
pub mod upload;
