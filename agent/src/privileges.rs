//! What this process may do, and how it gives that up: it begins with what loading the probes
//! and the first look at the system need, and ends with nothing. Capabilities belong to a
//! thread, so each step is taken before another thread is started.

use std::io;

use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, set_capabilities, set_no_new_privs,
};

/// Needed until the probes are attached and /proc has been read. SYS_RESOURCE is for kernels
/// before 5.11, where maps count against RLIMIT_MEMLOCK.
const AT_START: CapabilitySet = CapabilitySet::BPF
    .union(CapabilitySet::PERFMON)
    .union(CapabilitySet::SYS_PTRACE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::SYS_RESOURCE);

fn hold(effective: CapabilitySet, permitted: CapabilitySet) -> io::Result<()> {
    let sets = CapabilitySets { effective, permitted, inheritable: CapabilitySet::empty() };
    Ok(set_capabilities(None, sets)?)
}

/// Gives up everything that is not needed to start, for good; also for programs that this
/// process might be made to run.
///
/// # Errors
/// If the kernel refuses.
pub fn start() -> io::Result<()> {
    set_no_new_privs(true)?;
    let kept = capabilities(None)?.permitted & AT_START;
    hold(kept, kept)
}

/// Gives up the rest, once everything is attached: `reads_maps` tells whether the probes' maps
/// can still be read. Kernels before 5.19 with `kernel.unprivileged_bpf_disabled` set want
/// CAP_BPF for that; only there it is kept.
///
/// # Errors
/// If the kernel refuses.
pub fn give_up(reads_maps: impl Fn() -> bool) -> io::Result<()> {
    let bpf = capabilities(None)?.permitted & CapabilitySet::BPF;
    hold(CapabilitySet::empty(), bpf)?;
    if reads_maps() {
        return hold(CapabilitySet::empty(), CapabilitySet::empty());
    }
    log::info!("this kernel reads maps with CAP_BPF only: it is kept");
    hold(bpf, bpf)
}
