/* SPDX-License-Identifier: GPL-2.0 */
/* Module parameters; rust/sys/params.rs mirrors the structs. */
#ifndef LODGE_PARAMS_H
#define LODGE_PARAMS_H

#include <linux/types.h>

struct lodge_params {
	int force_emulation_prefix;
	int nx_huge_pages;
#ifdef LODGE_LEDGER
	int break_flush;
	bool ledger;
#endif
	bool ignore_msrs;
	bool second_stage;
	bool access_dirty;
	bool vpid;
	bool nrips;
	bool flush_by_asid;
	bool large_pages;
	bool unrestricted_guest;
};

/* What the CPU and the parameters together came to. */
struct lodge_in_use {
	bool second_stage;
	bool access_dirty;
	bool vpid;
	bool nrips;
	bool unrestricted_guest;
};

const struct lodge_params *lodge_params(void);
int lodge_params_show_vendor(bool intel, const struct lodge_in_use *now);
void lodge_params_hide_vendor(void);
u32 lodge_exits_optional(void);
void lodge_idle_in_guest(void);
#endif
