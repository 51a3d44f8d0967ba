/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Calls of several parts: those that move bytes between two descriptors read from one and write
 * to the other, and those that carry many messages send or receive each. A part is counted like
 * a call of its own; the part at hand is kept in the scratch space, which lasts from one program
 * to the next.
 */
#ifndef SYSFLOW_PARTS_H
#define SYSFLOW_PARTS_H

#include "flow.bpf.h"

#define MESSAGES_MAX 1024 /* UIO_MAXIOV: the kernel cuts longer lists */

inline_always __u32 has_parts(__u8 call)
{
	return call >= CALL_SENDFILE;
}

inline_always __u32 part_count(struct ending *ending)
{
	__u64 messages = ending->ret > 0 ? ending->ret : 1;

	if (ending->call == CALL_VMSPLICE)
		return 1;
	if (ending->call < CALL_RECVMMSG)
		return 2;
	BOUND(messages, MESSAGES_MAX);
	return messages;
}

/* Bytes of a struct mmsghdr: a msghdr of seven longs, the length, and on 64-bit padding. */
inline_always __u32 message_stride(__u32 compat)
{
	return user_pointer_bytes(compat) * 8;
}

/* Where a struct mmsghdr has the length of its message. */
inline_always __u64 message_length(__u64 message, __u32 stride)
{
	return message + stride / 8 * 7;
}

/*
 * Narrows a call to one of the messages in the program's list. Its length lies there too, where
 * the call has put it. A call that fails has one message, which fails.
 */
inline_always void take_message(struct ending *ending, __u64 list, __u32 part)
{
	__u32 stride = message_stride(ending->compat), length = 0;

	ending->whole = ending->call;
	ending->call = ending->call == CALL_SENDMMSG ? CALL_SENDMSG : CALL_RECVMSG;
	ending->message = list + (__u64)part * stride;
	if (ending->ret > 0) {
		bpf_probe_read_user(&length, sizeof(length),
				    (void *)message_length(ending->message, stride));
		ending->ret = length;
	}
}

/* Narrows a call to one of its parts. All parts of a call that fails do. */
inline_always void take_part(struct ending *ending, __u32 part)
{
	__u64 regs = ending->regs;
	__u32 compat = ending->compat;

	if (ending->call >= CALL_RECVMMSG) {
		take_message(ending, argument(regs, compat, 1), part);
		return;
	}
	ending->whole = ending->call;
	switch (ending->call) {
	case CALL_SENDFILE:
		if (!part)
			ending->first_argument = argument(regs, compat, 1);
		break;
	case CALL_SPLICE:
		if (part)
			ending->first_argument = argument(regs, compat, 2);
		break;
	case CALL_TEE:
		if (part)
			ending->first_argument = argument(regs, compat, 1);
		break;
	case CALL_VMSPLICE:
		/* Where a file with the kernel's types lacks the flags, it is taken for a write. */
		part = !bpf_core_field_exists(((struct file *)0)->f_flags) ||
		       (READ(struct file, task_file(ending->task, ending->first_argument),
			     f_flags) & O_ACCMODE) != O_RDONLY;
		break;
	}
	ending->call = part ? CALL_WRITE : CALL_READ;
	ending->operation = part ? OPERATION_WRITE : OPERATION_READ;
}

/* Narrows a call, if it has parts, to the part at hand. What has come of it passes through the
 * map, where the verifier does not follow it; else it would go through all that comes after once
 * for each kind of call. */
inline_always void take_part_at_hand(struct ending *ending, struct scratch *scratch)
{
	volatile struct scratch *hidden = scratch;

	if (has_parts(ending->call))
		take_part(ending, scratch->part);
	hidden->call = ending->call;
	hidden->operation = ending->operation;
	hidden->whole = ending->whole;
	ending->call = hidden->call;
	ending->operation = hidden->operation;
	ending->whole = hidden->whole;
}

#endif
