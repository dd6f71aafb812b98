// SPDX-License-Identifier: GPL-2.0
//
// For Bochs 3.0: TLBs that are kept per tag across world switches, as hardware keeps them, where Bochs empties its own at each.
// bochs.sh puts this file at the end of cpu/paging.cc, and calls of these functions where Bochs switches, flushes and resets.
//
// A tag is the space a guest's translations belong to (the host, a VPID, or an ASID) and, with EPT, the root of the tables. What one
// tag has cached is put away when another one is entered, and is there again when it comes back. What is flushed is what the manuals
// say has to be; a few things are flushed that a CPU may keep, where Bochs caches what depends on a control register.

// What is put away for one tag.
struct lodge_kept_tlb {
  bool used;
  Bit64u space, root;
  // The control registers on which cached rights depend, as they were then.
  Bit64u mode[8];
  TLB<BX_DTLB_SIZE> data;
  TLB<BX_ITLB_SIZE> code;
};

struct lodge_tlbs {
  lodge_kept_tlb kept[16];
  unsigned next;
  // Whose TLB is in the CPU.
  Bit64u space, root;
  // As it was when its space was left.
  Bit64u mode[8];
};

// As many CPUs as vm.sh ever gives it, and more.
static lodge_tlbs lodge_tlbs_of[4];

static void lodge_mode(BX_CPU_C *cpu, Bit64u mode[8])
{
  mode[0] = cpu->cr0.get32() & 0x80010001; // PG, WP, PE
  mode[1] = cpu->cr4.get32();
  mode[2] = cpu->efer.get32() & 0xd00; // NXE, LMA, LME
  mode[3] = cpu->dr7.get32() & 0xffff00ff;
  for (int n = 0; n < 4; n++)
    mode[4 + n] = cpu->dr[n];
}

// The world is about to be left: before any of its registers changes.
void BX_CPU_C::lodge_tlb_leave(void)
{
  lodge_mode(this, lodge_tlbs_of[which_cpu()].mode);
}

// Forgets what is kept for all tags of which `which` says so.
template <class Which> static void lodge_forget(lodge_tlbs &tlbs, Which which)
{
  for (auto &k : tlbs.kept)
    if (which(k))
      k.used = false;
}

// The registers of another world are loaded: its TLB, too.
void BX_CPU_C::lodge_tlb_enter(Bit64u space, Bit64u root)
{
  lodge_tlbs &tlbs = lodge_tlbs_of[which_cpu()];
  Bit64u mode[8];
  lodge_mode(this, mode);

  if (tlbs.space != space || tlbs.root != root) {
    lodge_kept_tlb *put = &tlbs.kept[tlbs.next], *get = 0;
    for (auto &k : tlbs.kept)
      if (! k.used)
        put = &k;
      else if (k.space == space && k.root == root)
        get = &k;
    if (put == &tlbs.kept[tlbs.next])
      tlbs.next = (tlbs.next + 1) % (sizeof(tlbs.kept) / sizeof(tlbs.kept[0]));
    bool same = get && get != put && memcmp(get->mode, mode, sizeof mode) == 0;
    put->data = DTLB;
    put->code = ITLB;
    put->space = tlbs.space;
    put->root = tlbs.root;
    memcpy(put->mode, tlbs.mode, sizeof mode);
    put->used = true;
    if (same) {
      DTLB = get->data;
      ITLB = get->code;
    }
    else {
      DTLB.flush();
      ITLB.flush();
    }
    if (get && get != put)
      get->used = false;
    tlbs.space = space;
    tlbs.root = root;
  }
  else if (memcmp(tlbs.mode, mode, sizeof mode) != 0) {
    DTLB.flush();
    ITLB.flush();
  }
  // A guest without a VPID has the host's, and each switch flushes that.
  if (space == LODGE_VPID(0)) {
    lodge_forget(tlbs, [](lodge_kept_tlb &k) { return k.space == LODGE_HOST; });
    DTLB.flush();
    ITLB.flush();
  }
  lodge_tlb_changed();
}

// What Bochs does besides at each change of its TLB.
void BX_CPU_C::lodge_tlb_changed(void)
{
  invalidate_prefetch_q();
  invalidate_stack_cache();
#if BX_SUPPORT_MONITOR_MWAIT
  wakeup_monitor();
#endif
  iCache.breakLinks();
}

// The control field of a VMRUN ("TLB Flush" in AMD's manual), for a guest that is about to be entered.
void BX_CPU_C::lodge_tlb_control(Bit64u space, unsigned control)
{
  lodge_tlbs &tlbs = lodge_tlbs_of[which_cpu()];
  switch (control) {
  case 1:
    lodge_forget(tlbs, [](lodge_kept_tlb &) { return true; });
    TLB_flush();
    break;
  case 3:
    lodge_forget(tlbs, [=](lodge_kept_tlb &k) { return k.space == space; });
    break;
  case 7:
    for (auto &k : tlbs.kept)
      if (k.used && k.space == space) {
        k.data.flushNonGlobal();
        k.code.flushNonGlobal();
      }
    break;
  }
}

// INVEPT: of one root, or of all of them.
void BX_CPU_C::lodge_tlb_invept(bool all, Bit64u root)
{
  lodge_forget(lodge_tlbs_of[which_cpu()], [=](lodge_kept_tlb &k) { return k.root != 0 && (all || k.root == root); });
}

// INVVPID in all its forms, and INVLPGA: of one space, or of all guests'; one address, or all.
void BX_CPU_C::lodge_tlb_invalidate(bool all, Bit64u space, bool one, bx_address laddr)
{
  lodge_tlbs &tlbs = lodge_tlbs_of[which_cpu()];
  for (auto &k : tlbs.kept) {
    if (! k.used || k.space == LODGE_HOST || ! (all || k.space == space))
      continue;
    if (one) {
      k.data.invlpg(laddr);
      k.code.invlpg(laddr);
    }
    else
      k.used = false;
  }
}

// A reset.
void BX_CPU_C::lodge_tlb_reset(void)
{
  lodge_tlbs &tlbs = lodge_tlbs_of[which_cpu()];
  lodge_forget(tlbs, [](lodge_kept_tlb &) { return true; });
  tlbs.space = LODGE_HOST;
  tlbs.root = 0;
}
