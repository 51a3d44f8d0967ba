//! Tells the program when it was built: a device whose clock starts in 1970 knows that it is
//! not earlier than that. `SOURCE_DATE_EPOCH` makes builds reproducible.

use std::time::{SystemTime, UNIX_EPOCH};

fn main() {
    println!("cargo:rerun-if-env-changed=SOURCE_DATE_EPOCH");
    println!("cargo:rerun-if-changed=build.rs");
    let given = std::env::var("SOURCE_DATE_EPOCH").ok().and_then(|text| text.parse::<u64>().ok());
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    println!("cargo:rustc-env=SYSFLOW_BUILD_UNIX_S={}", given.unwrap_or_else(now));
}
