#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Removes what was built from the checkout. The Debian root and the prepared kernels, which take long, stay.
. "$(dirname "$0")/lib.sh"
rm -rf "$LODGE_CACHE"/{module,target,vm,run,log} "$LODGE_SRC/kvm.ko"
say "what is left in $LODGE_CACHE: $(cd "$LODGE_CACHE" && echo *)"
