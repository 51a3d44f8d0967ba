//! Delivery by way of a proxy.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;

use crate::device::{Device, collector};
use crate::receiver::Reply;

/// A proxy that takes `CONNECT` and then passes bytes on, or answers with `refusal`. Gives its
/// address and what it is asked.
fn proxy(refusal: Option<&'static str>) -> (SocketAddr, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (told, asked) = mpsc::channel();
    std::thread::spawn(move || {
        while let Ok((mut client, _)) = listener.accept() {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                client.read_exact(&mut byte).unwrap();
                head.extend_from_slice(&byte);
            }
            let line = String::from_utf8(head).unwrap().lines().next().unwrap().to_string();
            let target = line.split(' ').nth(1).unwrap().to_string();
            // The test may have seen enough.
            let _ = told.send(line);
            if let Some(refusal) = refusal {
                client.write_all(refusal.as_bytes()).unwrap();
                continue;
            }
            let mut server = TcpStream::connect(target).unwrap();
            client.write_all(b"HTTP/1.1 200 Connected\r\n\r\n").unwrap();
            let (mut back, mut from) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            std::thread::spawn(move || std::io::copy(&mut from, &mut back));
            std::thread::spawn(move || std::io::copy(&mut client, &mut server));
        }
    });
    (address, asked)
}

#[test]
fn frames_go_through_a_proxy_that_sees_only_where_they_go() {
    let collector = collector(|_, _| Reply::Take);
    let (address, asked) = proxy(None);
    let device = Device::start(&collector, &[30_000; 3], |settings| {
        settings.collector.proxy = Some(format!("http://{address}"));
    });
    device.empty();
    assert_eq!(collector.held(), [0, 1, 2]);
    let target = collector.url().replace("https://", "");
    assert_eq!(asked.try_iter().collect::<Vec<_>>(), [format!("CONNECT {target} HTTP/1.1")]);
}

#[test]
fn a_proxy_that_refuses_or_is_not_there_is_named() {
    let collector = collector(|_, _| Reply::Take);
    let (refusing, _asked) = proxy(Some("HTTP/1.1 403 Forbidden\r\n\r\n"));
    let absent = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for (address, why) in [(refusing, "403"), (absent, "connection refused")] {
        let device = Device::start(&collector, &[100], |settings| {
            settings.collector.proxy = Some(format!("http://{address}"));
        });
        let error = device.error();
        let place = format!("by way of http://{address} (collector.proxy)");
        assert!(error.contains(&place) && error.contains(why), "{error}");
    }
    assert!(collector.held().is_empty());
}
