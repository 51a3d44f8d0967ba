//! What this process keeps itself from, once it watches: files, ports and system calls that it
//! has no use for. So it is confined on images without a service manager that does it, too. As
//! far as the kernel has the means: Landlock from 5.13 on (ports from 6.7, signals from 6.12),
//! filters of system calls where their compiler knows the architecture (not 32-bit ARM).
//!
//! Both belong to a thread and are inherited, so they are taken before another thread is started.
//! Capabilities are `privileges`' business; Landlock needs its `no_new_privs`.

use std::io;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, NetPort, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetError, RulesetStatus, Scope, path_beneath_rules,
};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};

use crate::config::Config;
use crate::tls::Files;

/// What Landlock has been taught until now; older kernels do a part of it.
const KNOWN: ABI = ABI::V6;
/// Where the C library looks for names of hosts, and for itself.
const SYSTEM: [&str; 4] = ["/etc", "/run", "/usr", "/lib"];
/// Where libbpf looks how many processors there may be, when it reads maps.
const PROCESSORS: &str = "/sys/devices/system/cpu";
/// What is left to see of this process itself.
const SELF: &str = "/proc/self";
/// Names that do not fit into a datagram are asked for by TCP.
const PORT_OF_NAMES: u16 = 53;
const PORT_OF_HTTPS: u16 = 443;

/// What the process needs from now on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Folders that are read.
    pub read: Vec<PathBuf>,
    /// Folders in which files are made, changed and removed.
    pub write: Vec<PathBuf>,
    /// TCP ports that are connected to.
    pub ports: Vec<u16>,
}

impl Needs {
    /// Those of an agent that delivers.
    pub fn of(config: &Config) -> Needs {
        let mut read: Vec<PathBuf> = SYSTEM.map(PathBuf::from).into();
        read.extend([PROCESSORS, SELF].map(PathBuf::from));
        let Files { ca, certificate, key } = Files::from(&config.collector);
        for file in [ca, certificate, key] {
            // A renewal puts another file in the place of this one, or of what it is a link to.
            let real = file.canonicalize().ok();
            let folders = [Some(file), real].into_iter().flatten();
            read.extend(folders.filter_map(|file| file.parent().map(Path::to_path_buf)));
        }
        let write = [Some(config.state_directory()), config.status.file.parent()];
        let urls = [Some(&config.collector.url), config.collector.proxy.as_ref()];
        let mut ports: Vec<u16> = urls.into_iter().flatten().map(|url| port(url)).collect();
        ports.push(PORT_OF_NAMES);
        Needs { read, write: write.into_iter().flatten().map(Path::to_path_buf).collect(), ports }
    }

    /// Those of a capture into a folder.
    pub fn of_capture(out: &Path) -> Needs {
        let read = [PROCESSORS, SELF, "/etc"].map(PathBuf::from).into();
        Needs { read, write: vec![out.to_path_buf()], ports: Vec::new() }
    }
}

/// The port of a URL.
fn port(url: &str) -> u16 {
    let uri = url.parse::<ureq::http::Uri>().ok();
    uri.and_then(|uri| uri.port_u16()).unwrap_or(PORT_OF_HTTPS)
}

/// Confines this thread, and those that it starts from here on, to what `needs` names, for good.
/// What the kernel cannot do is logged.
pub fn confine(needs: &Needs) {
    // No image of memory with the key in it, and no debugger of the same user.
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        log::warn!("memory can be dumped: {error}");
    }
    for folder in &needs.write {
        // A folder that is not there yet could not be made later.
        if let Err(error) = std::fs::create_dir_all(folder) {
            log::warn!("{}: {error}", folder.display());
        }
    }
    match files_and_ports(needs) {
        Ok(RulesetStatus::FullyEnforced) => log::info!("confined by Landlock"),
        Ok(RulesetStatus::PartiallyEnforced) => {
            log::info!("confined by Landlock, as far as this kernel goes (Linux 6.12 has all)");
        }
        Ok(RulesetStatus::NotEnforced) => {
            log::info!("this kernel confines no files (enable CONFIG_SECURITY_LANDLOCK)");
        }
        Err(error) => log::warn!("not confined by Landlock: {error}"),
    }
    if let Err(error) = calls() {
        log::warn!("system calls are not filtered: {error} (enable CONFIG_SECCOMP_FILTER)");
    }
}

fn files_and_ports(needs: &Needs) -> Result<RulesetStatus, RulesetError> {
    let read: BitFlags<AccessFs> = AccessFs::ReadFile | AccessFs::ReadDir;
    let write = read
        | AccessFs::WriteFile
        | AccessFs::Truncate
        | AccessFs::MakeReg
        | AccessFs::MakeDir
        | AccessFs::RemoveFile
        | AccessFs::RemoveDir;
    let mut ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(KNOWN))?
        .handle_access(AccessNet::from_all(KNOWN))?
        .scope(Scope::Signal)?
        .create()?
        .add_rules(path_beneath_rules(&needs.read, read))?
        .add_rules(path_beneath_rules(&needs.write, write))?;
    for port in &needs.ports {
        ruleset = ruleset.add_rule(NetPort::new(*port, AccessNet::ConnectTcp))?;
    }
    Ok(ruleset.restrict_self()?.ruleset)
}

/// System calls that an agent which watches has no use for: what reaches into other processes,
/// the kernel and its configuration, and what begins another program or listens.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"))]
fn calls() -> io::Result<()> {
    use std::collections::BTreeMap;

    use rustix::io::Errno;
    use seccompiler::{
        BpfProgram, Error, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
        SeccompFilter, SeccompRule, TargetArch,
    };

    const REFUSED: [i64; 54] = [
        libc::SYS_accept,
        libc::SYS_accept4,
        libc::SYS_acct,
        libc::SYS_add_key,
        libc::SYS_adjtimex,
        libc::SYS_chroot,
        libc::SYS_clock_adjtime,
        libc::SYS_clock_settime,
        libc::SYS_delete_module,
        libc::SYS_execve,
        libc::SYS_execveat,
        libc::SYS_finit_module,
        libc::SYS_fsconfig,
        libc::SYS_fsmount,
        libc::SYS_fsopen,
        libc::SYS_fspick,
        libc::SYS_init_module,
        libc::SYS_io_uring_enter,
        libc::SYS_io_uring_register,
        libc::SYS_io_uring_setup,
        libc::SYS_kcmp,
        libc::SYS_kexec_load,
        libc::SYS_keyctl,
        libc::SYS_listen,
        libc::SYS_mknodat,
        libc::SYS_mount,
        libc::SYS_mount_setattr,
        libc::SYS_move_mount,
        libc::SYS_name_to_handle_at,
        libc::SYS_open_by_handle_at,
        libc::SYS_open_tree,
        libc::SYS_perf_event_open,
        libc::SYS_personality,
        libc::SYS_pidfd_getfd,
        libc::SYS_pivot_root,
        libc::SYS_process_madvise,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
        libc::SYS_ptrace,
        libc::SYS_quotactl,
        libc::SYS_reboot,
        libc::SYS_request_key,
        libc::SYS_sethostname,
        libc::SYS_setdomainname,
        libc::SYS_setns,
        libc::SYS_settimeofday,
        libc::SYS_swapoff,
        libc::SYS_swapon,
        libc::SYS_syslog,
        libc::SYS_umount2,
        libc::SYS_unshare,
        libc::SYS_userfaultfd,
        libc::SYS_vhangup,
        libc::SYS_process_mrelease,
    ];
    /// Of bpf(2) what reads and changes maps: look up, update, delete, next key, look up and
    /// delete, and the batches of these.
    const OF_MAPS: [u64; 9] = [1, 2, 3, 4, 21, 24, 25, 26, 27];
    /// Families of sockets: UNIX, INET, INET6.
    const FAMILIES: [u64; 3] = [1, 2, 10];

    // A call is refused if its first argument is none of these.
    let unless = |allowed: &[u64]| -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
        let differs = |value: &u64| {
            let (word, other) = (SeccompCmpArgLen::Dword, SeccompCmpOp::Ne);
            SeccompCondition::new(0, word, other, *value)
        };
        Ok(vec![SeccompRule::new(allowed.iter().map(differs).collect::<Result<_, _>>()?)?])
    };
    let filter = || -> Result<(), Error> {
        let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
            REFUSED.iter().map(|call| (*call, Vec::new())).collect();
        rules.insert(libc::SYS_bpf, unless(&OF_MAPS)?);
        rules.insert(libc::SYS_socket, unless(&FAMILIES)?);
        let architecture = TargetArch::try_from(std::env::consts::ARCH)?;
        let refuse = SeccompAction::Errno(Errno::PERM.raw_os_error().unsigned_abs());
        let program: BpfProgram =
            SeccompFilter::new(rules, SeccompAction::Allow, refuse, architecture)?.try_into()?;
        seccompiler::apply_filter(&program)
    };
    filter().map_err(io::Error::other)
}

/// Nobody well-kept compiles filters for the other architectures.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")))]
fn calls() -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_needs_its_folders_and_its_collectors_port() {
        let mut config = Config::default();
        config.collector.url = "https://collector.example:7443".into();
        config.spool.directory = "/var/lib/sysflow/spool".into();
        config.status.file = "/run/sysflow/status.json".into();
        config.collector.key = "/keys/agent.key".into();
        let needs = Needs::of(&config);
        assert_eq!(needs.write, [Path::new("/var/lib/sysflow"), Path::new("/run/sysflow")]);
        assert_eq!(needs.ports, [7443, 53]);
        assert!(needs.read.contains(&PathBuf::from("/keys")));
        assert!(!needs.read.contains(&PathBuf::from("/")));

        config.collector.url = "https://collector.example".into();
        config.collector.proxy = Some("http://[::1]:3128".into());
        assert_eq!(Needs::of(&config).ports, [443, 3128, 53]);
    }
}
