//! The page for buyers: whatever it names as proof is in the tree, and no clause is passed over.

use std::collections::BTreeSet;

use tests::Result;

use crate::checks::root;

const PAGE: &str = "yocto/meta-sysflow/COMPLIANCE.md";
/// What each table must have a row for, in this order.
const CRA_PROPERTIES: &str = "abcdefghijklm";
const CRA_PROCESSES: u32 = 8;
const ETSI_GROUPS: u32 = 13;
/// Of EN 303 645, too: data protection, a clause of its own.
const ETSI_DATA_PROTECTION: &str = "6";

fn read(name: &str) -> Result<String> {
    Ok(std::fs::read_to_string(root().join(name)).map_err(|e| format!("{name}: {e}"))?)
}

/// The cells of the rows of the page's tables, heads left out.
fn rows(page: &str) -> Vec<Vec<&str>> {
    let is_row = |line: &&str| !line.starts_with("| clause") && !line.starts_with("| ---");
    page.lines()
        .filter(is_row)
        .filter_map(|line| line.strip_prefix("| ")?.strip_suffix('|'))
        .map(|row| row.split(" |").map(str::trim).collect())
        .collect()
}

/// The words between backticks.
fn named(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// Why what is named does not exist; none: it does.
fn fault(name: &str) -> Result<Option<String>> {
    let missing = |what: &str| Ok(Some(format!("`{name}`: {what}")));
    let words: Vec<&str> = name.split(' ').collect();
    match words.as_slice() {
        ["cargo", "xtask", verb] => {
            let verbs = read("cross/xtask/src/main.rs")?;
            if verbs.contains(&format!("\n        \"{verb}\" => ")) {
                return Ok(None);
            }
            missing("no such verb")
        }
        [program @ ("sysflow-agent" | "sysflow-collector"), command] => {
            let manual = format!("{}/{program}.8", program.trim_start_matches("sysflow-"));
            let line = format!("\n.B {} {command}", program.replace('-', "\\-"));
            if read(&manual)?.contains(&line) {
                return Ok(None);
            }
            missing("no such command in the manual")
        }
        [one] if one.contains("::") => {
            let (file, test) = one.split_once("::").unwrap_or((one, ""));
            if !root().join(file).is_file() {
                return missing("no such file");
            }
            let text = read(file)?;
            let before = text.split_once(&format!("fn {test}(")).map(|(before, _)| before);
            let is_there = before.is_some_and(|before| before.trim_end().ends_with("#[test]"));
            if is_there { Ok(None) } else { missing("no such test in the file") }
        }
        [one] if root().join(one).is_file() => Ok(None),
        [one] if one.contains('.') && !one.contains('/') => {
            let (section, key) = one.rsplit_once('.').unwrap_or((one, ""));
            let files = read("agent/agent.toml")? + &read("collector/collector.toml")?;
            let is_there = files.split(&format!("\n[{section}]\n")).skip(1).any(|rest| {
                let part = rest.split("\n[").next().unwrap_or_default();
                part.lines().any(|line| line.starts_with(&format!("{key} = ")))
            });
            if is_there { Ok(None) } else { missing("neither a file nor a setting") }
        }
        _ => missing("no such file"),
    }
}

#[test]
fn what_the_page_names_as_proof_exists() -> Result {
    let page = read(PAGE)?;
    let mut faults = Vec::new();
    let mut proofs = BTreeSet::new();
    for row in rows(&page) {
        let [clause, _, _, shown, _] = row.as_slice() else {
            faults.push(format!("a row has {} cells: {row:?}", row.len()));
            continue;
        };
        if named(shown).next().is_none() {
            faults.push(format!("{clause}: shown by nothing"));
        }
        for name in named(shown) {
            proofs.insert(name);
            faults.extend(fault(name)?.map(|why| format!("{clause}: {why}")));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(proofs.len() >= 50, "{} proofs", proofs.len());
    Ok(())
}

#[test]
fn the_page_passes_over_no_clause() -> Result {
    let page = read(PAGE)?;
    let clauses: Vec<&str> = rows(&page).into_iter().map(|row| row[0]).collect();
    let properties = CRA_PROPERTIES.chars().map(|letter| format!("I (2)({letter})"));
    let expected: Vec<String> = ["I (1)".to_string()]
        .into_iter()
        .chain(properties)
        .chain((1..=CRA_PROCESSES).map(|n| format!("II ({n})")))
        .chain((1..=ETSI_GROUPS).map(|n| format!("5.{n}")))
        .chain([ETSI_DATA_PROTECTION.to_string()])
        .collect();
    assert_eq!(clauses[..expected.len()], expected);
    let rest = &clauses[expected.len()..];
    assert!(rest.len() >= 20 && rest.iter().all(|clause| clause.starts_with("CR ")), "{rest:?}");
    assert_eq!(rest.iter().collect::<BTreeSet<_>>().len(), rest.len(), "a clause twice");
    Ok(())
}

#[test]
fn what_does_not_exist_is_a_fault() -> Result {
    for name in [
        "cargo xtask dance",
        "sysflow-agent dance",
        "tests/tidy.rs::no_such_test",
        "tests/no_such_file.rs",
        "memory.no_such_key",
        "no_such_section.budget_bytes",
    ] {
        assert!(fault(name)?.is_some(), "{name}");
    }
    Ok(())
}

#[test]
fn the_layer_names_the_trees_maintainer() -> Result {
    let manifest = read("Cargo.toml")?;
    let authors = manifest.lines().find_map(|line| line.strip_prefix("authors = [\""));
    let maintainer = authors.and_then(|rest| rest.split('"').next());
    let maintainer = maintainer.ok_or("Cargo.toml names no authors")?;
    assert!(read("yocto/meta-sysflow/README.md")?.contains(&format!("Maintainer: {maintainer}.")));
    Ok(())
}
