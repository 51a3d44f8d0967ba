/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What all probes share: maps, settings, the ledger's tallies, the scratch space in which
 * events with text are put together, and the way into the ring.
 *
 * Sizes of `ring` and `flows` are set before loading, from the agent's configuration.
 */
#ifndef SYSFLOW_MAPS_H
#define SYSFLOW_MAPS_H

#include "compat.h"
#include "event.h"

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 512 * 1024);
} ring SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, struct flow_key);
	__type(value, struct flow);
} flows SEC(".maps");

/* Which flow is being ended: its entry in `flows`, by key and by age. */
struct claim {
	struct flow_key key;
	__u64 start_ns;
};

#define CLAIMS_MAX 256 /* processors that end a flow at one time */

/*
 * The flows that are being ended. Deleting from `flows` goes by key alone, so that a thread
 * could delete the flow that another has just begun on the same number. Whoever ends a flow
 * of a process with threads first makes the flow's entry here, which only one can.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, CLAIMS_MAX);
	__type(key, struct claim);
	__type(value, __u8);
} claims SEC(".maps");

#define CALL_NUMBERS 512 /* above every number in use, without the ARM-private ones */

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, CALL_NUMBERS);
	__type(key, __u32);
	__type(value, struct call_entry);
} calls SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, OPERATION_COUNT);
	__type(key, __u32);
	__type(value, struct tally);
} tallies SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct own_view);
} own_views SEC(".maps");

#define HEAD_BYTES 256	     /* room for the largest event without its text */
#define TEXT_BYTES 16384     /* the longest text: two names of 4,095 bytes and their bases */
#define NAME_BYTES 256	     /* NAME_MAX and a NUL */
#define PATH_BYTES_MAX 1024  /* of a walked path; then its leading part is cut */
#define PATH_STEPS_MAX 32    /* names and mounts that one walk climbs */
#define USER_PATH_BYTES 4096 /* PATH_MAX */

/*
 * An event with text is put together here: its fixed part ends where `text` begins. What a
 * walk carries from step to step lies here too, not on the stack: the verifier does not track
 * values in maps, so that all steps look alike to it and one pass over the loop is enough.
 */
struct scratch {
	__u8 head[HEAD_BYTES];
	char text[TEXT_BYTES + USER_PATH_BYTES];
	__u32 at;	  /* length of the text so far */
	__u32 path_start; /* where in the text the path being walked starts */
	__u32 root_at;	  /* where in the text the walk met the process's root */
	__u32 root_bytes; /* how much of the path, at its end, leads to the process's root */
	__u32 flags;	  /* PATH_* of the path being walked */
	__u32 part;	  /* of a call of several parts: which is at hand */
	__u32 parts;	  /* how many it has */
	__u32 detours;	  /* taken so far to begin flows of its parts */
	__u32 stride;	  /* of its list of messages, bytes */
	__u64 list;	  /* where that list is */
	__u8 failed;	  /* whether the call failed */
	__u8 call;	  /* of the part at hand, as in struct ending */
	__u8 operation;
	__u8 whole;
	struct flow flow; /* a map entry being made: too large for the stack with slots */
};

/* The fixed part of an event of this type, in the scratch space. */
#define SCRATCH_EVENT(scratch, type) ((type *)((scratch)->head + HEAD_BYTES - sizeof(type)))

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct scratch);
} scratches SEC(".maps");

const volatile struct settings settings = {
	.peers_max = 64,
	.args_bytes_max = 2048,
	.wake_bytes = 128 * 1024,
	.env_bytes_max = 0,
	.share_bytes = 384 * 1024,
};

/* The agent's process id in the initial pid namespace; see `learn_own`. */
__u32 own_tgid = 0;

/* Which step of the ladder the agent is on; a map of its own, which the agent writes. */
SEC(".data.step") __u32 ladder_step = 0;

/*
 * Waking the agent for each event costs more than the event. It looks into the ring by itself
 * several times a second, and is woken only when the ring fills faster than that.
 */
inline_always __u64 ring_flags(void)
{
	return bpf_ringbuf_query(&ring, BPF_RB_AVAIL_DATA) >= settings.wake_bytes ? BPF_RB_FORCE_WAKEUP :
									     BPF_RB_NO_WAKEUP;
}

#define SHARES_MAX 1024	    /* sessions that use the ring while it fills up */
#define SHARE_BYTES 16384   /* of one session in one window: about 64 events */
#define YOUNG_BYTES 32768   /* of all young sessions together */
#define SHARE_WINDOW_LOG 26 /* a window has so many bits of nanoseconds: 67 ms */
#define GROWN_LOG 32	    /* a session is young for so many bits of nanoseconds: 4.3 s */

struct share {
	__u32 window;
	__u32 bytes;
};

/* What sessions have put into the last quarter of the ring. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, SHARES_MAX);
	__type(key, __u32);
	__type(value, struct share);
} shares SEC(".maps");

/* Whether the ring is in its last quarter, which is shared out. */
inline_always __u32 is_ring_filling(void)
{
	return bpf_ringbuf_query(&ring, BPF_RB_AVAIL_DATA) >= settings.share_bytes;
}

/* Names the session of a task: by the address of its struct pid, of which 32 bits do. */
inline_always __u32 session_of(__u64 task)
{
	return READ(struct signal_struct, READ(struct task_struct, task, signal),
		    pids[PIDTYPE_SID]) >>
	       4;
}

inline_always __u64 process_start(__u64 task)
{
	return READ(struct task_struct, READ(struct task_struct, task, group_leader),
		    start_boottime);
}

inline_always __u32 is_grown(__u64 task, __u64 now_ns)
{
	return now_ns - process_start(task) >= 1ULL << GROWN_LOG;
}

/*
 * The session that a task's events name and are charged to. Where it matters all young ones
 * are one: a session costs a fork, so that whoever makes them without end would have a new share for
 * each event. That a session is no young one is known by its oldest member at hand: the process
 * itself, its parent, or the one before. Nothing is remembered that many others could push out.
 */
inline_always __u32 charged_session(__u64 task)
{
	__u64 now_ns = bpf_ktime_get_boot_ns(), parent;
	__u32 session = session_of(task);

	if ((ladder_step < STEP_SUMMARIES && !is_ring_filling()) || is_grown(task, now_ns))
		return session;
	parent = READ(struct task_struct, task, real_parent);
	if (session_of(parent) != session)
		return SESSION_YOUNG;
	if (is_grown(parent, now_ns))
		return session;
	parent = READ(struct task_struct, parent, real_parent);
	if (session_of(parent) != session || !is_grown(parent, now_ns))
		return SESSION_YOUNG;
	return session;
}

/*
 * Whether this session may put an event of so many bytes into the ring. Its last
 * quarter is kept for those who say little: a flood fills the others, and of the last one only
 * its share, so that what a quiet program does beside it is told in full. Sessions, because a
 * flood of short programs is one session, and a service another. Ends of flows pass: there is one
 * for each that was told. From a step of the ladder on a share is all that a session has of the
 * whole ring.
 */
inline_always __u32 ring_admits(__u32 session, __u32 bytes)
{
	struct share *share;
	__u32 window, before;

	if (ladder_step < STEP_SHARES && !is_ring_filling())
		return 1;
	window = bpf_ktime_get_ns() >> SHARE_WINDOW_LOG;
	share = bpf_map_lookup_elem(&shares, &session);
	if (!share) {
		struct share first = {.window = window, .bytes = bytes};

		bpf_map_update_elem(&shares, &session, &first, BPF_ANY);
		return 1;
	}
	if (share->window != window) {
		share->window = window;
		share->bytes = 0;
	}
	before = share->bytes;
	if (before >= (session == SESSION_YOUNG ? YOUNG_BYTES : SHARE_BYTES))
		return 0;
	/* Threads that count at once may each miss the other's: a share is no exact number. */
	share->bytes = before + bytes;
	return 1;
}

inline_always struct scratch *scratch_begin(void)
{
	__u32 zero = 0;
	struct scratch *scratch = bpf_map_lookup_elem(&scratches, &zero);

	if (scratch)
		scratch->at = 0;
	return scratch;
}

/* Sends the scratch space's event, whose fixed part has `head_bytes` (a constant). */
inline_always long scratch_output(struct scratch *scratch, __u32 head_bytes)
{
	struct event_header *header = (void *)(scratch->head + HEAD_BYTES - head_bytes);
	__u64 text_bytes = scratch->at;

	BOUND(text_bytes, TEXT_BYTES);
	if (!ring_admits(header->session, head_bytes + text_bytes))
		return -1;
	/* The lookup may have spilled it: its bound is shown anew. */
	BOUND(text_bytes, TEXT_BYTES);
	return bpf_ringbuf_output(&ring, header, head_bytes + text_bytes, ring_flags());
}

inline_always void fill_header(struct event_header *header, __u64 task, __u16 kind, __u32 compat)
{
	__u64 ids = bpf_get_current_pid_tgid();

	header->time_ns = bpf_ktime_get_boot_ns();
	header->start_ns = process_start(task);
	header->tgid = ids >> 32;
	header->tid = ids;
	header->kind = kind;
	header->flags = compat ? EVENT_COMPAT : 0;
	header->session = charged_session(task);
}

inline_always struct tally *tally_of(__u32 operation)
{
	return bpf_map_lookup_elem(&tallies, &operation);
}

/* Whether this is the agent itself; then the operation is counted as its own. */
inline_always __u32 is_own(__u32 tgid, struct tally *tally)
{
	if (tgid != own_tgid)
		return 0;
	tally->own++;
	return 1;
}

/* Counts the operation as left out by the ladder; returns whether `step` is reached. */
inline_always __u32 is_shed(__u32 step, struct tally *tally)
{
	if (ladder_step < step)
		return 0;
	tally->lost_shed++;
	return 1;
}

/* A system call that ends, as its probe needs it. */
struct ending {
	__u64 regs;
	__u64 task;
	__u64 first_argument;
	__u64 message; /* address of the message header that is a part of the call, else 0 */
	__s64 ret;
	__u32 tgid;
	__u32 compat;
	__u8 call;
	__u8 operation;
	__u8 whole; /* enum call of the call that this is a part of, else 0 */
};

/* Whether the call that ends is one that is recorded; reads what all probes need of it. */
inline_always __u32 read_ending(struct bpf_raw_tracepoint_args *ctx, struct ending *ending)
{
	struct call_number number = {};
	struct call_entry *entry;
	__u32 index;

	ending->regs = ctx->args[0];
	read_call_number(ending->regs, &number);
	index = number.number;
	entry = bpf_map_lookup_elem(&calls, &index);
	if (!entry || !(entry->call | entry->compat_call))
		return 0;
	ending->task = bpf_get_current_task();
	ending->compat = is_compat(ending->task);
	ending->call = ending->compat ? entry->compat_call : entry->call;
	ending->operation = ending->compat ? entry->compat_operation : entry->operation;
	if (!ending->call)
		return 0;
	ending->ret = call_result(ctx->args[1], ending->compat);
	/*
	 * Interrupted by a signal: no result yet. The kernel runs the call again, and then it is
	 * counted; or, without SA_RESTART, the program gets EINTR, which no hook here sees.
	 */
	if (ending->ret <= -ERESTARTSYS && ending->ret >= -ERESTART_RESTARTBLOCK)
		return 0;
	ending->first_argument = ON_X86 && ending->compat ?
					 argument(ending->regs, 1, 0) :
					 number.first_argument;
	ending->tgid = bpf_get_current_pid_tgid() >> 32;
	if (ending->call == CALL_MMAP) {
		/* Memory without a file is nobody's flow. The result is an address, or an error. */
		if (argument(ending->regs, ending->compat, 3) & MAP_ANONYMOUS)
			return 0;
		ending->first_argument = argument(ending->regs, ending->compat, 4);
		if (ending->ret < -ERROR_MAX || ending->ret > 0)
			ending->ret = 0;
	}
	/* With this flag it is what rmdir does. */
	if (ending->call == CALL_UNLINKAT && argument(ending->regs, ending->compat, 2) & AT_REMOVEDIR)
		ending->operation = OPERATION_RMDIR;
	return 1;
}

#endif
