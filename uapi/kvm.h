/* SPDX-License-Identifier: GPL-2.0 */
/* bindgen's input: the KVM ABI as user space sees it (types and ioctl structures for uapi/mod.rs). */
#include <linux/errno.h>
#include <linux/kvm.h>
#include <uapi/linux/kvm_para.h>
