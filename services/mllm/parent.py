"""vLLM's processes end with their parent.

When the server is killed, the engine core and its workers stay behind, with the device's memory, and the next
server cannot start. vLLM runs `watch` in each of its processes: it is a `vllm.general_plugins` entry point.
"""

import multiprocessing
import os
import threading

EXIT_ORPHANED = 1

_watching = False


def watch() -> None:
    """End this process, if another one of ours has started it, as soon as that one is gone; idempotent."""
    global _watching
    parent = multiprocessing.parent_process()
    if parent is None or _watching:
        return
    _watching = True

    def end_with_parent() -> None:
        parent.join()
        os._exit(EXIT_ORPHANED)  # the main thread may be anywhere, and there is nobody to tell

    threading.Thread(target=end_with_parent, name="llmga-parent-watch", daemon=True).start()
