/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Sockets: what a socket is bound and connected to, and the peer that a call names. */
#ifndef SYSFLOW_NETWORK_H
#define SYSFLOW_NETWORK_H

#include "path.bpf.h"

/* The kernel's struct sock of a socket's struct file, 0 if there is none. */
inline_always __u64 file_sock(__u64 file)
{
	return READ(struct socket, READ(struct file, file, private_data), sk);
}

inline_always __u16 sock_family(__u64 sock)
{
	return READ(struct sock, sock, __sk_common.skc_family);
}

/* Which kind of socket (SOCKET_*) it is, for finding the peer of its flows. */
inline_always __u8 socket_kind(__u64 sock, __u16 family)
{
	__u16 type = READ(struct sock, sock, sk_type);

	return (family == AF_INET || family == AF_INET6) &&
			       (type == SOCK_DGRAM || type == SOCK_RAW) ?
		       SOCKET_DATAGRAM :
		       SOCKET_STREAM;
}

#define DIGEST_FACTOR 0x9e3779b1 /* 2^32 divided by the golden ratio, and odd */

/* A number that is 0 without a peer. It differs for peers of which only the port or one word of
 * the address differs; of others one in 2^32 is alike. */
inline_always __u32 peer_digest(struct event_flow_start *event)
{
	__u32 *words = (__u32 *)event->remote, digest = event->remote_port;
	int word;

	if (!digest)
		return 0;
#pragma clang loop unroll(full)
	for (word = 0; word < 4; word++) {
		digest = (digest ^ words[word]) * DIGEST_FACTOR;
		digest ^= digest >> 15;
	}
	return digest ? digest : 1;
}

inline_always __u32 is_same_address(__u8 *one, __u8 *other)
{
	__u32 *a = (__u32 *)one, *b = (__u32 *)other;

	return a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3];
}

/* Fills in the addresses and ports of an internet socket. */
inline_always void describe_internet(struct event_flow_start *event, __u64 sock)
{
	struct sock *sk = (void *)sock;

	event->protocol = READ(struct sock, sock, sk_protocol);
	event->local_port = READ(struct sock, sock, __sk_common.skc_num);
	event->remote_port =
		__builtin_bswap16((__u16)READ(struct sock, sock, __sk_common.skc_dport));
	if (event->family == AF_INET) {
		bpf_probe_read_kernel(event->local, 4, &sk->__sk_common.skc_rcv_saddr);
		bpf_probe_read_kernel(event->remote, 4, &sk->__sk_common.skc_daddr);
	} else if (bpf_core_field_exists(sk->__sk_common.skc_v6_daddr)) {
		bpf_probe_read_kernel(event->local, 16, &sk->__sk_common.skc_v6_rcv_saddr);
		bpf_probe_read_kernel(event->remote, 16, &sk->__sk_common.skc_v6_daddr);
	}
}

/*
 * Appends the name of a unix socket: its own where it has one (a server's, or an accepted
 * connection's, which shares its listener's), else its peer's. A pair has none.
 */
inline_always __u32 append_unix_name(struct scratch *scratch, __u64 sock)
{
	__u64 address = READ(struct unix_sock, sock, addr);
	__u64 length;

	if (!address)
		address = READ(struct unix_sock, READ(struct unix_sock, sock, peer), addr);
	if (!address)
		return 0;
	length = (__u32)READ(struct unix_address, address, len) - 2; /* less sun_family */
	BOUND(length, 108);					      /* sizeof(sun_path) */
	if (bpf_probe_read_kernel(scratch->text + (scratch->at & (TEXT_BYTES - 1)), length,
				  (void *)ADDRESS(struct unix_address, address, name[0].sun_path)))
		return 0;
	scratch->at += length;
	return length;
}

/* A sockaddr_in or sockaddr_in6 of the program, whichever the family says. */
struct socket_address {
	__u16 family;
	__be16 port;
	__u8 v4[4]; /* in a sockaddr_in6 this is the flow label */
	__u8 v6[16];
	__u32 scope;
};

/* Reads an address from the program's memory; 0 if it is no internet address. */
inline_always __u32 read_user_address(__u64 pointer, __u8 *address, __u16 *port, __u16 *family)
{
	struct socket_address user = {};

	if (!pointer)
		return 0;
	/* A sockaddr_in may end at the end of a page, so its 16 bytes are tried by themselves. */
	if (bpf_probe_read_user(&user, 16, (void *)pointer))
		return 0;
	if (user.family == AF_INET6 && bpf_probe_read_user(&user, sizeof(user), (void *)pointer))
		return 0;
	if (user.family == AF_INET)
		__builtin_memcpy(address, user.v4, 4);
	else if (user.family == AF_INET6)
		__builtin_memcpy(address, user.v6, 16);
	else
		return 0;
	*family = user.family;
	*port = __builtin_bswap16(user.port);
	return 1;
}

/* Where a message header of the program's (struct msghdr) says that its peer lies. */
inline_always __u64 message_peer(__u64 message, __u32 compat)
{
	__u64 pointer = 0;

	/* msg_name is its first member. */
	bpf_probe_read_user(&pointer, user_pointer_bytes(compat) == 8 ? 8 : 4, (void *)message);
	return pointer;
}

/* Where the program's memory has the peer of this call, 0 if the call names none. */
inline_always __u64 call_peer(struct ending *ending)
{
	if (ending->call == CALL_SENDTO || ending->call == CALL_RECVFROM)
		return argument(ending->regs, ending->compat, 4);
	if (ending->call == CALL_SENDMSG || ending->call == CALL_RECVMSG)
		return message_peer(ending->message ? ending->message :
						      argument(ending->regs, ending->compat, 1),
				    ending->compat);
	return 0;
}

#endif
