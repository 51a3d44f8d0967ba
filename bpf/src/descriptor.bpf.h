/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The programs of descriptors: they begin flows, count datagrams in the flow of their peer, and
 * end the flows of descriptors that close_range and dup2 have closed. What becomes of a flow's map
 * entry is in flow.bpf.h.
 */
#ifndef SYSFLOW_DESCRIPTOR_H
#define SYSFLOW_DESCRIPTOR_H

#include "syscall.bpf.h"

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
	if ((event->mode & S_IFMT) != S_IFSOCK) {
		/* Entering a namespace is a matter of the process. */
		if (ending->call != CALL_SETNS && is_shed(STEP_PROCESSES, tally))
			return 0;
	} else {
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
		if (flow_begin(scratch, event, flow, tally, 0))
			return 1;
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
	flow_begin(scratch, event, flow, tally, 0);
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
	if (!base || base->ended || base->file != task_file(ending->task, key.fd)) {
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
	if (known && is_peer_of(known, base)) {
		flow_add(known, ending->operation, ending->ret);
		return;
	}
	/* Of a socket that was closed, or was not connected yet. */
	if (known)
		flow_end(&key, known, ending->task,
			 base->remote && known->file == base->file ? FLOW_REPLACED :
								     FLOW_CLOSED_LATE);
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
	flow_begin(scratch, event, flow, tally, base->start_ns);
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
	event = ring_admits(charged_session(ending.task), sizeof(*event)) ?
			bpf_ringbuf_reserve(&ring, sizeof(*event), 0) :
			0;
	if (!event)
		return 0;
	fill_header(&event->header, ending.task, EVENT_CLOSED_RANGE, ending.compat);
	event->first = fd;
	event->last = scratch->path_start;
	bpf_ringbuf_submit(event, ring_flags());
	return 0;
}

#endif
