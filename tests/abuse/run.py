import collections
import faulthandler
import importlib
import random
import sys
import time

from tests.abuse.judging import FAILURES, judge

mod = importlib.import_module("tests.abuse." + sys.argv[1])
n = int(sys.argv[2])
only = sys.argv[3:]
for e in mod.ENTRIES:
    if only and not any(o in e.name for o in only):
        continue
    r = random.Random(7)
    ends = collections.Counter()
    seen = collections.Counter()
    worst = 0
    t = time.time()
    faulthandler.dump_traceback_later(30, exit=False)
    for i in range(n if not e.slow else max(n // 20, 5)):
        c = judge(e, r)
        ends[c.end] += 1
        worst = max(worst, c.seconds)
        if c.end in FAILURES:
            key = (c.end, c.words.split("->")[-1][:60])
            seen[key] += 1
            if seen[key] == 1 and len(seen) <= 12:
                print("   !", c.end, c.words[:700], flush=True)
    faulthandler.cancel_dump_traceback_later()
    print(
        e.name,
        dict(ends),
        f"worst {worst * 1e3:.1f} ms, total {time.time() - t:.1f} s",
        flush=True,
    )
