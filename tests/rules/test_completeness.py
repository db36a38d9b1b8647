"""No valid row is missing: every combination of R, S(d) and P for inputs and outputs is tried and compared with the rules.

What is valid and yet left out stands in LEFT_OUT with its reason, and only there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial

import pytest
from completeness import missing_rows
from example_calls import CALLS, Example, Fixed, Make, cases, redrawn

from autoplan.placement import P, R, Shard
from autoplan.rules import Row

FORMS = (0, 1)  # of each call in the catalogue; later ones are degenerate: no dims, nothing repeated


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Rows of some ops that hold and are of no use; both are regular expressions."""

    ops: str
    rows: str
    reason: str


LEFT_OUT = (
    LeftOut(
        r"linear|bilinear|conv\dd|conv_transpose\dd|convolution",
        r"R (R )?P( P)? -> P",
        "nobody makes a weight that is a partial sum: it would be whole in memory, and every rank would do all of the work",
    ),
    LeftOut(
        r"(native_)?(layer|group)_norm|rms_norm|_fused_rms_norm|(batch|instance)_norm",
        r"R P( P)?( R R)? -> P( R R)?",
        "nobody makes a weight that is a partial sum; every rank would normalise all of x",
    ),
    LeftOut(
        r"scaled_dot_product_attention",
        r"R R (S\(3\)|P)( R)? -> (S\(3\)|P)",
        "linear in v, but every rank would compute all of softmax(q k), which is the work",
    ),
    LeftOut(
        r"(max|avg)_pool\dd|_?upsample_nearest(_exact)?\dd|im2col",
        r"S\([1234](,\d+)?\) -> S\([1234](,\d+)?\)",
        "positions hold only where windows lie side by side and none lies across the cut; samples and channels do as well",
    ),
    LeftOut(
        r"view|reshape|_unsafe_view|_reshape_alias|flatten|unflatten|ravel",
        r"S\(\d,\d+\) -> S\(\d,\d+\)",
        "groups on both sides: fused weights are viewed as [.., 3, heads, width], where one side has none, and these rows add a tenth "
        "to all strategies of GPT-2 on two axes (2109 instead of 1898)",
    ),
    LeftOut(
        r"view\.dtype",
        r"S\(1(,3)?\) -> S\(1(,3)?\)",
        "the last dim changes its size with the size of the elements; nobody cuts bytes",
    ),
    LeftOut(
        r"cross_entropy_loss",
        r"R P -> P",
        "linear in the probabilities it is compared with: they are data, and every rank would do all of the work",
    ),
    LeftOut(
        r"zeros|zeros_like|new_zeros",
        r"(- )?-> P",
        "a replicated value becomes a partial sum without communication (one rank keeps it), so R says it too",
    ),
    LeftOut(
        r"routed_experts",
        r"R P R R -> P",
        "linear in the scores, which a softmax or a sigmoid makes: they are no partial sums, and every rank would do all of the work",
    ),
    LeftOut(
        r"fft_i?fftshift",
        r"S\(\d,\d+\) -> S\(\d,\d+\)",
        "the halves of a dim that is cut alike in both change places: frequencies come whole out of the transform",
    ),
    LeftOut(
        r"isreal|fill\.Scalar",
        r".*",
        "the result does not depend on what is read: any layout holds; the one of x is as good, and reading x costs nothing where it is",
    ),
    LeftOut(
        r"native_dropout",
        r"S\(.*\) -> S\(.*\) S\(.*\)",
        "without dropout the mask is a constant, of which any layout holds",
    ),
)


def reasons_for(op: str, row: Row) -> list[LeftOut]:
    """The entries of LEFT_OUT that an op's row falls under."""
    name = op.partition(".")[2]
    names = (name, name.rsplit(".", 1)[0])
    return [entry for entry in LEFT_OUT if any(re.fullmatch(entry.ops, n) for n in names) and re.fullmatch(entry.rows, str(row))]


Missing = dict[tuple[str, str], list[Row]]  # by op and the name of the call


@pytest.fixture(scope="module")
def missing() -> Missing:
    """The rows missing for each call of the catalogue and of the other files, whether left out on purpose or not."""
    found: Missing = {}
    for name, make in CALLS.items():
        for form in FORMS:
            found[name.partition(",")[0], f"{name}, form {form}"] = missing_rows(partial(_catalogued, make, form))
    for name, case in cases().items():
        if "EMPTY_CASES" in name:
            continue  # what these hold is not defined: a row that they do not list may seem right by chance
        found[case[0], name] = missing_rows(partial(redrawn, case))
    return found


def _catalogued(make: Make, form: int, seed: int) -> Example:
    return make(Fixed(seed, form))


def test_every_valid_row_is_listed_or_left_out_for_a_reason(missing: Missing) -> None:
    without = [f"{op} ({name}): {row}" for (op, name), rows in missing.items() for row in rows if not reasons_for(op, row)]
    assert not without, "valid, not listed by the rule, and without a reason in LEFT_OUT:\n" + "\n".join(without)


def test_every_reason_is_needed(missing: Missing) -> None:
    used = {entry for (op, _), rows in missing.items() for row in rows for entry in reasons_for(op, row)}
    assert used == set(LEFT_OUT), f"no row is left out for: {[entry.reason for entry in LEFT_OUT if entry not in used]}"


def test_a_rule_that_lacks_rows_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """With all but the all-R row hidden, the check finds those of a linear by itself."""
    monkeypatch.setattr("completeness.rows_of", lambda call: (Row((R, R), (R,)),))
    found = missing_rows(lambda seed: CALLS["aten.linear.default, no bias"](Fixed(seed)))
    assert set(found) == {
        Row((Shard(0), R), (Shard(0),)),
        Row((R, Shard(0)), (Shard(1),)),
        Row((Shard(1), Shard(1)), (P,)),
        Row((P, R), (P,)),
        Row((R, P), (P,)),
    }
