//! Waiting for a condition, with a deadline: tests never sleep for a fixed time.

use std::time::{Duration, Instant};

use crate::Result;

/// Time between two looks at a condition.
const PAUSE: Duration = Duration::from_millis(10);

/// Looks at `condition` until it gives a value.
///
/// # Errors
/// What the condition itself failed with; after `deadline`, a text that names `what`.
pub fn wait_for<T>(
    what: &str,
    deadline: Duration,
    mut condition: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = condition()? {
            return Ok(value);
        }
        if start.elapsed() >= deadline {
            return Err(format!("waited {} s in vain for {what}", deadline.as_secs()).into());
        }
        std::thread::sleep(PAUSE);
    }
}
