/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Processes: creation, programs, ends, and changes of the user. */
#ifndef SYSFLOW_PROCESS_H
#define SYSFLOW_PROCESS_H

#include "transfer.bpf.h"

/* The task's number in its own (innermost) pid namespace. */
inline_always __u32 namespace_pid(__u64 task)
{
	__u64 pid = READ(struct task_struct, task, thread_pid);
	__u64 level = READ(struct pid, pid, level);
	__u32 number = 0;

	bpf_probe_read_kernel(&number, sizeof(number),
			      (void *)(ADDRESS(struct pid, pid, numbers) +
				       level * bpf_core_type_size(struct upid)));
	return number;
}

/* What the calls of the process kind leave to say: the creator's side of clone, failed execs,
 * the setuid family, and io_uring_setup. */
SEC("raw_tp/sys_exit")
int process_call(struct bpf_raw_tracepoint_args *ctx)
{
	struct ending ending = {};
	struct scratch *scratch;
	struct tally *tally;

	if (!read_ending(ctx, &ending))
		return 0;
	tally = tally_of(ending.operation);
	scratch = scratch_begin();
	if (!tally || !scratch)
		return 0;
	if (ending.operation == OPERATION_CLONE) {
		struct event_clone *event = SCRATCH_EVENT(scratch, struct event_clone);
		__u64 flags = 0;

		__builtin_memset(event, 0, sizeof(*event));
		if (ending.call == CALL_CLONE)
			flags = ending.first_argument;
		else if (ending.call == CALL_CLONE3)
			/* struct clone_args begins with its flags. */
			bpf_probe_read_user(&flags, sizeof(flags), (void *)ending.first_argument);
		event->ret = ending.ret;
		event->thread = !!(flags & CLONE_THREAD);
		fill_header(&event->header, ending.task, EVENT_CLONE, ending.compat);
		if (scratch_output(scratch, sizeof(*event)))
			tally->lost_ring++;
	} else if (ending.operation == OPERATION_EXEC) {
		struct event_exec_failed *event = SCRATCH_EVENT(scratch, struct event_exec_failed);
		__u8 flags = 0;

		__builtin_memset(event, 0, sizeof(*event));
		event->ret = ending.ret;
		event->path_bytes = append_user_string(
			scratch,
			ending.call == CALL_EXECVEAT ? argument(ending.regs, ending.compat, 1) :
						       ending.first_argument,
			&flags);
		fill_header(&event->header, ending.task, EVENT_EXEC_FAILED, ending.compat);
		if (scratch_output(scratch, sizeof(*event)))
			tally->lost_ring++;
	} else if (ending.operation == OPERATION_IO_URING) {
		struct event_io_uring *event = SCRATCH_EVENT(scratch, struct event_io_uring);

		if (ending.ret < 0) {
			tally->filtered++;
			return 0;
		}
		fill_header(&event->header, ending.task, EVENT_IO_URING, ending.compat);
		if (scratch_output(scratch, sizeof(*event)))
			tally->lost_ring++;
	} else {
		struct event_setuid *event = SCRATCH_EVENT(scratch, struct event_setuid);
		__u64 cred = READ(struct task_struct, ending.task, cred);

		__builtin_memset(event, 0, sizeof(*event));
		event->ret = ending.ret;
		event->wanted = ending.call == CALL_SETREUID ?
					argument(ending.regs, ending.compat, 1) :
					ending.first_argument;
		event->uid = READ(struct cred, cred, uid.val);
		event->gid = READ(struct cred, cred, gid.val);
		fill_header(&event->header, ending.task, EVENT_SETUID, ending.compat);
		if (scratch_output(scratch, sizeof(*event)))
			tally->lost_ring++;
	}
	return 0;
}

/* void trace_sched_process_fork(struct task_struct *parent, struct task_struct *child) */
SEC("raw_tp/sched_process_fork")
int process_fork(struct bpf_raw_tracepoint_args *ctx)
{
	__u64 task = ctx->args[0], child = ctx->args[1], parent;
	struct tally *tally = tally_of(OPERATION_CLONE);
	struct event_fork *event;

	/* Kernel threads are the kernel's own business. */
	if (!tally || READ(struct task_struct, child, flags) & PF_KTHREAD)
		return 0;
	tally->observed++;
	if (is_own(bpf_get_current_pid_tgid() >> 32, tally))
		return 0;
	event = ring_admits(charged_session(task), sizeof(*event)) ?
			bpf_ringbuf_reserve(&ring, sizeof(*event), 0) :
			0;
	if (!event) {
		tally->lost_ring++;
		return 0;
	}
	fill_header(&event->header, task, EVENT_FORK, is_compat(task));
	event->child_start_ns = process_start(child);
	event->child_tgid = READ(struct task_struct, child, tgid);
	event->child_tid = READ(struct task_struct, child, pid);
	event->child_namespace_pid = namespace_pid(child);
	parent = READ(struct task_struct, child, real_parent);
	event->parent_start_ns = process_start(parent);
	event->parent_tgid = READ(struct task_struct, parent, tgid);
	bpf_ringbuf_submit(event, ring_flags());
	return 0;
}

/* The name of the task's control group: the one of the unified hierarchy, or where that is
 * not in use the one that limits processes. Container runtimes name it by the container. */
inline_always __u32 append_cgroup(struct scratch *scratch, __u64 task)
{
	__u64 groups = READ(struct task_struct, task, cgroups);
	__u64 group = READ(struct css_set, groups, dfl_cgrp);
	__u64 state = 0;
	long bytes;

	if (!READ(struct cgroup, group, level) &&
	    bpf_core_enum_value_exists(enum cgroup_subsys_id, pids_cgrp_id)) {
		bpf_probe_read_kernel(&state, POINTER_BYTES,
				      (void *)(ADDRESS(struct css_set, groups, subsys) +
					       bpf_core_enum_value(enum cgroup_subsys_id,
								   pids_cgrp_id) *
						       POINTER_BYTES));
		if (state)
			group = READ(struct cgroup_subsys_state, state, cgroup);
	}
	bytes = bpf_probe_read_kernel_str(
		scratch->text + (scratch->at & (TEXT_BYTES - 1)), NAME_BYTES,
		(void *)READ(struct kernfs_node, READ(struct cgroup, group, kn), name));
	if (bytes <= 1)
		return 0;
	scratch->at += bytes - 1;
	return bytes - 1;
}

/* Appends what lies between two addresses of the program's memory, at most `bytes_max`; returns
 * how much. Less than a page may be missing, then it is nothing. */
inline_always __u32 append_user_range(struct scratch *scratch, __u64 start, __u64 end,
				      __u32 bytes_max)
{
	__u64 bytes = end - start;

	if (bytes > bytes_max)
		bytes = bytes_max;
	BOUND(bytes, USER_PATH_BYTES);
	if (!bytes || bpf_probe_read_user(scratch->text + (scratch->at & (TEXT_BYTES - 1)), bytes,
					  (void *)start))
		return 0;
	scratch->at += bytes;
	return bytes;
}

/* Appends the script's name where a script was started: the kernel then goes on to the
 * interpreter, and keeps both. */
inline_always __u32 append_script(struct scratch *scratch, __u64 bprm)
{
	__u64 filename = READ(struct linux_binprm, bprm, filename);
	long bytes;

	if (filename == READ(struct linux_binprm, bprm, interp))
		return 0;
	bytes = bpf_probe_read_kernel_str(scratch->text + (scratch->at & (TEXT_BYTES - 1)),
					  USER_PATH_BYTES, (void *)filename);
	if (bytes <= 1)
		return 0;
	scratch->at += bytes - 1;
	return bytes - 1;
}

/* void trace_sched_process_exec(struct task_struct *task, pid_t old_pid,
 *                               struct linux_binprm *bprm) */
SEC("raw_tp/sched_process_exec")
int process_exec(struct bpf_raw_tracepoint_args *ctx)
{
	__u64 task = ctx->args[0], mm, exe, parent, cred, start, end;
	struct tally *tally = tally_of(OPERATION_EXEC);
	struct scratch *scratch = scratch_begin();
	struct event_exec *event;
	struct place place, root;

	if (!tally || !scratch)
		return 0;
	tally->observed++;
	if (is_own(bpf_get_current_pid_tgid() >> 32, tally))
		return 0;
	event = SCRATCH_EVENT(scratch, struct event_exec);
	__builtin_memset(event, 0, sizeof(*event));
	mm = READ(struct task_struct, task, mm);
	exe = READ(struct mm_struct, mm, exe_file);
	event->exe_bytes = append_file_path(scratch, task, exe);
	event->exe_flags = scratch->flags;
	read_place(ADDRESS(struct fs_struct, task_fs(task), pwd), &place);
	read_root(task, &root);
	event->cwd_bytes = append_walk(scratch, &place, &root);
	event->cwd_flags = scratch->flags;

	start = READ(struct mm_struct, mm, arg_start);
	end = READ(struct mm_struct, mm, arg_end);
	event->args_total = end - start;
	event->args_bytes = append_user_range(scratch, start, end, settings.args_bytes_max);
	event->cgroup_bytes = append_cgroup(scratch, task);
	event->script_bytes = append_script(scratch, ctx->args[2]);
	if (settings.env_bytes_max) {
		start = READ(struct mm_struct, mm, env_start);
		end = READ(struct mm_struct, mm, env_end);
		event->env_total = end - start;
		event->env_bytes =
			append_user_range(scratch, start, end, settings.env_bytes_max);
	}
	event->mount_namespace =
		READ(struct mnt_namespace,
		     READ(struct nsproxy, READ(struct task_struct, task, nsproxy), mnt_ns), ns.inum);

	parent = READ(struct task_struct, task, real_parent);
	event->parent_start_ns = process_start(parent);
	event->parent_tgid = READ(struct task_struct, parent, tgid);
	cred = READ(struct task_struct, task, cred);
	event->uid = READ(struct cred, cred, uid.val);
	event->euid = READ(struct cred, cred, euid.val);
	event->gid = READ(struct cred, cred, gid.val);
	event->namespace_pid = namespace_pid(task);
	event->tty = !!READ(struct signal_struct, READ(struct task_struct, task, signal), tty);
	fill_header(&event->header, task, EVENT_EXEC, is_compat(task));
	if (scratch_output(scratch, sizeof(*event)))
		tally->lost_ring++;
	return 0;
}

/* Exec has closed the descriptors that were marked so: ends their flows. Runs before
 * process_exec, so that the flows end under the old program. */
SEC("raw_tp/sched_process_exec")
int process_exec_sweep(struct bpf_raw_tracepoint_args *ctx)
{
	struct scratch *scratch = scratch_begin();

	TAKE_STACK();
	if (scratch)
		bpf_tail_call(ctx, &programs, PROGRAM_EXEC_SWEEP);
	return 0;
}

/* Looks at 256 descriptors and calls itself for the next ones, up to 8192. A flow on a number
 * above ends at the number's next use, or with the process. */
SEC("raw_tp/sched_process_exec")
int exec_sweep(struct bpf_raw_tracepoint_args *ctx)
{
	__u64 task = ctx->args[0];
	struct flow_key key = {.tgid = bpf_get_current_pid_tgid() >> 32};
	__u32 zero = 0, step, fd, count = descriptors(task);
	struct scratch *scratch = bpf_map_lookup_elem(&scratches, &zero);

	if (!scratch)
		return 0;
#pragma clang loop unroll(disable)
	for (step = 0; step < SWEEP_DESCRIPTORS; step++) {
		struct flow *flow;

		/* The descriptor is kept in the map, where the verifier does not follow it. */
		fd = scratch->at;
		if (fd >= count)
			return 0;
		scratch->at = fd + 1;
		key.fd = fd;
		flow = bpf_map_lookup_elem(&flows, &key);
		if (flow && flow->file != task_file(task, fd))
			flow_end(&key, flow, task, FLOW_EXEC);
	}
	bpf_tail_call(ctx, &programs, PROGRAM_EXEC_SWEEP);
	return 0;
}

/* void trace_sched_process_exit(struct task_struct *task[, bool group_dead]): runs before the
 * task lets go of its files. */
SEC("raw_tp/sched_process_exit")
int process_exit(struct bpf_raw_tracepoint_args *ctx)
{
	__u64 task = ctx->args[0], leader, signal;
	struct tally *tally = tally_of(OPERATION_EXIT);
	struct flow_key key = {.tgid = bpf_get_current_pid_tgid() >> 32};
	struct event_exit *event;
	__u32 fd, count, last;

	if (!tally || READ(struct task_struct, task, flags) & PF_KTHREAD)
		return 0;
	tally->observed++;
	if (is_own(key.tgid, tally))
		return 0;
	last = !READ(struct signal_struct, READ(struct task_struct, task, signal), live.counter);
	if (last) {
		count = descriptors(task);
#pragma clang loop unroll(disable)
		for (fd = 0; fd < SWEEP_DESCRIPTORS; fd++) {
			struct flow *flow;

			if (fd >= count)
				break;
			key.fd = fd;
			flow = bpf_map_lookup_elem(&flows, &key);
			if (flow)
				flow_end(&key, flow, task, FLOW_EXIT);
		}
	}
	event = ring_admits(charged_session(task), sizeof(*event)) ?
			bpf_ringbuf_reserve(&ring, sizeof(*event), 0) :
			0;
	if (!event) {
		tally->lost_ring++;
		return 0;
	}
	fill_header(&event->header, task, EVENT_EXIT, 0);
	/* As wait sees it: the code of the group's exit, or else the first thread's. */
	signal = READ(struct task_struct, task, signal);
	leader = READ(struct task_struct, task, group_leader);
	event->status = READ(struct signal_struct, signal, flags) & SIGNAL_GROUP_EXIT ?
				READ(struct signal_struct, signal, group_exit_code) :
				READ(struct task_struct, leader, exit_code);
	event->last = last;
	bpf_ringbuf_submit(event, ring_flags());
	return 0;
}

/* Every process, for the agent's first look at the system: exact starts, which procfs rounds
 * to 10 ms. */
SEC("iter/task")
int processes(struct bpf_iter__task *ctx)
{
	__u64 task = (__u64)ctx->task, parent;
	struct task_entry entry = {};

	if (!task || READ(struct task_struct, task, group_leader) != task)
		return 0;
	parent = READ(struct task_struct, task, real_parent);
	entry.start_ns = READ(struct task_struct, task, start_boottime);
	entry.tgid = READ(struct task_struct, task, tgid);
	entry.parent_start_ns = process_start(parent);
	entry.parent_tgid = READ(struct task_struct, parent, tgid);
	bpf_seq_write(ctx->meta->seq, &entry, sizeof(entry));
	return 0;
}

#endif
