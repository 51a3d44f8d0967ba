/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Paths, as the kernel itself has them: climbs from a dentry over mounts to the root of the
 * mount namespace and appends each name to the scratch text. No memory of the program is read,
 * so that nothing can be changed between check and use.
 */
#ifndef SYSFLOW_PATH_H
#define SYSFLOW_PATH_H

#include "maps.bpf.h"

/* A struct path: two pointers of the kernel's size. */
struct place {
	__u64 mount; /* struct vfsmount */
	__u64 dentry;
};

inline_always void read_place(__u64 path, struct place *place)
{
	__u64 copy[2] = {};

	bpf_probe_read_kernel(copy, POINTER_BYTES == 8 ? 16 : 8, (void *)path);
	place->mount = PICK(copy, struct path, mnt);
	place->dentry = PICK(copy, struct path, dentry);
}

inline_always __u64 task_fs(__u64 task)
{
	return READ(struct task_struct, task, fs);
}

inline_always void read_root(__u64 task, struct place *root)
{
	read_place(ADDRESS(struct fs_struct, task_fs(task), root), root);
}

/*
 * Appends the path to `place`, leaf first, and returns its length. Afterwards scratch->flags
 * has its PATH_* flags. `root` is the process's root.
 */
inline_always __u32 append_walk(struct scratch *scratch, struct place *place, struct place *root)
{
	__u64 mount_offset = bpf_core_field_offset(((struct mount *)0)->mnt);
	__u64 vfsmount = place->mount, dentry = place->dentry, mount_root, parent;
	__u64 dentry_copy[12], mount_copy[12];
	__u32 step, length;

	bpf_probe_read_kernel(mount_copy, sizeof(mount_copy), (void *)(vfsmount - mount_offset));
	mount_root = PICK(mount_copy, struct mount, mnt.mnt_root);
	scratch->flags = 0;
	scratch->path_start = scratch->at;
	scratch->root_at = ~0u;
#pragma clang loop unroll(disable)
	for (step = 0; step < PATH_STEPS_MAX; step++) {
		if (dentry == root->dentry && vfsmount == root->mount)
			scratch->root_at = scratch->at;
		if (dentry == mount_root) {
			__u64 mount = vfsmount - mount_offset;

			parent = PICK(mount_copy, struct mount, mnt_parent);
			if (parent == mount)
				goto top;
			dentry = PICK(mount_copy, struct mount, mnt_mountpoint);
			vfsmount = parent + mount_offset;
			bpf_probe_read_kernel(mount_copy, sizeof(mount_copy), (void *)parent);
			mount_root = PICK(mount_copy, struct mount, mnt.mnt_root);
			continue;
		}
		if (scratch->at - scratch->path_start >= PATH_BYTES_MAX)
			goto truncated;
		bpf_probe_read_kernel(dentry_copy, sizeof(dentry_copy), (void *)dentry);
		parent = PICK(dentry_copy, struct dentry, d_parent);
		if (scratch->at == scratch->path_start && parent != dentry &&
		    !PICK(dentry_copy, struct dentry, d_hash.pprev))
			scratch->flags |= PATH_DELETED;
		if (parent == dentry) {
			/* The top of a tree that is mounted nowhere. As the first name it is all
			 * there is: a memfd's, a pipe's. */
			scratch->flags |= PATH_DETACHED;
			if (scratch->at != scratch->path_start)
				goto top;
		}
		{
			long bytes = bpf_probe_read_kernel_str(
				scratch->text + (scratch->at & (TEXT_BYTES - 1)), NAME_BYTES,
				(void *)PICK(dentry_copy, struct dentry, d_name.name));

			if (bytes <= 0)
				goto truncated;
			scratch->at += bytes;
		}
		if (parent == dentry)
			goto top;
		dentry = parent;
	}
truncated:
	scratch->flags |= PATH_TRUNCATED;
top:
	if (!(scratch->flags & (PATH_TRUNCATED | PATH_DETACHED))) {
		if (scratch->root_at == ~0u)
			scratch->flags |= PATH_OUTSIDE | PATH_CHROOT;
		else if (scratch->root_at != scratch->at)
			scratch->flags |= PATH_CHROOT;
	}
	length = scratch->at - scratch->path_start;
	scratch->root_bytes = scratch->root_at == ~0u ? 0 : scratch->at - scratch->root_at;
	return length;
}

/* Appends the kind of a namespace, if the file is one: its dentry has no name. One that is
 * mounted somewhere is the root of that mount, and has a path. */
inline_always __u32 append_namespace(struct scratch *scratch, __u64 file, struct place *place)
{
	__u64 inode = READ(struct file, file, f_inode), operations;
	long bytes;

	/* Files with a kernel's types may have been made before these were asked for. */
	if (!bpf_core_field_exists(((struct super_block *)0)->s_magic) ||
	    !bpf_core_field_exists(((struct inode *)0)->i_private) ||
	    !bpf_core_field_exists(((struct ns_common *)0)->ops) ||
	    !bpf_core_field_exists(((struct proc_ns_operations *)0)->name))
		return 0;
	if (READ(struct super_block, READ(struct inode, inode, i_sb), s_magic) != NSFS_MAGIC ||
	    place->dentry == READ(struct vfsmount, place->mount, mnt_root))
		return 0;
	operations = READ(struct ns_common, READ(struct inode, inode, i_private), ops);
	bytes = bpf_probe_read_kernel_str(scratch->text + (scratch->at & (TEXT_BYTES - 1)),
					  NAME_BYTES,
					  (void *)READ(struct proc_ns_operations, operations, name));
	if (bytes <= 0)
		return 0;
	scratch->at += bytes;
	scratch->flags = PATH_NAMESPACE | PATH_DETACHED;
	return bytes;
}

/* Appends the path of an open file. */
inline_always __u32 append_file_path(struct scratch *scratch, __u64 task, __u64 file)
{
	struct place place, root;
	__u32 length;

	read_place(ADDRESS(struct file, file, f_path), &place);
	length = append_namespace(scratch, file, &place);
	if (length)
		return length;
	read_root(task, &root);
	return append_walk(scratch, &place, &root);
}

/* Appends a string of the program's memory, without its NUL; returns its length. Adds to
 * `flags` if it cannot be read, or does not end within PATH_MAX. */
inline_always __u32 append_user_string(struct scratch *scratch, __u64 string, __u8 *flags)
{
	long bytes = bpf_probe_read_user_str(scratch->text + (scratch->at & (TEXT_BYTES - 1)),
					     USER_PATH_BYTES, (void *)string);

	if (bytes < 0)
		*flags |= PATH_UNKNOWN;
	if (bytes >= USER_PATH_BYTES)
		*flags |= PATH_TRUNCATED;
	if (bytes <= 1)
		return 0;
	scratch->at += bytes - 1;
	return bytes - 1;
}

/* How many descriptors the task's table has room for. */
inline_always __u32 descriptors(__u64 task)
{
	__u64 files = READ(struct task_struct, task, files);

	return READ(struct fdtable, READ(struct files_struct, files, fdt), max_fds);
}

/* The struct file behind a descriptor of the task, 0 if it is not open. */
inline_always __u64 task_file(__u64 task, __u32 fd)
{
	__u64 table = READ(struct files_struct, READ(struct task_struct, task, files), fdt);
	__u64 copy[2] = {}, file = 0;

	bpf_probe_read_kernel(copy, sizeof(copy), (void *)table);
	if (fd >= (__u32)PICK(copy, struct fdtable, max_fds))
		return 0;
	bpf_probe_read_kernel(&file, POINTER_BYTES,
			      (void *)(PICK(copy, struct fdtable, fd) + (__u64)fd * POINTER_BYTES));
	return file;
}

#endif
