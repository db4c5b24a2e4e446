"""Bugs that leave a component of a run out of its checkpoint, or of what is taken over from it."""

from __future__ import annotations

from tests.planted import PlantedBug

_STATE = "tests/training/engine/test_checkpoint_state.py"
_READ = "training/engine/checkpoint_state.py"

BUGS = [
    PlantedBug(
        "weights of the model not taken over",
        _READ,
        ("        pieces = [_weight(shard_of(each, name), each, store) for name, each in named]\n"),
        "        pieces = []\n",
        _STATE,
    ),
    PlantedBug(
        "fp32 weights not taken over",
        _READ,
        "    yield Piece(_master_key(part.shard, store), part.shard, part.start, part.master)\n",
        "",
        _STATE,
    ),
    PlantedBug(
        "fp32 weights not written",
        _READ,
        '        tensors = {name: part.weight, f"{MASTER}/{name}": part.master}\n',
        "        tensors = {name: part.weight}\n",
        _STATE,
    ),
    PlantedBug(
        "first moments not taken over",
        _READ,
        "    return sorted(kinds - {MASTER})",
        '    return sorted(kinds - {MASTER, "exp_avg"})',
        _STATE,
    ),
    PlantedBug(
        "second moments not taken over",
        _READ,
        "    return sorted(kinds - {MASTER})",
        '    return sorted(kinds - {MASTER, "exp_avg_sq"})',
        _STATE,
    ),
    PlantedBug(
        "schedule begins anew",
        "training/loop.py",
        "        run.config.optimizer.learning_rate,\n        step,\n",
        "        run.config.optimizer.learning_rate,\n        step - run.start.step,\n",
        "tests/training/test_loop.py -k resumed_run",
    ),
    PlantedBug(
        "a blend counts what it has taken of each dataset since the start of the process",
        "data/blend.py",
        "            which, sample = place_of(self._index, self._first + number)\n",
        (
            "            which, _ = place_of(self._index, self._first + number)\n"
            '            taken = self.__dict__.setdefault("_taken", [0] * len(self._datasets))\n'
            "            sample, taken[which] = taken[which], taken[which] + 1\n"
        ),
        "tests/data/test_loader.py -k resume_continues",
    ),
    PlantedBug(
        "first sample of a phase of the data forgotten",
        "training/data_order.py",
        "stored.first_sample if same else found.consumed_samples",
        "0 if same else found.consumed_samples",
        "tests/integration/test_phases.py",
    ),
    PlantedBug(
        "phase of the data left out",
        "training/loop.py",
        "state.consumed_samples, best=best, history=history, data=data",
        "state.consumed_samples, best=best, history=history",
        "tests/integration/test_phases.py",
    ),
    PlantedBug(
        "losses of other data taken over into a phase",
        "training/anomalies/guard.py",
        ' if name != "losses"}',
        "}",
        "tests/integration/test_phases.py",
    ),
    PlantedBug(
        "datasets at other places told apart by their size alone",
        "training/data_order.py",
        "        if source.sides == was.sides:\n",
        "        if source.describe() == was.describe():\n",
        "tests/training/test_data_order.py -k other_data",
    ),
    PlantedBug(
        "what a phase of the data jumps over is counted from the start of the run",
        "data/loader.py",
        "inside = [(a - first, b - first) for",
        "inside = [(a, b) for",
        "tests/integration/test_phases.py -k rewind",
    ),
    PlantedBug(
        "a run begins anew over a mirror of which nothing is good",
        "training/resuming.py",
        "            if partial_folder is None and lines and not damaged:\n",
        "            if partial_folder is None and lines and damaged:\n",
        "tests/training/test_mirroring.py -k begin_anew",
    ),
    PlantedBug(
        "a manifest that a mirror has lost is passed by in silence",
        "checkpoint/mirror.py",
        "            names = {*self.stored.names(), *self.stored.lost()}\n",
        "            names = set(self.stored.names())\n",
        "tests/checkpoint/test_mirror.py -k lost",
    ),
    PlantedBug(
        "tokenizer left out",
        "training/saving.py",
        "            write_tokenizer_files(folder, self.tokenizer_files)\n",
        "",
        "tests/training/test_saving.py -k whole",
    ),
]
