//! The licences and notices of a program's parts, which their licences want to go with it: first
//! what each part is under, then each text once, however many parts have it.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::Result;
use crate::parts::Part;

const LINE: &str =
    "--------------------------------------------------------------------------------";

/// The page for a program of this name: the same parts give the same bytes.
///
/// # Errors
/// If a text cannot be read.
pub fn of(program: &str, parts: &[Part]) -> Result<String> {
    let mut texts: Vec<String> = Vec::new();
    // What differs in blanks alone is the same text.
    let mut numbers: BTreeMap<String, usize> = BTreeMap::new();
    let mut page = format!(
        "Parts of others in {program}, and the numbers of their licences and notices, which follow.\n\n"
    );
    for part in parts {
        let Part { name, version, licence, origin, .. } = part;
        page.push_str(name);
        for more in version.iter().map(|version| format!(" {version}")) {
            page.push_str(&more);
        }
        let licence = licence.as_deref().unwrap_or("a licence of its own");
        write!(page, ": {licence}")?;
        let mut own = Vec::new();
        for path in &part.texts {
            let bytes = std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?;
            let text = String::from_utf8_lossy(&bytes).replace('\r', "");
            let words: Vec<&str> = text.split_whitespace().collect();
            let number = *numbers.entry(words.join(" ")).or_insert_with(|| {
                texts.push(text.trim_matches('\n').to_string());
                texts.len()
            });
            if !own.contains(&number) {
                own.push(number);
            }
        }
        if own.is_empty() {
            // What there is in its place.
            writeln!(page, "; by {}", origin.join(", "))?;
        } else {
            let own: Vec<String> = own.iter().map(|number| format!("[{number}]")).collect();
            writeln!(page, " {}", own.join(" "))?;
        }
    }
    for (index, text) in texts.iter().enumerate() {
        write!(page, "\n{LINE}\n[{}]\n\n{text}\n", index + 1)?;
    }
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parts::{self, Program, example};
    use crate::workspace::Workspace;

    #[test]
    fn each_part_has_its_notice_and_equal_texts_stand_once() {
        let folder = tempfile::tempdir().unwrap();
        let (zig, file) = example::zig_and_program(folder.path(), true);
        let names = ["libbpf-sys", "ring", "rustls-webpki", "subtle", "untrusted", "log"];
        let mut crates = example::crates(Workspace::Device, &names);
        let said = "name = \"bare\"\nlicense = \"MIT/ISC\"\nauthors = [\"A <a@a.example>\"]\n\
                    repository = \"https://a.example\"\n";
        crates.extend(example::made_up(folder.path(), "bare", said));
        let own = "license-file = \"TERMS\"\n";
        let more = example::made_up(folder.path(), "own", own);
        for place in more.values() {
            std::fs::write(place.join("TERMS"), "\r\nmusl  may\r\nbe used\r\n").unwrap();
        }
        crates.extend(more);
        let workspace = Workspace::Device;
        let program =
            Program { workspace, name: "agent", file: &file, crates: &crates, zig: Some(&zig) };
        let parts = parts::of(&program).unwrap();
        let page = of("agent", &parts).unwrap();
        for part in &parts {
            let version = part.version.as_ref().map(|v| format!(" {v}")).unwrap_or_default();
            let line = format!("\n{}{version}: ", part.name);
            assert_eq!(page.matches(&line).count(), 1, "{line}");
            assert!(!part.texts.is_empty() || !part.origin.is_empty(), "{part:?}");
        }
        assert!(page.contains("\nbare 0.0.1: MIT OR ISC; by A <a@a.example>, https://a.example\n"));
        // Of ring those below its folder, too; of libbpf-sys what is linked and not all that it has.
        for (text, count) in [
            ("// Copyright 2015-2016 Brian Smith.", 1),
            ("the fiat-crypto authors", 1),
            ("2016-2024 Isis Agora Lovecruft", 1),
            ("GNU LESSER GENERAL PUBLIC LICENSE\n                       Version 3", 1),
            ("1995-2022 Jean-loup Gailly", 1),
            ("the unwinder may be used", 1),
            ("zig may be used", 1),
            ("musl  may\nbe used", 1),
            ("musl may be used", 0),
        ] {
            assert_eq!(page.matches(text).count(), count, "{text}");
        }
        assert_eq!(page, of("agent", &parts).unwrap());
    }
}
