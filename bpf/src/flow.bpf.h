/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Flows: one map entry for each descriptor in use (and, on unconnected datagram sockets, each
 * peer). Its counters grow in place; only beginning and end cross the ring.
 */
#ifndef SYSFLOW_FLOW_H
#define SYSFLOW_FLOW_H

#include "network.bpf.h"

/* Tries to take a number over from a flow that another processor is ending: it is done within a
 * microsecond or two, unless its processor is taken away from it. */
#define BEGIN_TRIES 128
#define SWEEP_DESCRIPTORS 256 /* that one pass looks at */

inline_always __u32 is_reading(__u8 operation)
{
	return operation == OPERATION_READ || operation == OPERATION_RECEIVE;
}

inline_always __u32 is_writing(__u8 operation)
{
	return operation == OPERATION_WRITE || operation == OPERATION_SEND;
}

/* Counts one call in a flow: a failed one has no bytes. */
inline_always void flow_add(struct flow *flow, __u8 operation, __s64 ret)
{
	struct volume *volume = SLOT_OF(flow);

	if (is_reading(operation)) {
		ADD(volume->read_ops, 1);
		if (ret > 0)
			ADD(volume->read_bytes, ret);
	} else if (is_writing(operation)) {
		ADD(volume->write_ops, 1);
		if (ret > 0)
			ADD(volume->write_bytes, ret);
	} else if (operation == OPERATION_SHUTDOWN) {
		ADD(flow->shutdown, 1);
	} else if (operation == OPERATION_MMAP) {
		ADD(flow->mmaps, 1);
	}
}

/* Whether other threads use the same descriptors. Alone, a thread cannot be overtaken. */
inline_always __u32 has_threads(__u64 task)
{
	__u64 signal = READ(struct task_struct, task, signal);

	return READ(struct signal_struct, signal, live.counter) > 1;
}

/* Whether a flow with this end must have lost its number to nothing or to another file. */
inline_always __u32 is_freeing(__u8 reason)
{
	return reason == FLOW_CLOSED || reason == FLOW_CLOSED_RANGE ||
	       reason == FLOW_CLOSED_DUP || reason == FLOW_EXEC;
}

/*
 * Reports the end of a flow and deletes it; returns whether the end is told by this. If the
 * ring has no room, the entry stays and is marked: the agent finds it when it next goes
 * through the map, so nothing is lost.
 */
inline_always __u32 flow_end(struct flow_key *key, struct flow *flow, __u64 task, __u8 reason)
{
	struct claim claim = {.key = *key, .start_ns = flow->start_ns};
	struct event_flow_end *event;
	__u32 shared = has_threads(task), told = 0;
	__u8 one = 1;
	int slot;

	if (shared) {
		int refused = bpf_map_update_elem(&claims, &claim, &one, BPF_NOEXIST);

		/* Another thread ends it. */
		if (refused == -EEXIST)
			return 0;
		if (refused) {
			flow->ended = reason;
			return 1;
		}
		/* The entry may have been ended and its memory given to another since it was
		 * looked up. From here on nobody else takes it away. */
		flow = bpf_map_lookup_elem(&flows, key);
		if (!flow || flow->start_ns != claim.start_ns ||
		    (is_freeing(reason) && flow->file == task_file(task, key->fd)))
			goto release;
	}
	/* An end that found no room before is still the end that it was. */
	if (flow->ended)
		reason = flow->ended;
	told = 1;
	event = bpf_ringbuf_reserve(&ring, sizeof(*event), 0);
	if (!event) {
		flow->ended = reason;
		goto release;
	}
	__builtin_memset(event, 0, sizeof(*event));
	fill_header(&event->header, task, EVENT_FLOW_END, 0);
	event->file = flow->file;
	event->flow_ns = flow->start_ns;
	__builtin_memcpy(&event->key, key, sizeof(*key));
#pragma clang loop unroll(full)
	for (slot = 0; slot < VOLUME_SLOTS; slot++) {
		event->volume.read_ops += flow->volume[slot].read_ops;
		event->volume.write_ops += flow->volume[slot].write_ops;
		event->volume.read_bytes += flow->volume[slot].read_bytes;
		event->volume.write_bytes += flow->volume[slot].write_bytes;
	}
	event->reason = reason;
	event->shutdown = flow->shutdown;
	event->mmaps = flow->mmaps;
	/* The agent may have taken the entry, and with it the end. */
	if (bpf_map_delete_elem(&flows, key)) {
		bpf_ringbuf_discard(event, BPF_RB_NO_WAKEUP);
		told = 0;
	} else {
		bpf_ringbuf_submit(event, ring_flags());
	}
release:
	if (shared)
		bpf_map_delete_elem(&claims, &claim);
	return told;
}

/*
 * How a flow ended whose map entry another flow needs. A number that has another file was
 * closed: by close, if another thread was given the number before that call had ended. So was
 * one that open or accept returned. The new file may even have the old one's address; but a
 * stream that has moved anything cannot be connected to another peer.
 */
inline_always __u8 replaced(struct flow *known, __u64 file, __u8 call)
{
	__u64 bytes = 0;
	int slot;

	if (known->file != file || call <= CALL_CREAT || call == CALL_ACCEPT)
		return FLOW_CLOSED_LATE;
	/* Unix sockets have no remote: those for datagrams may change it. */
	if (known->socket != SOCKET_STREAM || !known->remote)
		return FLOW_REPLACED;
#pragma clang loop unroll(full)
	for (slot = 0; slot < VOLUME_SLOTS; slot++)
		bytes |= known->volume[slot].read_bytes | known->volume[slot].write_bytes;
	return bytes ? FLOW_CLOSED_LATE : FLOW_REPLACED;
}

/* Whether `peer` is a flow of the same open socket as `base`, the entry of its descriptor. An entry
 * of a socket that is closed stays until the agent hears of that, and the next socket on the
 * number often has its address; but its flows are younger than its descriptor's. */
inline_always __u32 is_peer_of(struct flow *peer, struct flow *base)
{
	return peer->file == base->file && !peer->ended && peer->start_ns >= base->start_ns;
}

/* Whether files of this mode are recorded: files, directories, devices, pipes, and sockets. */
inline_always __u32 is_recorded(__u16 mode)
{
	__u16 type = mode & S_IFMT;

	return type == S_IFREG || type == S_IFDIR || type == S_IFIFO || type == S_IFCHR ||
	       type == S_IFBLK || type == S_IFSOCK;
}

/* The flags that the program opened with. The file itself forgets O_CREAT, O_EXCL and O_TRUNC,
 * so they come from the call. */
inline_always __u32 open_flags(struct ending *ending)
{
	__u32 flags = 0;

	switch (ending->call) {
	case CALL_OPEN:
		return argument(ending->regs, ending->compat, 1);
	case CALL_OPENAT:
	case CALL_OPEN_BY_HANDLE:
		return argument(ending->regs, ending->compat, 2);
	case CALL_CREAT:
		return O_CREAT_WRONLY_TRUNC;
	case CALL_OPENAT2:
		/* struct open_how begins with its flags. */
		bpf_probe_read_user(&flags, sizeof(flags),
				    (void *)argument(ending->regs, ending->compat, 2));
		return flags;
	}
	return 0;
}

/* Fills in what the inode says. From 6.16 on an event counter, an epoll set and their like call
 * themselves regular files, where they had no type before. */
inline_always void describe_inode(struct event_flow_start *event, __u64 file)
{
	__u64 inode = READ(struct file, file, f_inode);

	event->mode = READ(struct inode, inode, i_mode);
	if (bpf_core_field_exists(((struct inode *)0)->i_flags) &&
	    READ(struct inode, inode, i_flags) & S_ANON_INODE)
		event->mode &= ~S_IFMT;
	event->inode = READ(struct inode, inode, i_ino);
	event->device = READ(struct super_block, READ(struct inode, inode, i_sb), s_dev);
}

/* Adds an operation to the flow that another thread has begun meanwhile. */
inline_always void join(struct scratch *scratch, struct event_flow_start *event,
			struct flow *flow, struct flow *other, struct tally *tally)
{
	struct volume *volume = SLOT_OF(other);

	ADD(volume->read_ops, flow->volume[0].read_ops);
	ADD(volume->write_ops, flow->volume[0].write_ops);
	ADD(volume->read_bytes, flow->volume[0].read_bytes);
	ADD(volume->write_bytes, flow->volume[0].write_bytes);
	ADD(other->shutdown, flow->shutdown);
	ADD(other->mmaps, flow->mmaps);
	if (is_reading(event->operation) || is_writing(event->operation) ||
	    event->operation == OPERATION_SHUTDOWN || event->operation == OPERATION_MMAP)
		return;
	event->flags |= FLOW_CONTINUED;
	event->flow_ns = other->start_ns;
	if (scratch_output(scratch, sizeof(*event)))
		tally->lost_ring++;
}

/*
 * Makes the map entry that `event` describes and sends the event. Another thread may have made
 * it since it was last looked for: then this operation joins it, and an event tells only of
 * what is no reading or writing. A flow that began before `since_ns` is not joined. Returns whether
 * the event is lost, and the operation with it.
 */
inline_always __u32 flow_begin(struct scratch *scratch, struct event_flow_start *event,
			      struct flow *flow, struct tally *tally, __u64 since_ns)
{
	/* Of this answer only the lower half counts: before 6.4 the verifier calls a function that
	 * returns an int, and leaves its upper half zero. */
	int refused, tries;
	__u8 tracked = 1;

#pragma clang loop unroll(disable)
	for (tries = 0; tries < BEGIN_TRIES; tries++) {
		struct flow *other;

		refused = bpf_map_update_elem(&flows, &event->key, flow, BPF_NOEXIST);
		if (refused != -EEXIST)
			break;
		other = bpf_map_lookup_elem(&flows, &event->key);
		if (!other)
			continue;
		if (other->ended)
			break;
		/* What has just been opened goes on with no flow: the entry is that of the file
		 * before, which may have had the same address, and is about to go. */
		if (other->file == flow->file && other->start_ns >= since_ns &&
		    (event->operation != OPERATION_OPEN && event->operation != OPERATION_ACCEPT)) {
			join(scratch, event, flow, other, tally);
			return 0;
		}
	}
	if (refused) {
		/* No room: this operation travels as a flow of its own. */
		event->flags |= FLOW_UNTRACKED;
		event->volume = flow->volume[0];
		tracked = 0;
	}
	if (!scratch_output(scratch, sizeof(*event)))
		return 0;
	if (tracked) {
		/* The agent must hear of an entry before its counters mean anything. The next
		 * operation tries again. */
		bpf_map_delete_elem(&flows, &event->key);
		tally->lost_ring++;
	} else {
		tally->lost_map++;
	}
	return 1;
}

#endif
