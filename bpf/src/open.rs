//! Opens the object with the probes. libbpf is called as it is: libbpf-sys describes the
//! options of this one call with the padding that they have on 64-bit machines only.

use std::ffi::{CStr, c_char};
use std::ptr::{NonNull, null};

use libbpf_rs::{OpenObject, libbpf_sys};

/// The object, where ELF's words are aligned.
#[repr(align(8))]
struct Aligned<T: ?Sized>(T);

static OBJECT: &Aligned<[u8]> =
    &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/probes.bpf.o")));

/// The head of libbpf's `struct bpf_object_open_opts`, whose size says how much of it is there.
#[repr(C)]
struct Options {
    bytes: usize,
    object_name: *const c_char,
    relaxed_maps: bool,
    pin_root_path: *const c_char,
    /// An unnamed bit field of libbpf's.
    zero: u32,
    kconfig: *const c_char,
    btf_custom_path: *const c_char,
}

/// Opens the object, to be loaded with the types in the file `types`, or with the kernel's own.
///
/// # Errors
/// libbpf's, if it cannot read the object.
pub(crate) fn open(types: Option<&CStr>) -> libbpf_rs::Result<OpenObject> {
    let options = Options {
        bytes: size_of::<Options>(),
        object_name: c"probes".as_ptr(),
        relaxed_maps: false,
        pin_root_path: null(),
        zero: 0,
        kconfig: null(),
        btf_custom_path: types.map_or(null(), CStr::as_ptr),
    };
    // SAFETY: the object and the options, with the texts that they point to, outlive the call,
    // and libbpf copies what it keeps of them.
    let object = unsafe {
        libbpf_sys::bpf_object__open_mem(
            OBJECT.0.as_ptr().cast(),
            OBJECT.0.len() as libbpf_sys::size_t,
            (&raw const options).cast(),
        )
    };
    let object = NonNull::new(object).ok_or_else(std::io::Error::last_os_error)?;
    // SAFETY: libbpf made the object just now, and nothing else holds it.
    Ok(unsafe { OpenObject::from_ptr(object) })
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    #[test]
    #[cfg(target_pointer_width = "64")]
    fn the_options_lie_where_libbpf_reads_them() {
        use libbpf_sys::bpf_object_open_opts as Theirs;
        assert_eq!(offset_of!(Options, pin_root_path), offset_of!(Theirs, pin_root_path));
        assert_eq!(offset_of!(Options, kconfig), offset_of!(Theirs, kconfig));
        assert_eq!(offset_of!(Options, btf_custom_path), offset_of!(Theirs, btf_custom_path));
        assert_eq!(size_of::<Options>(), offset_of!(Theirs, kernel_log_buf));
    }
}
