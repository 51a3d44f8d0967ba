//! The demonstration's report: what of the workload is among the records, and what all of it
//! cost and lost.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use codec::{Operation, Term};
use serde_json::Value;

use crate::frames::Summary;
use crate::records::{differences, number, text, volume};
use crate::truth::Truth;

/// Columns of the report.
const COLUMNS: usize = 118;
/// Records that are printed; the rest is counted.
const ROWS_MAX: usize = 64;
/// Folders of programs' libraries and of the kernel's files: reads there say little.
const QUIET: [&str; 7] =
    ["/etc/ld.so", "/etc/locale.alias", "/lib", "/usr/lib", "/proc", "/dev", "/sys"];

/// The report as text, and the differences from the truth.
pub fn report(records: &[Value], truth: &Truth, summary: &Summary) -> (String, Vec<String>) {
    let faults = differences(records, truth);
    let tree = process_tree(records, truth);
    let mut out = String::new();
    workload_table(&mut out, records, &tree, truth);
    counts(&mut out, summary);
    losses(&mut out, summary);
    verdict(&mut out, truth, &faults);
    (out, faults)
}

/// The workload's processes: those that it names, and whoever they started.
fn process_tree(records: &[Value], truth: &Truth) -> BTreeSet<i64> {
    let mut tree: BTreeSet<i64> = [i64::from(truth.pid)].into();
    loop {
        let before = tree.len();
        for record in records {
            let (pid, parent) = (number(record, "proc.pid"), number(record, "pproc.pid"));
            let is_child = parent.is_some_and(|parent| tree.contains(&parent));
            tree.extend(pid.filter(|_| is_child));
        }
        if tree.len() == before {
            return tree;
        }
    }
}

fn is_quiet(record: &Value) -> bool {
    let path = text(record, "file.path");
    match text(record, "type") {
        "FF" => QUIET.iter().any(|folder| path.starts_with(folder)) || !path.starts_with('/'),
        // The two records of a start say less than the program that then runs.
        "PE" => text(record, "opflags") == "CLONE" || is_thread(record),
        "PF" => true,
        _ => false,
    }
}

fn is_thread(record: &Value) -> bool {
    number(record, "proc.tid") != number(record, "proc.pid")
}

fn workload_table(out: &mut String, records: &[Value], tree: &BTreeSet<i64>, truth: &Truth) {
    let mut own: Vec<&Value> = records
        .iter()
        .filter(|record| number(record, "proc.pid").is_some_and(|pid| tree.contains(&pid)))
        .collect();
    own.sort_by_key(|record| number(record, "ts_uts"));
    let start = own.iter().filter_map(|record| number(record, "ts_uts")).min().unwrap_or(0);
    let (quiet, loud): (Vec<&Value>, Vec<&Value>) = own.iter().partition(|record| is_quiet(record));
    let _ = writeln!(
        out,
        "PE process event, FF file flow, FE file event, NF network flow; O open A accept C connect \
         W write R read, last C close, T ended otherwise\n"
    );
    let _ = writeln!(
        out,
        "{:>8} {:<2} {:<14} {:>6} {:<15} {:>9} {:>9}  WHAT",
        "MS", "T", "OPERATIONS", "PID", "PROGRAM", "READ", "WRITTEN"
    );
    for record in loud.iter().take(ROWS_MAX) {
        let _ = writeln!(out, "{}", row(record, start, truth));
    }
    let more = loud.len().saturating_sub(ROWS_MAX);
    let _ = writeln!(
        out,
        "… and {} records of the workload: {} of libraries, pipes, system files and starts{}",
        quiet.len() + more,
        quiet.len(),
        if more > 0 { format!(", and {more} more") } else { String::new() }
    );
}

fn row(record: &Value, start: i64, truth: &Truth) -> String {
    let is_flow = matches!(text(record, "type"), "FF" | "NF");
    let ms = (number(record, "ts_uts").unwrap_or(start) - start) as f64 / 1e6;
    let program = text(record, "proc.exe").rsplit('/').next().unwrap_or_default();
    let v = volume(record);
    let (read, written) = if is_flow {
        (v.read_bytes.to_string(), v.write_bytes.to_string())
    } else {
        (String::new(), String::new())
    };
    let mut line = format!(
        "{ms:>8.1} {:<2} {:<14} {:>6} {:<15} {read:>9} {written:>9}  ",
        text(record, "type"),
        operations(record),
        number(record, "proc.pid").unwrap_or(0),
        cut(program, 15),
    );
    let room = COLUMNS.saturating_sub(line.chars().count());
    line.push_str(&cut(&what(record, truth), room));
    line
}

/// Flows show one letter for each operation, events their name.
fn operations(record: &Value) -> String {
    text(record, "opflags").split_whitespace().collect::<Vec<_>>().join("")
}

fn what(record: &Value, truth: &Truth) -> String {
    let result = number(record, "ret").unwrap_or(0);
    let failed = if result == 0 { String::new() } else { format!(" = {result}") };
    let end = |ip, port| {
        let (ip, port) = (text(record, ip), number(record, port).unwrap_or(0));
        if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
    };
    match (text(record, "type"), text(record, "opflags")) {
        ("PE", "EXEC") => shorten(text(record, "proc.args"), truth),
        ("PE", "EXIT") if result % 256 == 0 => format!("code {}", result / 256),
        ("PE", "EXIT") => format!("signal {}", result % 128),
        ("PE", "SETUID") => format!("to {} = {result}", list(&record["record.args"])),
        ("PE", _) => format!("= {result}"),
        ("FE", _) => {
            let new = text(record, "file.newpath");
            let arrow = if new.is_empty() { "" } else { " → " };
            let path = shorten(text(record, "file.path"), truth);
            let refused = if text(record, "opflags").trim() == "O" { "refused: " } else { "" };
            format!("{refused}{path}{arrow}{}{failed}", shorten(new, truth))
        }
        ("NE", _) => end("net.dip", "net.dport") + &failed,
        ("NF", _) => format!("{} → {}", end("net.sip", "net.sport"), end("net.dip", "net.dport")),
        _ => shorten(text(record, "file.path"), truth),
    }
}

fn list(values: &Value) -> String {
    let words = values.as_array().into_iter().flatten();
    words.map(|word| word.as_str().unwrap_or_default()).collect::<Vec<_>>().join(", ")
}

/// The workload's own folder is named in its arguments; `…` stands for it.
fn shorten(words: &str, truth: &Truth) -> String {
    let own = truth.processes.first().and_then(|process| process.args.last());
    match own {
        Some(folder) if !folder.is_empty() => words.replace(folder.as_str(), "…"),
        _ => words.to_string(),
    }
}

fn cut(words: &str, columns: usize) -> String {
    if words.chars().count() <= columns {
        return words.to_string();
    }
    let kept: String = words.chars().take(columns.saturating_sub(1)).collect();
    kept + "…"
}

fn counts(out: &mut String, summary: &Summary) {
    let records = summary.records_total();
    let kinds = summary.records.iter().map(|(kind, count)| format!("{kind} {count}"));
    let kinds: Vec<String> = std::iter::once(format!("{records} in all")).chain(kinds).collect();
    let _ = writeln!(out, "\nThe whole machine, as the collector holds it:");
    line_of(out, "records", &kinds);
    let each = summary.bytes as f64 / records.max(1) as f64;
    let _ = writeln!(
        out,
        "  wire     {} frames, {} bytes, {each:.1} bytes a record (headers and ledger included)",
        summary.frames, summary.bytes
    );
}

/// A name and its values, on as many lines as they need.
fn line_of(out: &mut String, name: &str, values: &[String]) {
    let mut line = format!("  {name:<8}");
    for (place, value) in values.iter().enumerate() {
        let comma = if place + 1 < values.len() { "," } else { "" };
        if line.chars().count() + value.chars().count() + 2 > COLUMNS {
            let _ = writeln!(out, "{line}");
            line = " ".repeat(10);
        }
        let _ = write!(line, " {value}{comma}");
    }
    let _ = writeln!(out, "{line}");
}

fn losses(out: &mut String, summary: &Summary) {
    let terms = |is_loss: bool| -> Vec<String> {
        let terms = Term::ALL.iter().filter(|term| term.is_loss() == is_loss);
        terms.map(|term| format!("{} {}", term.name(), summary.term(*term))).collect()
    };
    line_of(out, "ledger", &terms(false));
    line_of(out, "losses", &terms(true));
    let lost: Vec<&str> = Operation::ALL
        .iter()
        .filter(|operation| {
            summary
                .ledger
                .iter()
                .any(|((o, t), total)| *o == Some(**operation) && t.is_loss() && *total > 0)
        })
        .map(|operation| operation.name())
        .collect();
    if !lost.is_empty() {
        let _ = writeln!(out, "           of the kinds {}", lost.join(", "));
    }
}

fn verdict(out: &mut String, truth: &Truth, faults: &[String]) {
    let _ = writeln!(
        out,
        "\nCompared with what the workload itself counted: {} processes, {} files, {} ends of \
         connections, {} events",
        truth.processes.len(),
        truth.files.len(),
        truth.network.len(),
        truth.events.len()
    );
    if faults.is_empty() {
        let _ = writeln!(out, "all found, with the same calls and bytes");
        return;
    }
    let _ = writeln!(out, "{} differ:", faults.len());
    for fault in faults {
        let _ = writeln!(out, "  - {fault}");
    }
}
