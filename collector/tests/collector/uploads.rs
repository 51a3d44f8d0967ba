//! Uploads: what is kept, what is answered, and that nothing of a refused body is kept.

use serde_json::{Value, json};

use crate::harness::client::post_head;
use crate::harness::frames::Run;
use crate::harness::{Site, until};

const AGENT: &str = "gw-1";

#[track_caller]
fn streams(answer: &crate::harness::client::Answer) -> Value {
    assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
    answer.json()["streams"].clone()
}

#[test]
fn frames_are_kept_acknowledged_and_turned_into_sf() {
    let site = Site::new("");
    let collector = site.start();
    let run = Run::new(AGENT, 1);
    let frames = run.frames(5);
    let mut client = collector.connect(AGENT);
    let answer = client.post(&frames.concat());
    let expected = json!([{ "run": run.tag(), "class": 0, "contiguous": 5, "holes": [] }]);
    assert_eq!(streams(&answer), expected);
    assert!(answer.json()["time_ns"].as_u64().unwrap() > 1_700_000_000_000_000_000);
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let stored = site.stored("frame");
    for (path, frame) in stored.iter().zip(&frames) {
        assert_eq!(&std::fs::read(path).unwrap(), frame);
    }
    let place = "gw-1/b0b0b0b0-b0b0-b0b0-b0b0-b0b0b0b0b0b0/0101010101010101/0/\
                 00000000000000000004.frame";
    assert_eq!(stored.last().unwrap(), &site.store().join(place));
    let sf = until("the .sf file", || site.stored("sf").pop());
    assert_eq!(sf, site.store().join("gw-1/sysflow/1790000001-01010101-0-0.sf"));
    // The connection is kept for the next upload.
    assert_eq!(streams(&client.post(&run.next(0, 5)))[0]["contiguous"], 6);
    let health = collector.health();
    assert_eq!(
        (&health["frames_stored"], &health["uploads"], &health["agents"]),
        (&json!(6), &json!(2), &json!(1))
    );
}

#[test]
fn frames_sent_again_are_kept_once() {
    let site = Site::new("");
    let collector = site.start();
    let frames = Run::new(AGENT, 1).frames(3);
    let mut client = collector.connect(AGENT);
    for _ in 0..2 {
        assert_eq!(streams(&client.post(&frames.concat()))[0]["contiguous"], 3);
    }
    let twice_in_one = [frames.concat(), frames.concat()].concat();
    assert_eq!(streams(&client.post(&twice_in_one))[0]["contiguous"], 3);
    assert_eq!(site.stored("frame").len(), 3);
    assert_eq!(collector.health()["frames_duplicate"], 9);
}

#[test]
fn holes_are_named_and_close() {
    let site = Site::new("");
    let collector = site.start();
    let run = Run::new(AGENT, 1);
    let mut client = collector.connect(AGENT);
    let frames = run.frames(10);
    let some = |numbers: &[usize]| {
        numbers.iter().flat_map(|number| frames[*number].clone()).collect::<Vec<u8>>()
    };
    let answer = streams(&client.post(&some(&[0, 1, 4, 7, 8])));
    assert_eq!(answer[0]["contiguous"], 2);
    assert_eq!(answer[0]["holes"], json!([[2, 3], [5, 6]]));
    let answer = streams(&client.post(&some(&[2, 3, 9])));
    assert_eq!(answer[0]["contiguous"], 5);
    assert_eq!(answer[0]["holes"], json!([[5, 6]]));
    until("frames that wait behind a hole", || {
        (collector.health()["sysflow"]["generations_waiting"] == 1).then_some(())
    });
    assert_eq!(streams(&client.post(&some(&[5, 6])))[0]["holes"], json!([]));
    until("no more waiting", || {
        (collector.health()["sysflow"]["generations_waiting"] == 0).then_some(())
    });
}

#[test]
fn streams_of_one_body_are_answered_one_by_one() {
    let site = Site::new("");
    let collector = site.start();
    let (one, mut other) = (Run::new(AGENT, 1), Run::new(AGENT, 1));
    other.class = 3;
    let body = [one.frames(2).concat(), other.frames(1).concat()].concat();
    let answer = streams(&collector.connect(AGENT).post(&body));
    assert_eq!((&answer[0]["class"], &answer[0]["contiguous"]), (&json!(0), &json!(2)));
    assert_eq!((&answer[1]["class"], &answer[1]["contiguous"]), (&json!(3), &json!(1)));
}

/// Posts a body that has to be refused whole, and checks that nothing was kept.
#[track_caller]
fn refused(body: &[u8], status: u16, kind: &str, words: &[&str]) {
    let site = Site::new("");
    let collector = site.start();
    let mut client = collector.connect(AGENT);
    let detail = client.post(body).refusal(status, kind);
    for word in words {
        assert!(detail.contains(word), "{detail:?} does not say {word:?}");
    }
    collector.logged(&[kind, &detail]);
    assert_eq!(collector.health()["refused"][kind], 1);
    assert!(site.stored("frame").is_empty() && site.stored("start").is_empty());
    // The connection has not suffered.
    assert_eq!(client.post(&Run::new(AGENT, 9).start(0, 0)).status, 200);
}

#[test]
fn a_foreign_frame_is_refused_with_both_names() {
    let body = [Run::new(AGENT, 1).start(0, 0), Run::new("gw-2", 2).start(0, 0)].concat();
    refused(&body, 403, "foreign-frame", &["frame 2", "gw-2", "gw-1"]);
}

#[test]
fn a_cut_frame_is_refused_with_its_place() {
    let frames = Run::new(AGENT, 1).frames(2);
    let body = frames.concat();
    let at = format!("frame 2 at byte {}", frames[0].len());
    refused(&body[..body.len() - 1], 400, "malformed", &[&at, "truncated"]);
}

#[test]
fn an_unknown_version_is_refused_by_number() {
    let mut body = Run::new(AGENT, 1).start(0, 0);
    body[3] = 77;
    refused(&body, 400, "malformed", &["version 77"]);
}

#[test]
fn an_empty_body_is_refused() {
    refused(b"", 400, "malformed", &["no frame"]);
}

#[test]
fn a_frame_without_its_generations_start_is_refused_as_lost() {
    refused(&Run::new(AGENT, 1).next(0, 5), 409, "generation-lost", &["begin a new generation"]);
    let body = [Run::new(AGENT, 1).start(0, 0), Run::new(AGENT, 1).next(1, 1)].concat();
    refused(&body, 409, "generation-lost", &["frame 1", "generation 1"]);
}

#[test]
fn a_generation_does_not_begin_twice() {
    let body = [Run::new(AGENT, 1).start(0, 0), Run::new(AGENT, 1).start(0, 1)].concat();
    refused(&body, 400, "malformed", &["begins here and at frame 0"]);
}

#[test]
fn other_bytes_under_a_known_key_are_a_conflict() {
    let site = Site::new("");
    let collector = site.start();
    let run = Run::new(AGENT, 1);
    let mut client = collector.connect(AGENT);
    assert_eq!(client.post(&run.frames(2).concat()).status, 200);
    let other = [run.next(0, 2), run.start(1, 1)].concat();
    let detail = client.post(&other).refusal(409, "conflict");
    assert!(detail.contains("frame 1 of run 0101010101010101"), "{detail}");
    assert_eq!(site.stored("frame").len(), 2);
}

#[test]
fn a_run_does_not_change_its_boot() {
    let site = Site::new("");
    let collector = site.start();
    let mut run = Run::new(AGENT, 1);
    let mut client = collector.connect(AGENT);
    assert_eq!(client.post(&run.start(0, 0)).status, 200);
    run.boot_id = [0xb1; 16];
    assert!(client.post(&run.start(1, 1)).refusal(400, "malformed").contains("b1b1b1b1"));
}

#[test]
fn a_frame_of_another_agents_run_is_not_taken_even_without_its_name() {
    let site = Site::new("");
    let collector = site.start();
    let run = Run::new(AGENT, 1);
    assert_eq!(collector.connect(AGENT).post(&run.start(0, 0)).status, 200);
    collector.connect("gw-2").post(&run.next(0, 1)).refusal(409, "generation-lost");
}

#[test]
fn every_flipped_bit_is_noticed_and_nothing_is_kept() {
    let site = Site::new("");
    let collector = site.start();
    let body = Run::new(AGENT, 1).frames(2).concat();
    let mut client = collector.connect(AGENT);
    for position in 0..body.len() {
        let mut bad = body.clone();
        bad[position] ^= 1 << (position % 8);
        client.post(&bad).refusal(400, "malformed");
    }
    assert!(site.stored("frame").is_empty());
    assert_eq!(collector.health()["refused"]["malformed"], body.len());
}

#[test]
fn an_announced_body_that_is_too_large_is_refused_before_it_is_read() {
    let site = Site::new("[limits]\nbody_bytes_max = 65536\n");
    let collector = site.start();
    // Far beyond every socket buffer: the answer arrives although all of it is sent first.
    let body = vec![0; 32 << 20];
    let mut client = collector.connect(AGENT);
    let answer = client.post(&body);
    let detail = answer.refusal(413, "too-large");
    assert!(detail.contains("33554432") && detail.contains("65536"), "{detail}");
    assert_eq!(answer.header("connection"), Some("close"));
    assert!(client.is_closed());
    // One that waits for leave to send is told without sending.
    let mut client = collector.connect(AGENT);
    let head = format!("{}expect: 100-continue\r\n", post_head(1 << 40));
    client.request(&head, b"").refusal(413, "too-large");
    assert_eq!(collector.health()["refused"]["too-large"], 2);
}

#[test]
fn an_unannounced_body_that_is_too_large_is_refused_while_it_is_read() {
    let site = Site::new("[limits]\nbody_bytes_max = 65536\n");
    let collector = site.start();
    let mut client = collector.connect(AGENT);
    let head = post_head(0).replace("content-length: 0", "transfer-encoding: chunked");
    let mut body = Vec::new();
    for _ in 0..64 {
        body.extend_from_slice(b"10000\r\n");
        body.resize(body.len() + 0x10000, 0);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(b"0\r\n\r\n");
    let answer = client.request(&head, &body);
    assert!(answer.refusal(413, "too-large").contains("more than 65536"));
    assert!(client.is_closed());
    assert!(site.stored("frame").is_empty());
}

#[test]
fn a_body_that_ends_early_or_never_is_given_up() {
    let site = Site::new("[limits]\nrequest_timeout_s = 1\n");
    let collector = site.start();
    let body = Run::new(AGENT, 1).start(0, 0);
    let mut client = collector.connect(AGENT);
    // One byte is announced and never sent.
    let head = post_head(body.len() + 1);
    assert!(client.request(&head, &body).refusal(408, "timeout").contains("1 s"));
    assert!(site.stored("frame").is_empty());
}

#[test]
fn wrong_paths_methods_and_types_are_named() {
    let site = Site::new("");
    let collector = site.start();
    let mut client = collector.connect(AGENT);
    client.get("/").refusal(404, "path");
    client.get("/v1/frames").refusal(405, "method");
    let head = post_head(0).replace("vnd.sysflow.frames", "json");
    let detail = client.request(&head, b"").refusal(415, "content-type");
    assert!(
        detail.contains("application/json") && detail.contains("application/vnd.sysflow.frames")
    );
}

#[test]
fn one_connection_too_many_is_told_to_come_back() {
    let site = Site::new("[limits]\nconnections_max = 1\n");
    let collector = site.start();
    let body = Run::new(AGENT, 1).start(0, 0);
    let mut first = collector.connect(AGENT);
    assert_eq!(first.get("/v1/health").status, 200);
    // With a request under way it does not give way.
    first
        .send(
            format!("{}host: c\r\nexpect: 100-continue\r\n\r\n", post_head(body.len())).as_bytes(),
        )
        .unwrap();
    first.leave_to_send();
    let mut second = collector.connect("gw-2");
    let answer = second.get("/v1/health");
    answer.refusal(503, "unavailable");
    assert_eq!(answer.header("retry-after"), Some("5"));
    assert!(second.is_closed());
    first.send(&body).unwrap();
    assert_eq!(first.receive().unwrap().status, 200);
}

#[test]
fn a_store_that_fails_asks_for_patience_and_keeps_what_it_promised() {
    let site = Site::new("");
    let collector = site.start();
    let run = Run::new(AGENT, 1);
    let mut client = collector.connect(AGENT);
    assert_eq!(client.post(&run.frames(2).concat()).status, 200);
    // A file where the next class's folder has to be.
    let run_folder = site.stored("frame")[0].ancestors().nth(2).unwrap().to_owned();
    let obstacle = run_folder.join("1");
    std::fs::write(&obstacle, b"").unwrap();
    let mut urgent = run.clone();
    urgent.class = 1;
    let answer = client.post(&urgent.start(0, 0));
    answer.refusal(503, "unavailable");
    assert!(answer.header("retry-after").is_some());
    std::fs::remove_file(&obstacle).unwrap();
    assert_eq!(client.post(&urgent.start(0, 0)).status, 200);
    assert_eq!(streams(&client.post(&run.next(0, 2)))[0]["contiguous"], 3);
}
