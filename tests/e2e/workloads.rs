//! The workloads' own counts against a tracer's, without any agent: the truth is one.

use std::process::Command;

use tests::Result;
use tests::machine::{has_program, is_root, skip};
use tests::strace;
use tests::truth::Truth;

fn volume(folder: &std::path::Path, seed: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_workload-volume"));
    command.args(["--seed", seed, "--threads", "4", "--calls", "300", "--dir"]).arg(folder);
    // More than one arena makes the allocator look at the processors, which reads a file.
    command.env("MALLOC_ARENA_MAX", "1");
    command
}

#[test]
fn volume_counts_its_calls_as_a_tracer_does() -> Result {
    if !has_program("strace") {
        return skip("volume_counts_its_calls_as_a_tracer_does", "strace is not installed");
    }
    let folder = tempfile::tempdir()?;
    let (work, null) = (folder.path().join("work"), folder.path().join("null"));
    std::fs::create_dir(&work)?;
    std::fs::create_dir(&null)?;
    let summary = folder.path().join("summary");
    let (output, mut traced) = strace::count(&volume(&work, "7"), &summary)?;
    let (_, runtime) = strace::count(volume(&null, "7").arg("--null"), &summary)?;
    for (call, count) in runtime {
        let left = traced.entry(call).or_default();
        *left = left.checked_sub(count).ok_or("the null run made more calls than the run")?;
    }
    traced.retain(|_, count| *count > 0);
    let truth: Truth = serde_json::from_slice(&output.stdout)?;
    assert_eq!(truth.calls, traced);
    assert!(truth.calls.len() >= 12, "forms of calls: {:?}", truth.calls.keys());
    Ok(())
}

#[test]
fn volume_loses_nothing_between_its_own_ends() -> Result {
    let folder = tempfile::tempdir()?;
    let output = volume(folder.path(), "11").output()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let truth: Truth = serde_json::from_slice(&output.stdout)?;
    let (mut sent, mut received) = (0, 0);
    for volume in truth.network.iter().map(|peer| peer.volume) {
        sent += volume.write_bytes;
        received += volume.read_bytes;
    }
    assert_eq!(sent, received, "bytes between the ends of all connections");
    assert!(sent > 0, "nothing was sent");
    Ok(())
}

#[test]
fn demo_and_paths_print_a_truth() -> Result {
    let folder = tempfile::tempdir()?;
    let mut programs = vec![env!("CARGO_BIN_EXE_workload-demo")];
    if is_root() {
        programs.push(env!("CARGO_BIN_EXE_workload-paths"));
    } else {
        skip("demo_and_paths_print_a_truth", "workload-paths needs root")?;
    }
    for program in programs {
        let own = tempfile::tempdir_in(folder.path())?;
        let output = Command::new(program).arg("--dir").arg(own.path()).output()?;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let truth: Truth = serde_json::from_slice(&output.stdout)?;
        assert!(!truth.files.is_empty() && !truth.events.is_empty(), "{truth:?}");
        assert_eq!(truth.processes.first().and_then(|process| process.pid), Some(truth.pid));
    }
    Ok(())
}
