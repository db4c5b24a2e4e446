"""Pictures that follow from the code: where ranks stand in a layout, from the topology itself."""

from __future__ import annotations

from docs.generate.svg import Svg
from roots.parallel.topology import Topology

_CELL, _GAP, _MARGIN = 58, 8, 16
# One colour a data-parallel index: ranks of one colour hold the same samples.
_COLOURS = ("#4db6ac", "#ffb74d", "#7986cb", "#e57373")


def ranks_picture(tensor: int = 2, pipeline: int = 2, data: int = 2) -> str:
    """SVG of `tensor` x `pipeline` x `data` ranks: rows are stages, columns replicas and shards."""
    topology = Topology(tensor=tensor, data=data, pipeline=pipeline)
    group = tensor * _CELL + 2 * _GAP
    left, top = 90, 52
    width = left + data * (group + _GAP) + _MARGIN
    height = top + pipeline * (_CELL + 3 * _GAP) + 40
    svg = Svg(width, height, f"{topology.world_size} ranks: tensor, pipeline and data parallel")
    for replica in range(data):
        x = left + replica * (group + _GAP)
        svg.text(x + group / 2, top - 16, f"replica {replica}")
        for stage in range(pipeline):
            y = top + stage * (_CELL + 3 * _GAP)
            svg.box(x, y, group, _CELL + 2 * _GAP, fill="none", stroke="#90a4ae")
            for shard in range(tensor):
                rank = topology.rank_of(tensor=shard, data=replica, pipeline=stage)
                cell = x + _GAP + shard * _CELL
                colour = _COLOURS[replica % len(_COLOURS)]
                svg.box(cell + 2, y + _GAP, _CELL - 4, _CELL, fill=colour, stroke="none")
                svg.text(cell + _CELL / 2, y + _GAP + 27, f"rank {rank}", colour="#102027")
                svg.text(cell + _CELL / 2, y + _GAP + 44, f"shard {shard}", 11, colour="#102027")
    for stage in range(pipeline):
        y = top + stage * (_CELL + 3 * _GAP) + _GAP + _CELL / 2
        svg.text(left / 2 - 4, y + 5, f"stage {stage}")
    svg.text(width / 2, height - 12, "a frame: ranks that cut the same layers between them", 12)
    return svg.write()


def flow_picture() -> str:
    """SVG of the way from text to a model that others load."""
    steps = (
        ("text", "tokenizer train"),
        ("tokens", "preprocess"),
        ("training", "train"),
        ("checkpoint", ""),
    )
    ends = ("generate", "evaluate", "export")
    box, gap, top = 116, 74, 66
    svg = Svg(4 * box + 4 * gap + 130, 170, "from text to a model that others load")
    for place, (name, command) in enumerate(steps):
        x = 8 + place * (box + gap)
        svg.box(x, top, box, 44, fill=_COLOURS[0], stroke="none")
        svg.text(x + box / 2, top + 27, name, colour="#102027")
        if command:
            svg.arrow(x + box + 4, top + 22, x + box + gap - 4, top + 22)
            svg.text(x + box + gap / 2, top - 12, command, 11)
    start = 8 + 4 * box + 3 * gap
    for place, name in enumerate(ends):
        y = 14 + place * 52
        svg.arrow(start + 4, top + 22, start + gap - 4, y + 20)
        svg.box(start + gap, y, box, 40, fill=_COLOURS[1], stroke="none")
        svg.text(start + gap + box / 2, y + 25, name, colour="#102027")
    return svg.write()
