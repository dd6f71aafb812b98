// SPDX-License-Identifier: GPL-2.0
/*
 * A QEMU plugin: the addresses of all instructions that are executed between two arrivals of the nested guest at one address, that is
 * one exit with everything that the host does for it, in the file out=FILE, one a line. at=ADDRESS is the address, nth=N the arrival that begins
 * the trace. Debian has no package with QEMU's plugin header, so what is used of the interface is declared here.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum qemu_plugin_cb_flags { NO_REGS };

void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id, void (*cb)(qemu_plugin_id_t, struct qemu_plugin_tb *));
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *tb, size_t n);
uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *insn);
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *insn, void (*cb)(unsigned int, void *),
					    enum qemu_plugin_cb_flags flags, void *data);

__attribute__((visibility("default"))) int qemu_plugin_version = 4;

static uint64_t at, nth = 1, seen;
static FILE *out;

static void executed(unsigned int cpu, void *data)
{
	uint64_t address = (uint64_t)data;

	(void)cpu;
	if (address == at && ++seen == nth + 1 && out) {
		fclose(out);
		out = NULL;
	}
	if (seen == nth && out)
		fprintf(out, "%lx\n", (unsigned long)address);
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
	(void)id;
	for (size_t i = 0; i < qemu_plugin_tb_n_insns(tb); i++) {
		struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);

		qemu_plugin_register_vcpu_insn_exec_cb(insn, executed, NO_REGS, (void *)qemu_plugin_insn_vaddr(insn));
	}
}

__attribute__((visibility("default"))) int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int argc, char **argv)
{
	(void)info;
	for (int i = 0; i < argc; i++) {
		if (!strncmp(argv[i], "at=", 3))
			at = strtoull(argv[i] + 3, NULL, 0);
		else if (!strncmp(argv[i], "nth=", 4))
			nth = strtoull(argv[i] + 4, NULL, 0);
		else if (!strncmp(argv[i], "out=", 4))
			out = fopen(argv[i] + 4, "w");
	}
	if (!at || !out) {
		fprintf(stderr, "trace: at=ADDRESS and out=FILE have to be given\n");
		return 1;
	}
	qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
	return 0;
}
