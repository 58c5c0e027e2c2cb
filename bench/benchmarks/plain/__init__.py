"""The other side of every benchmark: the same work the way the field's code does it.

Written for the comparison, in the manner of the public repositories of the field and with none of their lines: plain
modules and loops, one network and one class after the other, fp32 eager, `DataLoader`, tensors made element by
element. Randomness comes from generators, drawn as ddbench draws it, so that both sides can be compared number by
number; that costs as much as drawing from the global one.
"""
