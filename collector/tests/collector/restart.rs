//! Ends and new beginnings: what was acknowledged is there.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::harness::frames::Run;
use crate::harness::{Site, run, until};

const AGENT: &str = "gw-1";

#[test]
fn a_stream_goes_on_after_a_restart_in_good_order() {
    let site = Site::new("");
    let stream = Run::new(AGENT, 1);
    let collector = site.start();
    assert_eq!(collector.connect(AGENT).post(&stream.frames(3).concat()).status, 200);
    collector.terminate();
    // At the end everything that was acknowledged is also in the .sf file.
    let first = std::fs::read(site.stored("sf").pop().unwrap()).unwrap();
    let collector = site.start();
    // No generation start: the new process has to know from the disk.
    let answer = collector.connect(AGENT).post(&stream.next(0, 3)).json();
    assert_eq!(answer["streams"][0]["contiguous"], 4);
    collector.terminate();
    let second = std::fs::read(site.stored("sf").pop().unwrap()).unwrap();
    assert!(second != first);
}

#[test]
fn what_keeps_it_from_starting_is_named_with_its_key_and_the_remedy() {
    let site = Site::new("");
    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (config, address) = (site.path("collector.toml"), held.local_addr().unwrap().to_string());
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("127.0.0.1:0", &address)).unwrap();
    let told = site.does_not_start();
    let words = ["listen.address ", &address, ": end what has it, or choose another"];
    assert!(words.iter().all(|words| told.contains(words)), "{told}");

    std::fs::write(site.path("collector.key"), "none").unwrap();
    let told = site.does_not_start();
    assert!(
        told.contains("collector.key: no items found: tls.key must be a file in PEM form"),
        "{told}"
    );
    for (file, key) in [("collector.pem", "tls.certificate"), ("ca.pem", "tls.ca")] {
        std::fs::remove_file(site.path(file)).unwrap();
        let told = site.does_not_start();
        assert!(told.contains(&format!("put it there, or set {key}")), "{told}");
    }
}

#[test]
fn a_request_under_way_is_finished_before_the_end() {
    let site = Site::new("");
    let collector = site.start();
    let body = Run::new(AGENT, 1).start(0, 0);
    let mut client = collector.connect(AGENT);
    let head = crate::harness::client::post_head(body.len());
    client.send(format!("{head}host: c\r\n\r\n").as_bytes()).unwrap();
    client.send(&body[..10]).unwrap();
    // Answers to another connection show that the first bytes have had time to arrive.
    collector.health();
    std::thread::scope(|scope| {
        let ending = scope.spawn(|| collector.terminate());
        client.send(&body[10..]).unwrap();
        assert_eq!(client.receive().unwrap().status, 200);
        ending.join().unwrap();
    });
    assert_eq!(site.stored("frame").len(), 1);
    assert_eq!(site.stored("sf").len(), 1);
}

#[test]
fn a_file_that_was_lost_is_made_again_at_the_start() {
    let site = Site::new("");
    let collector = site.start();
    assert_eq!(collector.connect(AGENT).post(&Run::new(AGENT, 1).frames(3).concat()).status, 200);
    collector.terminate();
    let path = site.stored("sf").pop().unwrap();
    let bytes = std::fs::read(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let collector = site.start();
    until("the file", || path.exists().then_some(()));
    collector.terminate();
    assert!(std::fs::read(&path).unwrap() == bytes, "the same frames give the same file");
}

#[test]
fn a_frame_that_rots_on_disk_is_noticed() {
    let site = Site::new("");
    let collector = site.start();
    assert_eq!(collector.connect(AGENT).post(&Run::new(AGENT, 1).frames(3).concat()).status, 200);
    collector.terminate();
    std::fs::remove_file(site.stored("sf").pop().unwrap()).unwrap();
    let rotten = &site.stored("frame")[1];
    let mut bytes = std::fs::read(rotten).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(rotten, bytes).unwrap();
    let collector = site.start();
    collector.logged(&["no .sf file", "00000000000000000001.frame", "checksum"]);
    assert_eq!(collector.health()["sysflow"]["generations_broken"], 1);
    assert!(site.stored("sf").is_empty());
}

#[test]
fn whatever_was_acknowledged_survives_being_killed() {
    let site = Site::new("");
    let mut acknowledged = [0_u64; 2];
    for round in 0..4 {
        let collector = site.start();
        let enough = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let uploads: Vec<_> = acknowledged
                .iter_mut()
                .zip(["gw-0", "gw-1"])
                .map(|(acknowledged, agent)| {
                    let mut client = collector.connect(agent);
                    let enough = &enough;
                    scope.spawn(move || {
                        let stream = Run::new(agent, 1);
                        loop {
                            let next = *acknowledged;
                            let frames = (next..next + 3).map(|sequence| {
                                match sequence.is_multiple_of(10) {
                                    true => stream.start(sequence as u32 / 10, sequence),
                                    false => stream.next(sequence as u32 / 10, sequence),
                                }
                            });
                            let body: Vec<u8> = frames.flatten().collect();
                            let head = crate::harness::client::post_head(body.len());
                            let head = format!("{head}host: c\r\n\r\n");
                            let sent = client
                                .send(head.as_bytes())
                                .and_then(|()| client.send(&body))
                                .and_then(|()| client.receive());
                            // The collector was killed.
                            let Ok(answer) = sent else { return };
                            assert_eq!(answer.status, 200);
                            let json = answer.json();
                            *acknowledged = json["streams"][0]["contiguous"].as_u64().unwrap();
                            if *acknowledged >= (round + 1) * 30 {
                                enough.store(true, Ordering::Relaxed);
                            }
                        }
                    })
                })
                .collect();
            until("some uploads", || enough.load(Ordering::Relaxed).then_some(()));
            // While uploads are on their way.
            collector.kill();
            uploads.into_iter().for_each(|upload| upload.join().unwrap());
        });
    }
    let mut generations = 0;
    for (count, agent) in acknowledged.iter().zip(["gw-0", "gw-1"]) {
        let folder = site.store().join(agent);
        let printed = run(&["print".as_ref(), "--json".as_ref(), folder.as_ref()]);
        assert!(printed.status.success());
        let text = String::from_utf8(printed.stdout).unwrap();
        // The thread id of each frame's event is the frame's sequence.
        let tids: Vec<u64> = text
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
            .filter(|row| row["type"] == "PE")
            .map(|row| row["proc.tid"].as_u64().unwrap())
            .collect();
        assert!(*count > 0 && tids.len() as u64 >= *count);
        assert!(tids.iter().copied().eq(0..tids.len() as u64), "each once and in order");
        // A frame that was stored right before a kill, and not yet acknowledged, counts too.
        generations += tids.len().div_ceil(10);
    }
    // A last collector turns all of it into whole .sf files.
    site.start().terminate();
    let files = site.stored("sf");
    assert_eq!(files.len(), generations);
}
