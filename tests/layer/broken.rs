//! This tree passes every check; copies that are broken on purpose fail the one that is there for
//! what is broken.

use std::path::Path;

use tests::Result;
use tests::machine::skip;

use crate::checks::{Check, root, shell_scripts, tools};

/// What the checks read, besides the layer and the scripts.
const FILES: [&str; 9] = [
    "Cargo.lock",
    "LICENSE",
    "agent/agent.toml",
    "agent/sysflow-agent.service",
    "bpf/LICENSE-BSD-2-Clause",
    "bpf/LICENSE-GPL-2.0-only",
    "collector/sysflow-collector.service",
    "yocto/kas-scarthgap.yml",
    "yocto/kas.yml",
];
const LAYER: &str = "yocto/meta-sysflow";
const RECIPES: &str = "yocto/meta-sysflow/recipes-sysflow";
const RECIPE: &str = "sysflow-agent/sysflow-agent_0.1.0.bb";
const CRATES: &str = "sysflow-agent/sysflow-agent-crates.inc";
const INIT: &str = "sysflow-agent/files/sysflow-agent.init";

fn copy(from: &Path, to: &Path) -> Result {
    if from.is_dir() {
        std::fs::create_dir_all(to)?;
        for entry in std::fs::read_dir(from)? {
            let entry = entry?;
            copy(&entry.path(), &to.join(entry.file_name()))?;
        }
    } else {
        std::fs::create_dir_all(to.parent().unwrap_or(to))?;
        std::fs::copy(from, to)?;
    }
    Ok(())
}

fn copy_of_tree() -> Result<tempfile::TempDir> {
    let folder = tempfile::tempdir()?;
    let scripts = shell_scripts()?;
    let scripts = scripts.iter().map(|(name, _)| name.as_str());
    for name in FILES.into_iter().chain([LAYER]).chain(scripts) {
        copy(&root().join(name), &folder.path().join(name))?;
    }
    Ok(folder)
}

/// A change of a copy: a file, what stands in it, and what shall stand there.
struct Fault {
    check: Check,
    file: String,
    from: &'static str,
    to: &'static str,
    /// What the check must say.
    said: &'static str,
}

fn fault(
    check: Check,
    file: &str,
    from: &'static str,
    to: &'static str,
    said: &'static str,
) -> Fault {
    let is_of_recipes = file.starts_with("sysflow-agent");
    let file = if is_of_recipes { format!("{RECIPES}/{file}") } else { file.to_string() };
    Fault { check, file, from, to, said }
}

fn faults() -> Vec<Fault> {
    let parser = |from, to, said| fault(Check::Parser, RECIPE, from, to, said);
    let unit = |from, to, said| fault(Check::Units, "agent/sysflow-agent.service", from, to, said);
    let layer = "yocto/meta-sysflow/conf/layer.conf";
    let class = "yocto/meta-sysflow/classes/sysflow_kernel.bbclass";
    let append = "yocto/meta-sysflow/recipes-kernel/linux/linux-yocto_%.bbappend";
    let kernel = "yocto/meta-sysflow/recipes-kernel/linux/sysflow-kernel.inc";
    let in_class = |from, to, said| fault(Check::Parser, class, from, to, said);
    let in_kernel = |from, to, said| fault(Check::Parser, kernel, from, to, said);
    vec![
        parser("md5=3b83", "md5=4b83", "licence LICENSE has checksum 3b83"),
        fault(Check::Parser, "LICENSE", "Apache", "Apasche", "licence LICENSE has checksum"),
        parser("file://LICENSE;", "file://LICENCE;", "licence LICENCE is not in the tree"),
        parser("file://run-ptest", "file://run-tests", "file://run-tests is in none"),
        parser("inherit cargo ", "inherit cargoes ", "Could not inherit file"),
        parser("do_install () {", "do_install () ", "ParseError"),
        parser("fi\n", "\n", "do_install"),
        parser("${CARGO_TARGET_SUBDIR}", "${CARGO_SUBDIR}", "${CARGO_SUBDIR}, which nobody sets"),
        parser("CVE_PRODUCT", "do_compile[network] = \"1\"\nCVE_PRODUCT", "opens the network"),
        parser("\"clang-native ", "\"clang-native llvm-native ", "llvm-native, which collide"),
        parser("COMPATIBLE_HOST:libc-musl", "MUSL", "does not refuse musl"),
        parser("CVE_PRODUCT", "INSANE_SKIP:${PN} = \"arch\"\nCVE_PRODUCT", "skips checks"),
        parser("CVE_PRODUCT", "ERROR_QA:remove = \"arch\"\nCVE_PRODUCT", "arch out of ERROR_QA"),
        parser("CVE_PRODUCT", "WARN_QA:remove = \"libdir\"\nCVE_PRODUCT", "libdir out of WARN_QA"),
        parser("CVE_PRODUCT", "do_package_qa[noexec] = \"1\"\nCVE_PRODUCT", "do_package_qa"),
        parser("CARGO_BUILD_FLAGS +=", "CARGO_BUILD_FLAGS =", "no --frozen"),
        parser("(aarch64|arm|", "(aarch64|", "refuses glibc: arm-oe-linux-gnueabi"),
        fault(Check::Parser, CRATES, "sha256sum] = \"", "sha256sum] = \"0", "has checksum 0"),
        fault(
            Check::Parser,
            CRATES,
            "crate://crates.io/log/",
            "https://elsewhere.example/log/",
            "is not fetched",
        ),
        fault(
            Check::Parser,
            "Cargo.lock",
            "name = \"toml\"",
            "name = \"tomb\"",
            "not in Cargo.lock",
        ),
        fault(
            Check::Parser,
            "Cargo.lock",
            "name = \"agent\"\nversion = \"0",
            "name = \"agent\"\nversion = \"7",
            "sysflow-agent_0.1.0.bb: is of version",
        ),
        fault(
            Check::Parser,
            "Cargo.lock",
            "name = \"agent\"\nversion = \"0",
            "name = \"agent\"\nversion = \"7",
            "sysflow-agent-btf_0.1.0.bb: is of version",
        ),
        fault(Check::Parser, layer, "scarthgap", "kirkstone", "does not have scarthgap"),
        fault(Check::Parser, append, "sysflow-kernel.inc", "sysflow.inc", "Could not include"),
        fault(
            Check::Parser,
            kernel,
            "file://sysflow.cfg",
            "file://kernel.cfg",
            "file://kernel.cfg is in none",
        ),
        fault(Check::Parser, class, "fi\n", "\n", "sysflow_btf_qa: "),
        in_class("postfuncs] +=", "prefuncs] +=", "do_compile does not end with sysflow_btf_check"),
        in_class("do_deploy:append ()", "do_undeploy ()", "does not deploy sysflow-kernel.btf"),
        in_kernel("KERNEL_DEBUG =", "KERNEL_DEBUGS =", "KERNEL_DEBUG is not True"),
        in_kernel("DEPENDS += \"pahole-native\"", "", "does not depend on pahole-native"),
        in_kernel("'file://sysflow.scc' if", "'' if", "kernel with kernel-yocto the sources"),
        in_kernel("bb.data.inherits_class('kernel-yocto', d)", "1", "kernel without kernel-yocto"),
        fault(Check::Parser, append, "'', d)}", "'sysflow-kernel.inc', d)}", "changes SRC_URI"),
        fault(Check::Parser, append, "# Without", "KERNEL_DEBUG = \"True\"\n#", "changes KERNEL_"),
        fault(
            Check::Parser,
            append,
            "# Without",
            "do_compile[postfuncs] += \"sysflow_btf_check\"\n#",
            "changes do_compile without",
        ),
        fault(Check::Linter, RECIPE, "SECTION = \"net\"", "SECTION_${PN} = \"net\"", "oelint."),
        fault(Check::Linter, RECIPE, "SUMMARY = ", "SUMARY = ", "oelint."),
        fault(Check::Kas, "yocto/kas.yml", "\nmachine: ", "\nmachines: ", "kas.yml: "),
        fault(Check::Kas, "yocto/kas.yml", "version: 14", "version: fourteen", "header.version"),
        fault(Check::Kas, "yocto/kas.yml", "meta-sysflow:", "meta-flow:", "no layer of this tree"),
        fault(
            Check::Kas,
            "yocto/kas-scarthgap.yml",
            "- yocto/kas.yml",
            "- yocto/kos.yml",
            "kas-scarthgap.yml: yocto/kos.yml is no file",
        ),
        fault(
            Check::Kas,
            "yocto/kas-scarthgap.yml",
            "branch: ",
            "branches: ",
            "kas-scarthgap.yml: ",
        ),
        fault(Check::Scripts, ".ci/run", "cargo xtask check\n", "if cargo\n", "error"),
        fault(Check::Scripts, "tests/guests/machine.sh", "say() {", "say() ", "error"),
        fault(Check::Scripts, INIT, "|| return 4", "|| return 4 }", "error: "),
        fault(Check::Scripts, "agent/sysflow-agent.bash", "esac\n", "\n", "error"),
        fault(Check::Scripts, "cross/debian/postinst", "esac\n", "\n", "error"),
        unit("ProtectSystem=strict", "ProtectSytem=strict", "Unknown key 'ProtectSytem'"),
        unit("RestrictAddressFamilies=", "#", "sysflow-agent.service: "),
        unit("User=sysflow", "User=root", "sysflow-agent.service: "),
        unit("AssertPathExists=", "#", "and does not assert it"),
        unit("WatchdogSec=", "#", "no WatchdogSec"),
        unit("MemoryMax=48M", "MemoryMax=39M", "the agent may need 41582912 bytes"),
        unit("MemoryMax=", "#", "MemoryMax is []"),
        fault(
            Check::Units,
            "agent/agent.toml",
            "budget_bytes = 8",
            "budget_bytes = 88",
            "MemoryMax is [\"48M\"]",
        ),
        unit("NoNewPrivileges=yes", "", "sysflow-agent.service: "),
        unit("CapabilityBoundingSet=CAP_BPF", "#", "sysflow-agent.service: "),
    ]
}

#[test]
fn the_tree_passes_and_broken_copies_do_not() -> Result {
    let test = "the_tree_passes_and_broken_copies_do_not";
    let Some(tools) = tools() else {
        return skip(test, "SYSFLOW_LAYER_TOOLS is not set (run `cargo xtask test`)");
    };
    let whole = copy_of_tree()?;
    for tree in [&root(), whole.path()] {
        for check in Check::ALL {
            let found = check.faults(&tools, tree)?;
            assert!(found.is_empty(), "{check:?} of {}:\n{}", tree.display(), found.join("\n"));
        }
    }
    let mut unseen = Vec::new();
    let faults = faults();
    for fault in &faults {
        let tree = copy_of_tree()?;
        let file = tree.path().join(&fault.file);
        let text = std::fs::read_to_string(&file)?;
        let changed = text.replacen(fault.from, fault.to, 1);
        assert_ne!(changed, text, "{}: has no {:?}", fault.file, fault.from);
        std::fs::write(&file, changed)?;
        let found = fault.check.faults(&tools, tree.path())?;
        if !found.iter().any(|line| line.contains(fault.said)) {
            let Fault { check, file, from, to, said } = fault;
            unseen.push(format!(
                "{file}: {from:?} -> {to:?}: {check:?} says {found:?}, not {said:?}"
            ));
        }
    }
    assert!(unseen.is_empty(), "{}", unseen.join("\n"));
    println!("{} broken copies, each found", faults.len());
    Ok(())
}
