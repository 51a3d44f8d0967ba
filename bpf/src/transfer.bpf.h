/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The programs that go through the parts of a call. A part whose flow is known is counted here;
 * one that begins a flow takes a detour by the program that begins flows, which comes back for
 * the next part. The kernel ends a chain of more than 32 tail calls, so detours are bounded.
 */
#ifndef SYSFLOW_TRANSFER_H
#define SYSFLOW_TRANSFER_H

#include "descriptor.bpf.h"

#define MESSAGES_A_PASS 128
#define DETOURS_MAX 6 /* of three tail calls at most; nine more are the passes */

/* Calls on two descriptors: sendfile, splice, tee, copy_file_range; and vmsplice, which reads or
 * writes. */
SEC("raw_tp/sys_exit")
int transfer(struct bpf_raw_tracepoint_args *ctx)
{
	struct ending ending = {};
	struct flow_key key = {};
	struct scratch *scratch;
	struct tally *tally;
	struct flow *flow;

	if (!read_ending(ctx, &ending))
		return 0;
	scratch = scratch_begin();
	if (!scratch || scratch->part >= part_count(&ending))
		return 0;
	take_part(&ending, scratch->part);
	tally = tally_of(ending.operation);
	if (!tally)
		return 0;
	tally->observed++;
	if (is_own(ending.tgid, tally))
		goto next;
	if (ending.ret == -EBADF) {
		tally->filtered++;
		goto next;
	}
	key.tgid = ending.tgid;
	key.fd = ending.first_argument;
	flow = bpf_map_lookup_elem(&flows, &key);
	if (flow && !flow->ended && flow->file == task_file(ending.task, key.fd)) {
		flow_add(flow, ending.operation, ending.ret);
		goto next;
	}
	bpf_tail_call(ctx, &programs, PROGRAM_FLOW_START);
	tally->lost_unreadable++;
next:
	next_part(ctx, &ending, scratch);
	return 0;
}

/* Counts a message in a flow. */
inline_always void add_message(struct flow *flow, __u8 operation, __u32 bytes)
{
	struct volume *volume = SLOT_OF(flow);

	if (is_writing(operation)) {
		ADD(volume->write_ops, 1);
		ADD(volume->write_bytes, bytes);
	} else {
		ADD(volume->read_ops, 1);
		ADD(volume->read_bytes, bytes);
	}
}

/* Calls of many messages: sendmmsg and recvmmsg. Each message is an operation, in the flow of
 * its peer; a call that fails is one. What the loop goes by is kept in the scratch space, where
 * the verifier does not follow it, so that all messages look alike to it. */
SEC("raw_tp/sys_exit")
int messages(struct bpf_raw_tracepoint_args *ctx)
{
	struct ending ending = {};
	struct flow *base, *known;
	struct scratch *scratch;
	struct flow_key *key;
	struct tally *tally;
	__u32 step;

	if (!read_ending(ctx, &ending))
		return 0;
	tally = tally_of(ending.operation);
	scratch = scratch_begin();
	if (!tally || !scratch)
		return 0;
	if (!scratch->part && !scratch->detours) {
		__u32 parts = part_count(&ending);

		tally->observed += parts;
		if (ending.tgid == own_tgid) {
			tally->own += parts;
			return 0;
		}
		if (ending.ret == -EBADF) {
			tally->filtered++;
			return 0;
		}
		scratch->parts = parts;
		scratch->stride = message_stride(ending.compat);
		/* Not in the loop: clang would move a part of it out that only another
		 * architecture's kernel has, and this one refuses that. */
		scratch->list = argument(ending.regs, ending.compat, 1);
	}
	key = &SCRATCH_EVENT(scratch, struct event_flow_start)->key;
	__builtin_memset(key, 0, sizeof(*key));
	key->tgid = ending.tgid;
	key->fd = ending.first_argument;
	base = bpf_map_lookup_elem(&flows, key);
	if (base && (base->ended || base->file != task_file(ending.task, key->fd)))
		base = NULL;
	scratch->operation = ending.operation;
	scratch->failed = ending.ret < 0;
#pragma clang loop unroll(disable)
	for (step = 0; step < MESSAGES_A_PASS; step++) {
		__u32 part = scratch->part, bytes = 0;
		__u64 message = scratch->list + (__u64)part * scratch->stride, peer = 0;

		if (part >= scratch->parts)
			return 0;
		if (!base) {
			if (scratch->detours < DETOURS_MAX) {
				scratch->detours++;
				bpf_tail_call(ctx, &programs, PROGRAM_FLOW_START);
			}
			tally->lost_map++;
			scratch->part = part + 1;
			continue;
		}
		if (!scratch->failed)
			bpf_probe_read_user(&bytes, sizeof(bytes),
					    (void *)message_length(message, scratch->stride));
		scratch->part = part + 1;
		if (base->socket != SOCKET_DATAGRAM || scratch->failed ||
		    (base->remote && !is_writing(scratch->operation))) {
			add_message(base, scratch->operation, bytes);
			continue;
		}
		/* msg_name is the first member of struct msghdr. */
		bpf_probe_read_user(&peer, scratch->stride == 64 ? 8 : 4, (void *)message);
		if (!read_user_address(peer, key->peer, &key->peer_port, &key->peer_family)) {
			add_message(base, scratch->operation, bytes);
			continue;
		}
		known = bpf_map_lookup_elem(&flows, key);
		/* The next one may be shorter. */
		__builtin_memset(key->peer, 0, sizeof(key->peer));
		if (known && is_peer_of(known, base)) {
			add_message(known, scratch->operation, bytes);
			continue;
		}
		if (scratch->detours < DETOURS_MAX &&
		    (base->remote || base->peers < settings.peers_max)) {
			scratch->detours++;
			scratch->part = part;
			bpf_tail_call(ctx, &programs, PROGRAM_DATAGRAM);
			scratch->part = part + 1;
		}
		add_message(base, scratch->operation, bytes);
	}
	bpf_tail_call(ctx, &programs, PROGRAM_MESSAGES);
	return 0;
}

#endif
