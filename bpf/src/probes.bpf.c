// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The kernel side, one object for all kernels. What crosses the ring is defined in event.h;
 * what differs between kernels is in compat.h; the probes are grouped by what they watch.
 *
 * A probe has five beats: guard, reserve, header, fill, submit. Whatever goes wrong is counted
 * by kind of operation and reason.
 */
#include "io_uring.bpf.h"
#include "attribute.bpf.h"
#include "privilege.bpf.h"
#include "socket.bpf.h"
#include "process.bpf.h"

/* Never set. It puts every type of event.h into the object's BTF, against which the Rust types
 * are checked. */
const union {
	struct event_fork fork;
	struct event_exec exec;
	struct event_exit exit;
	struct event_clone clone;
	struct event_exec_failed exec_failed;
	struct event_setuid setuid;
	struct event_flow_start flow_start;
	struct event_flow_end flow_end;
	struct event_path path;
	struct event_socket_state socket_state;
	struct event_closed_range closed_range;
	struct event_io_uring io_uring;
	struct event_attribute attribute;
	struct event_privilege privilege;
	struct event_socket socket;
	struct task_entry task;
	struct own_view own;
} *types;

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/*
 * void trace_inet_sock_set_state(const struct sock *sk, const int oldstate, const int newstate)
 *
 * Tells of connection attempts that fail after connect returned EINPROGRESS, and of those made
 * through io_uring. May interrupt a probe on the same CPU, so it does not use the scratch space.
 */
SEC("raw_tp/inet_sock_set_state")
int socket_state(struct bpf_raw_tracepoint_args *ctx)
{
	__u64 sock = ctx->args[0], socket, file;
	struct event_socket_state *event;
	struct tally *tally;
	__s32 error, before = (__s32)ctx->args[1], after = (__s32)ctx->args[2];

	if (before == TCP_CLOSE && after == TCP_SYN_SENT) {
		attempt_begin(sock);
		return 0;
	}
	if (before != TCP_SYN_SENT || (after != TCP_CLOSE && after != TCP_ESTABLISHED))
		return 0;
	if (attempt_end(sock) || after != TCP_CLOSE)
		return 0;
	tally = tally_of(OPERATION_SOCKET_STATE);
	if (!tally)
		return 0;
	tally->observed++;
	if (is_own(bpf_get_current_pid_tgid() >> 32, tally))
		return 0;
	error = (__s32)READ(struct sock, sock, sk_err);
	socket = READ(struct sock, sock, sk_socket);
	file = socket ? READ(struct socket, socket, file) : 0;
	if (!error || !file) {
		tally->filtered++;
		return 0;
	}
	event = bpf_ringbuf_reserve(&ring, sizeof(*event), 0);
	if (!event) {
		tally->lost_ring++;
		return 0;
	}
	fill_header(&event->header, bpf_get_current_task(), EVENT_SOCKET_STATE, 0);
	event->file = file;
	event->error = -error;
	event->zero = 0;
	bpf_ringbuf_submit(event, ring_flags());
	return 0;
}

/* Run once by the agent itself: learns the agent's id in the initial pid namespace, which the
 * agent cannot know where it runs in another one, and shows what the types make of the agent. */
SEC("raw_tp/sys_exit")
int learn_own(struct bpf_raw_tracepoint_args *ctx)
{
	__u64 task = bpf_get_current_task(), file, inode;
	__u32 zero = 0;
	struct own_view *view = bpf_map_lookup_elem(&own_views, &zero);

	own_tgid = bpf_get_current_pid_tgid() >> 32;
	if (!view)
		return 0;
	view->machine = ON_RISCV ? MACHINE_RISCV :
			ON_X86	 ? MACHINE_X86 :
			ON_ARM64 ? MACHINE_ARM64 :
				   MACHINE_ARM;
	view->start_ns = process_start(task);
	/* Zero if it is as the helper has it, whatever pid namespace the agent is in. */
	view->tgid = (__u32)READ(struct task_struct, task, tgid) - own_tgid;
	file = task_file(task, view->fd);
	inode = READ(struct file, file, f_inode);
	view->mode = READ(struct inode, inode, i_mode);
	view->inode = READ(struct inode, inode, i_ino);
	return 0;
}
