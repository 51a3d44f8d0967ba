//! What packages are made of, held against the programs and the pages that speak of them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

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
            let commands = commands.iter().filter(|command| !text.contains(command.as_str()));
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

#[test]
fn packages_pass_debians_own_judge() -> Result {
    let test = "packages_pass_debians_own_judge";
    let packages = std::env::var_os("SYSFLOW_PACKAGES").filter(|value| !value.is_empty());
    let Some(packages) = packages else {
        return skip(test, "SYSFLOW_PACKAGES is not set (run `cargo xtask test`)");
    };
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
