/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The kernel as the probes see it: fixed-width types, the constants of the BPF and socket
 * interfaces, and of each kernel structure only the members that are read. CO-RE finds the
 * members in the running kernel by name; order and size here mean nothing. No kernel or libc
 * header is needed to build.
 */
#ifndef SYSFLOW_KERNEL_H
#define SYSFLOW_KERNEL_H

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;
typedef signed char __s8;
typedef short __s16;
typedef int __s32;
typedef long long __s64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u32 __wsum;

#define NULL ((void *)0)

/* include/uapi/linux/bpf.h */
enum bpf_map_type {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_PROG_ARRAY = 3,
	BPF_MAP_TYPE_PERCPU_ARRAY = 6,
	BPF_MAP_TYPE_LRU_HASH = 9,
	BPF_MAP_TYPE_RINGBUF = 27,
};
#define BPF_ANY 0
#define BPF_NOEXIST 1
#define BPF_RB_NO_WAKEUP 1
#define BPF_RB_FORCE_WAKEUP 2
#define BPF_RB_AVAIL_DATA 0

struct bpf_raw_tracepoint_args {
	__u64 args[0];
};

/* include/uapi/asm-generic/errno*.h, include/linux/errno.h */
#define EPERM 1
#define EBADF 9
#define EAGAIN 11
#define EACCES 13
#define EEXIST 17
#define ETXTBSY 26
#define EROFS 30
#define ERESTARTSYS 512
#define ERROR_MAX 4095
#define ERESTART_RESTARTBLOCK 516

/* include/linux/fs.h */
#define S_ANON_INODE (1 << 19)

#define S_IFMT 0170000
#define S_IFSOCK 0140000
#define S_IFREG 0100000
#define S_IFBLK 0060000
#define S_IFDIR 0040000
#define S_IFCHR 0020000
#define S_IFIFO 0010000

#define AF_UNIX 1
#define AF_INET 2
#define AF_INET6 10
#define SOCK_DGRAM 2
#define SOCK_RAW 3
#define IPPROTO_TCP 6
#define TCP_SYN_SENT 2
#define TCP_CLOSE 7
#define TCP_ESTABLISHED 1

#define AT_FDCWD (-100)
#define O_CREAT_WRONLY_TRUNC 01101 /* what creat opens with, on every architecture */
#define CLONE_THREAD 0x10000
#define PF_KTHREAD 0x200000
#define PF_IO_WORKER 0x10
#define SIGNAL_GROUP_EXIT 4
#define CLOSE_RANGE_CLOEXEC 4
#define AT_REMOVEDIR 0x200
#define CLOSE_RANGE_UNSHARE 2
#define O_ACCMODE 3
#define O_RDONLY 0
#define MAP_ANONYMOUS 0x20
#define NSFS_MAGIC 0x6e736673

/* include/uapi/linux/ptrace.h, capability.h, bpf.h */
#define PTRACE_TRACEME 0
#define PTRACE_POKETEXT 4
#define PTRACE_POKEDATA 5
#define PTRACE_ATTACH 16
#define PTRACE_SEIZE 0x4206
#define LINUX_CAPABILITY_VERSION_1 0x19980330
#define BPF_PROG_LOAD 5
#define BPF_ATTR_PROG_NAME 48 /* offset of the name in the attributes of BPF_PROG_LOAD */
#define BPF_OBJ_NAME_LEN 16

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct pt_regs___x86 {
	unsigned long bp, bx, r10, r9, r8, dx, si, cx, di, orig_ax;
};

struct pt_regs___arm64 {
	__u64 regs[31];
	__u64 orig_x0;
	int syscallno;
};

struct pt_regs___arm {
	unsigned long uregs[18];
};

struct pt_regs___riscv {
	unsigned long a1, a2, a3, a4, a5, a7, orig_a0;
};

struct qstr {
	const unsigned char *name;
};

struct hlist_bl_node {
	void *pprev;
};

struct dentry {
	struct hlist_bl_node d_hash;
	struct dentry *d_parent;
	struct qstr d_name;
};

struct vfsmount {
	struct dentry *mnt_root;
};

struct mount {
	struct mount *mnt_parent;
	struct dentry *mnt_mountpoint;
	struct vfsmount mnt;
};

struct path {
	struct vfsmount *mnt;
	struct dentry *dentry;
};

struct super_block {
	__u32 s_dev;
	unsigned long s_magic;
};

struct inode {
	__u16 i_mode;
	unsigned int i_flags;
	unsigned long i_ino;
	struct super_block *i_sb;
	void *i_private;
};

struct proc_ns_operations {
	const char *name;
};

struct ns_common {
	const struct proc_ns_operations *ops;
	unsigned int inum;
};

struct file {
	struct path f_path;
	struct inode *f_inode;
	void *private_data;
	unsigned int f_flags;
};

struct fdtable {
	unsigned int max_fds;
	struct file **fd;
};

struct files_struct {
	struct fdtable *fdt;
};

struct fs_struct {
	struct path root;
	struct path pwd;
};

struct thread_info {
	unsigned long flags;
	__u32 status;
	int abi_syscall;
	int syscall;
};

typedef struct {
	int counter;
} atomic_t;

struct upid {
	int nr;
};

struct pid {
	unsigned int level;
	struct upid numbers[1];
};

struct kuid_t {
	__u32 val;
};

struct cred {
	struct kuid_t uid, euid, gid;
};

struct mm_struct {
	struct file *exe_file;
	unsigned long arg_start;
	unsigned long arg_end;
	unsigned long env_start;
	unsigned long env_end;
};

struct linux_binprm {
	const char *filename;
	const char *interp;
};

struct mnt_namespace {
	struct ns_common ns;
};

struct nsproxy {
	struct mnt_namespace *mnt_ns;
};

struct kernfs_node {
	const char *name;
};

struct cgroup {
	struct kernfs_node *kn;
	int level;
};

struct cgroup_subsys_state {
	struct cgroup *cgroup;
};

struct css_set {
	struct cgroup_subsys_state *subsys[1];
	struct cgroup *dfl_cgrp;
};

enum cgroup_subsys_id {
	pids_cgrp_id = 1,
};

enum pid_type {
	PIDTYPE_SID = 3, /* since 4.19 */
};

struct signal_struct {
	atomic_t live;
	struct pid *pids[PIDTYPE_SID + 1];
	unsigned int flags;
	int group_exit_code;
	void *tty;
};

struct task_struct {
	struct thread_info thread_info;
	void *stack;
	unsigned int flags;
	int pid, tgid;
	int exit_code;
	struct task_struct *group_leader;
	struct task_struct *real_parent;
	struct pid *thread_pid;
	__u64 start_boottime;
	struct mm_struct *mm;
	struct fs_struct *fs;
	struct files_struct *files;
	struct signal_struct *signal;
	void *io_uring;
	const struct cred *cred;
	struct css_set *cgroups;
	struct nsproxy *nsproxy;
};

struct in6_addr {
	__u8 bytes[16];
};

struct sock_common {
	__u16 skc_family;
	__be16 skc_dport;
	__u16 skc_num;
	__be32 skc_daddr;
	__be32 skc_rcv_saddr;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
};

struct socket {
	struct sock *sk;
	struct file *file;
};

struct sock {
	struct sock_common __sk_common;
	__u16 sk_type;
	__u16 sk_protocol;
	int sk_err;
	struct socket *sk_socket;
};

struct inet_sock {
	__be16 inet_sport;
};

struct sockaddr_un {
	char sun_path[1];
};

struct unix_address {
	int len;
	struct sockaddr_un name[1];
};

struct unix_sock {
	struct unix_address *addr;
	struct sock *peer;
};

struct seq_file;

struct bpf_iter_meta {
	struct seq_file *seq;
};

struct bpf_iter__task {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
};

#pragma clang attribute pop

#endif
