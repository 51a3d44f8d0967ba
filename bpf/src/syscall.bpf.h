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
	if (!tally)
		return 0;
	tally->observed++;
	if (is_own(ending.tgid, tally))
		return 0;
	if (ending.call >= CALL_CLONE) {
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
			bpf_tail_call(ctx, &programs,
				      ending.call == CALL_ACCEPT ? PROGRAM_SOCKET :
								   PROGRAM_ATTRIBUTE);
			tally->lost_unreadable++;
			return 0;
		}
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

/* Begins a flow: at open, accept and connect, and at the first use of a descriptor that was
 * not seen to be opened. Returns 0 if the object is of no recorded kind. */
inline_always __u32 begin(struct bpf_raw_tracepoint_args *ctx, struct ending *ending,
			  struct scratch *scratch, struct tally *tally)
{
	struct event_flow_start *event;
	struct flow *known;
	struct flow *flow;
	__u64 file, sock = 0;
	__s32 fd;

	fd = ending->call <= CALL_CREAT || ending->call == CALL_ACCEPT ? ending->ret :
								       ending->first_argument;
	file = task_file(ending->task, fd);
	if (!file) {
		tally->filtered++;
		return 0;
	}
	event = SCRATCH_EVENT(scratch, struct event_flow_start);
	__builtin_memset(event, 0, sizeof(*event));
	flow = &scratch->flow;
	__builtin_memset(flow, 0, sizeof(*flow));
	describe_inode(event, file);
	/* A namespace may also be entered by a process's descriptor, which is no file. */
	if (!is_recorded(event->mode) && ending->call != CALL_SETNS) {
		tally->filtered++;
		return 0;
	}
	if ((event->mode & S_IFMT) == S_IFSOCK) {
		sock = file_sock(file);
		event->family = sock_family(sock);
		if (event->family != AF_UNIX && event->family != AF_INET &&
		    event->family != AF_INET6) {
			tally->filtered++;
			return 0;
		}
		flow->socket = socket_kind(sock, event->family);
		if (event->family != AF_UNIX)
			describe_internet(event, sock);
		flow->remote = peer_digest(event);
	}
	event->key.tgid = ending->tgid;
	event->key.fd = fd;
	known = bpf_map_lookup_elem(&flows, &event->key);
	if (known) {
		__u32 same = known->file == file && !known->ended;

		if (same && ending->call != CALL_CONNECT && ending->call != CALL_ACCEPT &&
		    ending->call != CALL_SETNS && ending->call > CALL_CREAT) {
			/* Another thread was faster. */
			flow_add(known, ending->operation, ending->ret);
			return 1;
		}
		/* Another peer is another flow; a connect that is only asked again is not. */
		if (same && (ending->call == CALL_SETNS ||
			     (ending->call == CALL_CONNECT && known->remote &&
			      known->remote == flow->remote))) {
			event->flags |= FLOW_CONTINUED;
			event->flow_ns = known->start_ns;
		} else {
			flow_end(&event->key, known, ending->task,
				 replaced(known, file, ending->call));
		}
	}
	fill_header(&event->header, ending->task, EVENT_FLOW_START, ending->compat);
	event->file = file;
	event->ret = ending->ret;
	event->operation = ending->operation;
	event->open_flags = open_flags(ending);
	if (!sock) {
		event->path_bytes = append_file_path(scratch, ending->task, file);
		event->path_flags = scratch->flags;
	} else if (event->family == AF_UNIX) {
		event->path_bytes = append_unix_name(scratch, sock);
	} else if (ending->call == CALL_CONNECT && !event->remote_port) {
		/* An attempt that failed leaves no peer in the socket, only in the call. */
		__u16 family;

		if (read_user_address(argument(ending->regs, ending->compat, 1), event->remote,
				      &event->remote_port, &family))
			event->flags |= FLOW_PEER_FROM_PROGRAM;
	}
	if (event->flags & FLOW_CONTINUED) {
		if (scratch_output(scratch, sizeof(*event)))
			tally->lost_ring++;
		return 1;
	}
	flow->file = file;
	flow->start_ns = event->header.time_ns;
	event->flow_ns = flow->start_ns;
	if (flow->socket == SOCKET_DATAGRAM &&
	    (is_writing(ending->operation) || (is_reading(ending->operation) && !flow->remote))) {
		flow_begin(scratch, event, flow, tally);
		bpf_tail_call(ctx, &programs, PROGRAM_DATAGRAM);
		tally->lost_unreadable++;
		return 1;
	}
	if (is_reading(ending->operation)) {
		flow->volume[0].read_ops = 1;
		flow->volume[0].read_bytes = ending->ret > 0 ? ending->ret : 0;
	} else if (is_writing(ending->operation)) {
		flow->volume[0].write_ops = 1;
		flow->volume[0].write_bytes = ending->ret > 0 ? ending->ret : 0;
	} else if (ending->operation == OPERATION_SHUTDOWN) {
		flow->shutdown = 1;
	} else if (ending->operation == OPERATION_MMAP) {
		flow->mmaps = 1;
	}
	flow_begin(scratch, event, flow, tally);
	return 1;
}

SEC("raw_tp/sys_exit")
int flow_start(struct bpf_raw_tracepoint_args *ctx)
{
	struct ending ending = {};
	struct scratch *scratch;
	struct tally *tally;

	if (!read_ending(ctx, &ending))
		return 0;
	scratch = scratch_begin();
	if (!scratch)
		return 0;
	take_part_at_hand(&ending, scratch);
	tally = tally_of(ending.operation);
	if (!tally)
		return 0;
	if (!begin(ctx, &ending, scratch, tally) && ending.whole >= CALL_RECVMMSG) {
		/* Neither do the messages that follow go to anything that is recorded. */
		tally->filtered += scratch->parts - scratch->part - 1;
		return 0;
	}
	next_part(ctx, &ending, scratch);
	return 0;
}

/* Counts a call on an unconnected datagram socket in the flow of the peer that it names. The
 * descriptor's own entry takes what has no known peer, and what is beyond the bound of peers. */
inline_always void count_datagram(struct ending *ending, struct scratch *scratch,
				  struct tally *tally)
{
	struct event_flow_start *event;
	struct flow *base, *known;
	struct flow_key key = {};
	struct flow *flow;
	__u64 sock;

	key.tgid = ending->tgid;
	key.fd = ending->first_argument;
	base = bpf_map_lookup_elem(&flows, &key);
	if (!base) {
		/* The table was full when the flow began; that event carried nothing. */
		tally->lost_map++;
		return;
	}
	event = SCRATCH_EVENT(scratch, struct event_flow_start);
	__builtin_memset(event, 0, sizeof(*event));
	flow = &scratch->flow;
	__builtin_memset(flow, 0, sizeof(*flow));
	if (ending->ret < 0 || !read_user_address(call_peer(ending), key.peer, &key.peer_port,
						 &key.peer_family)) {
		flow_add(base, ending->operation, ending->ret);
		return;
	}
	describe_inode(event, base->file);
	sock = file_sock(base->file);
	event->family = sock_family(sock);
	describe_internet(event, sock);
	/* Named or not, the peer that the socket is connected to is the descriptor's own. */
	if (event->remote_port == key.peer_port && is_same_address(event->remote, key.peer)) {
		flow_add(base, ending->operation, ending->ret);
		return;
	}
	known = bpf_map_lookup_elem(&flows, &key);
	if (known && known->file == base->file && !known->ended) {
		flow_add(known, ending->operation, ending->ret);
		return;
	}
	if (known)
		flow_end(&key, known, ending->task, replaced(known, base->file, ending->call));
	if (base->peers >= settings.peers_max) {
		flow_add(base, ending->operation, ending->ret);
		return;
	}
	base->peers++;
	event->key = key;
	__builtin_memcpy(event->remote, key.peer, sizeof(key.peer));
	event->remote_port = key.peer_port;
	event->family = key.peer_family;
	event->flags = FLOW_PEER_FROM_PROGRAM;
	fill_header(&event->header, ending->task, EVENT_FLOW_START, ending->compat);
	event->file = base->file;
	event->ret = ending->ret;
	event->operation = ending->operation;
	flow->file = base->file;
	flow->socket = SOCKET_DATAGRAM;
	flow->start_ns = event->header.time_ns;
	event->flow_ns = flow->start_ns;
	if (is_reading(ending->operation)) {
		flow->volume[0].read_ops = 1;
		flow->volume[0].read_bytes = ending->ret;
	} else {
		flow->volume[0].write_ops = 1;
		flow->volume[0].write_bytes = ending->ret;
	}
	flow_begin(scratch, event, flow, tally);
}

SEC("raw_tp/sys_exit")
int datagram(struct bpf_raw_tracepoint_args *ctx)
{
	struct ending ending = {};
	struct scratch *scratch;
	struct tally *tally;

	if (!read_ending(ctx, &ending))
		return 0;
	scratch = scratch_begin();
	if (!scratch)
		return 0;
	take_part_at_hand(&ending, scratch);
	tally = tally_of(ending.operation);
	if (!tally)
		return 0;
	count_datagram(&ending, scratch, tally);
	next_part(ctx, &ending, scratch);
	return 0;
}

/*
 * Ends the flows of the descriptors that close_range has closed, or the one whose number dup2
 * has given to another file. Of a range the first 256 are looked at here; where there may be
 * more, the agent ends their flows from its own table.
 */
SEC("raw_tp/sys_exit")
int close_range(struct bpf_raw_tracepoint_args *ctx)
{
	struct ending ending = {};
	struct event_closed_range *event;
	struct flow_key key = {};
	struct scratch *scratch;
	__u32 fd, step, flags = 0, count;
	__u8 reason = FLOW_CLOSED_RANGE;

	if (!read_ending(ctx, &ending) || ending.ret < 0)
		return 0;
	scratch = scratch_begin();
	if (!scratch)
		return 0;
	if (ending.call == CALL_DUP2) {
		scratch->at = ending.ret;
		scratch->path_start = ending.ret;
		reason = FLOW_CLOSED_DUP;
	} else {
		scratch->at = ending.first_argument;
		scratch->path_start = argument(ending.regs, ending.compat, 1);
		flags = argument(ending.regs, ending.compat, 2);
	}
	if (flags & CLOSE_RANGE_CLOEXEC)
		return 0;
	/* No descriptor lies beyond the table, unless the table is a new one (CLOSE_RANGE_UNSHARE),
	 * which is only as large as what was left open. */
	count = descriptors(ending.task);
	if (!(flags & CLOSE_RANGE_UNSHARE) && count && scratch->path_start >= count)
		scratch->path_start = count - 1;
	key.tgid = ending.tgid;
#pragma clang loop unroll(disable)
	for (step = 0; step < SWEEP_DESCRIPTORS; step++) {
		struct flow *flow;

		/* The descriptor is kept in the map, where the verifier does not follow it. */
		fd = scratch->at;
		if (fd > scratch->path_start)
			return 0;
		scratch->at = fd + 1;
		key.fd = fd;
		flow = bpf_map_lookup_elem(&flows, &key);
		if (flow && flow->file != task_file(ending.task, fd))
			flow_end(&key, flow, ending.task, reason);
	}
	fd = scratch->at;
	if (fd > scratch->path_start)
		return 0;
	/* Without room in the ring these flows end later, at the number's next use or with the
	 * process; nothing that they counted is lost. */
	event = bpf_ringbuf_reserve(&ring, sizeof(*event), 0);
	if (!event)
		return 0;
	fill_header(&event->header, ending.task, EVENT_CLOSED_RANGE, ending.compat);
	event->first = fd;
	event->last = scratch->path_start;
	bpf_ringbuf_submit(event, ring_flags());
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
		/* AT_REMOVEDIR: the name says which of the two it is, as for the calls proper. */
		if (argument(regs, compat, 2) & AT_REMOVEDIR) {
			tally->observed--;
			tally = tally_of(OPERATION_RMDIR);
			if (!tally)
				return 0;
			tally->observed++;
			event->operation = OPERATION_RMDIR;
		}
		/* fall through */
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
