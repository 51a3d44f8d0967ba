/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Changes of what a file system says of a file: permissions, owner, length, and of what is
 * mounted where; and opens that were refused. */
#ifndef SYSFLOW_ATTRIBUTE_H
#define SYSFLOW_ATTRIBUTE_H

#include "syscall.bpf.h"

/* A length that a 32-bit task passes in two registers: on ARM an even and the next odd one. */
inline_always __u64 long_length(__u64 regs, __u32 compat)
{
	if (ON_X86)
		return argument(regs, compat, 1) | argument(regs, compat, 2) << 32;
	return (__u32)argument(regs, compat, 2) | argument(regs, compat, 3) << 32;
}

/* A length that fits into a register. */
inline_always __u64 length(__u64 regs, __u32 compat)
{
	__u64 value = argument(regs, compat, 1);

	return user_pointer_bytes(compat) == 8 ? value : (__u64)(__s32)value;
}

/* Appends the path of the file behind the descriptor in the first argument. */
inline_always __u32 append_descriptor(struct scratch *scratch, struct event_attribute *event,
				      struct ending *ending)
{
	__u64 file = task_file(ending->task, ending->first_argument), inode;

	if (!file)
		return 0;
	inode = READ(struct file, file, f_inode);
	event->mode = READ(struct inode, inode, i_mode);
	event->inode = READ(struct inode, inode, i_ino);
	event->device = READ(struct super_block, READ(struct inode, inode, i_sb), s_dev);
	event->path.base_bytes[0] = append_file_path(scratch, ending->task, file);
	event->path.base_flags[0] = scratch->flags;
	event->path.root_bytes[0] = scratch->root_bytes;
	return 1;
}

SEC("raw_tp/sys_exit")
int attribute(struct bpf_raw_tracepoint_args *ctx)
{
	struct ending ending = {};
	struct event_attribute *event;
	struct scratch *scratch;
	struct tally *tally;
	__s32 directory = AT_FDCWD;
	__u64 name, source = 0, type = 0, second, third, regs;
	__u32 compat;

	if (!read_ending(ctx, &ending))
		return 0;
	tally = tally_of(ending.operation);
	scratch = scratch_begin();
	if (!tally || !scratch)
		return 0;
	event = SCRATCH_EVENT(scratch, struct event_attribute);
	__builtin_memset(event, 0, sizeof(*event));
	event->path.names = 1;
	event->path.operation = ending.operation;
	event->path.ret = ending.ret;
	regs = ending.regs;
	compat = ending.compat;
	name = ending.first_argument;
	second = argument(regs, compat, 1);
	third = argument(regs, compat, 2);
	switch (ending.call) {
	case CALL_OPEN_BY_HANDLE:
		/* No name: it is told of what stands for the file system. The handle's length, of
		 * which only the lowest byte is ever used, has a NUL where a name is wanted. */
		directory = ending.first_argument;
		name = second + 1;
		event->values[0] = open_flags(&ending);
		break;
	case CALL_OPENAT:
	case CALL_OPENAT2:
		directory = ending.first_argument;
		name = second;
		/* fall through */
	case CALL_OPEN:
	case CALL_CREAT:
		event->values[0] = open_flags(&ending);
		break;
	case CALL_FCHMODAT:
		directory = ending.first_argument;
		name = second;
		event->values[0] = (__u32)third;
		break;
	case CALL_CHOWN:
	case CALL_FCHOWN:
		event->values[0] = (__u32)second;
		event->values[1] = (__u32)third;
		break;
	case CALL_FCHOWNAT:
		directory = ending.first_argument;
		name = second;
		event->values[0] = (__u32)third;
		event->values[1] = (__u32)argument(regs, compat, 3);
		break;
	case CALL_TRUNCATE:
	case CALL_FTRUNCATE:
		event->values[0] = length(regs, compat);
		break;
	case CALL_TRUNCATE64:
	case CALL_FTRUNCATE64:
		event->values[0] = long_length(regs, compat);
		break;
	case CALL_MKNODAT:
		directory = ending.first_argument;
		name = second;
		event->values[0] = (__u32)third;
		event->values[1] = (__u32)argument(regs, compat, 3);
		break;
	case CALL_MKNOD:
		event->values[0] = (__u32)second;
		event->values[1] = (__u32)third;
		break;
	case CALL_MOUNT:
		name = second;
		source = ending.first_argument;
		type = third;
		event->path.names = 2;
		event->values[0] = (__u32)argument(regs, compat, 3);
		break;
	case CALL_MOVE_MOUNT:
		directory = third;
		name = argument(regs, compat, 3);
		source = second;
		event->path.names = 2;
		event->values[0] = (__u32)argument(regs, compat, 4);
		break;
	case CALL_UMOUNT:
		break;
	default: /* chmod, fchmod, umount2 */
		event->values[0] = (__u32)second;
	}
	fill_header(&event->path.header, ending.task, EVENT_ATTRIBUTE, compat);
	if (ending.call == CALL_FCHMOD || ending.call == CALL_FCHOWN ||
	    ending.call == CALL_FTRUNCATE || ending.call == CALL_FTRUNCATE64) {
		if (!append_descriptor(scratch, event, &ending)) {
			tally->filtered++;
			return 0;
		}
	} else {
		append_name(scratch, &event->path, 0, ending.task, directory, name);
	}
	if (source)
		event->path.name_bytes[1] =
			append_user_string(scratch, source, &event->path.base_flags[1]);
	if (type)
		event->text_bytes = append_user_string(scratch, type, &event->path.base_flags[1]);
	if (scratch_output(scratch, sizeof(*event)))
		tally->lost_ring++;
	return 0;
}

#endif
