/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Everything that differs between kernels and architectures: one small function a difference.
 * Callers never see a version or an architecture; the choice is made by what the running
 * kernel's types contain.
 */
#ifndef SYSFLOW_COMPAT_H
#define SYSFLOW_COMPAT_H

#include "kernel.h"
#include "event.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#define inline_always static __always_inline

/*
 * Reads one member of a kernel structure as an unsigned 64-bit value. It reads as many bytes
 * as the member has in the running kernel, so that pointers and longs of 32-bit kernels come
 * out whole and zero-extended, where a plain CO-RE read of a pointer takes 8 bytes.
 */
#define READ(type, base, member)                                                              \
	({                                                                                    \
		__u64 value_ = 0;                                                             \
		type *base_ = (type *)(base);                                                 \
		bpf_probe_read_kernel(&value_, bpf_core_field_size(base_->member),            \
				      &base_->member);                                        \
		value_;                                                                       \
	})

/* The address of a member, in a structure that is not read. */
#define ADDRESS(type, base, member) ((__u64)(&((type *)(base))->member))

/*
 * Picks a member out of a copy of (the head of) a structure, at the offset that it has in the
 * running kernel: several members cost one read. The empty asm keeps clang from folding the
 * offset into the load, which libbpf cannot relocate on arm32.
 */
#define PICK(copy, type, member)                                                              \
	({                                                                                    \
		__u64 offset_ = bpf_core_field_offset(((type *)0)->member), value_ = 0;       \
		asm volatile("" : "+r"(offset_));                                             \
		if (offset_ <= sizeof(copy) - 8)                                              \
			value_ = bpf_core_field_size(((type *)0)->member) == 4 ?              \
					 *(__u32 *)((char *)(copy) + offset_) :               \
					 *(__u64 *)((char *)(copy) + offset_);                \
		value_;                                                                       \
	})

/*
 * Bounds a 64-bit length where the verifier sees it: the empty asm before and after keep clang
 * from moving the comparison away from the use.
 */
#define BOUND(length, most)                                                                   \
	({                                                                                    \
		asm volatile("" : "+r"(length));                                              \
		if (length > (most))                                                          \
			length = (most);                                                      \
		asm volatile("" : "+r"(length));                                              \
	})

/*
 * Takes the whole stack, for a program that others follow by tail calls. The interpreter and
 * the JIT of 32-bit ARM run the follower in the frame of the first program. Kernels from 6.9 on
 * (seen on 6.12) make that frame as large as the first program's own use of it, not as the
 * largest there is; a follower with more overwrote the registers, and the kernel died.
 */
#define TAKE_STACK() asm volatile("*(u64 *)(r10 - 512) = %0" : : "r"(0ULL) : "memory")

#define ON_X86 bpf_core_field_exists(((struct pt_regs___x86 *)0)->orig_ax)
#define ON_ARM64 bpf_core_field_exists(((struct pt_regs___arm64 *)0)->syscallno)
/* Known when the probes are compiled, so that objects for other processors carry nothing of it. */
#ifdef __TARGET_ARCH_riscv
#define ON_RISCV 1
#else
#define ON_RISCV 0
#endif
#define ON_64_BITS (ON_RISCV || ON_X86 || ON_ARM64)

/* Bytes of a kernel pointer. */
#define POINTER_BYTES bpf_core_field_size(((struct fdtable *)0)->fd)

struct call_number {
	__u64 first_argument;
	__u64 number;
};

/*
 * Number and first argument of the system call that ends. On x86-64 and arm64 the two lie
 * side by side in pt_regs, so that one read takes both. On arm32 the number is not taken from
 * r7, which after sigreturn and exec belongs to another context, but from where the kernel
 * keeps it: thread_info.abi_syscall (5.15 on, with the ABI's bits above 20), .syscall before.
 */
inline_always void read_call_number(__u64 regs, struct call_number *call)
{
	if (ON_RISCV) {
		call->number = READ(struct pt_regs___riscv, regs, a7);
		call->first_argument = READ(struct pt_regs___riscv, regs, orig_a0);
	} else if (ON_X86) {
		bpf_probe_read_kernel(call, sizeof(*call),
				      (void *)ADDRESS(struct pt_regs___x86, regs, di));
	} else if (ON_ARM64) {
		bpf_probe_read_kernel(call, sizeof(*call),
				      (void *)ADDRESS(struct pt_regs___arm64, regs, orig_x0));
		call->number = (__u32)call->number;
	} else {
		struct task_struct *task = (void *)bpf_get_current_task();
		struct thread_info *info =
			bpf_core_field_exists(task->thread_info) ?
				(void *)ADDRESS(struct task_struct, task, thread_info) :
				(void *)READ(struct task_struct, task, stack);

		if (bpf_core_field_exists(info->abi_syscall))
			call->number = READ(struct thread_info, info, abi_syscall) & 0xfffff;
		else if (bpf_core_field_exists(info->syscall))
			call->number = (__u32)READ(struct thread_info, info, syscall);
		else
			call->number = READ(struct pt_regs___arm, regs, uregs[7]);
		call->first_argument = READ(struct pt_regs___arm, regs, uregs[17]);
	}
}

/* Whether the task made this call with the numbers of a 32-bit program on a 64-bit kernel:
 * TS_COMPAT on x86 (also set for int 0x80 from a 64-bit program), TIF_32BIT on arm64. Those of
 * RISC-V are not told apart. */
inline_always __u32 is_compat(__u64 task)
{
	if (ON_RISCV)
		return 0;
	if (ON_X86)
		return !!(READ(struct task_struct, task, thread_info.status) & 2);
	if (ON_ARM64)
		return !!(READ(struct task_struct, task, thread_info.flags) & (1 << 22));
	return 0;
}

/*
 * Argument `index` (0..5) of the system call: the registers of x86-64 and of a 32-bit program
 * there, of arm64, of arm32 and of RISC-V (where the first one is kept apart, as on arm64). The
 * index of a relocated array member has to be a constant, so each case is written out.
 */
#define ARGUMENT(regs, compat, native, compat_register, arm64_member, arm_member, riscv)      \
	(ON_RISCV ? READ(struct pt_regs___riscv, regs, riscv) :                               \
	 ON_X86 ? ((compat) ? (__u32)READ(struct pt_regs___x86, regs, compat_register) :      \
			      READ(struct pt_regs___x86, regs, native)) :                     \
	 ON_ARM64 ? READ(struct pt_regs___arm64, regs, arm64_member) :                        \
		    READ(struct pt_regs___arm, regs, arm_member))

inline_always __u64 argument(__u64 regs, __u32 compat, int index)
{
	switch (index) {
	case 0:
		return ARGUMENT(regs, compat, di, bx, orig_x0, uregs[17], orig_a0);
	case 1:
		return ARGUMENT(regs, compat, si, cx, regs[1], uregs[1], a1);
	case 2:
		return ARGUMENT(regs, compat, dx, dx, regs[2], uregs[2], a2);
	case 3:
		return ARGUMENT(regs, compat, r10, si, regs[3], uregs[3], a3);
	case 4:
		return ARGUMENT(regs, compat, r8, di, regs[4], uregs[4], a4);
	default:
		return ARGUMENT(regs, compat, r9, bp, regs[5], uregs[5], a5);
	}
}

/* The result. A 32-bit task's, and all of a 32-bit kernel's, come zero-extended. */
inline_always __s64 call_result(__u64 value, __u32 compat)
{
	if (compat || !ON_64_BITS)
		return (__s32)value;
	return (__s64)value;
}

/* Bytes of a pointer in the task's own memory. */
inline_always __u32 user_pointer_bytes(__u32 compat)
{
	return compat || !ON_64_BITS ? 4 : 8;
}

/*
 * Adds to a counter of a flow, which threads on other CPUs may do at the same time. On 64-bit
 * an atomic; on arm32, whose JIT has none, each CPU has a slot of its own.
 */
#ifndef VOLUME_SLOTS
#error "event.h comes first"
#elif VOLUME_SLOTS == 1
#define SLOT_OF(flow) (&(flow)->volume[0])
#define ADD(counter, amount) __sync_fetch_and_add(&(counter), (amount))
#else
#define SLOT_OF(flow) (&(flow)->volume[bpf_get_smp_processor_id() & (VOLUME_SLOTS - 1)])
#define ADD(counter, amount) ((counter) += (amount))
#endif

#endif
