//! What packages are made of, held against the programs and the pages that speak of them.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tests::Result;
use tests::machine::{has_program, skip};

/// Each program, and the folder of what its package has.
const PROGRAMS: [(&str, &str); 2] =
    [("sysflow-agent", "agent"), ("sysflow-collector", "collector")];

fn read(name: &str) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name);
    Ok(std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?)
}

/// What a program prints of itself.
fn help(program: &Path, command: &[&str]) -> Result<String> {
    let output = Command::new(program).args(command).arg("--help").output()?;
    Ok(String::from_utf8(output.stdout)?)
}

/// The long options in a text, without their dashes, and the first words of its indented lines.
fn words(help: &str) -> (BTreeSet<String>, BTreeSet<String>) {
    let name = |word: &str| -> String {
        word.chars().take_while(|c| c.is_ascii_lowercase() || *c == '-').collect()
    };
    let options = help.split("--").skip(1).map(name).filter(|option| !option.is_empty()).collect();
    let commands = help
        .lines()
        .filter_map(|line| line.strip_prefix("  "))
        .filter(|line| line.starts_with(|c: char| c.is_ascii_lowercase()))
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_string)
        .collect();
    (options, commands)
}

/// Whether a page or a completion, which an ending tells apart, knows a command where it lists
/// commands: elsewhere it may be a word of English.
fn knows(text: &str, ending: &str, name: &str, command: &str) -> bool {
    let has = |list: &str| list.split([' ', '"']).any(|word| word == command);
    match ending {
        "8" => [' ', '\n'].iter().any(|end| text.contains(&format!("\n.B {name} {command}{end}"))),
        "bash" => text.lines().any(|line| line.contains("words=\"") && has(line)),
        "zsh" => text.lines().any(|line| line.trim_start().starts_with(&format!("'{command}:"))),
        _ => text.lines().any(|line| line.starts_with("set -l commands ") && has(line)),
    }
}

#[test]
fn manuals_and_completions_know_all_commands_and_options() -> Result {
    let test = "manuals_and_completions_know_all_commands_and_options";
    // They print help: no other test is in their way.
    let of = |name| std::env::var_os(name).map(PathBuf::from);
    let (Some(agent), Some(collector)) = (of("SYSFLOW_AGENT"), of("SYSFLOW_COLLECTOR")) else {
        return skip(
            test,
            "SYSFLOW_AGENT and SYSFLOW_COLLECTOR are not set (run `cargo xtask test`)",
        );
    };
    let mut faults = Vec::new();
    for (name, folder) in PROGRAMS {
        let (program, helps): (&PathBuf, &[&[&str]]) = match folder {
            "agent" => (&agent, &[&[]]),
            _ => (&collector, &[&[], &["serve"], &["print"], &["ledger"], &["export"]]),
        };
        let (mut options, mut commands) = (BTreeSet::new(), BTreeSet::new());
        for (n, command) in helps.iter().enumerate() {
            let (more, first) = words(&help(program, command)?);
            options.extend(more);
            if n == 0 {
                commands.extend(first);
            }
        }
        // The parser's own word for --help.
        commands.remove("help");
        assert!(commands.len() >= 4 && options.len() >= 4, "{commands:?} {options:?}");
        for ending in ["8", "bash", "zsh", "fish"] {
            let file = format!("{folder}/{name}.{ending}");
            // The manual has `\-` for a dash.
            let text = read(&file)?.replace('\\', "");
            let options = options.iter().filter(|option| {
                let fish = [format!("-l {option} "), format!("-l {option}\n")];
                !text.contains(&format!("--{option}")) && !fish.iter().any(|w| text.contains(w))
            });
            let commands = commands.iter().filter(|command| !knows(&text, ending, name, command));
            faults.extend(options.chain(commands).map(|word| format!("{file}: {word}")));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(())
}

#[test]
fn completions_are_read_by_their_shells() -> Result {
    for (shell, ending) in [("bash", "bash"), ("zsh", "zsh"), ("fish", "fish")] {
        if !has_program(shell) {
            skip("completions_are_read_by_their_shells", &format!("{shell} is not installed"))?;
            continue;
        }
        for (name, folder) in PROGRAMS {
            let file =
                Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../{folder}/{name}.{ending}"));
            let output = Command::new(shell).arg("-n").arg(&file).output()?;
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() && said.is_empty(), "{}: {said}", file.display());
        }
    }
    Ok(())
}

/// The settings of a configuration, as `section.key = value`, without comments.
fn settings(text: &str) -> BTreeSet<String> {
    let mut section = "";
    let mut settings = BTreeSet::new();
    for line in text.lines().map(|line| line.split('#').next().unwrap_or_default().trim()) {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            section = name;
        } else if !line.is_empty() {
            settings.insert(format!("{section}.{line}"));
        }
    }
    settings
}

#[test]
fn the_collectors_configuration_is_the_one_of_its_page() -> Result {
    let page = read("collector/README.md")?;
    let block = page.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next());
    let on_page = settings(block.ok_or("collector/README.md shows no configuration")?);
    assert!(on_page.len() >= 10, "{on_page:?}");
    assert_eq!(settings(&read("collector/collector.toml")?), on_page);
    Ok(())
}

/// The packages; none, after saying so, if there are none.
fn packages(test: &str) -> Result<Option<OsString>> {
    let packages = std::env::var_os("SYSFLOW_PACKAGES").filter(|value| !value.is_empty());
    if packages.is_none() {
        skip(test, "SYSFLOW_PACKAGES is not set (run `cargo xtask test`)")?;
    }
    Ok(packages)
}

/// What a command prints that must end well.
fn output(command: &mut Command) -> Result<String> {
    let output = command.output().map_err(|e| format!("start {command:?}: {e}"))?;
    if !output.status.success() {
        return Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// The static target of an architecture of Debian's.
fn triple(architecture: &str) -> Result<String> {
    let targets = read("cross/targets.toml")?;
    let is_it = |section: &&str| {
        let has = |line: &str| section.lines().any(|one| one == line);
        has("tools = \"zig\"") && has(&format!("debian = \"{architecture}\""))
    };
    let section = targets.split("\n[").find(is_it).and_then(|section| section.split(']').next());
    Ok(section.ok_or_else(|| format!("{architecture}: no static target"))?.to_string())
}

/// Names and versions of the crates of registries in a package's list: those with checksums; what a
/// standard library is made of has none.
fn listed(list: &Value) -> Result<BTreeSet<String>> {
    let components = list["components"].as_array().ok_or("a list without components")?;
    let with_checksum = components.iter().filter(|component| component["hashes"].is_array());
    let purls = with_checksum.filter_map(|component| component["purl"].as_str());
    Ok(purls.filter_map(|purl| purl.strip_prefix("pkg:cargo/")).map(str::to_string).collect())
}

/// The same as cargo resolves them for a target: what is linked, without macros and build scripts.
fn linked(folder: &str, triple: &str) -> Result<BTreeSet<String>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    command.args(["tree", "--locked", "--prefix", "none", "--format", "{p}"]);
    command.args(["--edges", "normal,no-proc-macro", "--target", triple]);
    match folder {
        "agent" => {
            command.args(["--package", "agent", "--features", "bpf/vendored"]).current_dir(&root)
        }
        _ => command.current_dir(root.join(folder)),
    };
    let tree = output(&mut command)?;
    // Crates of this tree have their folder behind them.
    let lines = tree.lines().filter(|line| !line.contains("(/"));
    let of = |line: &str| {
        let mut words = line.split(' ');
        Some(format!("{}@{}", words.next()?, words.next()?.strip_prefix('v')?))
    };
    Ok(lines.filter_map(of).collect())
}

#[test]
fn the_list_of_a_package_names_exactly_the_crates_that_are_linked() -> Result {
    let test = "the_list_of_a_package_names_exactly_the_crates_that_are_linked";
    let Some(packages) = packages(test)? else { return Ok(()) };
    let mut seen = BTreeSet::new();
    for package in std::env::split_paths(&packages) {
        let unpacked = tempfile::tempdir()?;
        output(Command::new("dpkg-deb").arg("--extract").arg(&package).arg(unpacked.path()))?;
        let field = |name: &str| -> Result<String> {
            let told = output(Command::new("dpkg-deb").arg("--field").arg(&package).arg(name))?;
            Ok(told.trim().to_string())
        };
        let name = field("Package")?;
        let of_name = PROGRAMS.iter().find(|(program, _)| *program == name);
        let (program, folder) = of_name.ok_or_else(|| format!("{name} is no package of ours"))?;
        let file = format!("usr/share/doc/{program}/{program}.cdx.json");
        let text = std::fs::read_to_string(unpacked.path().join(&file))
            .map_err(|e| format!("{}: {file}: {e}", package.display()))?;
        let listed = listed(&serde_json::from_str(&text)?)?;
        let linked = linked(folder, &triple(&field("Architecture")?)?)?;
        assert!(linked.len() >= 20, "{program}: cargo names {linked:?}");
        let unlisted: Vec<_> = linked.difference(&listed).collect();
        let unlinked: Vec<_> = listed.difference(&linked).collect();
        assert!(
            unlisted.is_empty() && unlinked.is_empty(),
            "{program}: linked, not listed: {unlisted:?}; listed, not linked: {unlinked:?}"
        );
        println!("{program}: {} crates linked, all listed, and no other", listed.len());
        seen.insert(name);
    }
    assert_eq!(seen.len(), PROGRAMS.len(), "{seen:?}");
    Ok(())
}

#[test]
fn packages_pass_debians_own_judge() -> Result {
    let test = "packages_pass_debians_own_judge";
    let Some(packages) = packages(test)? else { return Ok(()) };
    if !has_program("lintian") {
        return skip(test, "lintian is not installed");
    }
    let mut command = Command::new("lintian");
    command.args(["--fail-on", "error,warning", "--allow-root"]);
    let output = command.args(std::env::split_paths(&packages)).output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
