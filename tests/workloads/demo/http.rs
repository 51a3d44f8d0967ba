//! HTTP over IPv4 and IPv6 on loopback: a server in one process, a client in another.
//!
//! Just enough of HTTP/1.1 for a body of known size; each side counts its own calls.

use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};

use tests::Result;
use tests::tally::{Object, Tally};
use tests::truth::{ProcessTruth, Truth};

use crate::{Demo, own_ids};

/// Bytes of the body that the server sends, and of each of its writes.
const BODY_BYTES: usize = 100_000;
const WRITE_BYTES: usize = 16 * 1024;
const TCP: u8 = 6;

/// Runs a server and a client and takes over what both counted.
pub(crate) fn exchange(demo: &mut Demo) -> Result {
    let own = std::env::current_exe()?;
    let mut server =
        Command::new(&own).arg("--serve").stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(server.stdout.take().ok_or("the server has no output")?);
    let mut addresses = Vec::new();
    for _ in 0..2 {
        let mut line = String::new();
        lines.read_line(&mut line)?;
        addresses.push(line.trim().to_string());
    }
    let mut args = Vec::new();
    for address in addresses {
        args.extend(["--fetch".to_string(), address]);
    }
    let client =
        Command::new(&own).args(&args).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    finish(demo, client, None, args)?;
    finish(demo, server, Some(lines), vec!["--serve".to_string()])
}

fn finish(
    demo: &mut Demo,
    mut child: Child,
    output: Option<BufReader<std::process::ChildStdout>>,
    args: Vec<String>,
) -> Result {
    let mut text = String::new();
    let (pid, parent) = (Some(child.id()), Some(demo.truth.pid));
    match (output, child.stdout.take()) {
        (Some(mut output), _) => output.read_to_string(&mut text)?,
        (None, Some(mut output)) => output.read_to_string(&mut text)?,
        (None, None) => 0,
    };
    let status = child.wait()?;
    if !status.success() {
        return Err(format!("workload-demo {} ended with {status}", args.join(" ")).into());
    }
    demo.truth.merge(serde_json::from_str::<Truth>(&text)?);
    let (uid, gid) = own_ids();
    demo.truth.processes.push(ProcessTruth {
        pid,
        parent,
        exe: std::fs::canonicalize(std::env::current_exe()?)?.display().to_string(),
        args,
        uid,
        gid,
        status: Some(status.into_raw()),
    });
    Ok(())
}

/// Serves one request on each address family, IPv4 first.
pub(crate) fn serve() -> Result {
    let listeners = ["127.0.0.1:0", "[::1]:0"]
        .iter()
        .map(|address| {
            TcpListener::bind(address)
                .map_err(|e| format!("listen on {address}: {e} (is the loopback up?)").into())
        })
        .collect::<Result<Vec<_>>>()?;
    for listener in &listeners {
        println!("{}", listener.local_addr()?);
    }
    let mut tally = Tally::default();
    for listener in &listeners {
        let (connection, client) = listener.accept()?;
        let server = connection.local_addr()?;
        let object = Object::Network { protocol: TCP, client, server };
        let mut request = Vec::new();
        let mut buffer = [0; 2048];
        while !request.windows(4).any(|window| window == b"\r\n\r\n") {
            let bytes = tally.receive(0, &connection, &object, &mut buffer)?;
            if bytes == 0 {
                return Err("the client closed before its request ended".into());
            }
            request.extend_from_slice(buffer.get(..bytes).unwrap_or_default());
        }
        let head =
            format!("HTTP/1.1 200 OK\r\nContent-Length: {BODY_BYTES}\r\nConnection: close\r\n\r\n");
        tally.send(0, &connection, &object, head.as_bytes())?;
        // One form of call: the forms go round by fours.
        let body = vec![b'h'; BODY_BYTES];
        for part in body.chunks(WRITE_BYTES) {
            let mut rest = part;
            while !rest.is_empty() {
                let sent = tally.send(0, &connection, &object, rest)?;
                rest = rest.get(sent..).unwrap_or_default();
            }
        }
    }
    println!("{}", serde_json::to_string(&tally.into_truth(std::process::id()))?);
    Ok(())
}

/// Fetches the body from each address.
pub(crate) fn fetch(servers: &[SocketAddr]) -> Result {
    let mut tally = Tally::default();
    for server in servers {
        let connection = TcpStream::connect(server)?;
        let client = connection.local_addr()?;
        let object = Object::Network { protocol: TCP, client, server: *server };
        let request = format!("GET /body HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\r\n");
        tally.send(0, &connection, &object, request.as_bytes())?;
        let mut received = 0;
        let mut buffer = [0; 32 * 1024];
        loop {
            let bytes = tally.receive(0, &connection, &object, &mut buffer)?;
            if bytes == 0 {
                break;
            }
            received += bytes;
        }
        if received < BODY_BYTES {
            return Err(format!("{server} sent {received} bytes, expected more").into());
        }
    }
    println!("{}", serde_json::to_string(&tally.into_truth(std::process::id()))?);
    Ok(())
}
