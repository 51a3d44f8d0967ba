//! The table of system calls: which numbers are recorded, and how their arguments lie. It is
//! data for the kernel side; one architecture's numbers for native tasks, and the 32-bit ones
//! for compat tasks. Numbers are from the kernel's tables (`syscall_64.tbl`, `syscall_32.tbl`,
//! `arch/arm/tools/syscall.tbl`, `asm-generic/unistd.h`).

use crate::kernel::{Call, Operation};

/// Number, layout of the arguments, kind of operation.
pub(crate) type Row = (u16, Call, Operation);

/// The rows that are alike on every architecture.
macro_rules! table {
    ($($number:literal $call:ident $operation:ident),* $(,)?) => {
        &[$(($number, Call::$call, Operation::$operation)),*]
    };
}

#[cfg(target_arch = "x86_64")]
pub(crate) const NATIVE: &[Row] = table![
    0 Read Read, 1 Write Write, 2 Open Open, 3 Close Close, 17 Read Read, 18 Write Write,
    19 Read Read, 20 Write Write, 42 Connect Connect, 43 Accept Accept, 44 SendTo Send,
    45 RecvFrom Receive, 46 SendMsg Send, 47 RecvMsg Receive, 48 Shutdown Shutdown,
    56 Clone Clone, 57 Fork Clone, 58 Fork Clone, 59 Execve Exec, 82 Rename Rename,
    83 Mkdir Mkdir, 84 Rmdir Rmdir, 85 Creat Open, 86 Link Link, 87 Unlink Unlink,
    88 Symlink Symlink, 105 Setuid Setuid, 113 Setreuid Setuid, 117 Setreuid Setuid,
    257 OpenAt Open, 304 OpenByHandle Open, 258 MkdirAt Mkdir, 263 UnlinkAt Unlink, 264 RenameAt Rename,
    265 LinkAt Link, 266 SymlinkAt Symlink, 288 Accept Accept, 295 Read Read, 296 Write Write,
    316 RenameAt Rename, 322 ExecveAt Exec, 327 Read Read, 328 Write Write, 425 IoUringSetup IoUring, 435 Clone3 Clone, 436 CloseRange Close,
    437 OpenAt2 Open,
    9 Mmap Mmap, 33 Dup2 Close, 40 Sendfile Read, 275 Splice Read, 276 Tee Read,
    278 Vmsplice Write, 292 Dup2 Close, 299 RecvMmsg Receive, 307 SendMmsg Send, 308 Setns Setns,
    326 Splice Read,
    122 Setuid Setuid, 49 Bind Bind, 50 Listen Listen, 76 Truncate Resize, 77 Ftruncate Resize, 90 Chmod Chmod,
    91 Fchmod Chmod, 92 Chown Chown,
    93 Fchown Chown, 94 Chown Chown, 101 Ptrace Ptrace, 106 Setgid Setgid, 114 Setregid Setgid,
    119 Setregid Setgid, 123 Setgid Setgid, 126 Capset Capset, 133 Mknod Mknod, 165 Mount Mount,
    166 Umount2 Umount, 175 InitModule LoadModule, 176 DeleteModule UnloadModule,
    259 MknodAt Mknod, 260 FchownAt Chown, 268 FchmodAt Chmod, 272 Unshare Unshare,
    313 FinitModule LoadModule, 319 MemfdCreate Memfd, 321 Bpf LoadBpf, 429 MoveMount Mount,
    452 FchmodAt Chmod,
];

/// i386. Programs that still use the multiplexer socketcall (102) are not seen on sockets, nor
/// is the first mmap (90), whose arguments lie in memory.
#[cfg(target_arch = "x86_64")]
pub(crate) const COMPAT: &[Row] = table![
    2 Fork Clone, 3 Read Read, 4 Write Write, 5 Open Open, 6 Close Close, 8 Creat Open,
    9 Link Link, 10 Unlink Unlink, 11 Execve Exec, 23 Setuid Setuid, 38 Rename Rename,
    39 Mkdir Mkdir, 40 Rmdir Rmdir, 70 Setreuid Setuid, 83 Symlink Symlink, 120 Clone Clone,
    145 Read Read, 146 Write Write, 164 Setreuid Setuid, 180 Read Read, 181 Write Write,
    190 Fork Clone, 203 Setreuid Setuid, 208 Setreuid Setuid, 213 Setuid Setuid,
    295 OpenAt Open, 342 OpenByHandle Open, 296 MkdirAt Mkdir, 301 UnlinkAt Unlink, 302 RenameAt Rename,
    303 LinkAt Link, 304 SymlinkAt Symlink, 333 Read Read, 334 Write Write,
    353 RenameAt Rename, 358 ExecveAt Exec, 362 Connect Connect, 364 Accept Accept,
    369 SendTo Send, 370 SendMsg Send, 371 RecvFrom Receive, 372 RecvMsg Receive,
    373 Shutdown Shutdown, 378 Read Read, 379 Write Write, 425 IoUringSetup IoUring, 435 Clone3 Clone, 436 CloseRange Close, 437 OpenAt2 Open,
    63 Dup2 Close, 187 Sendfile Read, 192 Mmap Mmap, 239 Sendfile Read, 313 Splice Read,
    315 Tee Read, 316 Vmsplice Write, 330 Dup2 Close, 337 RecvMmsg Receive, 345 SendMmsg Send,
    346 Setns Setns, 377 Splice Read, 417 RecvMmsg Receive,
    14 Mknod Mknod, 15 Chmod Chmod, 16 Chown Chown, 21 Mount Mount, 22 Umount Umount,
    26 Ptrace Ptrace, 46 Setgid Setgid, 52 Umount2 Umount, 71 Setregid Setgid, 92 Truncate Resize,
    93 Ftruncate Resize, 94 Fchmod Chmod, 95 Fchown Chown, 128 InitModule LoadModule,
    129 DeleteModule UnloadModule, 138 Setuid Setuid, 139 Setgid Setgid, 170 Setregid Setgid, 182 Chown Chown,
    185 Capset Capset, 193 Truncate64 Resize, 194 Ftruncate64 Resize, 198 Chown Chown,
    204 Setregid Setgid, 207 Fchown Chown, 210 Setregid Setgid, 212 Chown Chown,
    214 Setgid Setgid, 215 Setuid Setuid, 216 Setgid Setgid, 297 MknodAt Mknod, 298 FchownAt Chown,
    306 FchmodAt Chmod, 310 Unshare Unshare, 361 Bind Bind, 363 Listen Listen,
    350 FinitModule LoadModule, 356 MemfdCreate Memfd,
    357 Bpf LoadBpf, 429 MoveMount Mount, 452 FchmodAt Chmod,
];

/// The table of newer architectures, which have no older calls. RISC-V has no renameat (38), and
/// nothing else in its place.
#[cfg(any(target_arch = "aarch64", target_arch = "riscv64"))]
pub(crate) const NATIVE: &[Row] = table![
    34 MkdirAt Mkdir, 35 UnlinkAt Unlink, 36 SymlinkAt Symlink, 37 LinkAt Link,
    38 RenameAt Rename, 56 OpenAt Open, 265 OpenByHandle Open, 57 Close Close, 63 Read Read, 64 Write Write,
    65 Read Read, 66 Write Write, 67 Read Read, 68 Write Write, 69 Read Read, 70 Write Write,
    145 Setreuid Setuid, 146 Setuid Setuid, 147 Setreuid Setuid, 202 Accept Accept,
    203 Connect Connect, 206 SendTo Send, 207 RecvFrom Receive, 210 Shutdown Shutdown,
    211 SendMsg Send, 212 RecvMsg Receive, 220 Clone Clone, 221 Execve Exec,
    242 Accept Accept, 276 RenameAt Rename, 281 ExecveAt Exec, 286 Read Read, 287 Write Write,
    425 IoUringSetup IoUring, 435 Clone3 Clone, 436 CloseRange Close, 437 OpenAt2 Open,
    24 Dup2 Close, 71 Sendfile Read, 75 Vmsplice Write, 76 Splice Read, 77 Tee Read,
    222 Mmap Mmap, 243 RecvMmsg Receive, 268 Setns Setns, 269 SendMmsg Send, 285 Splice Read,
    151 Setuid Setuid, 33 MknodAt Mknod, 39 Umount2 Umount, 40 Mount Mount, 45 Truncate Resize, 46 Ftruncate Resize,
    52 Fchmod Chmod, 53 FchmodAt Chmod, 54 FchownAt Chown, 55 Fchown Chown, 91 Capset Capset,
    97 Unshare Unshare, 105 InitModule LoadModule, 106 DeleteModule UnloadModule,
    117 Ptrace Ptrace, 143 Setregid Setgid, 144 Setgid Setgid, 149 Setregid Setgid,
    152 Setgid Setgid, 200 Bind Bind, 201 Listen Listen, 273 FinitModule LoadModule,
    279 MemfdCreate Memfd, 280 Bpf LoadBpf,
    429 MoveMount Mount, 452 FchmodAt Chmod,
];

/// ARM EABI: native on arm32, compat on arm64.
#[cfg(any(target_arch = "arm", target_arch = "aarch64"))]
const ARM: &[Row] = table![
    2 Fork Clone, 3 Read Read, 4 Write Write, 5 Open Open, 6 Close Close, 8 Creat Open,
    9 Link Link, 10 Unlink Unlink, 11 Execve Exec, 23 Setuid Setuid, 38 Rename Rename,
    39 Mkdir Mkdir, 40 Rmdir Rmdir, 70 Setreuid Setuid, 83 Symlink Symlink, 120 Clone Clone,
    145 Read Read, 146 Write Write, 164 Setreuid Setuid, 180 Read Read, 181 Write Write,
    190 Fork Clone, 203 Setreuid Setuid, 208 Setreuid Setuid, 213 Setuid Setuid,
    283 Connect Connect, 285 Accept Accept, 289 Write Send, 290 SendTo Send,
    291 Read Receive, 292 RecvFrom Receive, 293 Shutdown Shutdown, 296 SendMsg Send,
    297 RecvMsg Receive, 322 OpenAt Open, 371 OpenByHandle Open, 323 MkdirAt Mkdir, 328 UnlinkAt Unlink,
    329 RenameAt Rename, 330 LinkAt Link, 331 SymlinkAt Symlink, 361 Read Read,
    362 Write Write, 366 Accept Accept, 382 RenameAt Rename, 387 ExecveAt Exec,
    392 Read Read, 393 Write Write, 425 IoUringSetup IoUring, 435 Clone3 Clone, 436 CloseRange Close, 437 OpenAt2 Open,
    63 Dup2 Close, 187 Sendfile Read, 192 Mmap Mmap, 239 Sendfile Read, 340 Splice Read,
    342 Tee Read, 343 Vmsplice Write, 358 Dup2 Close, 365 RecvMmsg Receive, 374 SendMmsg Send,
    375 Setns Setns, 391 Splice Read, 417 RecvMmsg Receive,
    14 Mknod Mknod, 15 Chmod Chmod, 16 Chown Chown, 21 Mount Mount, 26 Ptrace Ptrace,
    46 Setgid Setgid, 52 Umount2 Umount, 71 Setregid Setgid, 92 Truncate Resize,
    93 Ftruncate Resize, 94 Fchmod Chmod, 95 Fchown Chown, 128 InitModule LoadModule,
    129 DeleteModule UnloadModule, 138 Setuid Setuid, 139 Setgid Setgid, 170 Setregid Setgid, 182 Chown Chown,
    185 Capset Capset, 193 Truncate64 Resize, 194 Ftruncate64 Resize, 198 Chown Chown,
    204 Setregid Setgid, 207 Fchown Chown, 210 Setregid Setgid, 212 Chown Chown,
    214 Setgid Setgid, 215 Setuid Setuid, 216 Setgid Setgid, 282 Bind Bind, 284 Listen Listen, 324 MknodAt Mknod,
    325 FchownAt Chown,
    333 FchmodAt Chmod, 337 Unshare Unshare, 379 FinitModule LoadModule, 385 MemfdCreate Memfd,
    386 Bpf LoadBpf, 429 MoveMount Mount, 452 FchmodAt Chmod,
];

#[cfg(target_arch = "aarch64")]
pub(crate) const COMPAT: &[Row] = ARM;

#[cfg(target_arch = "arm")]
pub(crate) const NATIVE: &[Row] = ARM;

#[cfg(any(target_arch = "arm", target_arch = "riscv64"))]
pub(crate) const COMPAT: &[Row] = &[];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_fit_the_kernel_side_table_and_are_unique() {
        for table in [NATIVE, COMPAT] {
            let mut numbers: Vec<u16> = table.iter().map(|row| row.0).collect();
            assert!(numbers.iter().all(|number| *number < 512));
            numbers.sort_unstable();
            numbers.dedup();
            assert_eq!(numbers.len(), table.len());
        }
    }
}
