// SPDX-License-Identifier: GPL-2.0
/* Counters in debugfs, where KVM has them: kvm/NAME for all VMs, kvm/PID-FD/NAME for one. */
#include <linux/debugfs.h>
#include <linux/list.h>
#include <linux/mutex.h>
#include <linux/sched.h>
#include <linux/slab.h>

#include "stats.h"

struct stats_file {
	struct lodge_stats *vm;		/* NULL: of all VMs */
	unsigned int n;
};

struct lodge_stats {
	struct list_head list;
	const void *context;
	struct dentry *dir;
	struct stats_file files[];
};

static LIST_HEAD(vms);
static DEFINE_MUTEX(vms_lock);
static struct dentry *top;
static const char *const *names;
static unsigned int count;
static u64 (*read_one)(const void *context, unsigned int n);
static struct stats_file *all_files;

static int stats_get(void *data, u64 *value)
{
	const struct stats_file *file = data;
	const struct lodge_stats *vm;

	*value = 0;
	if (file->vm) {
		*value = read_one(file->vm->context, file->n);
		return 0;
	}
	mutex_lock(&vms_lock);
	list_for_each_entry(vm, &vms, list)
		*value += read_one(vm->context, file->n);
	mutex_unlock(&vms_lock);
	return 0;
}
DEFINE_DEBUGFS_ATTRIBUTE(stats_fops, stats_get, NULL, "%llu\n");

static void add_files(struct dentry *dir, struct lodge_stats *vm, struct stats_file *files)
{
	unsigned int n;

	for (n = 0; n < count; n++) {
		files[n] = (struct stats_file){ .vm = vm, .n = n };
		debugfs_create_file_unsafe(names[n], 0444, dir, &files[n], &stats_fops);
	}
}

/* Task context. The names and the function stay until lodge_stats_exit(). Without debugfs nothing is shown, and that is no error. */
int lodge_stats_init(const char *const *of, unsigned int n, u64 (*read)(const void *context, unsigned int n))
{
	names = of;
	count = n;
	read_one = read;
	all_files = kcalloc(n, sizeof(*all_files), GFP_KERNEL);
	if (!all_files)
		return -ENOMEM;
	top = debugfs_create_dir("kvm", NULL);
	add_files(top, NULL, all_files);
	return 0;
}

void lodge_stats_exit(void)
{
	debugfs_remove(top);
	kfree(all_files);
}

/* Task context. Shows a VM of the current task whose descriptor is fd, until lodge_stats_remove(). NULL: no memory. */
struct lodge_stats *lodge_stats_add(int fd, const void *context)
{
	struct lodge_stats *vm = kzalloc(struct_size(vm, files, count), GFP_KERNEL_ACCOUNT);
	char name[32];

	if (!vm)
		return NULL;
	vm->context = context;
	snprintf(name, sizeof(name), "%d-%d", task_pid_nr(current), fd);
	/* A name that is taken (the descriptor's last VM lives on by its vCPUs) leaves this one without files of its own. */
	vm->dir = debugfs_lookup(name, top);
	if (vm->dir) {
		dput(vm->dir);
		vm->dir = NULL;
	} else {
		vm->dir = debugfs_create_dir(name, top);
		add_files(vm->dir, vm, vm->files);
	}
	mutex_lock(&vms_lock);
	list_add(&vm->list, &vms);
	mutex_unlock(&vms_lock);
	return vm;
}

/* Task context. When it returns, nobody reads the context any more. */
void lodge_stats_remove(struct lodge_stats *vm)
{
	mutex_lock(&vms_lock);
	list_del(&vm->list);
	mutex_unlock(&vms_lock);
	debugfs_remove(vm->dir);
	kfree(vm);
}
