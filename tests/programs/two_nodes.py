"""Segments and scores a folder on a Ray cluster of two local nodes, one of which is killed when the first study is done.

Run: two_nodes.py DATA OUTPUT MODEL. Leaves OUTPUT/maps, OUTPUT/scores.csv and, in OUTPUT/done, what came of three items
of which one kills every process that it is given to. No socket outside this machine is tried by this process.
"""

import os
import socket
import sys
from pathlib import Path

os.environ |= {  # before Ray is imported
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # every address is this machine's own, on Linux too
    "RAY_raylet_start_wait_time_s": "120",
}
from ray.cluster_utils import Cluster

from gliomap import segment as module
from gliomap.cluster import on_cluster
from gliomap.evaluate import EvaluateOptions, evaluate
from gliomap.segment import SegmentOptions, segment


def only_this_machine() -> None:
    original = socket.socket.connect

    def connect(self, address):
        if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "localhost", "::1"):
            sys.stderr.write(f"connect to {address}\n")
            raise OSError(f"{address} is not on this machine")
        return original(self, address)

    socket.socket.connect = connect


def deadly(shared, item):
    if item == "deadly":
        os._exit(1)
    return f"{shared} {item}"


def main(data: str, output: str, model: str) -> None:
    only_this_machine()
    node = {"node_ip_address": "127.0.0.1", "object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **node})
    nodes = [cluster.add_node(num_cpus=1, **node) for _ in range(2)]
    cluster.wait_for_nodes()
    original, written = module._replace_files, []

    def replace_files(*arguments):
        original(*arguments)
        written.append(1)
        if len(written) == 1:
            cluster.remove_node(nodes[0], allow_graceful=False)

    module._replace_files = replace_files
    options = SegmentOptions(
        Path(data), Path(output, "maps"), model=Path(model), score=True, device="cpu", engine="torch", quiet=True,
        ray=cluster.address,
    )  # fmt: skip
    segment(options)
    done = on_cluster(cluster.address, deadly, "done", ["first", "deadly", "last"])
    Path(output, "done").write_text("\n".join(f"{item}: {result}" for item, result in sorted(done)))
    scores = EvaluateOptions(
        Path(model), Path(data), Path(output, "scores.csv"), device="cpu", quiet=True, ray=cluster.address
    )
    evaluate(scores)
    cluster.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
