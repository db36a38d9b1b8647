"""Measuring the machine that this runs on: what is timed, how, and the hardware profile that predicts it best.

works, shapes       what is timed, as the cost model sees it, and which of it on a GPU and on a CPU
clock               seconds of a run, at work
ops, links, host    the works run: single ops, collectives, what the host is busy with
measure             all of them, on all ranks; a work that fails is left out, with the reason
evidence            what came of it
numbers, search     numbers of a profile sought by the very functions that predict
fit                 the whole profile
profile             its file, with the source of every number
residuals           what the file predicts, beside what was measured
"""
