"""The board: order of dependencies, longest first, timed cells alone; on random plans."""

from __future__ import annotations

from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from bench.run.board import DONE, Board
from bench.run.devices import spread


def make(key, inputs=(), timed=False, weight=1.0):
    return SimpleNamespace(
        key=key, label=key, inputs={str(i): other for i, other in enumerate(inputs)}, timed=timed, weight=weight
    )


@st.composite
def plans(draw):
    cells = []
    for index in range(draw(st.integers(1, 12))):
        inputs = draw(st.sets(st.integers(0, index - 1), max_size=3)) if index else set()
        cells.append(
            make(f"c{index}", [f"c{i}" for i in sorted(inputs)], draw(st.booleans()), draw(st.sampled_from([1.0, 2.0])))
        )
    return cells


@given(plans(), st.integers(1, 4), st.randoms(use_true_random=False))
def test_every_cell_runs_once_after_its_inputs_and_timed_ones_alone(cells, jobs, random):
    board = Board(cells)
    board.open()
    running, started = [], []
    while True:
        while len(running) < jobs and (key := board.take()):
            assert all(board.state[other] in DONE for other in board.cells[key].inputs.values())
            running.append(key)
            started.append(key)
        timed = [key for key in running if board.cells[key].timed]
        assert not timed or len(running) == 1
        if not running:
            break
        board.done(running.pop(random.randrange(len(running))))
    assert sorted(started) == sorted(board.cells)
    assert board.counts["ok"] == len(cells)


@given(plans(), st.integers(1, 3), st.integers(1, 7), st.randoms(use_true_random=False))
def test_timed_cells_are_alone_on_their_device_and_the_others_share_the_room(cells, gpus, jobs, random):
    board = Board(cells)
    board.devices = spread([f"cuda:{index}" for index in range(gpus)], jobs)
    board.open()
    while True:
        while key := board.take():
            assert key in next(device for device in board.devices if device.name == board.device(key)).cells
        for device in board.devices:
            timed = [key for key in device.cells if board.cells[key].timed]
            assert len(device.cells) <= (1 if timed else device.room)
        assert board.running == set().union(*(device.cells for device in board.devices))
        ready = [cell for cell in cells if board.state[cell.key] == "planned" and all_done(board, cell)]
        if not all(device.cells for device in board.devices):
            assert not ready  # no device is idle while there is work
        if not board.running:
            break
        board.done(random.choice(sorted(board.running)))
    assert board.counts["ok"] == len(cells)


def all_done(board, cell):
    return all(board.state[other] in DONE for other in cell.inputs.values())


@given(plans(), st.randoms(use_true_random=False))
def test_a_failure_skips_exactly_what_builds_on_it(cells, random):
    board = Board(cells)
    board.open()
    bad = random.choice(cells).key
    while key := board.take():
        if key == bad:
            board.fail(key, "failed", "why")
        else:
            board.done(key)
    lost = {bad}
    for cell in cells:
        if lost & set(cell.inputs.values()):
            lost.add(cell.key)
    assert {key for key, state in board.state.items() if state not in DONE} == lost
    assert all(board.reason[key] == f"because {bad} failed" for key in lost - {bad})


def test_longest_first_then_plan_order():
    board = Board([make("a"), make("b", weight=3.0), make("c", weight=2.0), make("d")])
    board.open()
    assert [board.take() for _ in range(5)] == ["b", "c", "a", "d", None]


def test_timed_cells_follow_each_other_without_draining_in_between():
    board = Board([make("t1", timed=True), make("t2", timed=True), make("u", weight=9.0), make("after", ["t1"])])
    board.open()
    order = []
    while key := board.take():
        order.append(key)
        board.done(key)
    assert order == ["u", "t1", "t2", "after"]


def test_a_cell_put_back_runs_before_those_that_build_on_it():
    board = Board([make("a"), make("b", ["a"]), make("c", ["b"])])
    board.done("a", "cached")
    board.open()
    assert board.take() == "b"
    board.again("b")
    board.again("a")  # its stored result turned out damaged
    order = []
    while key := board.take():
        order.append(key)
        board.done(key)
    assert order == ["a", "b", "c"]


def test_a_cell_computed_elsewhere_takes_no_place():
    board = Board([make("t", timed=True), make("u")])
    board.open()
    assert board.take() == "u"
    assert board.take() is None
    board.leave("u")
    assert board.take() == "t"
    board.done("u")
    board.done("t")
    assert board.counts["ok"] == 2
