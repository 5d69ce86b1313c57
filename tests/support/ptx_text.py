"""The text of a PTX kernel: its parameters, its shared memory and its instructions."""

import re
from types import SimpleNamespace

import numpy as np


class PTXError(AssertionError):
    """A kernel did what it must not do."""


_OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,{}\[\]]+")


class Program:
    """The instructions of the one kernel in a PTX text."""

    def __init__(self, ptx):
        ptx = re.sub(r"//[^\n]*", "", ptx)
        entry = re.search(r"\.entry\s+(\S+?)\s*\((.*?)\)(.*?)\{(.*)\}", ptx, re.S)
        if entry is None:
            raise PTXError("no kernel in the PTX")
        self.name, parameters, _, body = entry.groups()
        body = re.sub(r"^\s*[{}]\s*$", "", body, flags=re.M)  # scopes of scratch registers
        self.parameters = re.findall(r"\.param\s+\.(\w+)\s+(\S+?)\s*(?:,|$)", parameters.strip())
        self.shared, self.shared_size, self.dynamic = {}, 0, []
        declared = re.findall(
            r"\.shared\s+\.align\s+(\d+)\s+\.b8\s+([^\s\[;]+)(?:\[(\d*)\])?;", ptx
        )
        for align, name, size in declared:
            if not size:
                self.dynamic.append(name)
                continue
            self.shared_size = -(-self.shared_size // int(align)) * int(align)
            self.shared[name] = self.shared_size
            self.shared_size += int(size)
        self.shared_size = -(-self.shared_size // 16) * 16
        for name in self.dynamic:
            self.shared[name] = self.shared_size
        self.code, self.labels = [], {}
        for statement in re.split(r";|(?<=:)\s", body):
            text = " ".join(statement.split())
            if not text or text.startswith((".reg", ".shared", ".loc", ".pragma")):
                continue
            if text.endswith(":"):
                self.labels[text[:-1]] = len(self.code)
                continue
            self.code.append(_parse(text))
        self.code.append(_parse("ret"))
        # A block of instructions ends where threads can part, or must meet.
        starts = {0, *self.labels.values()}
        for i, one in enumerate(self.code):
            if one.opcode[0] in ("bra", "ret"):
                starts.add(i + 1)
            if one.opcode[0] in ("bar", "barrier", "shfl"):
                starts.update((i, i + 1))
        self.starts = np.array(sorted(s for s in starts if s < len(self.code)))


def _parse(text):
    guard, sense = None, True
    if text.startswith("@"):
        guard, _, text = text.partition(" ")
        sense = not guard.startswith("@!")
        guard = guard.lstrip("@!")
    opcode, _, operands = text.partition(" ")
    found = [o.strip() for o in _OPERAND.findall(operands)]
    return SimpleNamespace(
        text=text,
        guard=guard,
        sense=sense,
        opcode=opcode.split("."),
        operands=[o for o in found if o],
    )
