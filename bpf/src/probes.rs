//! Loads and attaches the probes, and reads their maps.

#[cfg(test)]
mod losses_tests;

use std::cell::{Cell, RefCell};
use std::ffi::CString;
use std::fmt;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use libbpf_rs::{
    AsRawLibbpf as _, Iter, Link, MapCore, MapFlags, MapHandle, Object, PrintLevel, RingBuffer,
    RingBufferBuilder, libbpf_sys,
};

use crate::error::{Error, log_line, refused};
use crate::kernel::{
    CallEntry, Flow, FlowKey, Header, Operation, OwnView, Plain, Settings, Tally, Task, Volume,
};
use crate::map::{HashView, PerCpuView};
use crate::own::OwnPipe;
use crate::types::Types;
use crate::{calls, open};

/// What programs and fixed maps take, bytes: more than was seen on any kernel.
const PROGRAMS_BYTES: usize = 768 * 1024;
/// What fixed maps take for each processor, bytes.
const PROCESSOR_BYTES: usize = 24 * 1024;

/// Bounds of the kernel side.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// Bytes of the ring: a power of two and a multiple of the page size.
    pub ring_bytes: u32,
    /// Flows that the kernel keeps at once.
    pub flow_entries: u32,
    /// Peers of one unconnected datagram socket that are told apart.
    pub peers_max: u32,
    /// Bytes of a program's arguments that are kept, at most 4096.
    pub args_bytes_max: u32,
    /// Bytes at the beginning of a program's environment that are told, at most 4096; 0: none.
    pub env_bytes_max: u32,
    /// A file with the types of the running kernel; none: what [`Types::find`] finds.
    pub btf: Option<PathBuf>,
}

impl Bounds {
    /// Bytes that the kernel takes for so many flows: an entry with its links, and a place in a
    /// table whose size is a power of two.
    pub fn flows_bytes(flow_entries: usize) -> usize {
        const LINKS_BYTES: usize = 48;
        const PLACE_BYTES: usize = 16;
        flow_entries * (LINKS_BYTES + size_of::<FlowKey>() + size_of::<Flow>())
            + flow_entries.next_power_of_two() * PLACE_BYTES
    }

    /// Bytes that the kernel takes with any bounds, for so many processors: programs, their table
    /// of system calls, tallies, and the space in which events with text are put together.
    pub fn fixed_bytes(processors: usize) -> usize {
        PROGRAMS_BYTES + processors * PROCESSOR_BYTES
    }
}

/// Number of processors for which the kernel keeps memory, absent ones included.
///
/// # Errors
/// [`Error::Refused`] if the kernel does not tell.
pub fn processors() -> Result<usize, Error> {
    libbpf_rs::num_possible_cpus().map_err(refused("counting the processors"))
}

/// Where probes attach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Hook {
    SysExit,
    Fork,
    Exec,
    Exit,
    SocketState,
}

impl Hook {
    /// The tracepoint's name.
    pub fn name(self) -> &'static str {
        match self {
            Hook::SysExit => "sys_exit",
            Hook::Fork => "sched_process_fork",
            Hook::Exec => "sched_process_exec",
            Hook::Exit => "sched_process_exit",
            Hook::SocketState => "inet_sock_set_state",
        }
    }

    /// The options of the kernel's build without which it cannot be attached.
    pub fn option(self) -> &'static str {
        match self {
            Hook::SysExit => "CONFIG_BPF_EVENTS and CONFIG_FTRACE_SYSCALLS",
            Hook::SocketState => "CONFIG_BPF_EVENTS and CONFIG_INET",
            Hook::Fork | Hook::Exec | Hook::Exit => "CONFIG_BPF_EVENTS",
        }
    }
}

/// Programs that are attached, in this order: programs on one hook run in the order in which
/// they were attached, and exec's flows end before its program is told.
const ATTACHED: [(&str, Hook); 6] = [
    ("process_exec_sweep", Hook::Exec),
    ("process_exec", Hook::Exec),
    ("process_fork", Hook::Fork),
    ("process_exit", Hook::Exit),
    ("socket_state", Hook::SocketState),
    ("sys_exit", Hook::SysExit),
];

/// The kernel gives up on a program while a signal waits: so often a load is begun.
const LOAD_ATTEMPTS_MAX: u32 = 64;

/// A flow's counters as the kernel has them now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its key.
    pub key: FlowKey,
    /// When the entry was made, boot clock, ns.
    pub flow_ns: u64,
    /// Totals since then.
    pub volume: Volume,
    /// Calls of shutdown.
    pub shutdown: u32,
    /// Calls of mmap.
    pub mmaps: u32,
    /// Why it ended, if the ring had no room to say so (as [`crate::FlowEnd::reason`]); 0: it
    /// goes on.
    pub ended: u8,
}

impl Entry {
    fn new(key: FlowKey, flow: &Flow) -> Entry {
        Entry {
            key,
            flow_ns: flow.start_ns,
            volume: flow.total(),
            shutdown: flow.shutdown,
            mmaps: flow.mmaps,
            ended: flow.ended,
        }
    }
}

/// The loaded and attached kernel side.
pub struct Probes {
    object: Object,
    links: RefCell<Vec<Link>>,
    attached: Vec<Hook>,
    missing: Vec<(Hook, String)>,
    flows: HashView<FlowKey, Flow>,
    tallies: PerCpuView<Tally>,
    step: MapHandle,
    types: Types,
    /// Whether the kernel can look up and delete in one step (5.14 on).
    take_is_atomic: Cell<bool>,
}

impl fmt::Debug for Probes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Probes").field("attached", &self.attached).finish_non_exhaustive()
    }
}

impl Probes {
    /// Loads the object and attaches what the kernel lets attach.
    ///
    /// # Errors
    /// See [`Error`]. A hook that the kernel refuses is no error but in
    /// [`missing`](Probes::missing), unless it is `sys_exit`.
    pub fn load(bounds: &Bounds) -> Result<Probes, Error> {
        let mut attempts = 1;
        let mut probes = loop {
            match Probes::prepare(bounds) {
                Err(error) if error.is_interruption() && attempts < LOAD_ATTEMPTS_MAX => {
                    attempts += 1;
                }
                prepared => break prepared?,
            }
        };
        probes.attach()?;
        give_back();
        Ok(probes)
    }

    /// Loads the object, and attaches nothing yet.
    fn prepare(bounds: &Bounds) -> Result<Probes, Error> {
        libbpf_rs::set_print(Some((PrintLevel::Warn, |_, text| log_line(&text))));
        let types = Types::find(bounds.btf.as_deref());
        if let Types::Nowhere { wanted } = types {
            return Err(Error::NoTypes(wanted));
        }
        let file = match types.file() {
            None => None,
            Some(path) => {
                let named = |error| Error::TypesUnreadable(types.clone(), error);
                // A pipe there would be waited for.
                if !std::fs::metadata(path).map_err(named)?.is_file() {
                    return Err(named(std::io::Error::other("is no regular file")));
                }
                std::fs::File::open(path).map_err(named)?;
                Some(CString::new(path.as_os_str().as_bytes()).map_err(|e| named(e.into()))?)
            }
        };
        let mut open = open::open(file.as_deref()).map_err(refused("opening the probes"))?;
        for mut map in open.maps_mut() {
            let name = map.name().to_string_lossy().into_owned();
            let entries = match name.as_str() {
                "ring" => bounds.ring_bytes,
                "flows" => bounds.flow_entries,
                _ if name.ends_with(".rodata") => {
                    let settings = Settings {
                        peers_max: bounds.peers_max,
                        args_bytes_max: bounds.args_bytes_max.min(4096),
                        wake_bytes: bounds.ring_bytes / 4,
                        env_bytes_max: bounds.env_bytes_max.min(4096),
                        share_bytes: bounds.ring_bytes / 4 * 3,
                    };
                    map.initial_value_mut()
                        .and_then(|value| value.get_mut(..size_of::<Settings>()))
                        .ok_or(Error::Incomplete("settings"))?
                        .copy_from_slice(settings.bytes());
                    continue;
                }
                _ => continue,
            };
            map.set_max_entries(entries).map_err(refused("sizing the maps"))?;
        }
        for mut program in open.progs_mut() {
            // An iterator needs all of the kernel's own types, which a file is there to spare.
            if program.name() == "processes" {
                program.set_autoload(types == Types::Kernel);
            }
        }
        let object = open.load().map_err(|error| {
            match (types.file(), refused("loading the probes")(error)) {
                // A kernel that takes the probes with its own types is not to blame.
                (Some(_), Error::Refused(what, error)) => {
                    Error::Refused(format!("{what} with the types in {types}"), error)
                }
                (_, error) => error,
            }
        })?;
        let flows = HashView::new(map_handle(&object, "flows")?)
            .ok_or(Error::Incomplete("flows of this layout"))?;
        let tallies = PerCpuView::new(map_handle(&object, "tallies")?)
            .map_err(refused("counting the processors"))?
            .ok_or(Error::Incomplete("tallies of this layout"))?;
        let probes = Probes {
            links: RefCell::default(),
            attached: Vec::new(),
            missing: Vec::new(),
            flows,
            tallies,
            step: map_handle(&object, ".data.step")?,
            object,
            types,
            take_is_atomic: Cell::new(true),
        };
        probes.fill_calls()?;
        probes.learn_own()?;
        Ok(probes)
    }

    fn fill_calls(&self) -> Result<(), Error> {
        let calls = map_handle(&self.object, "calls")?;
        let mut table =
            [CallEntry { call: 0, operation: 0, compat_call: 0, compat_operation: 0 }; 512];
        for (number, call, operation) in calls::NATIVE {
            table[usize::from(*number)].call = *call as u8;
            table[usize::from(*number)].operation = *operation as u8;
        }
        for (number, call, operation) in calls::COMPAT {
            table[usize::from(*number)].compat_call = *call as u8;
            table[usize::from(*number)].compat_operation = *operation as u8;
        }
        for (number, entry) in table.iter().enumerate() {
            calls
                .update(&(number as u32).to_ne_bytes(), entry.bytes(), MapFlags::ANY)
                .map_err(refused("filling the table of system calls"))?;
        }
        Ok(())
    }

    /// Has the kernel side note the agent's own process before anything is attached, so that
    /// the agent's doing is left out from the first event; and holds what it sees of the agent
    /// against what the agent knows. With types of another kernel the probes load all the same,
    /// and read something else.
    fn learn_own(&self) -> Result<(), Error> {
        let views = map_handle(&self.object, "own_views")?;
        let key = 0_u32.to_ne_bytes();
        let own = OwnPipe::new().map_err(|e| Error::Unknown("the agent's own process", e))?;
        let asked = OwnView { fd: own.fd(), start_ns: 0, inode: 0, tgid: 0, mode: 0, machine: 0 };
        views
            .update(&key, asked.bytes(), MapFlags::ANY)
            .map_err(refused("asking for the agent's own process"))?;
        let program = self
            .object
            .progs_mut()
            .find(|program| program.name() == "learn_own")
            .ok_or(Error::Incomplete("learn_own"))?;
        program
            .test_run(libbpf_rs::ProgramInput::default())
            .map_err(refused("learning the agent's own process id"))?;
        let seen = views.lookup(&key, MapFlags::ANY).map_err(refused("reading what was learnt"))?;
        let seen = seen.as_deref().and_then(OwnView::read).ok_or(Error::Incomplete("own view"))?;
        match own.difference(&seen.0) {
            None => Ok(()),
            Some(what) => Err(Error::WrongTypes(self.types.clone(), what)),
        }
    }

    fn attach(&mut self) -> Result<(), Error> {
        for (name, hook) in ATTACHED {
            let program = self
                .object
                .progs_mut()
                .find(|program| program.name() == name)
                .ok_or(Error::Incomplete("program to attach"))?;
            match program.attach_raw_tracepoint(hook.name()) {
                Ok(link) => {
                    self.links.get_mut().push(link);
                    if !self.attached.contains(&hook) {
                        self.attached.push(hook);
                    }
                }
                Err(error) if hook == Hook::SysExit => {
                    let what = format!("attaching {} (enable {})", hook.name(), hook.option());
                    return Err(Error::Refused(what, error));
                }
                Err(error) => self.missing.push((hook, error.to_string())),
            }
        }
        Ok(())
    }

    /// Takes the probes off their hooks. Maps and ring stay as they are, so that what they
    /// hold can be read to its end.
    pub fn detach(&self) {
        self.links.borrow_mut().clear();
    }

    /// Where the types of the kernel come from.
    pub fn types(&self) -> &Types {
        &self.types
    }

    /// Hooks that are attached.
    pub fn attached(&self) -> &[Hook] {
        &self.attached
    }

    /// Hooks that the kernel refused, with its reason.
    pub fn missing(&self) -> &[(Hook, String)] {
        &self.missing
    }

    /// Whether the probes run compiled: each program that is loaded has machine code.
    pub fn is_jited(&self) -> bool {
        self.object.progs().filter(|program| program.autoload()).all(|program| {
            use std::os::fd::{AsFd, AsRawFd};
            let mut info = libbpf_rs::libbpf_sys::bpf_prog_info::default();
            let mut length = size_of_val(&info) as u32;
            // SAFETY: the descriptor is open, and `info` has the length that is passed.
            let result = unsafe {
                libbpf_rs::libbpf_sys::bpf_obj_get_info_by_fd(
                    program.as_fd().as_raw_fd(),
                    std::ptr::from_mut(&mut info).cast(),
                    &mut length,
                )
            };
            result == 0 && info.jited_prog_len > 0
        })
    }

    /// The way out of the ring. `observe` is called by [`Ring::drain`] with the bytes of each
    /// event, for [`Event::decode`](crate::Event::decode).
    ///
    /// # Errors
    /// [`Error::Refused`] if the ring cannot be mapped.
    pub fn ring<'cb>(&self, mut observe: impl FnMut(&[u8]) + 'cb) -> Result<Ring<'cb>, Error> {
        let map = map_handle(&self.object, "ring")?;
        let mut builder = RingBufferBuilder::new();
        builder
            .add(&map, move |bytes: &[u8]| {
                observe(bytes);
                0
            })
            .map_err(refused("mapping the ring"))?;
        let ring = builder.build().map_err(refused("mapping the ring"))?;
        Ok(Ring { ring })
    }

    /// All processes with their exact starts, from the kernel's task iterator; empty where the
    /// kernel cannot do that.
    pub fn processes(&self) -> Vec<Task> {
        let read = || -> Option<Vec<u8>> {
            let program = self.object.progs_mut().find(|program| program.name() == "processes")?;
            let link = program.attach().ok()?;
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut Iter::new(&link).ok()?, &mut bytes).ok()?;
            Some(bytes)
        };
        if self.types != Types::Kernel {
            return Vec::new();
        }
        let bytes = read().unwrap_or_default();
        let mut rest = bytes.as_slice();
        let mut tasks = Vec::new();
        while let Some((task, after)) = Task::read(rest) {
            tasks.push(task);
            rest = after;
        }
        tasks
    }

    /// A flow's counters; none if it has ended.
    pub fn flow(&self, key: &FlowKey) -> Option<Entry> {
        Some(Entry::new(*key, &self.flows.get(key).ok()??))
    }

    /// Removes a flow and returns its last counters; none if it has ended.
    pub fn take_flow(&self, key: &FlowKey) -> Option<Entry> {
        if self.take_is_atomic.get() {
            match self.flows.take(key) {
                Ok(flow) => return Some(Entry::new(*key, &flow?)),
                Err(_) => self.take_is_atomic.set(false),
            }
        }
        let entry = self.flow(key)?;
        self.flows.delete(key).then_some(entry)
    }

    /// Whether the kernel lets this process read the maps.
    ///
    /// # Errors
    /// [`Error::NotPermitted`], or [`Error::Refused`] with another answer.
    pub fn can_read(&self) -> Result<(), Error> {
        // Nobody has process id 0: the answer tells whether one may ask.
        let nobody =
            FlowKey { tgid: 0, fd: 0, peer: [0; 16], peer_port: 0, peer_family: 0, zero: 0 };
        self.flows.get(&nobody).map_err(|error| refused("reading the flows")(error.into()))?;
        Ok(())
    }

    /// Goes through all flows that the kernel keeps.
    ///
    /// # Errors
    /// If the kernel does not let the map be read, as [`can_read`](Probes::can_read).
    pub fn each_flow(&self, mut visit: impl FnMut(Entry)) -> Result<(), Error> {
        self.flows
            .each(|key, flow| visit(Entry::new(*key, flow)))
            .map_err(|error| refused("reading the flows")(error.into()))
    }

    /// Sets the step of the ladder (`STEP_*` of `event.h`): from which on the kernel side leaves
    /// things out, and counts them.
    ///
    /// # Errors
    /// If the kernel does not let the map be written, as [`can_read`](Probes::can_read).
    pub fn set_step(&self, step: u32) -> Result<(), Error> {
        self.step
            .update(&0_u32.to_ne_bytes(), &step.to_ne_bytes(), MapFlags::ANY)
            .map_err(refused("setting the step of the ladder"))
    }

    /// What became of the operations of one kind in the kernel, over all CPUs.
    pub fn tally(&self, operation: Operation) -> Tally {
        let mut sum = Tally {
            observed: 0,
            filtered: 0,
            own: 0,
            lost_ring: 0,
            lost_map: 0,
            lost_unreadable: 0,
            lost_shed: 0,
        };
        self.tallies.each(operation as u32, |tally| {
            sum.observed = sum.observed.wrapping_add(tally.observed);
            sum.filtered = sum.filtered.wrapping_add(tally.filtered);
            sum.own = sum.own.wrapping_add(tally.own);
            sum.lost_ring = sum.lost_ring.wrapping_add(tally.lost_ring);
            sum.lost_map = sum.lost_map.wrapping_add(tally.lost_map);
            sum.lost_unreadable = sum.lost_unreadable.wrapping_add(tally.lost_unreadable);
            sum.lost_shed = sum.lost_shed.wrapping_add(tally.lost_shed);
        });
        sum
    }
}

/// The mapped ring with its observer.
pub struct Ring<'cb> {
    ring: RingBuffer<'cb>,
}

impl fmt::Debug for Ring<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring").finish_non_exhaustive()
    }
}

impl Ring<'_> {
    /// Bytes that wait in the ring.
    pub fn waiting_bytes(&self) -> usize {
        // SAFETY: the manager is alive, and its first ring, if there is one, lives as long.
        unsafe {
            let manager = self.ring.as_libbpf_object();
            match libbpf_sys::ring_buffer__ring(manager.as_ptr(), 0) {
                ring if ring.is_null() => 0,
                ring => libbpf_sys::ring__avail_data_size(ring) as usize,
            }
        }
    }

    /// Passes what is in the ring now to the observer: those who fill it faster than it is read
    /// do not keep the caller here.
    pub fn drain(&self) {
        // The ring puts eight bytes before each event.
        let events = self.waiting_bytes() / (size_of::<Header>() + 8) + 1;
        self.ring.consume_raw_n(events);
    }

    /// A descriptor that becomes readable when the ring fills up.
    pub fn descriptor(&self) -> std::os::fd::BorrowedFd<'_> {
        // SAFETY: the descriptor belongs to the ring buffer manager, which lives as long as
        // the borrow.
        unsafe { std::os::fd::BorrowedFd::borrow_raw(self.ring.epoll_fd()) }
    }
}

/// Gives memory that loading took back to the system: the kernel's types are megabytes, and glibc
/// keeps what was freed for as long as it thinks that it will be asked for again.
fn give_back() {
    #[cfg(target_env = "gnu")]
    {
        unsafe extern "C" {
            fn malloc_trim(pad: usize) -> std::ffi::c_int;
        }
        // SAFETY: glibc's own function; it takes no pointer and keeps the heap as it is.
        unsafe { malloc_trim(0) };
    }
}

fn map_handle(object: &Object, name: &'static str) -> Result<MapHandle, Error> {
    let map = object.maps().find(|map| map.name() == name).ok_or(Error::Incomplete(name))?;
    MapHandle::try_from(&map).map_err(refused("reopening a map"))
}
