//! The text table of `sysprint`: its columns, widths, cuts and alignment.
//!
//! `sysprint` lays out 1001 rows, then 1000 at a time, each part with column widths of its
//! own; only the first has a header. So a table of any length is printed in bounded memory.
//! Where a column holds whole numbers only it is set flush right. Some of its habits are left:
//! control characters do not reach the terminal, columns of fractions stay text, arguments are cut
//! at their end, and failed calls have their errno beside them.

use std::io::{self, Write};

/// Header and width of each column, the record's number first.
const COLUMNS: [(&str, usize); 13] = [
    ("Rec #", 6),
    ("Start Time", 21),
    ("T", 2),
    ("Cmd", 20),
    ("Args", 20),
    ("PPID", 8),
    ("PID", 8),
    ("TID", 8),
    ("Op Flags", 14),
    ("Resource", 45),
    ("NoBRead", 8),
    ("NoBWrite", 8),
    ("Cont ID", 12),
];

/// Rows of a part; the first has one more.
const PART_ROWS: u64 = 1000;

/// Headers are set with so much air.
const HEADER_AIR: usize = 2;

/// Narrowest width to which a terminal can press a column.
const PRESSED_MIN: usize = 8;

/// One field of a row.
pub(super) enum Cell {
    /// Cut at the front where it is longer than its column.
    Text(String),
    /// Cut at the end.
    Head(String),
    /// Never cut.
    Whole(String),
}

/// A table in the making.
pub(super) struct Table {
    widths: [usize; COLUMNS.len()],
    rows: Vec<[String; COLUMNS.len()]>,
    pushed: u64,
    has_header: bool,
}

/// Columns of the terminal, where one of the standard streams is one.
pub(super) fn terminal_columns() -> Option<usize> {
    let size = terminal_size::terminal_size_of(io::stdin())
        .or_else(|| terminal_size::terminal_size_of(io::stdout()))
        .or_else(|| terminal_size::terminal_size_of(io::stderr()));
    size.map(|(terminal_size::Width(columns), _)| columns.into())
}

impl Table {
    /// An empty table for a terminal of so many columns.
    pub(super) fn new(terminal: Option<usize>) -> Self {
        let fields = COLUMNS.len() - 1;
        let total: usize = COLUMNS.iter().skip(1).map(|(_, width)| width).sum();
        let room = terminal.unwrap_or(80) as f64 - (fields * 6 + 10) as f64;
        let factor = (room / total as f64).min(1.25);
        let widths = COLUMNS.map(|(_, width)| {
            // A negative product becomes 0.
            let pressed = (factor * width as f64) as usize;
            if pressed > PRESSED_MIN { pressed } else { width }
        });
        Table { widths, rows: Vec::new(), pushed: 0, has_header: false }
    }

    /// Appends a row, and prints a part when it is full.
    ///
    /// # Errors
    /// Those of `out`.
    pub(super) fn push(&mut self, cells: [Cell; 12], out: &mut dyn Write) -> io::Result<()> {
        let number = self.pushed;
        let mut cells = std::iter::once(Cell::Text(number.to_string())).chain(cells);
        self.rows.push(self.widths.map(|width| fit(cells.next(), width)));
        self.pushed += 1;
        if number > 0 && number.is_multiple_of(PART_ROWS) { self.print_part(out) } else { Ok(()) }
    }

    /// Prints what is left.
    ///
    /// # Errors
    /// Those of `out`.
    pub(super) fn finish(mut self, out: &mut dyn Write) -> io::Result<()> {
        if self.rows.is_empty() { Ok(()) } else { self.print_part(out) }
    }

    fn print_part(&mut self, out: &mut dyn Write) -> io::Result<()> {
        let with_header = !std::mem::replace(&mut self.has_header, true);
        let mut columns: [Column; COLUMNS.len()] =
            COLUMNS.map(|(header, _)| Column::new(with_header.then_some(header)));
        for (index, column) in columns.iter_mut().enumerate() {
            let cells = || self.rows.iter().filter_map(move |row| row.get(index));
            column.is_numeric = cells().all(|cell| is_whole_number(cell));
            for cell in cells() {
                column.width = column.width.max(column.content(cell).chars().count());
            }
        }
        if with_header {
            let headers = COLUMNS.map(|(header, _)| header.to_owned());
            print_row(out, &columns, &headers)?;
        }
        let rule = columns.each_ref().map(|column| "-".repeat(column.width + 2));
        writeln!(out, "|{}|", rule.join("|"))?;
        for row in self.rows.drain(..) {
            print_row(out, &columns, &row)?;
        }
        Ok(())
    }
}

struct Column {
    width: usize,
    is_numeric: bool,
}

impl Column {
    fn new(header: Option<&str>) -> Self {
        Column { width: header.map_or(0, |header| header.len() + HEADER_AIR), is_numeric: false }
    }

    /// Numbers keep the blanks that they were padded with; texts lose them.
    fn content<'c>(&self, cell: &'c str) -> &'c str {
        if self.is_numeric { cell } else { cell.trim() }
    }
}

fn print_row(
    out: &mut dyn Write,
    columns: &[Column; COLUMNS.len()],
    row: &[String; COLUMNS.len()],
) -> io::Result<()> {
    for (column, cell) in columns.iter().zip(row) {
        let (text, width) = (column.content(cell), column.width);
        if column.is_numeric {
            write!(out, "| {text:>width$} ")?;
        } else {
            write!(out, "| {text:<width$} ")?;
        }
    }
    writeln!(out, "|")
}

/// Pads to the column's width, or cuts one end off and says so with two dots.
fn fit(cell: Option<Cell>, width: usize) -> String {
    let surplus = |text: &str| text.chars().count().saturating_sub(width);
    match cell {
        None => String::new(),
        Some(Cell::Whole(text)) => text,
        Some(Cell::Text(text) | Cell::Head(text)) if surplus(&text) == 0 => {
            format!("{text:<width$}")
        }
        Some(Cell::Text(text)) => "..".chars().chain(text.chars().skip(surplus(&text))).collect(),
        Some(Cell::Head(text)) => text.chars().take(width).chain("..".chars()).collect(),
    }
}

/// Whether Python's `int` takes the text.
fn is_whole_number(text: &str) -> bool {
    let text = text.trim();
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    digits.split('_').all(|part| !part.is_empty() && part.chars().all(|c| c.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(text: &str) -> [Cell; 12] {
        std::array::from_fn(|_| Cell::Text(text.to_owned()))
    }

    #[test]
    fn parts_have_1001_and_then_1000_rows_and_one_header() {
        let (mut table, mut out) = (Table::new(None), Vec::new());
        for _ in 0..2500 {
            table.push(row("x"), &mut out).unwrap();
        }
        table.finish(&mut out).unwrap();
        let out = String::from_utf8(out).unwrap();
        let rules: Vec<usize> = out
            .lines()
            .enumerate()
            .filter_map(|(number, line)| line.starts_with("|--").then_some(number))
            .collect();
        assert_eq!(rules, [1, 1003, 2004]);
        assert_eq!(out.matches("Start Time").count(), 1);
    }

    #[test]
    fn a_wide_terminal_widens_columns_and_a_narrow_one_does_not_press_them() {
        assert_eq!(Table::new(Some(60)).widths[9], 45);
        assert_eq!(Table::new(Some(200)).widths[9], 30);
        assert_eq!(Table::new(Some(1000)).widths[9], 56);
        assert_eq!(Table::new(Some(200)).widths[2], 2);
    }

    #[test]
    fn cells_are_cut_at_the_front_or_at_the_end() {
        assert_eq!(fit(Some(Cell::Head("abcdef".to_owned())), 4), "abcd..");
        assert_eq!(fit(Some(Cell::Head("äö".to_owned())), 4), "äö  ");
        assert_eq!(fit(Some(Cell::Text("abcdef".to_owned())), 4), "..cdef");
        assert_eq!(fit(Some(Cell::Text("äö".to_owned())), 4), "äö  ");
        assert_eq!(fit(Some(Cell::Whole("abcdef".to_owned())), 4), "abcdef");
        assert!(is_whole_number(" -12 ") && is_whole_number("1_0"));
        assert!(!is_whole_number("") && !is_whole_number("1.0") && !is_whole_number("_1"));
    }
}
