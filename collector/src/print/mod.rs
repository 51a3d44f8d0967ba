//! The commands `print` and `export`: what was found, for people and for programs.
//!
//! Text is the table of SysFlow's `sysprint`, JSON is one flat object a line with its keys
//! and ours behind them. Both end with the ledger of each run and one line a gap, so that a
//! reader sees what is lost.

mod filter;
mod join;
mod json;
mod table;
mod text;

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::account::Account;
use crate::capture::{self, Origin, Sink};
use crate::sf::{self, SfFile};
use crate::sysflow::Record;
pub(crate) use filter::{Filter, KINDS, moment};
use join::Joiner;
use table::Table;
pub(crate) use text::escape;

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// The table of `sysprint`.
    Text,
    /// One flat JSON object a line.
    Json,
}

impl Format {
    /// The format that the option `--json` asks for.
    pub(crate) fn of(json: bool) -> Format {
        if json { Format::Json } else { Format::Text }
    }
}

/// How a command went that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// All was read.
    Whole,
    /// Some files could not be read; the output says which.
    Damaged,
}

/// Prints what of all that `paths` lead to the filter takes. Ledgers are of whole runs: they follow
/// where it takes all. What is missing is said always.
///
/// # Errors
/// Those of the output and of paths that cannot be opened.
pub(crate) fn print(
    paths: &[PathBuf],
    format: Format,
    filter: Filter,
    out: &mut dyn Write,
) -> io::Result<Outcome> {
    let mut printer = Printer {
        out,
        format,
        filter,
        joiner: Joiner::default(),
        table: Table::new(table::terminal_columns()),
        account: Account::default(),
    };
    capture::read(paths, &mut printer)?;
    printer.finish()
}

/// Writes one `.sf` file of all that `paths` lead to, and says on `out` what it leaves out.
///
/// # Errors
/// Those of the file system and of `out`.
pub(crate) fn export(target: &Path, paths: &[PathBuf], out: &mut dyn Write) -> io::Result<Outcome> {
    let filename = target.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut exporter = Exporter {
        file: SfFile::create(target, &filename)?,
        filename,
        account: Account::default(),
    };
    capture::read(paths, &mut exporter)?;
    let Exporter { file, account, .. } = exporter;
    let tally = file.finish()?;
    writeln!(out, "{}: {} records", target.display(), tally.written)?;
    for (reason, count) in sf::all_reasons(&tally.left_out) {
        writeln!(out, "left out, {reason}: {count}")?;
    }
    for (kind, count) in account.unresolved_counts() {
        writeln!(out, "unresolved, {kind}: {count}")?;
    }
    for gap in account.gaps() {
        writeln!(out, "{}", text::escape(&gap.line()))?;
    }
    Ok(if account.has_unreadable() { Outcome::Damaged } else { Outcome::Whole })
}

struct Printer<'o> {
    out: &'o mut dyn Write,
    format: Format,
    filter: Filter,
    joiner: Joiner,
    table: Table,
    account: Account,
}

impl Printer<'_> {
    fn finish(self) -> io::Result<Outcome> {
        self.table.finish(self.out)?;
        let runs = if self.filter.takes_all() { self.account.runs() } else { &[] };
        let ends = self.account.ends();
        for run in runs {
            let end_ns = ends.end_ns(run);
            match self.format {
                Format::Text => {
                    for line in run.lines(end_ns) {
                        writeln!(self.out, "{}", text::escape(&line))?;
                    }
                }
                Format::Json => writeln!(self.out, "{}", run.json(end_ns))?,
            }
        }
        for gap in self.account.gaps() {
            match self.format {
                Format::Text => writeln!(self.out, "{}", text::escape(&gap.line()))?,
                Format::Json => writeln!(self.out, "{}", gap.json())?,
            }
        }
        let unresolved = self.account.unresolved_counts();
        for (kind, count) in unresolved.into_iter().filter(|(_, count)| *count > 0) {
            match self.format {
                Format::Text => writeln!(self.out, "unresolved, {kind}: {count}")?,
                Format::Json => {
                    let row =
                        serde_json::json!({ "type": "UNRESOLVED", "kind": kind, "count": count });
                    writeln!(self.out, "{row}")?;
                }
            }
        }
        self.out.flush()?;
        let damaged = self.account.has_unreadable();
        Ok(if damaged { Outcome::Damaged } else { Outcome::Whole })
    }
}

impl Sink for Printer<'_> {
    fn account(&mut self) -> &mut Account {
        &mut self.account
    }

    fn source(&mut self) -> io::Result<()> {
        self.joiner = Joiner::default();
        let fresh = Table::new(table::terminal_columns());
        std::mem::replace(&mut self.table, fresh).finish(self.out)
    }

    fn record(&mut self, record: Record, origin: Option<&Origin>) -> io::Result<()> {
        let Some(row) = self.joiner.row(&record) else {
            self.joiner.note(record);
            return Ok(());
        };
        if !self.filter.takes(&row) {
            return Ok(());
        }
        match self.format {
            Format::Text => self.table.push(text::cells(&row), self.out),
            Format::Json => {
                serde_json::to_writer(&mut *self.out, &json::object(&row, origin))?;
                self.out.write_all(b"\n")
            }
        }
    }
}

struct Exporter {
    file: SfFile,
    filename: String,
    account: Account,
}

impl Sink for Exporter {
    fn account(&mut self) -> &mut Account {
        &mut self.account
    }

    fn record(&mut self, mut record: Record, origin: Option<&Origin>) -> io::Result<()> {
        if let (Record::Header(header), Some(_)) = (&mut record, origin) {
            header.filename.clone_from(&self.filename);
        }
        self.file.push(&record)
    }
}
