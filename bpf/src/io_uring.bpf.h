/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Connections made through io_uring, where no system call says connect. The socket's state
 * does: the attempt is noted in the task that makes it, and told with both addresses when it
 * has come to something, in whichever context that is.
 */
#ifndef SYSFLOW_IO_URING_H
#define SYSFLOW_IO_URING_H

#include "flow.bpf.h"

/* Who attempts to connect a socket. */
struct attempt {
	__u64 start_ns; /* of the process */
	__u64 file;
	__u32 tgid;
	__u32 tid;
	__s32 fd; /* -1: none among those looked at, or a registered file, which has none */
	__u32 zero;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 256);
	__type(key, __u64); /* address of the struct sock */
	__type(value, struct attempt);
} attempts SEC(".maps");

/* Whether the task has an io_uring, or is one's worker. */
inline_always __u32 uses_io_uring(__u64 task)
{
	__u32 flags = READ(struct task_struct, task, flags);

	if (flags & PF_KTHREAD)
		return 0;
	if (flags & PF_IO_WORKER)
		return 1;
	return bpf_core_field_exists(((struct task_struct *)0)->io_uring) &&
	       READ(struct task_struct, task, io_uring);
}

/* Notes who begins to connect a socket. With no room in the map the connection is first seen
 * when a system call uses it. */
inline_always void attempt_begin(__u64 sock)
{
	__u64 task = bpf_get_current_task(), ids = bpf_get_current_pid_tgid(), socket;
	struct attempt attempt = {.fd = -1};
	__u32 fd, count;

	if (!uses_io_uring(task) || ids >> 32 == own_tgid)
		return;
	socket = READ(struct sock, sock, sk_socket);
	attempt.file = socket ? READ(struct socket, socket, file) : 0;
	attempt.start_ns = READ(struct task_struct,
				READ(struct task_struct, task, group_leader), start_boottime);
	attempt.tgid = ids >> 32;
	attempt.tid = ids;
	count = attempt.file ? descriptors(task) : 0;
#pragma clang loop unroll(disable)
	for (fd = 0; fd < SWEEP_DESCRIPTORS; fd++) {
		if (fd >= count)
			break;
		if (task_file(task, fd) == attempt.file) {
			attempt.fd = fd;
			break;
		}
	}
	bpf_map_update_elem(&attempts, &sock, &attempt, BPF_ANY);
}

/* Tells what an attempt has come to, unless its flow is known: a call of connect made it. The
 * operation counts as one of a socket's state. Returns 0 if there is nothing to tell. */
inline_always __u32 attempt_end(__u64 sock)
{
	struct attempt *noted = bpf_map_lookup_elem(&attempts, &sock), attempt;
	struct tally *tally = tally_of(OPERATION_SOCKET_STATE);
	struct event_flow_start *event;
	struct flow_key key = {};
	struct flow flow = {}, *known;

	if (!noted || !tally)
		return 0;
	attempt = *noted;
	bpf_map_delete_elem(&attempts, &sock);
	key.tgid = attempt.tgid;
	key.fd = attempt.fd;
	known = bpf_map_lookup_elem(&flows, &key);
	if (known && known->file == attempt.file && !known->ended)
		return 0;
	tally->observed++;
	event = bpf_ringbuf_reserve(&ring, sizeof(*event), 0);
	if (!event) {
		tally->lost_ring++;
		return 1;
	}
	__builtin_memset(event, 0, sizeof(*event));
	event->header.time_ns = bpf_ktime_get_boot_ns();
	event->header.start_ns = attempt.start_ns;
	event->header.tgid = attempt.tgid;
	event->header.tid = attempt.tid;
	event->header.kind = EVENT_FLOW_START;
	event->file = attempt.file;
	event->flow_ns = event->header.time_ns;
	event->key = key;
	event->operation = OPERATION_SOCKET_STATE;
	event->ret = -(__s32)READ(struct sock, sock, sk_err);
	event->family = sock_family(sock);
	event->mode = S_IFSOCK;
	describe_internet(event, sock);
	flow.file = attempt.file;
	flow.start_ns = event->flow_ns;
	flow.socket = SOCKET_STREAM;
	flow.remote = peer_digest(event);
	/* A flow that is known by a descriptor of another file ends at its next use. */
	if (key.fd < 0 || bpf_map_update_elem(&flows, &key, &flow, BPF_NOEXIST))
		event->flags = FLOW_UNTRACKED;
	bpf_ringbuf_submit(event, ring_flags());
	return 1;
}

#endif
