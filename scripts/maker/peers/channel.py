"""How a peer talks with scripts/bench.lua: one JSON object a line comes in on standard input, one goes out on the descriptor that
was standard output. From the import of this module on, other words go to standard error. Requests: {"op": NAME, ...}; replies:
{...} or {"error": TEXT}.

All engines read the same ids: {"op": "ids", "ids": [...]} comes before any that is measured, and from then on a prompt of n tokens
is the first n of them, what is fed next are those that follow (the list begins anew at its end).
"""
import json
import os
import sys

_out = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)                                     # whatever prints to standard output does not disturb the replies


def reply(value):
    _out.write(json.dumps(value) + "\n")
    _out.flush()


def give_up(reason):
    """The bench says what is missing."""
    reply({"error": reason})
    sys.exit(1)


class Ids:
    """The ids that all engines read; a peer inherits the request that sets them."""

    known = [0]

    def ids(self, request):
        self.known = request["ids"]
        return {}

    def take(self, first, count):
        known = self.known
        return [known[(first + i) % len(known)] for i in range(count)]


def serve(peer):
    """Says hello, then answers each request by the method that its "op" names, until there are no more."""
    reply(peer.hello({}))
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply(getattr(peer, request["op"])(request))
        except Exception as fault:
            reply({"error": f"{type(fault).__name__}: {fault}"})


def resident(reset):
    """{"peak"}: most bytes resident since the last reset, where the system says so."""
    if reset:
        try:
            with open("/proc/self/clear_refs", "w") as file:
                file.write("5")
        except OSError:
            pass                                  # the peak is then since the beginning
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith("VmHWM:"):
                return {"peak": int(line.split()[1]) * 1024}
    return {}
