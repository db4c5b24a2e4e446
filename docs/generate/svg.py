"""Small SVG files: boxes, texts and arrows, in a colour that light and dark pages both carry."""

from __future__ import annotations

_INK = "#78909c"


class Svg:
    """A picture of `width` x `height` pixels that is put together piece by piece."""

    def __init__(self, width: float, height: float, title: str) -> None:
        self._lines = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
            f'width="{width:g}" height="{height:g}" font-family="sans-serif">',
            f"<title>{title}</title>",
            '<defs><marker id="tip" markerWidth="8" markerHeight="8" refX="7" refY="4" '
            f'orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="{_INK}"/></marker></defs>',
        ]

    def box(
        self, x: float, y: float, width: float, height: float, *, fill: str, stroke: str
    ) -> None:
        """A rectangle with round corners."""
        self._lines.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6" '
            f'fill="{fill}" stroke="{stroke}"/>'
        )

    def text(self, x: float, y: float, text: str, size: int = 14, *, colour: str = _INK) -> None:
        """A line of text, centred at `x`."""
        self._lines.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="middle" '
            f'fill="{colour}">{text}</text>'
        )

    def arrow(self, x: float, y: float, to_x: float, to_y: float) -> None:
        """A line with a tip at its end."""
        self._lines.append(
            f'<line x1="{x:g}" y1="{y:g}" x2="{to_x:g}" y2="{to_y:g}" stroke="{_INK}" '
            'stroke-width="1.5" marker-end="url(#tip)"/>'
        )

    def write(self) -> str:
        """The whole file."""
        return "\n".join([*self._lines, "</svg>", ""])
