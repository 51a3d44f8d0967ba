//! `print` and `export`, held against `sysprint` of the SysFlow project.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::harness::frames::{IPV6, OFFSET_NS, ROWS, Run, UNSAID_ROWS};
use crate::harness::{Site, run};

/// The reference reader. A test that cannot run it fails: it must not pass unseen.
fn sysprint(arguments: &[&OsStr]) -> String {
    let Some(program) = std::env::var_os("SYSPRINT") else {
        panic!(
            "SYSPRINT is not set: it names the program sysprint that the output is compared \
             with (python3 -m venv DIR && DIR/bin/pip install sysflow-tools==0.6.1, then \
             SYSPRINT=DIR/bin/sysprint)"
        );
    };
    let mut command = Command::new(program);
    let output = command.args(arguments).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn print(arguments: &[&OsStr]) -> String {
    let arguments: Vec<&OsStr> = [OsStr::new("print")].iter().chain(arguments).copied().collect();
    let output = run(&arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn json_lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Columns of the table in front of the arguments, which may have bars in them, and behind them.
const AROUND: [usize; 2] = [4, 8];
/// Of those behind, the operations.
const OPERATIONS: usize = 3;

/// The cells of the table without what depends on the version of sysprint's table library: padding.
fn cells(text: &str) -> Vec<Vec<String>> {
    let is_rule = |line: &str| line.starts_with("|-");
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let row = |line: &str| {
        let inner = line.strip_prefix('|').unwrap().trim_end().strip_suffix('|').unwrap();
        let all: Vec<&str> = inner.split('|').collect();
        let (front, rest) = all.split_at(AROUND[0]);
        let (arguments, back) = rest.split_at(rest.len() - AROUND[1]);
        let arguments = arguments.join("|");
        front.iter().copied().chain([&*arguments]).chain(back.iter().copied()).map(words).collect()
    };
    text.lines().filter(|line| !is_rule(line)).map(row).collect()
}

/// Holds a row against the reference's: alike but for the end at which arguments are cut, and the
/// errno behind the operations of calls that failed.
#[track_caller]
fn compare_row(ours: &[String], theirs: &[String]) {
    assert_eq!(ours.len(), theirs.len());
    let operations = AROUND[0] + 1 + OPERATIONS;
    for (at, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
        if at == AROUND[0] {
            assert_eq!(ours.ends_with(".."), theirs.starts_with(".."), "{ours:?} {theirs:?}");
            assert!(ours.ends_with("..") || ours == theirs, "{ours:?} {theirs:?}");
        } else if at == operations && ours != theirs {
            let errno = ours.strip_prefix(theirs.as_str()).unwrap_or_default();
            assert!(errno.starts_with(" E"), "{ours:?} {theirs:?}");
        } else {
            assert_eq!(ours, theirs);
        }
    }
}

/// Holds our output for a `.sf` file against the reference's.
fn compare(path: &Path) {
    let (ours, theirs) = (print(&[path.as_ref()]), sysprint(&[path.as_ref()]));
    for (ours, theirs) in cells(&ours).iter().zip(cells(&theirs)) {
        compare_row(ours, &theirs);
    }
    assert_eq!(ours.lines().count(), theirs.lines().count(), "{}", path.display());

    let ours = json_lines(&print(&["--json".as_ref(), path.as_ref()]));
    let all = ["-A", "-o", "flatjson"].map(OsStr::new);
    let theirs = json_lines(&sysprint(&[&all[..], &[path.as_ref()]].concat()));
    assert_eq!(ours.len(), theirs.len(), "{}", path.display());
    for (ours, theirs) in ours.iter().zip(&theirs) {
        let (ours, theirs) = (ours.as_object().unwrap(), theirs.as_object().unwrap());
        // Key by key and in the same order; ours has more behind them.
        for (ours, theirs) in ours.iter().zip(theirs) {
            assert_eq!(ours, theirs, "{}", path.display());
        }
        assert!(ours.len() > theirs.len());
    }
}

fn samples() -> Vec<PathBuf> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/samples");
    let mut paths: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    // It was written before schema version 1.
    paths.retain(|path| !path.ends_with("nginx-nginx.sf"));
    paths.sort();
    paths
}

#[test]
fn captures_of_the_reference_collector_are_printed_as_sysprint_prints_them() {
    for path in samples() {
        compare(&path);
    }
}

/// The sample frames in files whose names say nothing.
fn sample_folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (frame, name) in Run::new("gw-1", 1).sample().iter().zip(["z.frame", "a.frame"]) {
        fs::write(folder.path().join(name), frame).unwrap();
    }
    folder
}

#[test]
fn an_export_is_read_by_sysprint_and_says_what_it_leaves_out() {
    let folder = sample_folder();
    let target = folder.path().join("out.sf");
    let output = run(&["export", "--sf"]
        .map(OsStr::new)
        .into_iter()
        .chain([target.as_ref(), folder.path().as_ref()])
        .collect::<Vec<_>>());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8(output.stdout).unwrap();
    for line in [
        "left out, extension_operation: 1",
        "left out, extension_operation_masked: 1",
        "left out, ipv6: 1",
        "left out, network_event: 1",
        "left out, unresolved_file: 1",
    ] {
        assert!(said.contains(line), "{said}");
    }
    compare(&target);
    let rows = json_lines(&print(&["--json".as_ref(), target.as_ref()]));
    assert_eq!(rows.len(), ROWS - UNSAID_ROWS);
    // Frames and the file made of them print alike, but for what the file cannot say.
    let frames = json_lines(&print(&["--json".as_ref(), folder.path().as_ref()]));
    let said = |row: &&Value| {
        let bits = row["opflags_bitmap"].as_u64();
        let unsaid = row["type"] == "NE"
            || row["net.sip"] == IPV6
            || bits == Some(1 << 21)
            || row["file.path"] == "" && row["type"] == "FF"
            || row["type"] == "LEDGER"
            || row["type"] == "GAP"
            || row["type"] == "UNRESOLVED";
        !unsaid
    };
    let frames: Vec<&Value> = frames.iter().filter(said).collect();
    assert_eq!(frames.len(), rows.len());
    for (from_frames, from_file) in frames.iter().zip(&rows) {
        for key in ["type", "ts", "endts_uts", "proc.exe", "proc.createts", "opflags", "res", "ret"]
        {
            assert_eq!(from_frames[key], from_file[key], "{key}");
        }
    }
}

#[test]
fn json_of_frames_says_what_schema_version_5_cannot() {
    let folder = sample_folder();
    let rows = json_lines(&print(&["--json".as_ref(), folder.path().as_ref()]));
    let find = |key: &str, value: Value| {
        rows.iter().find(|row| row[key] == value).unwrap_or_else(|| panic!("no {key} {value}"))
    };
    let ipv6 = find("net.sip", json!(IPV6));
    assert_eq!(ipv6["res"], format!("[{IPV6}]:40000-[{IPV6}]:443"));
    assert_eq!(ipv6["net.error"], -111);
    assert_eq!(ipv6["net.flags"], json!(["role_assumed"]));
    assert_eq!(ipv6["endreason"], "active_timeout");
    let mapped = find("net.dip", json!("10.1.2.3"));
    assert_eq!(mapped["net.sip"], "192.168.59.100");
    let rename = find("opflags", json!("RENAME"));
    assert_eq!(rename["file.inode"], 1_u64 << 40);
    assert_eq!(rename["file.new.device"], 8 << 20 | 1);
    assert_eq!(rename["record.kind"], "FileEvent");
    let setuid = find("opflags", json!("SETUID"));
    assert_eq!(setuid["record.args"], json!(["me"]));
    assert_eq!(setuid["proc.flags"], json!(["args_truncated"]));
    assert_eq!(setuid["stream.run"], "0101010101010101");
    assert_eq!(setuid["stream.sequence"], 1);
    assert_eq!(setuid["proc.createts"], 1_790_000_000_900_000_000_i64);
    // A cut flow, an end without a close, and one with it.
    let flags = |reason: &str| &find("endreason", json!(reason))["opflags"];
    assert_eq!(flags("lack_of_resources"), "   W     T ");
    assert_eq!(flags("end_detected"), "O     M C  ");
}

#[test]
fn the_ledger_and_the_gaps_come_after_the_records() {
    let folder = tempfile::tempdir().unwrap();
    let stream = Run::new("gw-1", 1);
    let mut frames = stream.sample();
    frames.push(stream.next(0, 4));
    fs::write(folder.path().join("all.frame"), frames.concat()).unwrap();
    let rows = json_lines(&print(&["--json".as_ref(), folder.path().as_ref()]));
    let [ledger, interruption, missing, unresolved] = &rows[rows.len() - 4..] else { panic!() };
    assert_eq!(unresolved, &json!({ "type": "UNRESOLVED", "kind": "file", "count": 1 }));
    assert_eq!(ledger["type"], "LEDGER");
    assert_eq!(ledger["agent"], "gw-1");
    assert_eq!(ledger["boot"], "b0b0b0b0-b0b0-b0b0-b0b0-b0b0b0b0b0b0");
    assert_eq!(ledger["run"], "0101010101010101");
    assert_eq!(
        ledger["counters"]["open"],
        json!({
            "observed": 9, "aggregated": 8, "lost_ring": 1
        })
    );
    assert_eq!(ledger["counters"]["records"], json!({ "lost_spool_full": 2 }));
    assert_eq!(interruption["reason"], "interruption");
    assert_eq!((&interruption["from_ns"], &interruption["to_ns"]), (&json!(100), &json!(900)));
    // Nobody is left who could count.
    assert!(interruption.get("operations_at_least").is_none());
    assert_eq!(interruption["run"], "eeeeeeeeeeeeeeee");
    assert_eq!(missing["reason"], "missing_frames");
    assert_eq!((&missing["first"], &missing["last"]), (&json!(2), &json!(3)));

    let text = print(&[folder.path().as_ref()]);
    assert!(text.contains("ledger of run 0101010101010101"), "{text}");
    assert!(text.contains("open         lost 1: observed 9, aggregated 8, lost_ring 1"), "{text}");
    assert!(text.contains("gap: frames 2 to 3 of run 0101010101010101"), "{text}");
    assert!(text.contains(IPV6), "addresses stand there whole: {text}");
}

#[test]
fn rows_are_chosen_by_process_kind_and_time() {
    let folder = sample_folder();
    // With the kinds and moments of all rows that these options leave.
    let chosen = |options: &[&str]| -> Vec<Value> {
        let mut arguments: Vec<&OsStr> = options.iter().map(OsStr::new).collect();
        arguments.extend([OsStr::new("--json"), folder.path().as_ref()]);
        let rows = json_lines(&print(&arguments));
        assert!(options.is_empty() || rows.iter().all(|row| row["type"] != "LEDGER"));
        // What is missing is said whatever is chosen.
        assert!(rows.iter().any(|row| row["type"] == "GAP"));
        rows.into_iter().filter(|row| row.get("proc.pid").is_some()).collect()
    };
    let all = chosen(&[]);
    assert_eq!(all.len(), ROWS);
    let of = |wanted: &dyn Fn(&Value) -> bool| {
        let rows: Vec<Value> = all.iter().filter(|row| wanted(row)).cloned().collect();
        assert!((1..ROWS).contains(&rows.len()));
        rows
    };
    let files = of(&|row| row["type"] == "FE" || row["type"] == "FF");
    assert_eq!(chosen(&["--kind", "FE,ff"]), files);
    assert_eq!(chosen(&["--kind", "FE", "--kind", "FF"]), files);
    assert_eq!(chosen(&["--process", "/bin/sh"]).len(), of(&|row| row["proc.exe"] != "").len());
    assert_eq!(chosen(&["--process", "echo a"]).len(), chosen(&["--process", "/bin/sh"]).len());
    assert_eq!(chosen(&["--process", "no such program"]).len(), 0);
    let began = |row: &Value| row["ts_uts"].as_i64().unwrap();
    let mut moments: Vec<i64> = all.iter().map(began).collect();
    moments.sort_unstable();
    let middle = moments[moments.len() / 2];
    let ended = |row: &Value| row["endts_uts"].as_i64().unwrap_or(began(row)).max(began(row));
    let time = middle.to_string();
    assert_eq!(chosen(&["--until", &time]), of(&|row| began(row) < middle));
    assert_eq!(chosen(&["--since", &time]), of(&|row| ended(row) >= middle));
    // A flow that began before and ends behind goes on at the time.
    let flow = all.iter().find(|row| row["type"] == "NF").unwrap();
    let (since, until) = (began(flow) + 1, began(flow) + 2);
    let during = chosen(&["--since", &since.to_string(), "--until", &until.to_string()]);
    assert!(during.iter().any(|row| row == flow));
    for wrong in [["--kind", "XY"], ["--since", "yesterday"]] {
        let output = run(&["print", wrong[0], wrong[1], "."].map(OsStr::new));
        assert_eq!(output.status.code(), Some(64), "{wrong:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains(wrong[1]));
    }
}

#[test]
fn the_table_names_what_failed_and_keeps_the_beginning_of_arguments() {
    let folder = sample_folder();
    let text = print(&[folder.path().as_ref()]);
    let rows = cells(text.split_once("\nledger").unwrap().0);
    let has = |kind: &str, operations: &str| {
        rows.iter().any(|row| row[2] == kind && row[AROUND[0] + 1 + OPERATIONS] == operations)
    };
    assert!(has("PE", "SETUID EPERM") && has("FE", "RENAME ENOENT"), "{text}");
    assert!(has("NF", "CWR ECONNREFUSED"), "{text}");
    // A status is no errno, and what went well has none.
    assert!(has("PE", "EXIT") && has("FE", "MKDIR"), "{text}");
}

#[test]
fn a_store_is_printed_once_and_as_its_sf_files() {
    let site = Site::new("");
    let collector = site.start();
    let mut client = collector.connect("gw-1");
    assert_eq!(client.post(&Run::new("gw-1", 1).sample().concat()).status, 200);
    collector.terminate();
    let rows = json_lines(&print(&["--json".as_ref(), site.store().as_ref()]));
    assert_eq!(rows.iter().filter(|row| row.get("proc.pid").is_some()).count(), ROWS);
    let sf = site.stored("sf").pop().unwrap();
    compare(&sf);
    let manifest: Value =
        serde_json::from_slice(&fs::read(sf.with_extension("json")).unwrap()).unwrap();
    assert_eq!(
        manifest["left_out"],
        json!({
            "ipv6": 1, "extension_operation": 1, "network_event": 1, "unresolved_file": 1,
            "summary": 0, "extension_operation_masked": 1,
        })
    );
    assert_eq!(manifest["frames"], json!([0, 1]));
}

/// A run notes that it is the latest behind its first frame: one that is cut in between leaves it to the
/// next to tell of the run before both.
#[test]
fn a_run_that_was_cut_before_it_noted_so_is_told_of() {
    let [first, second, third, fourth] = [1, 2, 3, 4].map(|number| Run::new("gw-1", number));
    let told = |frames: &[Vec<u8>]| {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("all.frame"), frames.concat()).unwrap();
        let output = run(&["ledger".as_ref(), "--json".as_ref(), folder.path().as_ref()]);
        let rows = json_lines(&String::from_utf8(output.stdout).unwrap());
        let of = |kind: &str| rows.iter().filter(|row| row["type"] == kind).collect::<Vec<_>>();
        let cuts = of("GAP").into_iter().map(|gap| {
            assert_eq!(gap["reason"], "interruption");
            let text = |key: &str| gap[key].as_str().unwrap().to_owned();
            let interval = ["from_ns", "to_ns"].map(|key| gap[key].as_u64().unwrap());
            (text("run"), interval, text("reported_by_run"))
        });
        let cuts = cuts.collect::<Vec<_>>();
        let ending = |run: &Run| {
            let books = of("BOOKS").into_iter().find(|books| books["run"] == json!(run.tag()));
            books.map(|books| books["ending"].as_str().unwrap().to_owned())
        };
        (cuts, [&first, &second, &third, &fourth].map(ending))
    };
    let cut = |run: &Run, from_ns, to_ns, by: &Run| (run.tag(), [from_ns, to_ns], by.tag());
    let ends = |of: [Option<&str>; 4]| of.map(|ending| ending.map(str::to_owned));
    let frames = [
        first.start(0, 0),
        second.start_behind(200, &first, 100),
        third.start_behind(300, &first, 100),
        fourth.start_behind(500, &third, 400),
    ];
    let cuts = vec![
        cut(&first, 100, 200, &second),
        cut(&second, 200, 300, &third),
        cut(&third, 400, 500, &fourth),
    ];
    let (is_cut, is_open) = (Some("cut"), Some("open"));
    assert_eq!(told(&frames), (cuts, ends([is_cut, is_cut, is_cut, is_open])));

    // In another boot nobody knows until when; of two in one boot it is known.
    let [third, fourth] = [&third, &fourth].map(|run| Run {
        boot_id: [0xb1; 16],
        offset_ns: OFFSET_NS + 1000,
        ..run.clone()
    });
    let frames = [
        first.start(0, 0),
        second.start_behind(200, &first, 100),
        third.start_behind(30, &first, 100),
        fourth.start_behind(40, &first, 100),
    ];
    let cuts = vec![
        cut(&first, 100, 200, &second),
        cut(&second, 200, 0, &third),
        cut(&third, 30, 40, &fourth),
    ];
    assert_eq!(told(&frames), (cuts, ends([is_cut, is_cut, is_cut, is_open])));

    // One that came to its end says so itself.
    let frames = [
        second.start_behind(200, &first, 100),
        second.farewell(1, 250),
        third.start_behind(300, &first, 100),
    ];
    let cuts = vec![cut(&first, 100, 200, &second)];
    assert_eq!(told(&frames), (cuts, ends([None, Some("closed"), is_open, None])));
}

#[test]
fn damage_is_named_counted_and_decides_the_exit_status() {
    let folder = sample_folder();
    let path = folder.path().join("a.frame");
    let mut bytes = fs::read(&path).unwrap();
    bytes.truncate(100);
    fs::write(&path, bytes).unwrap();
    let output = run(&["print".as_ref(), "--json".as_ref(), folder.path().as_ref()]);
    assert_eq!(output.status.code(), Some(65));
    let rows = json_lines(&String::from_utf8(output.stdout).unwrap());
    let gap = rows.iter().find(|row| row["type"] == "GAP").unwrap();
    assert_eq!(gap["reason"], "interruption");
    assert!(rows.iter().any(|row| row["reason"] == "unreadable"
        && row["detail"].as_str().unwrap().contains("truncated")));
}

#[test]
fn paths_and_usage_that_make_no_sense_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let empty = run(&["print".as_ref(), folder.path().as_ref()]);
    assert_eq!(empty.status.code(), Some(66));
    assert!(String::from_utf8_lossy(&empty.stderr).contains("holds no .frame and no .sf file"));
    let absent = run(&["print".as_ref(), folder.path().join("nothing").as_ref()]);
    assert_eq!(absent.status.code(), Some(66));
    let device = run(&["ledger", "/dev/null"].map(OsStr::new));
    assert_eq!(device.status.code(), Some(66));
    assert!(String::from_utf8_lossy(&device.stderr).contains("is no regular file"));
    assert_eq!(run(&["print".as_ref()]).status.code(), Some(64));
    assert_eq!(run(&["--version".as_ref()]).status.code(), Some(0));
    let missing = run(&["serve", "--config", "/nonexistent"].map(OsStr::new));
    assert_eq!(missing.status.code(), Some(78));
}

#[test]
fn streams_of_one_boot_agree_on_object_ids_and_each_has_its_own_time() {
    let folder = tempfile::tempdir().unwrap();
    let first = Run::new("gw-1", 1);
    let later = Run { run_id: [2; 16], offset_ns: first.offset_ns + 77, ..first.clone() };
    fs::write(folder.path().join("1.frame"), later.start(0, 0)).unwrap();
    fs::write(folder.path().join("2.frame"), first.start(0, 0)).unwrap();
    let rows = json_lines(&print(&["--json".as_ref(), folder.path().as_ref()]));
    let (one, other) = (&rows[0], &rows[1]);
    assert_eq!(one["stream.run"], first.tag());
    assert_eq!(other["stream.run"], later.tag());
    assert_eq!(one["proc.createts"], other["proc.createts"]);
    assert_eq!(other["ts_uts"].as_i64().unwrap() - one["ts_uts"].as_i64().unwrap(), 77);
}
