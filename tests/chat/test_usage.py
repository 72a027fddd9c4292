"""The sum of reports, and the table that shows it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from scripted_sgl import MakeReport

from langchain_sgl.usage.usage import SGLUsage, usage_table

counts = st.integers(0, 1000)
amounts = st.integers(0, 1000).map(float)  # floats that add up exactly
usages = st.builds(
    SGLUsage,
    calls=counts,
    escalations=counts,
    visual_tokens=counts,
    small_tflops=amounts,
    large_alone_tflops=amounts,
    stage_ms=st.dictionaries(st.sampled_from(["encode_small", "generate_large", "total"]), amounts),
    errors=counts,
)


@given(usages, usages, usages)
def test_addition_is_associative_and_nothing_is_neutral(a: SGLUsage, b: SGLUsage, c: SGLUsage) -> None:
    assert (a + b) + c == a + (b + c)
    assert a + SGLUsage() == a == SGLUsage() + a
    assert a + b == b + a


def test_every_field_is_added() -> None:
    ones = SGLUsage(
        **{name: 1 for name in SGLUsage.model_fields if name != "stage_ms"}, stage_ms={"total": 1}
    )
    twos = SGLUsage(
        **{name: 2 for name in SGLUsage.model_fields if name != "stage_ms"}, stage_ms={"total": 2}
    )
    assert ones + ones == twos


def test_it_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        SGLUsage().calls = 3  # type: ignore[misc]


def test_an_exit_prunes_nothing_and_an_escalation_what_it_did_not_keep(make_report: MakeReport) -> None:
    left = SGLUsage.from_report(make_report().model_dump(mode="json"))
    assert (left.exits, left.escalations) == (1, 0)
    assert (left.visual_tokens, left.kept_visual_tokens, left.pruned_visual_tokens) == (144, 0, 0)
    escalated = make_report(route="large", escalated=True, kept_visual_tokens=28, large_agreed=True)
    asked = SGLUsage.from_report(escalated.model_dump(mode="json"))
    assert (asked.exits, asked.escalations, asked.large_agreed) == (0, 1, 1)
    assert (asked.visual_tokens, asked.kept_visual_tokens, asked.pruned_visual_tokens) == (144, 28, 116)


def test_savings_may_be_negative(make_report: MakeReport) -> None:
    dear = make_report(route="large", escalated=True, kept_visual_tokens=144, large_tflops=0.004)
    usage = SGLUsage.from_report(dear.model_dump(mode="json"))
    assert usage.saved_tflops == pytest.approx(-0.001)
    assert usage.saved_fraction == pytest.approx(-0.25)


def test_nothing_used_has_no_rates_to_divide_by() -> None:
    nothing = SGLUsage()
    assert (nothing.escalation_rate, nothing.saved_fraction, nothing.total_ms) == (0.0, 0.0, 0.0)
    assert usage_table({"all": nothing}).splitlines()[2].split() == ["calls", "0"]


def test_the_table(make_report: MakeReport) -> None:
    left = SGLUsage.from_report(make_report(forced=True).model_dump(mode="json"))
    asked = SGLUsage.from_report(
        make_report(
            route="large",
            escalated=True,
            kept_visual_tokens=28,
            large_tflops=0.002,
            large_agreed=True,
            large_input_tokens=160,
            large_output_tokens=4,
            stage_ms={"encode_small": 3.0, "generate_large": 62.0, "total": 65.0},
        ).model_dump(mode="json")
    )
    table = usage_table({"little + big": left + left + left + asked + SGLUsage(errors=2)})
    assert table == TABLE


TABLE = """\
SGL usage                     little + big
────────────────────────────────────────────────
calls                                    4
  small model alone                      3   75%
  escalated                              1   25%
    large model agreed                   1  100%
  route forced                           3   75%
calls that failed                        2
visual tokens                          576
  pruned for the large model           116   20%
  kept for the large model              28    5%
GFLOPs, large model alone             16.0
GFLOPs used                            6.0   38%
  small model                          4.0   25%
  large model                          2.0   12%
GFLOPs saved                          10.0   62%
tokens in, small model                 640
tokens out, small model                 12
tokens in, large model                 160
tokens out, large model                  4
milliseconds                           110
  encode small                          12   11%
  generate small                        35   32%
  generate large                        62   56%
  waiting, other                         1    1%
  per call                              28"""


@pytest.mark.parametrize(
    ("tera", "shown"),
    [(1234.0, "TFLOPs, large model alone 1234"), (2e-5, "MFLOPs, large model alone 20.0")],
)
def test_operations_are_shown_in_a_unit_that_fits(tera: float, shown: str) -> None:
    table = usage_table({"all": SGLUsage(calls=1, large_alone_tflops=tera)})
    assert shown in [" ".join(line.split()) for line in table.splitlines()]


def test_columns_are_as_wide_as_they_need_to_be() -> None:
    title = "a-model-with-a-very-long-name" * 8
    assert title in usage_table({title: SGLUsage(calls=1)})
