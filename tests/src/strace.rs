//! The system-call tracer's own count of a program's calls.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};

use crate::Result;

/// The calls that read or write: those that the flows count.
pub const CALLS: [&str; 14] = [
    "read", "readv", "pread64", "preadv", "preadv2", "recvfrom", "recvmsg", "write", "writev",
    "pwrite64", "pwritev", "pwritev2", "sendto", "sendmsg",
];

/// Whether a call of [`CALLS`] reads.
pub fn reads(call: &str) -> bool {
    call.contains("read") || call.starts_with("recv")
}

/// Runs `command` with all its threads and children under the tracer, which leaves its
/// trace and summary in `summary`; returns what the program printed and how often each call
/// was made. A call that a signal interrupts and the kernel runs again is one call, though the
/// tracer's summary counts each start of it.
///
/// # Errors
/// If the tracer or the program fails.
pub fn count(command: &Command, summary: &Path) -> Result<(Output, BTreeMap<String, u64>)> {
    let mut traced = Command::new("strace");
    traced.args(["-f", "-qq", "-C", "-s", "0", "--summary-columns=calls,name", "-o"]).arg(summary);
    traced.arg("-e").arg(format!("trace={}", CALLS.join(",")));
    traced.arg("--").arg(command.get_program()).args(command.get_args());
    for (key, value) in command.get_envs() {
        if let Some(value) = value {
            traced.env(key, value);
        }
    }
    let output = traced.output().map_err(|e| format!("start strace: {e}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("strace ended with {}: {said}", output.status).into());
    }
    Ok((output, parse(&std::fs::read_to_string(summary)?)))
}

/// Reads trace and summary: the table's numbers and names, less the calls that ran again.
fn parse(text: &str) -> BTreeMap<String, u64> {
    let (trace, table) = text.split_at(text.find("calls syscall").unwrap_or(0));
    let mut counts: BTreeMap<String, u64> = table
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let count = words.next()?.parse().ok()?;
            let name = words.next()?;
            (name != "total").then(|| (name.to_string(), count))
        })
        .collect();
    for line in trace.lines().filter(|line| line.contains(" = ? ERESTART")) {
        // `PID read(3, ...) = ? ERESTARTSYS (...)` or `PID <... read resumed>...) = ? ...`.
        let call = CALLS.into_iter().find(|call| {
            line.contains(&format!(" {call}(")) || line.contains(&format!("<... {call} resumed>"))
        });
        if let Some(count) = call.and_then(|call| counts.get_mut(call)) {
            *count -= 1;
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_is_read_without_its_rules_and_total() {
        let summary = "    calls syscall\n--------- ----------------\n       12 read\n        \
                       3 pwrite64\n--------- ----------------\n       15 total\n";
        let expected = [("read".to_string(), 12), ("pwrite64".to_string(), 3)].into();
        assert_eq!(parse(summary), expected);
    }

    #[test]
    fn a_call_that_ran_again_is_one_call() {
        let text = "71 read(3, \"\"..., 8) = ? ERESTARTSYS (To be restarted if SA_RESTART is set)\n\
                    72 <... recvfrom resumed>\"\"..., 8, 0, NULL, NULL) = ? ERESTARTSYS (To be \
                    restarted)\n71 read(3, \"\"..., 8) = 8\n    calls syscall\n--------- ------\n\
                    \x20       2 read\n        1 recvfrom\n--------- ------\n        3 total\n";
        let expected = [("read".to_string(), 1), ("recvfrom".to_string(), 0)].into();
        assert_eq!(parse(text), expected);
    }
}
