//! Looks for what keeps `run` from working on this device, and names every problem with its
//! remedy. It changes nothing: the probes are loaded, attached and taken away again.

use std::os::unix::fs::PermissionsExt;
use std::process::ExitCode;

use bpf::{Bounds, Probes};

use crate::config::Config;
use crate::pipeline::Settings;
use crate::upload;

/// Every problem that keeps `run` from working.
pub fn problems(config: &Config) -> Vec<String> {
    let mut problems = Vec::new();
    match upload::identity(&config.collector.certificate) {
        Ok(id) => {
            if let Some(wanted) = config.agent.id.as_ref().filter(|wanted| **wanted != id) {
                problems.push(format!(
                    "agent.id = {wanted}: the certificate says {id} (make them equal)"
                ));
            }
        }
        Err(error) => problems.push(error),
    }
    if let Err(error) = upload::readable(&config.collector) {
        problems.push(error);
    }
    match std::fs::metadata(&config.collector.key) {
        Ok(meta) if meta.permissions().mode() & 0o077 != 0 => problems.push(format!(
            "{}: others may read the key (chmod 600 it)",
            config.collector.key.display()
        )),
        _ => {}
    }
    let bounds = Bounds {
        ring_bytes: config.kernel.ring_bytes,
        flow_entries: config.kernel.flow_entries,
        btf: config.kernel.btf.clone(),
        ..Settings::default().bounds
    };
    match Probes::load(&bounds) {
        Ok(probes) => problems.extend(
            probes
                .missing()
                .iter()
                .map(|(hook, why)| format!("{}: cannot be attached: {why}", hook.name())),
        ),
        Err(error) => problems.push(error.to_string()),
    }
    problems
}

/// Prints the problems, one line each; the exit code says whether there are any.
pub fn report(config: &Config) -> ExitCode {
    let problems = problems(config);
    for problem in &problems {
        println!("problem: {problem}");
    }
    if problems.is_empty() {
        println!("no problem found");
        return ExitCode::SUCCESS;
    }
    ExitCode::from(78)
}
