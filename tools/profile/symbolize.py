# SPDX-License-Identifier: GPL-2.0
"""Puts names to addresses.   usage: symbolize.py SYMBOLS ADDRESSES     (SYMBOLS: the modules' lines of /proc/kallsyms)"""
import bisect
import re
import sys

symbols = []
for line in open(sys.argv[1], errors="replace"):
    at, kind, name = line.rstrip().split(" ", 2)
    if kind in "tTwW":
        symbols.append((int(at, 16), re.sub(r"\[[0-9a-f]{16}\]", "", name)))
symbols.sort()
starts = [at for at, _ in symbols]
for line in open(sys.argv[2]):
    at = int(line, 16)
    if at < 1 << 47:
        print("user" if at >= 1 << 32 else "guest")
        continue
    if at < starts[0]:
        print("kernel")
        continue
    start, name = symbols[bisect.bisect_right(starts, at) - 1]
    print(f"{name}+{at - start}")
