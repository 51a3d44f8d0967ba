//! Reads maps without taking memory: libbpf-rs gives each value as a vector of its own, and a
//! sweep over all flows would make thousands of them. Here a look goes into the caller's frame,
//! or into a buffer that is made with the map.

use std::cell::RefCell;
use std::ffi::c_void;
use std::io;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd as _};

use libbpf_rs::{MapCore as _, MapHandle, libbpf_sys};

use crate::kernel::Plain;

/// Entries that one look at many asks for.
const BATCH_ENTRIES: usize = 256;

/// A hash map from `K` to `V`.
pub(crate) struct HashView<K, V> {
    map: MapHandle,
    batch: RefCell<Batch<K, V>>,
}

struct Batch<K, V> {
    keys: Box<[MaybeUninit<K>]>,
    values: Box<[MaybeUninit<V>]>,
}

impl<K: Plain, V: Plain> HashView<K, V> {
    /// A view on `map`; `None` if its keys and values are of other sizes.
    pub(crate) fn new(map: MapHandle) -> Option<Self> {
        let fits = map.key_size() as usize == size_of::<K>()
            && map.value_size() as usize == size_of::<V>();
        let batch = Batch {
            keys: Box::new_uninit_slice(BATCH_ENTRIES),
            values: Box::new_uninit_slice(BATCH_ENTRIES),
        };
        fits.then(|| HashView { map, batch: RefCell::new(batch) })
    }

    fn descriptor(&self) -> i32 {
        self.map.as_fd().as_raw_fd()
    }

    /// The value of a key.
    ///
    /// # Errors
    /// The kernel's refusal; a key that is not there is none.
    pub(crate) fn get(&self, key: &K) -> io::Result<Option<V>> {
        // SAFETY: key and value have the map's sizes, and live through the call.
        self.look(key, |fd, key, value| unsafe { libbpf_sys::bpf_map_lookup_elem(fd, key, value) })
    }

    /// Takes a key out, and its value, in one step (5.14 on).
    ///
    /// # Errors
    /// The kernel's refusal, `InvalidInput` or `Unsupported` where it cannot do that; a key that
    /// is not there is none.
    pub(crate) fn take(&self, key: &K) -> io::Result<Option<V>> {
        // SAFETY: as above.
        self.look(key, |fd, key, value| unsafe {
            libbpf_sys::bpf_map_lookup_and_delete_elem(fd, key, value)
        })
    }

    fn look(
        &self,
        key: &K,
        call: impl Fn(i32, *const c_void, *mut c_void) -> i32,
    ) -> io::Result<Option<V>> {
        let mut value = MaybeUninit::<V>::uninit();
        match call(self.descriptor(), std::ptr::from_ref(key).cast(), value.as_mut_ptr().cast()) {
            // SAFETY: the kernel has filled it, and any bytes are a value.
            0 => Ok(Some(unsafe { value.assume_init() })),
            _ => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::NotFound => Ok(None),
                error => Err(error),
            },
        }
    }

    /// Takes a key out; `false` if it is not there.
    pub(crate) fn delete(&self, key: &K) -> bool {
        self.map.delete(key.bytes()).is_ok()
    }

    /// Goes through all entries. One that comes or goes meanwhile may be missed. `visit` may look
    /// at the map, but not go through it.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub(crate) fn each(&self, mut visit: impl FnMut(&K, &V)) -> io::Result<()> {
        let mut batch = self.batch.borrow_mut();
        let Batch { keys, values } = &mut *batch;
        // The kernel's mark of where it is; as long as a key for other kinds of maps.
        let mut position = MaybeUninit::<(u64, K)>::uninit();
        let mut begun = false;
        loop {
            let mut count = BATCH_ENTRIES as u32;
            let from = if begun { position.as_mut_ptr().cast() } else { std::ptr::null_mut() };
            // SAFETY: keys and values have room for `count` of the map's sizes, the position for
            // a number or a key, and all live through the call.
            let answer = unsafe {
                libbpf_sys::bpf_map_lookup_batch(
                    self.descriptor(),
                    from,
                    position.as_mut_ptr().cast(),
                    keys.as_mut_ptr().cast(),
                    values.as_mut_ptr().cast(),
                    &mut count,
                    std::ptr::null(),
                )
            };
            let last = match answer {
                0 => false,
                _ => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::NotFound => true,
                    error if error.kind() == io::ErrorKind::Interrupted => continue,
                    error => return Err(error),
                },
            };
            begun = true;
            for (key, value) in keys.iter().zip(values.iter()).take(count as usize) {
                // SAFETY: the kernel has filled the first `count`, and any bytes are a value.
                visit(unsafe { key.assume_init_ref() }, unsafe { value.assume_init_ref() });
            }
            if last {
                return Ok(());
            }
        }
    }
}

/// An array with a value of each processor's own.
pub(crate) struct PerCpuView<V> {
    map: MapHandle,
    /// The values of one entry; each takes a multiple of eight bytes.
    values: RefCell<Box<[u64]>>,
    value: PhantomData<V>,
}

impl<V: Plain> PerCpuView<V> {
    const WORDS: usize = size_of::<V>().div_ceil(size_of::<u64>());

    /// A view on `map`; `None` if its values are of another size.
    ///
    /// # Errors
    /// If the number of processors is not known.
    pub(crate) fn new(map: MapHandle) -> libbpf_rs::Result<Option<Self>> {
        let words = libbpf_rs::num_possible_cpus()? * Self::WORDS;
        let fits = map.value_size() as usize == size_of::<V>();
        Ok(fits.then(|| PerCpuView {
            map,
            values: RefCell::new(vec![0; words].into()),
            value: PhantomData,
        }))
    }

    /// Passes the value of each processor to `visit`; none if the entry cannot be read.
    pub(crate) fn each(&self, entry: u32, mut visit: impl FnMut(V)) {
        let mut values = self.values.borrow_mut();
        let key = entry.to_ne_bytes();
        // SAFETY: the key has the size of an array's, the buffer a value for each possible
        // processor, and both live through the call.
        let answer = unsafe {
            libbpf_sys::bpf_map_lookup_elem(
                self.map.as_fd().as_raw_fd(),
                key.as_ptr().cast(),
                values.as_mut_ptr().cast(),
            )
        };
        if answer != 0 {
            return;
        }
        for words in values.chunks_exact(Self::WORDS) {
            // SAFETY: the words have at least the size of a value, which any bytes are.
            visit(unsafe { words.as_ptr().cast::<V>().read_unaligned() });
        }
    }
}
