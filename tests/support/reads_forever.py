"""A process with workers, for the tests to kill: `python -m tests.support.reads_forever SHARDS`.

It prints the process ids of its workers, then a line per batch. Like a training run, it does not exit at
once on SIGTERM or SIGUSR1.
"""

import multiprocessing
import signal
import sys
import time
from multiprocessing import forkserver, resource_tracker

from ldm.data.fields.image import ImageField
from ldm.data.loading.batches import ShardStream
from ldm.data.loading.loader import ResumableLoader
from ldm.data.order.shuffle import ShuffledOrder
from ldm.data.shards.reader import open_shards

if __name__ == "__main__":
    for name in ("SIGTERM", "SIGUSR1"):
        signal.signal(getattr(signal, name), lambda *_: None)
    shards = open_shards(sys.argv[1])
    stream = ShardStream(
        ShuffledOrder(shards.counts, 5),
        shards,
        [[ImageField(8, 5, True, True)]],
        global_batch_size=6,
        steps=10_000,
    )
    batches = iter(ResumableLoader(stream, 5, shards.manifest_hash, num_workers=2))
    next(batches)
    workers = [process.pid for process in multiprocessing.active_children()]
    server, tracker = forkserver._forkserver._forkserver_pid, resource_tracker._resource_tracker._pid
    print(*workers, server, tracker, flush=True)
    for batch in batches:
        print(batch["key"][0], flush=True)
        time.sleep(0.05)
