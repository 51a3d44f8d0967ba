/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The probes at the end of system calls. One program is attached; it does what is frequent
 * (counting in flows, closing) itself and hands everything else to a program of its own by a
 * tail call, so that the frequent path stays short and each program is small to verify.
 */
#ifndef SYSFLOW_SYSCALL_H
#define SYSFLOW_SYSCALL_H

#include "parts.bpf.h"

enum program {
	PROGRAM_FLOW_START,
	PROGRAM_DATAGRAM,
	PROGRAM_NAMES,
	PROGRAM_PROCESS,
	PROGRAM_CLOSE_RANGE,
	PROGRAM_TRANSFER,
	PROGRAM_MESSAGES,
	PROGRAM_EXEC_SWEEP,
	PROGRAM_ATTRIBUTE,
	PROGRAM_PRIVILEGE,
	PROGRAM_SOCKET,
	PROGRAM_COUNT,
};

int flow_start(struct bpf_raw_tracepoint_args *ctx);
int datagram(struct bpf_raw_tracepoint_args *ctx);
int names(struct bpf_raw_tracepoint_args *ctx);
int process_call(struct bpf_raw_tracepoint_args *ctx);
int close_range(struct bpf_raw_tracepoint_args *ctx);
int transfer(struct bpf_raw_tracepoint_args *ctx);
int messages(struct bpf_raw_tracepoint_args *ctx);
int exec_sweep(struct bpf_raw_tracepoint_args *ctx);
int attribute(struct bpf_raw_tracepoint_args *ctx);
int privilege(struct bpf_raw_tracepoint_args *ctx);
int socket_call(struct bpf_raw_tracepoint_args *ctx);

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, PROGRAM_COUNT);
	__type(key, __u32);
	__array(values, int(void *));
} programs SEC(".maps") = {
	.values = {
		[PROGRAM_FLOW_START] = (void *)&flow_start,
		[PROGRAM_DATAGRAM] = (void *)&datagram,
		[PROGRAM_NAMES] = (void *)&names,
		[PROGRAM_PROCESS] = (void *)&process_call,
		[PROGRAM_CLOSE_RANGE] = (void *)&close_range,
		[PROGRAM_TRANSFER] = (void *)&transfer,
		[PROGRAM_MESSAGES] = (void *)&messages,
		[PROGRAM_EXEC_SWEEP] = (void *)&exec_sweep,
		[PROGRAM_ATTRIBUTE] = (void *)&attribute,
		[PROGRAM_PRIVILEGE] = (void *)&privilege,
		[PROGRAM_SOCKET] = (void *)&socket_call,
	},
};

inline_always __u32 program_of_parts(__u8 call)
{
	return call >= CALL_RECVMMSG ? PROGRAM_MESSAGES : PROGRAM_TRANSFER;
}

/* Goes on with the next part of a call of several. */
inline_always void next_part(struct bpf_raw_tracepoint_args *ctx, struct ending *ending,
			     struct scratch *scratch)
{
	if (!ending->whole)
		return;
	scratch->part++;
	bpf_tail_call(ctx, &programs, program_of_parts(ending->whole));
}

inline_always __u32 program_of(__u8 call)
{
	if (call >= CALL_MKDIR)
		return PROGRAM_NAMES;
	if (call >= CALL_CHMOD)
		return PROGRAM_ATTRIBUTE;
	if (call >= CALL_SETGID)
		return PROGRAM_PRIVILEGE;
	if (call >= CALL_BIND)
		return PROGRAM_SOCKET;
	if (call >= CALL_CLONE)
		return PROGRAM_PROCESS;
	return PROGRAM_FLOW_START;
}

/*
 * Whether an open or accept that failed is recorded: an open that was refused, and an accept
 * that did not only look. Programs look for files in many places where there are none, so that
 * such opens would be most of all records.
 */
inline_always __u32 is_telling(struct ending *ending)
{
	if (ending->call == CALL_ACCEPT)
		return ending->ret != -EAGAIN;
	return ending->ret == -EACCES || ending->ret == -EPERM || ending->ret == -EROFS ||
	       ending->ret == -ETXTBSY;
}

/* Whether a call is told as an event of a file and nothing else, other than a mount. */
inline_always __u32 is_file_event(__u8 call)
{
	return (call >= CALL_CHMOD && call < CALL_MOUNT) ||
	       (call >= CALL_MKDIR && call < CALL_SENDFILE);
}

/* Whether another hook observes what the call did: that of fork the child, which passes here too
 * where it begins, and that of exec the new program. */
inline_always __u32 is_observed_elsewhere(struct ending *ending)
{
	return (ending->operation == OPERATION_CLONE && !ending->ret) ||
	       (ending->operation == OPERATION_EXEC && ending->ret >= 0);
}

/* void trace_sys_exit(struct pt_regs *regs, long ret) */
SEC("raw_tp/sys_exit")
int sys_exit(struct bpf_raw_tracepoint_args *ctx)
{
	struct ending ending = {};
	struct flow_key key = {};
	struct scratch *scratch;
	struct tally *tally;
	struct flow *flow;
	__u64 file;

	TAKE_STACK();
	if (!read_ending(ctx, &ending))
		return 0;
	if (ending.call == CALL_CLOSE_RANGE || ending.call == CALL_DUP2) {
		/* No operations of their own: they end flows. */
		bpf_tail_call(ctx, &programs, PROGRAM_CLOSE_RANGE);
		return 0;
	}
	if (has_parts(ending.call)) {
		scratch = scratch_begin();
		if (!scratch)
			return 0;
		scratch->part = 0;
		scratch->detours = 0;
		bpf_tail_call(ctx, &programs, program_of_parts(ending.call));
		return 0;
	}
	tally = tally_of(ending.operation);
	if (!tally || is_observed_elsewhere(&ending))
		return 0;
	tally->observed++;
	if (is_own(ending.tgid, tally))
		return 0;
	if (ending.call >= CALL_CLONE) {
		if (is_file_event(ending.call) && is_shed(STEP_FLOWS, tally))
			return 0;
		bpf_tail_call(ctx, &programs, program_of(ending.call));
		tally->lost_unreadable++;
		return 0;
	}
	if (ending.call <= CALL_CREAT || ending.call == CALL_ACCEPT) {
		if (ending.ret < 0) {
			if (!is_telling(&ending)) {
				tally->filtered++;
				return 0;
			}
			if (ending.call != CALL_ACCEPT && is_shed(STEP_FLOWS, tally))
				return 0;
			bpf_tail_call(ctx, &programs,
				      ending.call == CALL_ACCEPT ? PROGRAM_SOCKET :
								   PROGRAM_ATTRIBUTE);
			tally->lost_unreadable++;
			return 0;
		}
		if (ending.call != CALL_ACCEPT && is_shed(STEP_PROCESSES, tally))
			return 0;
		bpf_tail_call(ctx, &programs, PROGRAM_FLOW_START);
		tally->lost_unreadable++;
		return 0;
	}
	/* A setns that fails changes nothing. */
	if (ending.ret == -EBADF || (ending.call == CALL_SETNS && ending.ret)) {
		tally->filtered++;
		return 0;
	}
	key.tgid = ending.tgid;
	key.fd = ending.first_argument;
	flow = bpf_map_lookup_elem(&flows, &key);
	if (ending.call == CALL_CLOSE) {
		/* The number is free already; if another thread has opened and used it again, the
		 * entry is that thread's, and the closed flow was reported when it was replaced. */
		if (!flow || flow->ended || flow->file == task_file(ending.task, key.fd) ||
		    !flow_end(&key, flow, ending.task, FLOW_CLOSED))
			tally->filtered++;
		return 0;
	}
	if (flow && ending.call != CALL_CONNECT && ending.call != CALL_SETNS) {
		file = task_file(ending.task, key.fd);
		if (flow->file == file && !flow->ended) {
			if (flow->socket != SOCKET_DATAGRAM ||
			    (flow->remote &&
			     (!is_writing(ending.operation) || !call_peer(&ending)))) {
				flow_add(flow, ending.operation, ending.ret);
				return 0;
			}
			bpf_tail_call(ctx, &programs, PROGRAM_DATAGRAM);
		}
	}
	bpf_tail_call(ctx, &programs, PROGRAM_FLOW_START);
	tally->lost_unreadable++;
	return 0;
}

/* Appends one name of an event: where it starts, then the program's words. */
inline_always void append_name(struct scratch *scratch, struct event_path *event, int index,
			       __u64 task, __s32 directory, __u64 string)
{
	struct place place, root;
	__u64 file;
	char first = 0;

	bpf_probe_read_user(&first, 1, (void *)string);
	read_root(task, &root);
	if (first == '/') {
		place = root;
	} else if (directory == AT_FDCWD) {
		read_place(ADDRESS(struct fs_struct, task_fs(task), pwd), &place);
	} else {
		file = task_file(task, directory);
		if (!file) {
			event->base_flags[index] = PATH_UNKNOWN;
			event->name_bytes[index] = append_user_string(
				scratch, string, &event->base_flags[index]);
			return;
		}
		read_place(ADDRESS(struct file, file, f_path), &place);
	}
	event->base_bytes[index] = append_walk(scratch, &place, &root);
	event->base_flags[index] = scratch->flags;
	event->root_bytes[index] = scratch->root_bytes;
	event->name_bytes[index] =
		append_user_string(scratch, string, &event->base_flags[index]);
}

/* Operations on names: mkdir, rmdir, unlink, rename, link, symlink. */
SEC("raw_tp/sys_exit")
int names(struct bpf_raw_tracepoint_args *ctx)
{
	struct ending ending = {};
	struct event_path *event;
	struct scratch *scratch;
	struct tally *tally;
	__s32 directory[2] = {AT_FDCWD, AT_FDCWD};
	__u64 name[2] = {};
	__u64 regs;
	__u32 compat;

	if (!read_ending(ctx, &ending))
		return 0;
	tally = tally_of(ending.operation);
	scratch = scratch_begin();
	if (!tally || !scratch)
		return 0;
	event = SCRATCH_EVENT(scratch, struct event_path);
	__builtin_memset(event, 0, sizeof(*event));
	event->names = 1;
	event->operation = ending.operation;
	regs = ending.regs;
	compat = ending.compat;
	name[0] = ending.first_argument;
	switch (ending.call) {
	case CALL_UNLINKAT:
	case CALL_MKDIRAT:
		directory[0] = ending.first_argument;
		name[0] = argument(regs, compat, 1);
		break;
	case CALL_RENAME:
	case CALL_LINK:
	case CALL_SYMLINK:
		name[1] = argument(regs, compat, 1);
		event->names = 2;
		break;
	case CALL_RENAMEAT:
	case CALL_LINKAT:
		directory[0] = ending.first_argument;
		name[0] = argument(regs, compat, 1);
		directory[1] = argument(regs, compat, 2);
		name[1] = argument(regs, compat, 3);
		event->names = 2;
		break;
	case CALL_SYMLINKAT:
		directory[1] = argument(regs, compat, 1);
		name[1] = argument(regs, compat, 2);
		event->names = 2;
		break;
	}
	fill_header(&event->header, ending.task, EVENT_PATH, compat);
	event->ret = ending.ret;
	if (ending.operation == OPERATION_SYMLINK)
		event->name_bytes[0] =
			append_user_string(scratch, name[0], &event->base_flags[0]);
	else
		append_name(scratch, event, 0, ending.task, directory[0], name[0]);
	if (event->names == 2)
		append_name(scratch, event, 1, ending.task, directory[1], name[1]);
	if (scratch_output(scratch, sizeof(*event)))
		tally->lost_ring++;
	return 0;
}

#endif
