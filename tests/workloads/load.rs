//! `workload-load`: a known number of requests to a web server.
//!
//! Every other connection is kept alive for several requests, the others are closed by the
//! server after one. It counts its own calls and bytes on each connection, fails if an answer
//! is not what it has to be, and prints what it did as one JSON object.

use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;

use rustix::net::Shutdown;
use tests::Result;
use tests::tally::{Object, Tally};

const TCP: u8 = 6;

/// What to ask for.
#[derive(Clone, Debug)]
struct Plan {
    server: SocketAddr,
    /// Path of the page, and bytes of its body.
    page: String,
    body_bytes: usize,
    /// Threads that ask at the same time, and connections of each.
    threads: usize,
    connections: usize,
    /// Requests on a connection that is kept alive.
    requests: usize,
}

fn main() -> Result {
    let mut plan = Plan {
        server: SocketAddr::from(([127, 0, 0, 1], 0)),
        page: "/".to_string(),
        body_bytes: 0,
        threads: 1,
        connections: 2,
        requests: 2,
    };
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        use lexopt::{Arg, ValueExt};
        match argument {
            Arg::Long("server") => plan.server = parser.value()?.parse()?,
            Arg::Long("page") => plan.page = parser.value()?.string()?,
            Arg::Long("body-bytes") => plan.body_bytes = parser.value()?.parse()?,
            Arg::Long("threads") => plan.threads = parser.value()?.parse()?,
            Arg::Long("connections") => plan.connections = parser.value()?.parse()?,
            Arg::Long("requests") => plan.requests = parser.value()?.parse()?,
            other => return Err(other.unexpected().into()),
        }
    }
    let tally = std::thread::scope(|scope| -> Result<Tally> {
        let started: Vec<_> =
            (0..plan.threads).map(|_| scope.spawn(|| connections(&plan))).collect();
        let mut tally = Tally::default();
        for thread in started {
            tally.add(thread.join().map_err(|_| "a thread of the load panicked")??);
        }
        Ok(tally)
    })?;
    println!("{}", serde_json::to_string(&tally.into_truth(std::process::id()))?);
    Ok(())
}

fn connections(plan: &Plan) -> Result<Tally> {
    let mut tally = Tally::default();
    for number in 0..plan.connections {
        let connection = TcpStream::connect(plan.server)?;
        let client = connection.local_addr()?;
        let object = Object::Network { protocol: TCP, client, server: plan.server };
        let is_kept = number % 2 == 0;
        for _ in 0..if is_kept { plan.requests } else { 1 } {
            request(plan, &mut tally, &connection, &object, is_kept)?;
        }
        if is_kept {
            rustix::net::shutdown(&connection, Shutdown::Write)?;
        }
        // Until the server has closed its end.
        let rest = tally.receive_all(0, &connection, &object, &mut [0; 512])?;
        if rest != 0 {
            return Err(format!("{rest} bytes behind the last answer").into());
        }
    }
    Ok(tally)
}

fn request(
    plan: &Plan,
    tally: &mut Tally,
    connection: &impl AsFd,
    object: &Object,
    is_kept: bool,
) -> Result {
    let wish = if is_kept { "keep-alive" } else { "close" };
    let Plan { server, page, .. } = plan;
    let text = format!("GET {page} HTTP/1.1\r\nHost: {server}\r\nConnection: {wish}\r\n\r\n");
    tally.send_all(0, connection, object, text.as_bytes(), text.len())?;
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    let mut form = 0;
    loop {
        let bytes = tally.receive(form, connection, object, &mut buffer)?;
        answer.extend_from_slice(buffer.get(..bytes).unwrap_or_default());
        form += 1;
        let end = answer.windows(4).position(|window| window == b"\r\n\r\n");
        let have = end.map_or(0, |end| answer.len() - end - 4);
        if end.is_some() && have == plan.body_bytes {
            break;
        }
        if bytes == 0 || have > plan.body_bytes {
            return Err(format!("a body of {have} bytes, expected {}", plan.body_bytes).into());
        }
    }
    if answer.starts_with(b"HTTP/1.1 200 ") {
        return Ok(());
    }
    let line: Vec<u8> = answer.into_iter().take_while(|byte| *byte != b'\r').collect();
    Err(format!("the server says {:?}", String::from_utf8_lossy(&line)).into())
}
