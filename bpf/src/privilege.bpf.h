/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Calls by which a process gets other privileges, or uses great ones: groups, capabilities,
 * tracing, code for the kernel, namespaces, files without a name. */
#ifndef SYSFLOW_PRIVILEGE_H
#define SYSFLOW_PRIVILEGE_H

#include "syscall.bpf.h"

/* Reads what capset was asked for; of version 1 each set has 32 bits. */
inline_always void read_capabilities(struct event_privilege *event, __u64 head, __u64 data)
{
	__u32 version = 0, sets[6] = {};

	bpf_probe_read_user(&version, sizeof(version), (void *)head);
	if (version == LINUX_CAPABILITY_VERSION_1)
		bpf_probe_read_user(sets, 3 * sizeof(*sets), (void *)data);
	else
		bpf_probe_read_user(sets, sizeof(sets), (void *)data);
	event->values[0] = sets[0] | (__u64)sets[3] << 32;
	event->values[1] = sets[1] | (__u64)sets[4] << 32;
	event->values[2] = sets[2] | (__u64)sets[5] << 32;
}

/* Reads type and name of a BPF program that was to be loaded. */
inline_always void read_bpf_program(struct scratch *scratch, struct event_privilege *event,
				    __u64 attributes, __u32 bytes)
{
	__u32 type = 0;
	long name_bytes;

	bpf_probe_read_user(&type, sizeof(type), (void *)attributes);
	event->values[0] = type;
	if (bytes < BPF_ATTR_PROG_NAME + BPF_OBJ_NAME_LEN)
		return;
	name_bytes = bpf_probe_read_user_str(scratch->text + (scratch->at & (TEXT_BYTES - 1)),
					     BPF_OBJ_NAME_LEN,
					     (void *)(attributes + BPF_ATTR_PROG_NAME));
	if (name_bytes <= 1)
		return;
	event->text_bytes = name_bytes - 1;
	scratch->at += name_bytes - 1;
}

/* Whether a request of ptrace is recorded: those that look or let run are a debugger's daily
 * business. */
inline_always __u32 is_recorded_request(__u32 request)
{
	return request == PTRACE_TRACEME || request == PTRACE_POKETEXT ||
	       request == PTRACE_POKEDATA || request == PTRACE_ATTACH || request == PTRACE_SEIZE;
}

SEC("raw_tp/sys_exit")
int privilege(struct bpf_raw_tracepoint_args *ctx)
{
	struct ending ending = {};
	struct event_privilege *event;
	struct scratch *scratch;
	struct tally *tally;
	__u64 first, second, third, cred, file, string = 0;

	if (!read_ending(ctx, &ending))
		return 0;
	tally = tally_of(ending.operation);
	scratch = scratch_begin();
	if (!tally || !scratch)
		return 0;
	first = ending.first_argument;
	second = argument(ending.regs, ending.compat, 1);
	third = argument(ending.regs, ending.compat, 2);
	if ((ending.call == CALL_PTRACE && !is_recorded_request(first)) ||
	    (ending.call == CALL_BPF && (__u32)first != BPF_PROG_LOAD)) {
		tally->filtered++;
		return 0;
	}
	event = SCRATCH_EVENT(scratch, struct event_privilege);
	__builtin_memset(event, 0, sizeof(*event));
	event->operation = ending.operation;
	event->ret = ending.ret;
	switch (ending.call) {
	case CALL_SETGID:
	case CALL_SETREGID:
		cred = READ(struct task_struct, ending.task, cred);
		event->values[0] = (__u32)(ending.call == CALL_SETREGID ? second : first);
		event->values[1] = READ(struct cred, cred, uid.val);
		event->values[2] = READ(struct cred, cred, gid.val);
		break;
	case CALL_CAPSET:
		read_capabilities(event, first, second);
		break;
	case CALL_PTRACE:
		event->values[0] = (__u32)first;
		event->values[1] = (__u32)second;
		break;
	case CALL_INIT_MODULE:
		event->values[0] = second;
		string = third;
		break;
	case CALL_FINIT_MODULE:
		event->values[0] = (__u32)third;
		string = second;
		file = task_file(ending.task, first);
		if (file) {
			event->path_bytes = append_file_path(scratch, ending.task, file);
			event->path_flags = scratch->flags;
		}
		break;
	case CALL_BPF:
		read_bpf_program(scratch, event, second, third);
		break;
	case CALL_UNSHARE:
		event->values[0] = (__u32)first;
		break;
	default: /* delete_module, memfd_create */
		event->values[0] = (__u32)second;
		string = first;
	}
	if (string)
		event->text_bytes = append_user_string(scratch, string, &event->path_flags);
	fill_header(&event->header, ending.task, EVENT_PRIVILEGE, ending.compat);
	if (scratch_output(scratch, sizeof(*event)))
		tally->lost_ring++;
	return 0;
}

#endif
