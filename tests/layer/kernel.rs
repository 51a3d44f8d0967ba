//! The check of the kernel that an image builds, run as the layer has it on kernels with and
//! without types.

use std::path::Path;
use std::process::{Command, Output};

use tests::Result;

use crate::checks::root;

/// A shell function of a class, as BitBake takes it.
fn function(class: &str, name: &str) -> Result<String> {
    let begin = format!("{name} () {{\n");
    let (_, rest) = class.split_once(&begin).ok_or_else(|| format!("no {name} in the class"))?;
    let (body, _) = rest.split_once("\n}\n").ok_or_else(|| format!("{name} does not end"))?;
    Ok(format!("{name} () {{\n{body}\n}}\n"))
}

/// Runs the check on a kernel and its configuration. `${READELF}` and the like are BitBake's in the
/// layer, the shell's here.
fn judge(kernel: &Path, config: &Path) -> Result<Output> {
    let path = root().join("yocto/meta-sysflow/classes/sysflow_kernel.bbclass");
    let class = std::fs::read_to_string(path)?;
    let least = class
        .lines()
        .find_map(|line| line.strip_prefix("SYSFLOW_BTF_BYTES_MIN ?= "))
        .ok_or("no SYSFLOW_BTF_BYTES_MIN in the class")?;
    let script = format!(
        "bbfatal() {{ echo \"ERROR: $*\"; exit 1; }}\n\
         READELF=readelf SYSFLOW_BTF_BYTES_MIN={least}\n{}{}sysflow_btf_qa \"$1\" \"$2\"\n",
        function(&class, "sysflow_btf_size")?,
        function(&class, "sysflow_btf_qa")?,
    );
    // As BitBake runs tasks: any command that fails ends it.
    Ok(Command::new("sh").args(["-e", "-c", &script, "sh"]).arg(kernel).arg(config).output()?)
}

fn make(command: &mut Command) -> Result {
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)).into())
}

#[test]
fn a_kernel_that_lost_its_types_fails_the_build() -> Result {
    let folder = tempfile::tempdir()?;
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("kernel.c"), "int init_task;\n")?;
    make(Command::new("cc").args(["-g", "-c", "-o"]).arg(path("bare")).arg(path("kernel.c")))?;
    let with_types = |name: &str, bytes: usize| -> Result {
        std::fs::write(path("types"), vec![7; bytes])?;
        let section = format!(".BTF={}", path("types").display());
        let mut objcopy = Command::new("objcopy");
        make(objcopy.args(["--add-section", &section]).arg(path("bare")).arg(path(name)))
    };
    with_types("whole", 200_000)?;
    with_types("stub", 24)?;
    // What follows the name is another section's.
    let renamed = ["--rename-section", ".BTF=.BTF_ids"];
    make(Command::new("objcopy").args(renamed).arg(path("whole")).arg(path("ids")))?;
    std::fs::write(path("asked"), "CONFIG_BPF=y\nCONFIG_DEBUG_INFO_BTF=y\n")?;
    std::fs::write(path("dropped"), "# CONFIG_DEBUG_INFO_BTF is not set\n")?;
    std::fs::write(path("empty"), "")?;

    let said = |kernel: &str, config: &str| -> Result<(bool, String)> {
        let output = judge(&path(kernel), &path(config))?;
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{kernel}");
        Ok((output.status.success(), String::from_utf8(output.stdout)?))
    };
    assert_eq!(said("whole", "asked")?, (true, String::new()));
    for (kernel, config, expected) in [
        ("bare", "asked", "has no types (section .BTF), and"),
        ("bare", "dropped", "says '# CONFIG_DEBUG_INFO_BTF is not set'"),
        ("bare", "empty", "CONFIG_DEBUG_INFO_BTF is not known"),
        ("ids", "asked", "has no types (section .BTF)"),
        ("stub", "asked", "of 0x000018 bytes only"),
    ] {
        let (passed, text) = said(kernel, config)?;
        assert!(!passed && text.contains(expected), "{kernel}, {config}: {passed} {text:?}");
    }
    // A file that is no kernel at all.
    assert!(!judge(&path("kernel.c"), &path("asked"))?.status.success());
    Ok(())
}

#[test]
fn the_fragment_has_every_option_that_the_readme_asks_for() -> Result {
    let read = |name: &str| std::fs::read_to_string(root().join(name));
    let fragment = read("yocto/meta-sysflow/recipes-kernel/linux/files/sysflow.cfg")?;
    let readme = read("README.md")?;
    let asked: Vec<&str> = readme
        .split('`')
        .filter(|word| word.starts_with("CONFIG_") && !word.contains('='))
        .collect();
    let missing =
        asked.iter().filter(|one| !fragment.lines().any(|line| line == format!("{one}=y")));
    assert_eq!(missing.collect::<Vec<_>>(), Vec::<&&str>::new());
    // Without it 32-bit ARM interprets the probes.
    assert!(asked.contains(&"CONFIG_BPF_JIT_ALWAYS_ON"), "{asked:?}");
    Ok(())
}
