"""Short names of arms: what all share is left out, and no two arms get one name."""

from helpers.results import make_results, make_run
from hypothesis import given
from hypothesis import strategies as st

from distill.report.arm_names import pair_label, short_names


def short(*arms, teachers=()):
    runs = [make_run(arm, role="teacher") for arm in teachers] + [make_run(arm) for arm in arms]
    return list(short_names(make_results(runs)).values())


def test_parts_in_which_arms_differ_are_kept():
    arms = [f"distilled/teacher={t}/temperature={n}" for t in ("hard", "soft") for n in (1, 4)]
    assert short("alone", *arms) == ["alone", *arms]


def test_what_all_arms_of_a_role_share_is_left_out():
    assert short("kd/teacher=t/temperature=1", "kd/teacher=t/temperature=2") == [
        "temperature=1",
        "temperature=2",
    ]
    assert short("student", teachers=["teacher/smoothing=0", "teacher/smoothing=0.1"]) == [
        "smoothing=0",
        "smoothing=0.1",
        "student",
    ]


def test_names_that_would_be_equal_stay_whole():
    values = ("smoothing=0", "smoothing=1")
    students = [f"student/{value}" for value in values]
    both = short(*students, teachers=[f"teacher/{value}" for value in values])
    assert both == [f"{head}/{value}" for head in ("teacher", "student") for value in values]


@given(
    st.lists(
        st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map("/".join),
        min_size=1,
        max_size=6,
        unique=True,
    )
)
def test_short_names_are_never_empty_nor_equal(arms):
    names = short(*arms)
    assert all(names)
    assert len(set(names)) == len(names)


def test_a_pair_is_named_by_its_difference():
    label = pair_label("distilled/teacher=hard/lr=1", "distilled/teacher=hard/lr=4")
    assert label == ("lr=4", "lr=1", "distilled/teacher=hard")
    assert pair_label("alone", "distilled/lr=4") == ("distilled/lr=4", "alone", "")
    assert pair_label("mlp", "mlp/lr=4") == ("mlp/lr=4", "mlp", "")
