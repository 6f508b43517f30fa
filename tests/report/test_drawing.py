"""Which runs are in which figure."""

from types import SimpleNamespace

from helpers.results import make_results, make_run

from distill.report.drawing import figure_five, information_by_epoch, temperature_maps
from distill.storage.study_results import InformationEstimate


def teacher(smoothing, term="cross_entropy"):
    loss = {term: {"smoothing": smoothing}}
    name = f"t/smoothing={smoothing}"
    return make_run(name, role="teacher", smoothing=smoothing, loss=loss, test={"top1": 0.9})


def student(smoothing, temperature, term="kd"):
    return make_run(
        f"s/{term}/temperature={temperature}/teacher.smoothing={smoothing}",
        teacher=f"t/smoothing={smoothing}-0",
        loss={term: {"temperature": temperature}},
        temperature=temperature,
        axes={f"{term}.temperature": temperature, "teacher.smoothing": smoothing},
        test={"top1": 0.8},
        train={"effective_smoothing": 0.1},
    )


def alone(smoothing, term="cross_entropy"):
    loss = {term: {"smoothing": smoothing}}
    return make_run(f"alone/{term}/{smoothing}", smoothing=smoothing, loss=loss)


def store(runs):
    """A stand-in for the run store, with the settings of the teachers' runs."""
    losses = {run.id: run.loss for run in runs}
    return SimpleNamespace(
        record=lambda run_id: {"settings": {"seed": 0, "loss": losses[run_id], "model": "m"}}
    )


def test_a_temperature_map_exists_for_any_loss_and_any_smoothing_term():
    for term, teacher_term in (("kd", "cross_entropy"), ("dkd", "poly1"), ("dist", "sm_softmax")):
        runs = [teacher(0.0, teacher_term), teacher(0.1, teacher_term)]
        runs += [student(s, t, term) for s in (0.0, 0.1) for t in (1, 4)]
        maps = temperature_maps(make_results(runs), store(runs))
        (group,) = maps.values()
        assert set(group) == {(0.0, 1), (0.0, 4), (0.1, 1), (0.1, 4)}


def test_a_map_needs_two_smoothings_and_two_temperatures():
    runs = [teacher(0.0), teacher(0.1), student(0.0, 1), student(0.0, 4)]
    assert temperature_maps(make_results(runs), store(runs)) == {}


def test_figure_five_has_a_curve_for_each_kind_of_softening():
    runs = [teacher(0.0), teacher(0.1), alone(0.0), alone(0.1)]
    runs += [student(s, t) for s in (0.0, 0.1) for t in (1, 4)]
    curves = figure_five(make_results(runs))
    sizes = {name.split(",")[0]: len(points) for name, points in curves.items()}
    assert sizes == {
        "teacher": 2,
        "student alone": 2,
        "student of the hard teacher": 2,
        "student of smoothed teachers": 2,
    }


def test_a_curve_of_figure_five_has_one_loss():
    runs = [teacher(0.0), teacher(0.1), alone(0.0), alone(0.1), alone(0.0, "poly1")]
    runs += [student(0.0, t) for t in (1, 4)] + [student(0.0, 2, "dkd")]
    curves = figure_five(make_results(runs))
    for points in curves.values():
        assert len({tuple(run.loss) for arm in points for run in arm}) == 1
        assert len(points) <= 2


def test_figure_five_needs_two_curves_of_two_points():
    assert figure_five(make_results([teacher(0.0), teacher(0.1), student(0.0, 1)])) == {}


def test_information_is_drawn_at_the_epochs_that_all_seeds_have():
    def run(seed, *nats_by_epoch):
        return make_run(
            seed=seed, information=[InformationEstimate(e, n, 9) for e, n in nats_by_epoch]
        )

    runs = [run(0, (0, 0.1), (2, None), (4, 0.3)), run(1, (0, 0.2), (2, 0.2), (4, 0.4))]
    assert information_by_epoch(runs) == [[(0, 0.1), (4, 0.3)], [(0, 0.2), (4, 0.4)]]
    assert information_by_epoch([*runs[:1], run(1, (4, 0.4))]) == []
