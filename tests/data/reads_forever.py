"""A process with workers, for the tests to kill: `python -m tests.data.reads_forever SHARDS`.

It prints its workers' process ids, then a line a batch, and answers SIGTERM and SIGUSR1 as a training does:
not at once.
"""

import multiprocessing
import signal
import sys
import time
from multiprocessing import forkserver, resource_tracker

from ldm.data.batches import Stream
from ldm.data.loader import Loader
from ldm.data.reader import open_shards
from ldm.data.stream import Order
from ldm.data.transforms import Pictures

if __name__ == "__main__":
    for name in ("SIGTERM", "SIGUSR1"):
        signal.signal(getattr(signal, name), lambda *_: None)
    shards = open_shards(sys.argv[1])
    stream = Stream(
        Order(shards.counts, 5), shards, [[Pictures(8, 5, True, True)]], global_batch=6, steps=10_000
    )
    batches = iter(Loader(stream, 5, shards.manifest, num_workers=2))
    next(batches)
    own = [process.pid for process in multiprocessing.active_children()]
    server, tracker = forkserver._forkserver._forkserver_pid, resource_tracker._resource_tracker._pid
    print(*own, server, tracker, flush=True)
    for batch in batches:
        print(batch["key"][0], flush=True)
        time.sleep(0.05)
