//! Delivery against a collector in this process, over real sockets and real TLS.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod device;
#[path = "../fleet/mod.rs"]
mod fleet;
mod named;
mod proxies;
#[path = "../receiver/mod.rs"]
mod receiver;
#[path = "../sample/mod.rs"]
mod sample;

use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use agent::config;
use agent::tls::clock::Clock;
use agent::tls::{Credentials, Files};
use agent::upload;
use device::{Device, FLEETS, collector, error};
use fleet::Ca;
use receiver::{Collector, PATIENCE, Reply, until};
use rustls::version::TLS13;

#[test]
fn frames_arrive_in_order_over_one_connection_and_leave_the_spool() {
    let collector = collector(|_, _| Reply::Take);
    let mut device = Device::start(&collector, &[30_000; 5], |settings| {
        settings.collector.upload_bytes_max = 65_536;
    });
    // Known before the thread has looked.
    assert!(device.counters().certificate_days_left >= 29);
    device.empty();
    device.append(100);
    device.empty();
    let requests = collector.requests(4);
    let sent: Vec<Vec<u64>> = requests.iter().map(|request| request.sequences.clone()).collect();
    assert_eq!(sent, [vec![0, 1], vec![2, 3], vec![4], vec![5]]);
    assert!(requests.iter().all(|request| request.connection == 1));
    // Only the first large body of an upload asks for leave.
    let asked: Vec<bool> = requests.iter().map(|request| request.asked_first).collect();
    assert_eq!(asked, [true, false, false, false]);
    let counters = device.counters();
    assert_eq!((counters.frames, counters.records, counters.failures), (6, 6, 0));
    assert!(counters.last_success_unix_s.abs_diff(receiver::unix_time().as_secs()) < 60);
    assert!(counters.certificate_days_left >= 29);
    // The collector's time is remembered.
    let told = Clock::peek(device.directory.path());
    assert!(told.now_s().abs_diff(receiver::unix_time().as_secs()) < 60);
}

#[test]
fn a_collector_whose_clock_is_stepped_back_does_not_lock_its_devices_out() {
    // 2016, before its certificate. The connection ends, so that the next one shakes hands.
    let run = "5a".repeat(8);
    let answer = format!(
        r#"{{"streams":[{{"run":"{run}","class":0,"contiguous":1,"holes":[]}}],"time_ns":{}}}"#,
        1_451_606_400_000_000_000_u64
    );
    let collector = collector(move |number, _| match number {
        0 => Reply::Answer(200, "connection: close\r\n", answer.clone()),
        _ => Reply::Take,
    });
    let mut device = Device::start(&collector, &[100], |settings| {
        // A resumed session looks at no certificate.
        let mut client = (*settings.credentials.client).clone();
        client.resumption = rustls::client::Resumption::disabled();
        settings.credentials.client = Arc::new(client);
    });
    device.empty();
    device.append(100);
    device.empty();
    assert_eq!(collector.requests(2)[1].connection, 2);
    assert_eq!(device.counters().last_error, "");
    // Nor does it when the device starts again.
    let told = Clock::peek(device.directory.path());
    assert!(told.now_s().abs_diff(receiver::unix_time().as_secs()) < 60);
}

#[test]
fn a_spool_that_is_away_for_a_while_loses_nothing() {
    let collector = collector(|_, _| Reply::Take);
    let mut away = None;
    let device = Device::start_after(
        &collector,
        &[40_000; 60],
        |folder| {
            let paths = [folder.join("spool"), folder.join("away")];
            std::fs::rename(&paths[0], &paths[1]).unwrap();
            away = Some(paths);
        },
        |_| {},
    );
    // More than a damaged segment is tried.
    until("failures to read", || device.counters().failures >= 4);
    let [spool, away] = away.unwrap();
    std::fs::rename(away, spool).unwrap();
    device.empty();
    let counters = device.counters();
    assert_eq!((counters.frames, counters.damaged_records), (60, 0));
}

#[test]
fn an_answer_that_is_cut_is_no_answer() {
    let collector = collector(|number, _| if number == 0 { Reply::Half } else { Reply::Take });
    let device = Device::start(&collector, &[100], |_| {});
    let expected =
        format!("{}/v1/frames: connection cut before the answer was complete", collector.url());
    assert_eq!(device.error(), expected);
    device.empty();
    assert_eq!(collector.requests(2)[1].sequences, [0]);
}

#[test]
fn retry_after_is_honoured_and_the_body_stays_at_home() {
    let busy = || Reply::AtOnce(503, "retry-after: 1\r\n", error("unavailable"));
    let collector = collector(move |number, _| if number == 0 { busy() } else { Reply::Take });
    let device = Device::start(&collector, &[60_000; 20], |_| {});
    let error = device.error();
    assert_eq!(error, "collector answers 503 unavailable: because");
    // Waking does not shorten what the collector asked for.
    device.upload.wake();
    device.empty();
    let requests = collector.requests(2);
    assert!(requests[1].at - requests[0].at >= Duration::from_secs(1));
    assert!(requests[0].asked_first);
}

#[test]
fn an_answer_that_comes_before_the_body_is_read() {
    // The second request of an upload does not ask for leave, so its body is on the way.
    let full = || Reply::AtOnce(413, "", error("too-large"));
    let collector = collector(move |number, _| if number == 1 { full() } else { Reply::Take });
    let device = Device::start(&collector, &[100_000; 8], |settings| {
        settings.collector.upload_bytes_max = 450_000;
    });
    device.empty();
    assert_eq!(device.counters().last_error, "");
    let sizes: Vec<usize> =
        collector.requests(4).iter().map(|request| request.sequences.len()).collect();
    // Half of what was too large is not exceeded again.
    assert_eq!(sizes, [4, 0, 2, 2]);
    assert_eq!(collector.held(), [0, 1, 2, 3, 4, 5, 6, 7]);
}

#[test]
fn an_urgent_backlog_drains_over_a_link_that_carries_little_in_time() {
    for is_told in [true, false] {
        let collector = collector(move |_, _| Reply::Slow(120_000, is_told));
        let device = Device::start(&collector, &[25_000; 16], |_| {});
        device.empty();
        assert_eq!(collector.held(), (0..16).collect::<Vec<u64>>());
        assert_eq!(device.upload.counters().refused_records(), 0);
        let sizes: Vec<usize> =
            collector.requests(1).iter().map(|request| request.sequences.len()).collect();
        // Halved until it arrives in time, and not tried again at once.
        assert_eq!(sizes[..2], [0, 0], "{is_told}");
        assert!(sizes[2..].iter().all(|frames| (1..=4).contains(frames)), "{is_told}: {sizes:?}");
    }
}

#[test]
fn a_proxy_that_takes_no_large_body_makes_no_frame_be_dropped() {
    // Bodies of several frames, and then one alone for a while.
    let collector = collector(|number, _| match number {
        0..=3 => Reply::Answer(413, "", "<html>".into()),
        _ => Reply::Take,
    });
    let device = Device::start(&collector, &[100; 4], |_| {});
    let expected = "collector answers 413, without a collector's reason: check collector.url";
    assert_eq!(device.error(), expected);
    device.empty();
    let sizes: Vec<usize> =
        collector.requests(5).iter().map(|request| request.sequences.len()).collect();
    assert_eq!(sizes[..4], [4, 2, 1, 1]);
    assert_eq!(collector.held(), [0, 1, 2, 3]);
    assert_eq!(device.upload.counters().refused_records(), 0);
}

#[test]
fn one_bad_frame_is_found_dropped_and_counted() {
    for (status, kind) in [(400, "malformed"), (403, "foreign-frame"), (409, "conflict")] {
        let collector = collector(move |_, sequences| match sequences.contains(&5) {
            true => Reply::Answer(status, "", error(kind)),
            false => Reply::Take,
        });
        let device = Device::start(&collector, &[100; 16], |_| {});
        device.empty();
        let expected: Vec<u64> = (0..16).filter(|sequence| *sequence != 5).collect();
        assert_eq!(collector.held(), expected);
        let counters = device.counters();
        assert_eq!(counters.refused_records.iter().next().unwrap(), (&kind.to_string(), &1));
        assert_eq!((counters.frames, device.upload.counters().refused_records()), (15, 1));
        // Cut in half each time, not one by one.
        assert!(collector.requests(1).len() <= 12, "{}", collector.requests(1).len());
    }
}

#[test]
fn frames_of_a_lost_generation_are_dropped_without_being_sent() {
    let collector = collector(|_, sequences| match sequences.iter().any(|s| *s > 0) {
        true => Reply::Answer(409, "", error("generation-lost")),
        false => Reply::Take,
    });
    let device = Device::start(&collector, &[100; 100], |_| {});
    device.empty();
    assert_eq!(collector.held(), [0]);
    assert_eq!(device.upload.counters().refused_records(), 99);
    assert_eq!(device.upload.counters().generations_lost(codec::Class::Urgent), 1);
    assert!(collector.requests(1).len() <= 12, "{}", collector.requests(1).len());
}

#[test]
fn what_concerns_the_device_drops_nothing() {
    for (status, kind) in [(401, "identity"), (403, "denied"), (404, "path"), (500, "x")] {
        let collector = collector(move |number, _| match number {
            0 => Reply::Answer(status, "", error(kind)),
            _ => Reply::Take,
        });
        let device = Device::start(&collector, &[100; 3], |_| {});
        assert_eq!(device.error(), format!("collector answers {status} {kind}: because"));
        device.empty();
        assert_eq!(collector.held(), [0, 1, 2]);
    }
}

#[test]
fn only_what_the_collector_lacks_is_sent_again() {
    let collector = collector(|number, _| if number == 0 { Reply::Lack(3) } else { Reply::Take });
    let mut device = Device::start(&collector, &[100; 8], |_| {});
    device.empty();
    device.append(100);
    device.empty();
    let sent: Vec<Vec<u64>> =
        collector.requests(3).into_iter().map(|request| request.sequences).collect();
    assert_eq!(sent, [(0..8).collect(), vec![3], vec![8]]);
    assert_eq!(collector.held(), (0..9).collect::<Vec<u64>>());
    assert_eq!((device.counters().frames, device.counters().failures), (9, 0));
}

#[test]
fn a_collector_that_forgets_is_not_believed() {
    let nothing = r#"{"streams":[]}"#;
    let collector = collector(move |number, _| match number {
        0 => Reply::Answer(200, "", nothing.into()),
        _ => Reply::Take,
    });
    let device = Device::start(&collector, &[100; 3], |_| {});
    let expected = "collector answers 200 but does not hold the frame that was sent";
    assert_eq!(device.error(), expected);
    device.empty();
}

#[test]
fn stopping_delivers_what_is_left() {
    let collector = collector(|_, _| Reply::Take);
    let mut device = Device::start(&collector, &[], |_| {});
    for sequence in 0..3 {
        device.writer.append(&sample::frame(sequence, 1, 100)).unwrap();
    }
    let report = device.upload.shutdown(Instant::now() + PATIENCE);
    assert_eq!(report, upload::Report { finished: true, emptied: true });
    assert_eq!(collector.held(), [0, 1, 2]);
}

#[test]
fn stopping_does_not_wait_for_a_silent_collector() {
    let collector = collector(|_, _| Reply::Silence);
    let device = Device::start(&collector, &[100], |_| {});
    collector.requests(1);
    let begun = Instant::now();
    let report = device.upload.shutdown(begun + Duration::from_millis(200));
    assert!(begun.elapsed() < Duration::from_secs(5));
    assert!(!report.emptied);
    assert_eq!(device.writer.depth().frames, 1);
}

#[test]
fn a_renewed_certificate_is_used_without_a_restart() {
    let ca = Ca::new(&FLEETS.directory.path().join("renewing"), "renewing");
    ca.sign("collector", "DNS:localhost", "serverAuth", 30);
    let expired = ca.sign_agent("agent", "gw-0001", -1);
    let collector =
        Collector::start(receiver::server(&ca, "collector", &ca, &TLS13), |_, _| Reply::Take);
    let device = Device::start(&collector, &[100], |settings| {
        settings.credentials = Credentials::load(&expired, None, &settings.clock).unwrap();
        let Files { ca, certificate, key } = expired.clone();
        settings.collector =
            config::Collector { ca, certificate, key, ..settings.collector.clone() };
    });
    assert!(device.error().contains("certificate expired"));
    assert!(device.counters().certificate_days_left < 0);
    // Another id in the new certificate is not taken over; the right one is.
    ca.sign_agent("agent", "gw-0002", 30);
    let failures = device.counters().failures;
    until("another failure", || device.counters().failures > failures);
    ca.sign_agent("agent", "gw-0001", 30);
    device.empty();
    assert!(device.counters().certificate_days_left >= 29);
}

#[test]
fn an_urgent_frame_goes_next_on_a_slow_link() {
    let (answer, answers) = mpsc::channel::<()>();
    let (under_way, bodies_under_way) = mpsc::channel();
    let answers = std::sync::Mutex::new(answers);
    // The first body is under way until it is let go.
    let collector = collector(move |number, sequences| {
        if number == 0 && !sequences.is_empty() {
            under_way.send(sequences.len()).unwrap();
            answers.lock().unwrap().recv_timeout(PATIENCE).unwrap();
        }
        Reply::Take
    });
    let mut device = Device::start(&collector, &[], |_| {});
    for sequence in 0..40 {
        let generation = (0, sequence == 0);
        device.writer.append(&sample::frame_of(1, generation, sequence, 1, 10_000)).unwrap();
    }
    device.upload.wake();
    let first = bodies_under_way.recv_timeout(PATIENCE).unwrap();
    device.append(100);
    answer.send(()).unwrap();
    device.empty();
    let requests = collector.requests(3);
    let bodies: Vec<(u8, usize)> = requests.iter().map(|r| (r.class, r.sequences.len())).collect();
    // Of a link that nobody has measured volumes take 128 KiB at a time.
    assert!(first < 14, "{first} frames in the first body");
    assert_eq!(bodies[..2], [(1, first), (0, 1)]);
    assert_eq!(bodies[2..].iter().map(|(class, _)| *class).max(), Some(1));
    assert_eq!(collector.seen.0.lock().unwrap().held[1].len(), 40);
}
