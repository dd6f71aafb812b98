// SPDX-License-Identifier: GPL-2.0
/*
 * A 32-bit program on /dev/kvm: the way of its calls through the kernel is another one, and some structures are laid out
 * differently. It needs no C library (there is no 32-bit one in the root). Status 0 if all is as expected; what is not is printed.
 */
#include <linux/kvm.h>

#define NR_exit 1
#define NR_write 4
#define NR_open 5
#define NR_getpid 20
#define NR_ioctl 54
#define NR_rt_sigprocmask 175
#define NR_mmap2 192
#define NR_gettid 224
#define NR_tgkill 270
#define EFAULT 14
#define EINTR 4
#define EINVAL 22
#define SIGUSR1 10
#define PAGE 4096
#define CODE 0x1000

static long call(long nr, long a, long b, long c, long d, long e)
{
	long r;

	/* The sixth argument of mmap2 (EBP) is an offset, here always 0. */
	asm volatile("push %%ebp\n\txor %%ebp, %%ebp\n\tint $0x80\n\tpop %%ebp"
		     : "=a"(r) : "0"(nr), "b"(a), "c"(b), "d"(c), "S"(d), "D"(e) : "memory");
	return r;
}

static void print(const char *s)
{
	unsigned int n = 0;

	while (s[n])
		n++;
	call(NR_write, 1, (long)s, n, 0, 0);
}

static void number(long v)
{
	char b[12];
	unsigned int i = sizeof(b) - 1, u = v < 0 ? -v : v;

	b[i] = 0;
	do {
		b[--i] = '0' + u % 10;
		u /= 10;
	} while (u);
	if (v < 0)
		b[--i] = '-';
	print(b + i);
}

static int failures;

static void expect(const char *what, long got, long wanted)
{
	if (got == wanted)
		return;
	failures++;
	print(what);
	print(": ");
	number(got);
	print(", expected ");
	number(wanted);
	print("\n");
}

static long kvm_ioctl(long fd, unsigned long nr, const void *arg) { return call(NR_ioctl, fd, nr, (long)arg, 0, 0); }

static void *map(long fd, unsigned int size)
{
	/* PROT_READ | PROT_WRITE; MAP_SHARED, or MAP_PRIVATE | MAP_ANONYMOUS */
	return (void *)call(NR_mmap2, 0, size, 3, fd < 0 ? 0x22 : 1, fd);
}

static struct kvm_sregs sregs;
static struct kvm_regs regs;

static void start_at(long vcpu, unsigned int rip)
{
	regs.rip = rip;
	regs.rflags = 2;
	expect("SET_REGS", kvm_ioctl(vcpu, KVM_SET_REGS, &regs), 0);
}

/* struct kvm_signal_mask with a compat_sigset_t of 8 bytes. */
static struct {
	unsigned int len;
	unsigned int set[2];
} __attribute__((packed)) mask = { 8, { 0, 0 } };

static void signal_mask(long vcpu, struct kvm_run *run)
{
	unsigned int usr1[2] = { 1u << (SIGUSR1 - 1), 0 };

	expect("sigprocmask", call(NR_rt_sigprocmask, 0, (long)usr1, 0, 8, 0), 0);
	expect("tgkill", call(NR_tgkill, call(NR_getpid, 0, 0, 0, 0, 0), call(NR_gettid, 0, 0, 0, 0, 0), SIGUSR1, 0, 0), 0);
	mask.len = 4;
	expect("SET_SIGNAL_MASK of 4 bytes", kvm_ioctl(vcpu, KVM_SET_SIGNAL_MASK, &mask), -EINVAL);
	expect("SET_SIGNAL_MASK at a bad address", kvm_ioctl(vcpu, KVM_SET_SIGNAL_MASK, (void *)16), -EFAULT);
	mask.len = 8;
	/* Nothing is blocked while the guest runs: the pending signal ends the run before it begins. */
	expect("SET_SIGNAL_MASK", kvm_ioctl(vcpu, KVM_SET_SIGNAL_MASK, &mask), 0);
	start_at(vcpu, CODE + 4);
	expect("RUN, the signal unblocked", kvm_ioctl(vcpu, KVM_RUN, 0), -EINTR);
	expect("its reason", run->exit_reason, KVM_EXIT_INTR);
	/* With the signal blocked the guest runs. */
	mask.set[0] = usr1[0];
	expect("SET_SIGNAL_MASK", kvm_ioctl(vcpu, KVM_SET_SIGNAL_MASK, &mask), 0);
	expect("RUN, the signal blocked", kvm_ioctl(vcpu, KVM_RUN, 0), 0);
	expect("its reason", run->exit_reason, KVM_EXIT_HLT);
	expect("no mask", kvm_ioctl(vcpu, KVM_SET_SIGNAL_MASK, 0), 0);
}

/* A page that the guest wrote; the half of the structure behind the address holds anything. */
static void dirty_log(long vm, long vcpu, struct kvm_userspace_memory_region *region)
{
	static unsigned int bitmap[2];
	struct {
		unsigned int slot, pad, bitmap, high;
	} log = { 0, 0, (unsigned long)bitmap, 0xdeadbeef };

	region->flags = KVM_MEM_LOG_DIRTY_PAGES;
	expect("SET_USER_MEMORY_REGION, logged", kvm_ioctl(vm, KVM_SET_USER_MEMORY_REGION, region), 0);
	start_at(vcpu, CODE + 5);
	expect("RUN to write", kvm_ioctl(vcpu, KVM_RUN, 0), 0);
	expect("GET_DIRTY_LOG", kvm_ioctl(vm, KVM_GET_DIRTY_LOG, &log), 0);
	expect("the page written", bitmap[0], 1 << 2);
	expect("GET_DIRTY_LOG again", kvm_ioctl(vm, KVM_GET_DIRTY_LOG, &log), 0);
	expect("no page written", bitmap[0], 0);
	log.bitmap = 16;
	expect("GET_DIRTY_LOG to a bad address", kvm_ioctl(vm, KVM_GET_DIRTY_LOG, &log), -EFAULT);
}

/* RDMSR of IA32_TSC, which a filter denies: user space is asked. */
static void msr_filter(long vm, long vcpu, struct kvm_run *run)
{
	static unsigned char none[1];
	static struct kvm_msr_filter filter;
	static struct kvm_enable_cap cap = { .cap = KVM_CAP_X86_USER_SPACE_MSR, .args = { KVM_MSR_EXIT_REASON_FILTER } };

	expect("ENABLE_CAP", kvm_ioctl(vm, KVM_ENABLE_CAP, &cap), 0);
	filter.ranges[0].flags = KVM_MSR_FILTER_READ;
	filter.ranges[0].base = 0x10;
	filter.ranges[0].nmsrs = 1;
	filter.ranges[0].bitmap = (void *)16;
	expect("SET_MSR_FILTER, a bad bitmap", kvm_ioctl(vm, KVM_X86_SET_MSR_FILTER, &filter), -EFAULT);
	filter.ranges[0].bitmap = none;
	expect("SET_MSR_FILTER", kvm_ioctl(vm, KVM_X86_SET_MSR_FILTER, &filter), 0);
	expect("SET_MSR_FILTER at a bad address", kvm_ioctl(vm, KVM_X86_SET_MSR_FILTER, (void *)16), -EFAULT);
	regs.rcx = 0x10;
	start_at(vcpu, CODE + 9);
	expect("RUN to RDMSR", kvm_ioctl(vcpu, KVM_RUN, 0), 0);
	expect("its reason", run->exit_reason, KVM_EXIT_X86_RDMSR);
	expect("the register", run->msr.index, 0x10);
}

static int test(void)
{
	static const char code[] = {
		0xb0, 0x2a, 0xe6, 0xf0, 0xf4, /* mov al, 42; out 0xf0, al; hlt */
		0xa2, 0x00, 0x20, 0xf4,	      /* mov [0x2000], al; hlt */
		0x0f, 0x32, 0xf4,	      /* rdmsr; hlt */
	};
	long kvm = call(NR_open, (long)"/dev/kvm", 2, 0, 0, 0), vm, vcpu, size;
	struct kvm_userspace_memory_region region = { .memory_size = 4 * PAGE };
	struct kvm_run *run;
	char *memory;
	unsigned int i;

	expect("GET_API_VERSION", kvm_ioctl(kvm, KVM_GET_API_VERSION, 0), 12);
	vm = kvm_ioctl(kvm, KVM_CREATE_VM, 0);
	memory = map(-1, 4 * PAGE);
	for (i = 0; i < sizeof(code); i++)
		memory[CODE + i] = code[i];
	region.userspace_addr = (unsigned long)memory;
	expect("SET_USER_MEMORY_REGION", kvm_ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region), 0);
	vcpu = kvm_ioctl(vm, KVM_CREATE_VCPU, 0);
	size = kvm_ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	run = map(vcpu, size);
	if (kvm < 0 || vm < 0 || vcpu < 0 || (unsigned long)run > -4096ul) {
		expect("/dev/kvm, VM, vCPU and its run page", -1, 0);
		return failures;
	}
	expect("GET_SREGS", kvm_ioctl(vcpu, KVM_GET_SREGS, &sregs), 0);
	sregs.cs.base = sregs.cs.selector = 0;
	expect("SET_SREGS", kvm_ioctl(vcpu, KVM_SET_SREGS, &sregs), 0);
	expect("SET_SREGS at a bad address", kvm_ioctl(vcpu, KVM_SET_SREGS, (void *)16), -EFAULT);
	start_at(vcpu, CODE);
	expect("RUN", kvm_ioctl(vcpu, KVM_RUN, 0), 0);
	expect("its reason", run->exit_reason, KVM_EXIT_IO);
	expect("the port", run->io.port, 0xf0);
	expect("the value", ((char *)run)[run->io.data_offset], 42);
	expect("RUN", kvm_ioctl(vcpu, KVM_RUN, 0), 0);
	expect("its reason", run->exit_reason, KVM_EXIT_HLT);
	expect("GET_REGS", kvm_ioctl(vcpu, KVM_GET_REGS, &regs), 0);
	expect("RIP after HLT", regs.rip, CODE + 5);
	signal_mask(vcpu, run);
	dirty_log(vm, vcpu, &region);
	msr_filter(vm, vcpu, run);
	return failures;
}

void _start(void)
{
	call(NR_exit, test() ? 1 : 0, 0, 0, 0, 0);
}
