"""Whether text can be read on what is behind it."""

from __future__ import annotations


def contrast(page, selector: str, colour: str = "color") -> float:
    """WCAG contrast of the first match's text against the page's background."""

    def luminance(value: str) -> float:
        parts = value[value.index("(") + 1 : -1].replace(",", " ").split()[:3]
        channels = [float(part) / 255 for part in parts]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    element = page.locator(selector).first
    front = luminance(element.evaluate(f"e => getComputedStyle(e).{colour}"))
    back = luminance(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    return (max(front, back) + 0.05) / (min(front, back) + 0.05)
