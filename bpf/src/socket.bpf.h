/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Where sockets wait for peers: bind, listen, and accepts that fail. */
#ifndef SYSFLOW_SOCKET_H
#define SYSFLOW_SOCKET_H

#include "syscall.bpf.h"

/* Appends the name that bind was asked to give to a unix socket. */
inline_always __u32 append_wanted_name(struct scratch *scratch, __u64 address, __u64 bytes)
{
	__u64 length = (__u32)bytes - 2; /* less sun_family */

	if ((__u32)bytes <= 2)
		return 0;
	BOUND(length, 108); /* sizeof(sun_path) */
	if (bpf_probe_read_user(scratch->text + (scratch->at & (TEXT_BYTES - 1)), length,
				(void *)(address + 2)))
		return 0;
	scratch->at += length;
	return length;
}

SEC("raw_tp/sys_exit")
int socket_call(struct bpf_raw_tracepoint_args *ctx)
{
	struct ending ending = {};
	struct event_socket *event;
	struct scratch *scratch;
	struct tally *tally;
	__u64 file, inode, sock;
	struct sock *sk;
	__u16 family;

	if (!read_ending(ctx, &ending))
		return 0;
	tally = tally_of(ending.operation);
	scratch = scratch_begin();
	if (!tally || !scratch)
		return 0;
	event = SCRATCH_EVENT(scratch, struct event_socket);
	__builtin_memset(event, 0, sizeof(*event));
	file = task_file(ending.task, ending.first_argument);
	inode = READ(struct file, file, f_inode);
	event->mode = READ(struct inode, inode, i_mode);
	if (!file || (event->mode & S_IFMT) != S_IFSOCK) {
		tally->filtered++;
		return 0;
	}
	sock = file_sock(file);
	sk = (void *)sock;
	event->family = sock_family(sock);
	if (event->family != AF_UNIX && event->family != AF_INET && event->family != AF_INET6) {
		tally->filtered++;
		return 0;
	}
	event->inode = READ(struct inode, inode, i_ino);
	event->device = READ(struct super_block, READ(struct inode, inode, i_sb), s_dev);
	event->protocol = READ(struct sock, sock, sk_protocol);
	event->operation = ending.operation;
	event->ret = ending.ret;
	if (event->family == AF_UNIX) {
		event->path_bytes = append_unix_name(scratch, sock);
		if (ending.call == CALL_BIND && !event->path_bytes)
			event->path_bytes = append_wanted_name(
				scratch, argument(ending.regs, ending.compat, 1),
				argument(ending.regs, ending.compat, 2));
	} else if (ending.call == CALL_BIND && ending.ret < 0) {
		/* An attempt that failed leaves no address in the socket, only in the call. */
		read_user_address(argument(ending.regs, ending.compat, 1), event->local,
				  &event->local_port, &family);
	} else {
		event->local_port = READ(struct sock, sock, __sk_common.skc_num);
		if (event->family == AF_INET)
			bpf_probe_read_kernel(event->local, 4, &sk->__sk_common.skc_rcv_saddr);
		else if (bpf_core_field_exists(sk->__sk_common.skc_v6_daddr))
			bpf_probe_read_kernel(event->local, 16,
					      &sk->__sk_common.skc_v6_rcv_saddr);
	}
	fill_header(&event->header, ending.task, EVENT_SOCKET, ending.compat);
	if (scratch_output(scratch, sizeof(*event)))
		tally->lost_ring++;
	return 0;
}

#endif
