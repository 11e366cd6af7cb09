"""Tables as text: columns for terminals and Markdown, numbers as people read them."""

from collections.abc import Sequence


def aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Columns under a header and a rule, the first to the left, the others to the right."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    shown = [
        "  ".join(
            text.ljust(w) if column == 0 else text.rjust(w) for column, (text, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    return [shown[0], "─" * len(shown[0]), *shown[1:]]


def markdown(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its first column to the left, the others to the right."""
    rule = [":--" if column == 0 else "--:" for column in range(len(header))]
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *body))


def signed(share: float, digits: int = 2) -> str:
    """A share as per cent, with its sign."""
    return f"{100 * share:+.{digits}f}".replace("-", "−")


def format_p(p: float) -> str:
    """A p-value with as many digits as it deserves."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"
