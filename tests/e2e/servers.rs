//! Web servers of every process model under a load of known size: a request, or a connection
//! that is kept alive, is one flow at each end, and both ends and the client's own count agree.
//!
//! The reference has a flow for each thread: three of one request of Apache's event model, two
//! of the worker model; and a busy nginx in no test at all.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tests::Result;
use tests::fleet::Fleet;
use tests::frames::Summary;
use tests::machine::{Machine, Need};
use tests::program::Program;
use tests::records::{brief, differences, number, of_kind, of_process, text, total, volume};
use tests::truth::{ProcessTruth, Truth, Volume};
use tests::wait::wait_for;

const DEADLINE: Duration = Duration::from_secs(60);
const APACHE: &str = "/usr/sbin/apache2";
/// Whom the servers' workers run as: a user that every Debian has, with its number.
const WORKER: &str = "www-data";
const WORKER_ID: u32 = 33;

/// The load: so many threads, connections of each, and requests on those that are kept alive;
/// every other connection is.
const THREADS: u64 = 3;
const CONNECTIONS: u64 = 8;
const REQUESTS: u64 = 5;
const BODY_BYTES: u64 = 20_000;

const TCP: i64 = 6;
/// SysFlow's bits.
const ACCEPT: u64 = 1 << 5;
const CONNECT: u64 = 1 << 6;
const READ: u64 = 1 << 8;
const WRITE: u64 = 1 << 9;
const CLOSE: u64 = 1 << 10;
const TRUNCATE: u64 = 1 << 11;

/// A server to run.
struct Server {
    name: &'static str,
    program: PathBuf,
    args: Vec<String>,
    /// Processes that its first one starts.
    workers: usize,
}

/// Where a server may work: unlike a fleet's folder, its workers, of another user, get in.
struct Site {
    folder: tempfile::TempDir,
    address: SocketAddr,
}

/// A port that is free now; the server takes it a moment later. It is below those that the
/// kernel gives to whoever asks for any, so that nobody comes in between.
fn free_address() -> Result<SocketAddr> {
    let own = std::process::id();
    (0..1000)
        .map(|n| SocketAddr::from(([127, 0, 0, 1], 20_000 + ((own + n) % 10_000) as u16)))
        .find(|address| TcpListener::bind(address).is_ok())
        .ok_or_else(|| "no free port".into())
}

impl Site {
    fn new() -> Result<Site> {
        let folder = tempfile::tempdir()?;
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755))?;
        std::fs::create_dir(folder.path().join("pages"))?;
        std::fs::write(folder.path().join("pages/page"), vec![b'p'; BODY_BYTES as usize])?;
        Ok(Site { folder, address: free_address()? })
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// Apache with one of its process models.
    fn apache(&self, model: &'static str, sizes: &str, workers: usize) -> Result<Server> {
        let modules = "/usr/lib/apache2/modules";
        // A body goes out by sendfile, a read of the page and a write to the connection; pages
        // that are mapped would go past the read.
        let config = format!(
            "ServerRoot {root:?}\nServerName localhost\nListen {address}\nUser {WORKER}\n\
             Group {WORKER}\nPidFile {pid:?}\nErrorLog {log:?}\nDocumentRoot {pages:?}\n\
             LoadModule mpm_{model}_module {modules}/mod_mpm_{model}.so\n\
             LoadModule authz_core_module {modules}/mod_authz_core.so\n\
             DefaultRuntimeDir {root:?}\nKeepAlive On\nKeepAliveTimeout 60\n\
             EnableSendfile On\nEnableMMAP Off\n{sizes}\n",
            root = self.path(""),
            address = self.address,
            pid = self.path("pid"),
            log = self.path("errors"),
            pages = self.path("pages"),
        );
        std::fs::write(self.path("apache.conf"), config)?;
        let args = ["-f", &self.path("apache.conf"), "-D", "FOREGROUND"].map(str::to_string);
        Ok(Server { name: model, program: APACHE.into(), args: args.to_vec(), workers })
    }

    fn nginx(&self, program: &Path) -> Result<Server> {
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {};\n", self.path(kind)))
            .concat();
        let config = format!(
            "daemon off;\nuser {WORKER};\nworker_processes 2;\npid {pid};\nlock_file {lock};\n\
             events {{ worker_connections 64; }}\n\
             http {{\naccess_log off;\nsendfile on;\nkeepalive_timeout 60;\n{temporary}\
             server {{ listen {address}; root {pages}; }}\n}}\n",
            pid = self.path("pid"),
            lock = self.path("lock"),
            address = self.address,
            pages = self.path("pages"),
        );
        std::fs::write(self.path("nginx.conf"), config)?;
        let args = ["-e", "stderr", "-p", &self.path(""), "-c", &self.path("nginx.conf")];
        let args = args.map(str::to_string).to_vec();
        Ok(Server { name: "nginx", program: program.to_path_buf(), args, workers: 2 })
    }

    /// The sockets of processes on the server's port: those that listen, and the others.
    fn sockets(&self) -> Result<(usize, usize)> {
        const LISTENING: &str = "0A";
        let port = format!(":{:04X}", self.address.port());
        let (mut listening, mut connected) = (0, 0);
        for line in std::fs::read_to_string("/proc/net/tcp")?.lines().skip(1) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [_, local, _, state, .., inode] = words.get(..10).unwrap_or_default() else {
                return Err(format!("/proc/net/tcp says {line:?}").into());
            };
            if local.ends_with(&port) && *inode != "0" {
                *(if *state == LISTENING { &mut listening } else { &mut connected }) += 1;
            }
        }
        Ok((listening, connected))
    }
}

/// The processes that `parent` has.
fn children(parent: u32) -> Result<BTreeSet<u32>> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir("/proc")? {
        let entry = entry?;
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        // A process may end while the folder is read.
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        let behind_name = stat.rsplit_once(") ").map(|(_, rest)| rest).unwrap_or_default();
        if behind_name.split(' ').nth(1) == Some(&parent.to_string()) {
            found.insert(pid);
        }
    }
    Ok(found)
}

/// What happened: the server's processes, its first one first, and the client's truth.
struct Served {
    processes: Vec<ProcessTruth>,
    client: Truth,
}

fn serve(fleet: &Fleet<'_>, site: &Site, server: &Server) -> Result<Served> {
    let mut command = Command::new(&server.program);
    // Apache ends by a signal to its whole process group: it needs one of its own.
    command.args(&server.args).process_group(0);
    let mut program = Program::start(server.name, &mut command, &fleet.path("logs"))?;
    let master = program.pid();
    wait_for("the server and its workers", DEADLINE, || {
        if !program.is_running()? {
            let errors = std::fs::read_to_string(site.path("errors")).unwrap_or_default();
            return Err(format!("{}: {}{errors}", server.name, program.log()?).into());
        }
        let workers = children(master)?.len();
        Ok((site.sockets()?.0 > 0 && workers == server.workers).then_some(()))
    })?;
    let output = Command::new(env!("CARGO_BIN_EXE_workload-load"))
        .args(["--server", &site.address.to_string(), "--page", "/page"])
        .args(["--body-bytes", &BODY_BYTES.to_string(), "--threads", &THREADS.to_string()])
        .args(["--connections", &CONNECTIONS.to_string(), "--requests", &REQUESTS.to_string()])
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}", server.name);
    let client: Truth = serde_json::from_slice(&output.stdout)?;
    // Its last closes may come a moment after the client has seen the end.
    wait_for("the server's last close", DEADLINE, || Ok((site.sockets()?.1 == 0).then_some(())))?;
    let workers = children(master)?;
    assert_eq!(workers.len(), server.workers, "{}: workers", server.name);
    program.stop()?;
    let process = |pid, parent, id, status| ProcessTruth {
        pid: Some(pid),
        parent: Some(parent),
        exe: server.program.display().to_string(),
        args: server.args.clone(),
        uid: id,
        gid: id,
        status,
    };
    let mut processes = vec![process(master, std::process::id(), 0, Some(0))];
    processes.extend(workers.into_iter().map(|pid| process(pid, master, WORKER_ID, None)));
    Ok(Served { processes, client })
}

fn operations(flow: &Value) -> u64 {
    flow["opflags_bitmap"].as_u64().unwrap_or_default()
}

/// Everything in which the flows of the connections differ from what the client counted.
fn connection_faults(records: &[Value], served: &Served) -> Vec<String> {
    let pids: BTreeSet<i64> =
        served.processes.iter().filter_map(|process| process.pid.map(i64::from)).collect();
    let mut by_port: BTreeMap<i64, Vec<&Value>> = BTreeMap::new();
    for flow in of_kind(records, "NF") {
        // Not the datagram sockets with which a resolver looks for its own address.
        let is_tcp = number(flow, "net.proto") == Some(TCP);
        if is_tcp && number(flow, "proc.pid").is_some_and(|pid| pids.contains(&pid)) {
            by_port.entry(number(flow, "net.sport").unwrap_or(-1)).or_default().push(flow);
        }
    }
    let mut faults = Vec::new();
    for peer in &served.client.network {
        let port = i64::from(peer.client.port());
        let there = by_port.remove(&port).unwrap_or_default();
        let here: Vec<&Value> = of_process(records, served.client.pid)
            .filter(|flow| text(flow, "type") == "NF" && number(flow, "net.sport") == Some(port))
            .collect();
        let ([there], [here]) = (there.as_slice(), here.as_slice()) else {
            let flows: Vec<String> = there.iter().chain(&here).map(|flow| brief(flow)).collect();
            faults.push(format!("port {port}: not one flow at each end: {flows:?}"));
            continue;
        };
        let (served, used) = (volume(there), volume(here));
        let crossed =
            (served.read_bytes, served.write_bytes) == (used.write_bytes, used.read_bytes);
        let done = (operations(there), operations(here));
        let expected = (ACCEPT | READ | WRITE | CLOSE, CONNECT | READ | WRITE | CLOSE);
        let ends = text(there, "res") == text(here, "res");
        let complete = done.0 & (expected.0 | TRUNCATE) == expected.0
            && done.1 & (expected.1 | TRUNCATE) == expected.1;
        if used != peer.volume || !crossed || !complete || !ends {
            let (there, here) = (brief(there), brief(here));
            faults.push(format!("{there}, {here}: the client counted {:?}", peer.volume));
        }
    }
    let foreign = by_port.values().flatten().filter(|flow| operations(flow) & (READ | WRITE) != 0);
    faults.extend(foreign.map(|flow| format!("of nobody's: {}", brief(flow))));
    faults
}

/// Everything in which what the server read of the page differs from what it answered.
fn page_faults(records: &[Value], served: &Served, page: &str) -> Vec<String> {
    let requests = THREADS * (CONNECTIONS / 2) * (REQUESTS + 1);
    let flows: Vec<&Value> = served
        .processes
        .iter()
        .flat_map(|process| of_process(records, process.pid.unwrap_or_default()))
        .filter(|record| text(record, "type") == "FF" && text(record, "file.path") == page)
        .collect();
    let read = total(flows.iter().copied()).read_bytes;
    if flows.len() as u64 == requests && read == requests * BODY_BYTES {
        return Vec::new();
    }
    vec![format!("{page}: {} flows with {read} bytes for {requests} requests", flows.len())]
}

/// Runs the load on a server and compares.
fn a_request_is_one_flow(
    test: &str,
    server: impl FnOnce(&Site, &Machine) -> Result<Server>,
) -> Result {
    let needs = [Need::Agent, Need::Root, Need::WebServers];
    let Some(machine) = Machine::claim(test, &needs)? else { return Ok(()) };
    let fleet = Fleet::new(&machine)?;
    let site = Site::new()?;
    let server = server(&site, &machine)?;
    let (records, served) = fleet.watch(|| serve(&fleet, &site, &server))?;

    let mut faults = connection_faults(&records, &served);
    faults.extend(page_faults(&records, &served, &site.path("pages/page")));
    let processes = Truth { processes: served.processes.clone(), ..Truth::default() };
    faults.extend(differences(&records, &processes));
    for pid in served.processes.iter().filter_map(|process| process.pid) {
        let events = |name: &str| {
            of_process(&records, pid)
                .filter(|r| text(r, "opflags") == name && number(r, "proc.tid") == Some(pid.into()))
                .filter(|r| number(r, "ret") == Some(0))
                .count()
        };
        if (events("CLONE"), events("EXIT")) != (1, 1) {
            faults.push(format!("{pid}: {} CLONE, {} EXIT", events("CLONE"), events("EXIT")));
        }
    }
    faults.extend(Summary::of(&fleet.store())?.unbalanced());
    assert!(faults.is_empty(), "{}:\n{}", server.name, faults.join("\n"));

    let sum = |volumes: &[Volume]| {
        let mut sum = Volume::default();
        volumes.iter().for_each(|volume| sum.add(*volume));
        sum
    };
    let volumes: Vec<Volume> = served.client.network.iter().map(|peer| peer.volume).collect();
    assert_eq!(volumes.len() as u64, THREADS * CONNECTIONS);
    let flows = of_process(&records, served.client.pid).filter(|r| text(r, "type") == "NF");
    assert_eq!(total(flows), sum(&volumes));
    Ok(())
}

#[test]
fn apache_event_answers_a_connection_in_one_flow() -> Result {
    a_request_is_one_flow("apache_event_answers_a_connection_in_one_flow", |site, _| {
        let sizes = "StartServers 2\nServerLimit 2\nThreadsPerChild 4\nMaxRequestWorkers 8\n\
                     MinSpareThreads 1\nMaxSpareThreads 8";
        site.apache("event", sizes, 2)
    })
}

#[test]
fn apache_worker_answers_a_connection_in_one_flow() -> Result {
    a_request_is_one_flow("apache_worker_answers_a_connection_in_one_flow", |site, _| {
        let sizes = "StartServers 2\nServerLimit 2\nThreadsPerChild 4\nMaxRequestWorkers 8\n\
                     MinSpareThreads 1\nMaxSpareThreads 8";
        site.apache("worker", sizes, 2)
    })
}

#[test]
fn apache_prefork_answers_a_connection_in_one_flow() -> Result {
    a_request_is_one_flow("apache_prefork_answers_a_connection_in_one_flow", |site, _| {
        let sizes = "StartServers 4\nServerLimit 4\nMaxRequestWorkers 4\nMinSpareServers 1\n\
                     MaxSpareServers 4";
        site.apache("prefork", sizes, 4)
    })
}

#[test]
fn nginx_answers_a_connection_in_one_flow() -> Result {
    a_request_is_one_flow("nginx_answers_a_connection_in_one_flow", |site, machine| {
        site.nginx(machine.nginx())
    })
}
