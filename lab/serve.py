"""The lab's package server: serves a folder over HTTP/1.1 on 127.0.0.1.

`lab.services` starts it as `python -m lab.serve --lab NAME FOLDER PORT`.
"""

from __future__ import annotations

import functools
import sys
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

from lab.ports import LOOPBACK


class _Handler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # one connection for a whole `apt-get update`
    server_version = "kubeadm-ipvs-lab"
    # With Nagle's algorithm, the guest's delayed acknowledgements would hold up every small response.
    disable_nagle_algorithm = True


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64


def main() -> int:
    """Serve until the process is stopped."""
    if len(sys.argv) != 5 or sys.argv[1] != "--lab":
        print("usage: python -m lab.serve --lab NAME FOLDER PORT", file=sys.stderr)
        return 2
    folder, port = sys.argv[3], int(sys.argv[4])
    with _Server((LOOPBACK, port), functools.partial(_Handler, directory=folder)) as server:
        server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
